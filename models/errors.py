"""What can go wrong, by name.

Error codes of an environment are `ErrorCode`; what an HTTP route refuses is an `ApiError`:

    ApiError                     {"error": code, "message": text} (design section 5)
    ├── InvalidRequest      400
    ├── Unauthorized        401
    ├── Forbidden           403
    ├── NotFound            404
    ├── Conflict            409
    └── Unavailable         503
"""

from enum import StrEnum
from typing import ClassVar


class ErrorCode(StrEnum):
    """Stable codes of an environment's `last_error` (design section 4)."""

    DOCKER_UNAVAILABLE = "docker_unavailable"
    HOST_UNREACHABLE = "host_unreachable"
    IMAGE_NOT_FOUND = "image_not_found"
    IMAGE_MISMATCH = "image_mismatch"
    START_FAILED = "start_failed"
    SANDBOX_EXITED = "sandbox_exited"
    SANDBOX_UNHEALTHY = "sandbox_unhealthy"
    PAIRING_TIMEOUT = "pairing_timeout"
    INTERNAL = "internal"


LASTING_CODES = frozenset({ErrorCode.IMAGE_NOT_FOUND, ErrorCode.IMAGE_MISMATCH})
"""What repetition cannot mend: one attempt, then an operator (design section 4)."""

HOST_CODES = frozenset({ErrorCode.DOCKER_UNAVAILABLE, ErrorCode.HOST_UNREACHABLE})
"""What is the host's trouble and not the sandbox's: no attempt is counted (design section 4)."""


class ApiError(Exception):
    """A refused request.

    Args:
        message: what happened, to what, and what to do; shown to the caller as it is.
    """

    status_code: ClassVar[int]
    code: ClassVar[str]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(ApiError):
    """The request does not have the documented form."""

    status_code = 400
    code = "invalid_request"


class Unauthorized(ApiError):
    """No live credential was presented."""

    status_code = 401
    code = "unauthorized"


class Forbidden(ApiError):
    """The credential does not open this."""

    status_code = 403
    code = "forbidden"


class NotFound(ApiError):
    """There is no such thing, or no longer."""

    status_code = 404
    code = "not_found"


class Conflict(ApiError):
    """Not possible in the present state."""

    status_code = 409
    code = "conflict"


class Unavailable(ApiError):
    """A part this needs does not answer now; the same request may succeed later."""

    status_code = 503
    code = "unavailable"
