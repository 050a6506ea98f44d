"""Exit codes of `desktopctl`, and the one exception that carries them.

| code | meaning |
|---|---|
| 0 | done |
| 1 | the operation failed, or the environment ended in `error` |
| 2 | wrong usage, or input the API refused as invalid |
| 3 | not found |
| 4 | conflict: not possible in the present state |
| 5 | the API or a part behind it does not answer |
| 6 | no valid admin token |
| 124 | timed out waiting |
| 130 | interrupted by Ctrl-C |
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a script can tell from the exit code."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    UNAVAILABLE = 5
    UNAUTHORIZED = 6
    TIMED_OUT = 124
    INTERRUPTED = 130


_CODE_OF_STATUS = {
    400: ExitCode.USAGE,
    401: ExitCode.UNAUTHORIZED,
    403: ExitCode.UNAUTHORIZED,
    404: ExitCode.NOT_FOUND,
    409: ExitCode.CONFLICT,
    502: ExitCode.UNAVAILABLE,
    503: ExitCode.UNAVAILABLE,
    504: ExitCode.UNAVAILABLE,
}


def of_http_status(status: int) -> ExitCode:
    """Exit code for a refused request (design section 5)."""
    return _CODE_OF_STATUS.get(status, ExitCode.FAILED)


class CliError(Exception):
    """Ends the command with one line.

    Args:
        message: what happened, to what, and what to do next.
        exit_code: what the process ends with.
        code: stable word for `--json`, the API's own where it refused.
    """

    def __init__(self, message: str, exit_code: ExitCode, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.code = code or exit_code.name.lower()
