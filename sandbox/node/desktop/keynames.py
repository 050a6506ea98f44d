"""Key names of nut-js and characters, as X keysyms."""

from typing import Final

_NAMED: Final = {
    "Escape": 0xFF1B, "Print": 0xFF61, "ScrollLock": 0xFF14, "Pause": 0xFF13, "Grave": 0x60, "Minus": 0x2D,
    "Equal": 0x3D, "Backspace": 0xFF08, "Insert": 0xFF63, "Home": 0xFF50, "PageUp": 0xFF55, "NumLock": 0xFF7F,
    "NumPadEqual": 0xFFBD, "Divide": 0xFFAF, "Multiply": 0xFFAA, "Subtract": 0xFFAD, "Tab": 0xFF09,
    "LeftBracket": 0x5B, "RightBracket": 0x5D, "Backslash": 0x5C, "Delete": 0xFFFF, "End": 0xFF57,
    "PageDown": 0xFF56, "Add": 0xFFAB, "CapsLock": 0xFFE5, "Semicolon": 0x3B, "Quote": 0x27, "Return": 0xFF0D,
    "Enter": 0xFF0D, "LeftShift": 0xFFE1, "RightShift": 0xFFE2, "Comma": 0x2C, "Period": 0x2E, "Slash": 0x2F,
    "Up": 0xFF52, "Down": 0xFF54, "Left": 0xFF51, "Right": 0xFF53, "Clear": 0xFF0B, "LeftControl": 0xFFE3,
    "RightControl": 0xFFE4, "LeftSuper": 0xFFEB, "LeftWin": 0xFFEB, "LeftCmd": 0xFFEB, "LeftMeta": 0xFFEB,
    "RightSuper": 0xFFEC, "RightWin": 0xFFEC, "RightCmd": 0xFFEC, "RightMeta": 0xFFEC, "LeftAlt": 0xFFE9,
    "RightAlt": 0xFFEA, "Space": 0x20, "Menu": 0xFF67, "Fn": 0x100811D0, "Decimal": 0xFFAE,
    "AudioMute": 0x1008FF12, "AudioVolDown": 0x1008FF11, "AudioVolUp": 0x1008FF13, "AudioPlay": 0x1008FF14,
    "AudioStop": 0x1008FF15, "AudioPause": 0x1008FF31, "AudioPrev": 0x1008FF16, "AudioNext": 0x1008FF17,
    "AudioRewind": 0x1008FF3E, "AudioForward": 0x1008FF97, "AudioRepeat": 0x1008FF98,
    "AudioRandom": 0x1008FF99,
    **{f"F{number}": 0xFFBE + number - 1 for number in range(1, 25)},
    **{f"Num{digit}": 0x30 + digit for digit in range(10)},
    **{f"NumPad{digit}": 0xFFB0 + digit for digit in range(10)},
    **{chr(letter): letter + 0x20 for letter in range(ord("A"), ord("Z") + 1)},
}  # fmt: skip
_BY_LOWER_CASE: Final = {name.lower(): keysym for name, keysym in _NAMED.items()}
_CONTROLS: Final = {"\n": 0xFF0D, "\r": 0xFF0D, "\t": 0xFF09, "\b": 0xFF08, "\x1b": 0xFF1B, "\x7f": 0xFFFF}
_UNICODE_KEYSYMS: Final = 0x01000000


class UnknownKey(ValueError):
    """No keysym stands for this key name or character."""


def keysym_of_name(name: str) -> int:
    """The keysym of a nut-js key name, whatever its case; letters are the unshifted keys.

    Raises:
        UnknownKey: nut-js has no key of that name.
    """
    keysym = _BY_LOWER_CASE.get(name.strip().lower())
    if keysym is None:
        raise UnknownKey(f"there is no key named {name[:32]!r}")
    return keysym


def keysyms_of_text(text: str) -> list[int]:
    """The keysyms that type `text`; CR LF counts as one Return.

    Raises:
        UnknownKey: `text` holds a control character without a key, or half a surrogate pair.
    """
    return [_keysym_of_character(character) for character in text.replace("\r\n", "\n")]


def _keysym_of_character(character: str) -> int:
    if character in _CONTROLS:
        return _CONTROLS[character]
    code = ord(character)
    if 0x20 <= code <= 0x7E or 0xA0 <= code <= 0xFF:
        return code
    if code < 0xA0 or 0xD800 <= code <= 0xDFFF:
        raise UnknownKey(f"U+{code:04X} cannot be typed")
    return _UNICODE_KEYSYMS + code
