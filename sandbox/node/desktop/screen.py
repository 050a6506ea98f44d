"""One connection to the X server: its size, its picture, its pointer and keyboard."""

from dataclasses import dataclass

import Xlib.display
import Xlib.error
import Xlib.X

from sandbox.node.desktop.keyboard import Keyboard
from sandbox.node.desktop.pixels import to_rgb
from sandbox.node.desktop.pointer import Pointer

# Xlib copies everything received so far for every 4 KiB it reads, so one request for the whole screen would
# take ten times as long as the same in strips.
_STRIP_ROWS = 32


class ScreenUnavailable(Exception):
    """No X server answers, or not one this node can work with."""


@dataclass(frozen=True)
class Image:
    """A picture: `width` x `height` pixels, three bytes each, rows from the top."""

    width: int
    height: int
    rgb: bytes


class Screen:
    """The default screen of a display."""

    def __init__(self, display_name: str) -> None:
        """Connect.

        Raises:
            ScreenUnavailable: no X server answers on `display_name`, or it lacks the XTEST extension.
        """
        try:
            self._display = Xlib.display.Display(display_name)
        except (Xlib.error.DisplayError, Xlib.error.ConnectionClosedError, OSError) as error:
            raise ScreenUnavailable(f"no X server on {display_name}: {error}") from error
        if not self._display.has_extension("XTEST"):
            raise ScreenUnavailable("the X server has no XTEST extension")
        screen = self._display.screen()
        self._root = screen.root
        self._depth: int = screen.root_depth
        self.width: int = screen.width_in_pixels
        self.height: int = screen.height_in_pixels
        self.pointer = Pointer(self._display)
        self.keyboard = Keyboard(self._display)

    def capture(self) -> Image:
        """The screen as it is now, without the pointer."""
        strips = []
        # Grabbed, so that the strips belong to one moment.
        self._display.grab_server()
        try:
            for top in range(0, self.height, _STRIP_ROWS):
                rows = min(_STRIP_ROWS, self.height - top)
                strip = self._root.get_image(0, top, self.width, rows, Xlib.X.ZPixmap, 0xFFFFFFFF)
                strips.append(strip.data)
        finally:
            self._display.ungrab_server()
            self._display.flush()
        return Image(self.width, self.height, to_rgb(b"".join(strips), self._depth, self.width, self.height))
