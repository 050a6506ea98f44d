"""When to come back and when to give up (node-protocol.md sections 1.3 and 1.4)."""

import random
from collections.abc import Callable

#: The exit code of a node which was told to stop, as the reference's (section 1.3).
STOPPED_EXIT_CODE = 13

UNAUTHORIZED = 4001
_STOP_CODES = {4005: "protocol revision refused", 4006: "device id refused", 4007: "proof refused",
               4008: "token belongs to another node"}  # fmt: skip

# The reference starts at 5 s. A gateway restart takes a second or two and should not cost the desktop five;
# from the eighth attempt on the ceiling is the reference's.
_FIRST_CEILING = 0.25
_LAST_CEILING = 30.0


def stop_reason(code: int, has_token: bool) -> str | None:
    """Why the close `code` ends the node for good, or None to reconnect."""
    if code == UNAUTHORIZED:
        return "token refused" if has_token else None
    return _STOP_CODES.get(code)


def ceiling(attempt: int) -> float:
    """The longest delay in seconds before reconnect `attempt`, counted from 1."""
    return float(min(_LAST_CEILING, _FIRST_CEILING * 2 ** min(attempt - 1, 16)))


class Backoff:
    """Reconnect delays with full jitter, reset by a successful proof."""

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._attempt = 0

    def next_delay(self) -> float:
        """Seconds to wait before the next attempt."""
        self._attempt += 1
        return self._uniform(0.0, ceiling(self._attempt))

    def reset(self) -> None:
        """Start over: the connection is proven."""
        self._attempt = 0
