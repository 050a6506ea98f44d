"""What the node can do to the desktop: screenshot, mouse and keyboard (node-protocol.md section 6)."""

from sandbox.node.desktop.actions import Desktop

__all__ = ["Desktop"]
