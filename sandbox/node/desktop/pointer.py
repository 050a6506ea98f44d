"""The mouse pointer, through the XTEST extension."""

import time
from typing import Any

import Xlib.ext.xtest
import Xlib.X

from sandbox.node.desktop.arguments import MouseArguments

_BUTTONS = {"left": 1, "middle": 2, "right": 3}
_STEP_SECONDS = 1 / 60
_FEWEST_DRAG_STEPS = 12


class Pointer:
    """Moves and clicks on one display."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._root = display.screen().root

    def carry_out(self, wanted: MouseArguments) -> None:
        """Do one action; a drag starts where the pointer is (node-protocol.md section 6.2)."""
        button = _BUTTONS[wanted.button]
        steps = max(1, round(wanted.duration / _STEP_SECONDS))
        if wanted.action == "drag":
            self._button(Xlib.X.ButtonPress, button)
            try:
                # Programs tell a drag from a click by the motion between press and release.
                self._glide(wanted, max(steps, _FEWEST_DRAG_STEPS))
            finally:
                self._button(Xlib.X.ButtonRelease, button)
            return
        self._glide(wanted, steps)
        if wanted.action == "click":
            self._button(Xlib.X.ButtonPress, button)
            self._button(Xlib.X.ButtonRelease, button)

    def _glide(self, wanted: MouseArguments, steps: int) -> None:
        start = self._root.query_pointer()
        for step in range(1, steps + 1):
            x = start.root_x + (wanted.x - start.root_x) * step // steps
            y = start.root_y + (wanted.y - start.root_y) * step // steps
            Xlib.ext.xtest.fake_input(self._display, Xlib.X.MotionNotify, x=x, y=y)
            self._display.sync()
            if step < steps and wanted.duration:
                time.sleep(wanted.duration / steps)

    def _button(self, event: int, button: int) -> None:
        Xlib.ext.xtest.fake_input(self._display, event, button)
        self._display.sync()
