"""Every bound of the gateway in one place, with its reason."""

from dataclasses import dataclass
from typing import Any, Final

UVICORN_SETTINGS: Final[dict[str, Any]] = {
    # Protocol section 4.1: a ping every 5 s, gone after 10 s without its pong.
    "ws_ping_interval": 5.0,
    "ws_ping_timeout": 10.0,
    # A screenshot is one text frame: an uncompressed-looking 4K PNG in base64 is about 44 MiB.
    "ws_max_size": 64 * 1024 * 1024,
    # Screenshots do not compress, and a compressed frame can blow up; a node that offers it lives without.
    "ws_per_message_deflate": False,
    # A sandbox must not choose the address it is known by.
    "proxy_headers": False,
    "timeout_graceful_shutdown": 5,
}
"""What the node listener's uvicorn has to be given."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one gateway; times in seconds.

    Attributes:
        handshake_timeout: from the token's acceptance to the proof (protocol section 3.4).
        early_frames, early_bytes: taken before the token is known (protocol section 1.1).
        handshake_bytes: one frame of the handshake; the largest real one is about 3 KiB.
        send_timeout: a peer that takes nothing for so long is dropped as a slow consumer.
        failures_per_window, failure_window: refused upgrades and handshakes of one address before it must show
            a live node token first.
        pending_per_credential: unfinished handshakes of one token at once.
        reconnect_grace: what a node connected to the former process is given to come back.
        revocation_interval: how often live sockets' tokens are checked.
        wait_margin: what dispatch adds to a node's own wait (protocol section 12, 18).
        frame_bytes: one task sent to a node.
    """

    handshake_timeout: float = 10.0
    early_frames: int = 8
    early_bytes: int = 64 * 1024
    handshake_bytes: int = 64 * 1024
    send_timeout: float = 10.0
    failures_per_window: int = 20
    failure_window: float = 60.0
    pending_per_credential: int = 8
    reconnect_grace: float = 45.0
    revocation_interval: float = 0.5
    wait_margin: float = 5.0
    frame_bytes: int = 8 * 1024 * 1024
