"""The keyboard, through the XTEST extension, including characters the keyboard map lacks."""

import time
from dataclasses import dataclass
from typing import Any, Final

import Xlib.ext.xtest
import Xlib.X

from sandbox.node.desktop.keynames import UnknownKey, keysym_of_name, keysyms_of_text
from sandbox.node.tasks import TaskFailed

_SHIFT: Final = 0xFFE1
_SYNC_EVERY = 32
# A program reads the keyboard map only when it handles a key, so a keycode may get another meaning only after
# the programs had time for its last one. xterm takes 0.3 s to look for a font with the first rare character.
_SETTLE_SECONDS = 0.6


@dataclass(frozen=True)
class _Key:
    keycode: int
    shifted: bool


class Keyboard:
    """Types on one display."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._borrowed: list[int] = []
        self._last_typed = 0.0

    def type(self, text: str) -> None:
        """Type `text` into whatever has the focus.

        Raises:
            TaskFailed: a character cannot be typed; nothing was typed then.
        """
        try:
            keysyms = keysyms_of_text(text)
        except UnknownKey as error:
            raise TaskFailed(f"invalid args: {error}") from error
        position = 0
        while position < len(keysyms):
            keys = self._learn(keysyms[position:])
            for count, keysym in enumerate(keysyms[position:]):
                if keysym not in keys:
                    break
                self._tap(keys[keysym], keys[_SHIFT].keycode)
                if count % _SYNC_EVERY == 0:
                    self._display.sync()
                position += 1
            self._display.sync()
            self._last_typed = time.monotonic()

    def press(self, name: str) -> None:
        """Press and release the key with the nut-js `name`.

        Raises:
            TaskFailed: there is no such key.
        """
        try:
            keysym = keysym_of_name(name)
        except UnknownKey as error:
            raise TaskFailed(f"invalid args: {error}") from error
        keys = self._learn([keysym])
        self._tap(keys[keysym], keys[_SHIFT].keycode)
        self._display.sync()
        self._last_typed = time.monotonic()

    def _tap(self, key: _Key, shift: int) -> None:
        fake = Xlib.ext.xtest.fake_input
        if key.shifted:
            fake(self._display, Xlib.X.KeyPress, shift)
        fake(self._display, Xlib.X.KeyPress, key.keycode)
        fake(self._display, Xlib.X.KeyRelease, key.keycode)
        if key.shifted:
            fake(self._display, Xlib.X.KeyRelease, shift)

    def _learn(self, keysyms: list[int]) -> dict[int, _Key]:
        """Keys for `keysyms` and shift, as many from the front as fit.

        Missing ones are put on unused keycodes. The map is read anew each time, because a VNC viewer
        changes it as well.
        """
        first = self._display.display.info.min_keycode
        count = self._display.display.info.max_keycode - first + 1
        rows = self._display.get_keyboard_mapping(first, count)
        keys: dict[int, _Key] = {}
        for offset, row in enumerate(rows):
            for level, keysym in enumerate(row[:2]):
                if keysym:
                    keys.setdefault(keysym, _Key(first + offset, shifted=level == 1))
        self._undo_caps_lock(keys, rows, first)
        free = [first + offset for offset, row in enumerate(rows) if not any(row)]
        missing = [keysym for keysym in dict.fromkeys(keysyms) if keysym not in keys]
        if missing and not free:
            time.sleep(max(0.0, self._last_typed + _SETTLE_SECONDS - time.monotonic()))
            free, self._borrowed = self._borrowed, []
            keys = {keysym: key for keysym, key in keys.items() if key.keycode not in free}
            missing = [keysym for keysym in dict.fromkeys(keysyms) if keysym not in keys]
        if missing and not free:
            raise TaskFailed("backend error: the keyboard map has no unused keycode")
        for keysym, keycode in zip(missing, reversed(free), strict=False):
            # The same on both levels, so that it comes out whatever modifiers are locked.
            self._display.change_keyboard_mapping(keycode, [(keysym, keysym)])
            self._borrowed.append(keycode)
            keys[keysym] = _Key(keycode, shifted=False)
        if missing:
            self._display.sync()
        return keys

    def _undo_caps_lock(self, keys: dict[int, _Key], rows: Any, first: int) -> None:
        mask = self._display.screen().root.query_pointer().mask
        if not mask & Xlib.X.LockMask:
            return
        for keysym, key in list(keys.items()):
            lower, upper = rows[key.keycode - first][:2]
            if lower != upper and 0x61 <= lower <= 0x7A:
                keys[keysym] = _Key(key.keycode, not key.shifted)
