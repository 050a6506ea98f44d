"""The desktop as a set of operations, and the evidence they return (node-protocol.md section 6.3)."""

import base64
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sandbox.log import log
from sandbox.node.desktop import arguments
from sandbox.node.tasks import TaskFailed

if TYPE_CHECKING:
    from sandbox.node.desktop.screen import Screen

_DISPLAY_SECONDS = 10.0
_RETRY_SECONDS = 0.02


class Desktop:
    """Screenshot, mouse and keyboard of one X display. Only for one thread at a time.

    Attributes:
        capabilities: descriptor ids to advertise, in the order of section 5.2.
        operations: by the ``op`` of a Desktop action's args.
    """

    capabilities: Final = ("tyrum.desktop.screenshot", "tyrum.desktop.mouse", "tyrum.desktop.keyboard")

    def __init__(self, display_name: str) -> None:
        self._display_name = display_name
        self._screen: Screen | None = None
        self.operations: Final[Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
            "screenshot": self.screenshot,
            "mouse": self.mouse,
            "keyboard": self.keyboard,
        }

    def warm_up(self) -> None:
        """Connect to the X server ahead of the first task; a failure waits for that task to report it."""
        try:
            self._connected()
        except TaskFailed as error:
            log("node", str(error))

    def screenshot(self, args: dict[str, Any]) -> dict[str, Any]:
        """The whole screen as PNG.

        Raises:
            TaskFailed: wrong args, or no X server.
        """
        arguments.check_screenshot(args)
        from sandbox.node.desktop import png

        image = self._connected().capture()
        data = png.encode(image.width, image.height, image.rgb)
        return {
            "type": "screenshot",
            "mime": "image/png",
            "width": image.width,
            "height": image.height,
            "bytesBase64": base64.b64encode(data).decode("ascii"),
            "timestamp": _now(),
        }

    def mouse(self, args: dict[str, Any]) -> dict[str, Any]:
        """Move, click or drag.

        Raises:
            TaskFailed: wrong args, or no X server.
        """
        screen = self._connected()
        wanted = arguments.parse_mouse(args, screen.width, screen.height)
        screen.pointer.carry_out(wanted)
        return {"type": "mouse", "action": wanted.action, "x": args["x"], "y": args["y"], "timestamp": _now()}

    def keyboard(self, args: dict[str, Any]) -> dict[str, Any]:
        """Type a text or press one key.

        Raises:
            TaskFailed: wrong args, a character or key that cannot be typed, or no X server.
        """
        wanted = arguments.parse_keyboard(args)
        keyboard = self._connected().keyboard
        if wanted.action == "type":
            keyboard.type(wanted.value)
        else:
            keyboard.press(wanted.value)
        name = "text" if wanted.action == "type" else "key"
        return {"type": "keyboard", "action": wanted.action, name: wanted.value, "timestamp": _now()}

    def _connected(self) -> "Screen":
        if self._screen is None:
            # Xlib is imported here and not above: 25 ms that the way to the gateway need not wait for.
            from sandbox.node.desktop.screen import Screen, ScreenUnavailable

            deadline = time.monotonic() + _DISPLAY_SECONDS
            while self._screen is None:
                try:
                    self._screen = Screen(self._display_name)
                except ScreenUnavailable as error:
                    if time.monotonic() >= deadline:
                        raise TaskFailed(f"backend error: {error}") from error
                    time.sleep(_RETRY_SECONDS)
        return self._screen


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
