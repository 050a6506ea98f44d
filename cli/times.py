"""Times as operators type them."""

import re
from datetime import UTC, datetime, timedelta

from cli.exits import CliError, ExitCode

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN = re.compile(r"([0-9]{1,9})([smhdw])")


def seconds(text: str, option: str) -> int:
    """Seconds of a span such as `90m` or `30d`.

    Raises:
        CliError: it is none.
    """
    found = _SPAN.fullmatch(text.strip())
    if found is None or int(found[1]) == 0:
        raise CliError(f"{option}: {text!r} is not a span such as 12h or 30d (s, m, h, d, w)", ExitCode.USAGE)
    return int(found[1]) * _UNITS[found[2]]


def instant(text: str, option: str) -> str:
    """A point in time as the API takes it: so long ago, or an ISO 8601 time, local unless it says otherwise.

    Raises:
        CliError: it is neither.
    """
    if _SPAN.fullmatch(text.strip()):
        try:
            return (datetime.now(UTC) - timedelta(seconds=seconds(text, option))).isoformat()
        except OverflowError:
            raise CliError(f"{option}: {text!r} is too long ago", ExitCode.USAGE) from None
    try:
        return datetime.fromisoformat(text).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        raise CliError(
            f"{option}: {text!r} is neither a span such as 2h nor a time such as 2026-11-23T12:00",
            ExitCode.USAGE,
        ) from None
