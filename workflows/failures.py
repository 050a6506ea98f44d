"""From whatever an activity raised to the error that is recorded (design section 4)."""

from collections.abc import Iterator
from datetime import datetime

from pydantic import ValidationError
from temporalio.exceptions import ApplicationError, TimeoutError, TimeoutType

from models import messages as m
from models.errors import ErrorCode

MESSAGE_LIMIT = 1000
"""Characters kept of an error's message."""


def classify(error: BaseException, *, phase: str, generation: int, at: datetime) -> m.LastError:
    """The error to record: code by type, never by message text.

    Args:
        error: what was raised. phase: what was being done. generation: of which container. at: when.
    """
    for cause in _chain(error):
        if isinstance(cause, ApplicationError):
            return _from_application_error(cause, phase, generation, at)
        if isinstance(cause, TimeoutError):
            return _from_timeout(cause, phase, generation, at)
    text = f"unexpected {type(error).__name__}: {error}"[:MESSAGE_LIMIT]
    return m.LastError(code=ErrorCode.INTERNAL, message=text, phase=phase, generation=generation, at=at)


def _from_application_error(
    error: ApplicationError, phase: str, generation: int, at: datetime
) -> m.LastError:
    if error.type not in {code.value for code in ErrorCode}:
        text = f"unexpected {error.type or 'error'}: {error.message}"[:MESSAGE_LIMIT]
        return m.LastError(code=ErrorCode.INTERNAL, message=text, phase=phase, generation=generation, at=at)
    update = {
        "code": ErrorCode(error.type),
        "message": error.message[:MESSAGE_LIMIT],
        "phase": phase,
        "generation": generation,
        "at": at,
    }
    details = error.details[0] if error.details else {}
    try:
        detailed = m.LastError.model_validate({"code": error.type, "message": error.message} | dict(details))
    except (ValidationError, TypeError, ValueError):
        return m.LastError.model_validate(update)
    return detailed.model_copy(update=update)


def _from_timeout(error: TimeoutError, phase: str, generation: int, at: datetime) -> m.LastError:
    match error.type:
        case TimeoutType.SCHEDULE_TO_START:
            code, text = ErrorCode.HOST_UNREACHABLE, "the host's worker did not take the work up"
        case TimeoutType.HEARTBEAT:
            code, text = ErrorCode.HOST_UNREACHABLE, "the host's worker fell silent during the work"
        case _ if phase == "await_node_pairing":
            code, text = ErrorCode.PAIRING_TIMEOUT, "the node did not pair in time"
        case _:
            code, text = ErrorCode.START_FAILED, f"{phase} took too long"
    return m.LastError(code=code, message=text, phase=phase, generation=generation, at=at)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__
