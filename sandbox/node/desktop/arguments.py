"""Validation of desktop arguments (node-protocol.md section 6.2); unknown keys are ignored."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sandbox.node.tasks import TaskFailed

_LONGEST_MOVE_MS = 60_000


@dataclass(frozen=True)
class MouseArguments:
    """A mouse action.

    Attributes:
        action: ``move``, ``click`` or ``drag``.
        x: pixels from the left edge, rounded.
        y: pixels from the top edge, rounded.
        button: ``left``, ``middle`` or ``right``.
        duration: seconds that a move or drag takes.
    """

    action: str
    x: int
    y: int
    button: str
    duration: float


@dataclass(frozen=True)
class KeyboardArguments:
    """A keyboard action: `value` is the text to type or the name of the key to press."""

    action: str
    value: str


def check_screenshot(args: dict[str, Any]) -> None:
    """Check screenshot args; they change nothing, as the answer is always one full-size PNG (section 6.2).

    Raises:
        TaskFailed: an argument breaks the schema.
    """
    display = args.get("display")
    if not (display in ("primary", "all") if isinstance(display, str) else _is_display_id(display)):
        raise _invalid("display must be 'primary', 'all' or {id}")
    _choice(args, "format", ("png", "jpeg"), "png")
    width = args.get("max_width", 1)
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise _invalid("max_width must be a positive integer")


def parse_mouse(args: dict[str, Any], width: int, height: int) -> MouseArguments:
    """Check mouse args against a screen of `width` x `height` pixels.

    Raises:
        TaskFailed: an argument breaks the schema, or the point lies outside the screen.
    """
    action = _choice(args, "action", ("move", "click", "drag"))
    x, y = _coordinate(args, "x", width), _coordinate(args, "y", height)
    duration = args.get("duration_ms", 0)
    if isinstance(duration, bool) or not isinstance(duration, int) or not 0 <= duration <= _LONGEST_MOVE_MS:
        raise _invalid(f"duration_ms must be an integer from 0 to {_LONGEST_MOVE_MS}")
    return MouseArguments(
        action, x, y, _choice(args, "button", ("left", "middle", "right"), "left"), duration / 1000
    )


def parse_keyboard(args: dict[str, Any]) -> KeyboardArguments:
    """Check keyboard args: ``type`` needs ``text``, ``press`` needs ``key``.

    Raises:
        TaskFailed: an argument breaks the schema or is missing.
    """
    action = _choice(args, "action", ("type", "press"))
    for name in ("text", "key"):
        if not isinstance(args.get(name, ""), str):
            raise _invalid(f"{name} must be a string")
    needed = "text" if action == "type" else "key"
    if not args.get(needed):
        raise TaskFailed(f"missing {needed}: keyboard {action} needs it")
    return KeyboardArguments(action, args[needed])


def _choice(args: dict[str, Any], name: str, choices: Sequence[str], default: str | None = None) -> str:
    value = args.get(name, default)
    if not isinstance(value, str) or value not in choices:
        raise _invalid(f"{name} must be one of {', '.join(choices)}")
    return value


def _coordinate(args: dict[str, Any], name: str, size: int) -> int:
    value = args.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _invalid(f"{name} must be a number")
    if not 0 <= value <= size - 0.5:
        raise _invalid(f"{name}={value:g} is outside the screen, which has {size} pixels there")
    return min(round(value), size - 1)


def _is_display_id(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("id"), str)


def _invalid(message: str) -> TaskFailed:
    return TaskFailed(f"invalid args: {message}")
