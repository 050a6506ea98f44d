"""How a host activity fails: one exception form, the codes of design section 4 (notes A.8)."""

from collections.abc import Sequence
from datetime import UTC, datetime

from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from models.errors import LASTING_CODES, ErrorCode
from models.messages import LastError

NEVER_REPEATED = LASTING_CODES | {
    ErrorCode.SANDBOX_EXITED,
    ErrorCode.SANDBOX_UNHEALTHY,
    ErrorCode.PAIRING_TIMEOUT,
}
"""Codes whose activity does not succeed by running again: a new generation or an operator comes first."""


def failure(
    code: ErrorCode,
    message: str,
    *,
    phase: str = "",
    generation: int = 0,
    exit_code: int | None = None,
    oom_killed: bool = False,
    log_tail: Sequence[str] = (),
    non_retryable: bool | None = None,
    lasting: bool = False,
) -> ApplicationError:
    """The failure of a host activity: its `type` is the code, its one detail a `LastError` as a JSON object.

    Args:
        message: what happened and what to do, one line, no secret.
        non_retryable: None for what the code says.
        lasting: neither another attempt nor a new generation can succeed: an operator has to mend it first.
    """
    detail = LastError(
        code=code,
        message=message,
        phase=phase,
        at=datetime.now(UTC),
        generation=generation,
        exit_code=exit_code,
        oom_killed=oom_killed,
        log_tail=list(log_tail),
        lasting=lasting,
    )
    final = lasting or (code in NEVER_REPEATED if non_retryable is None else non_retryable)
    return ApplicationError(
        message,
        detail.model_dump(mode="json"),
        type=code.value,
        non_retryable=final,
        # Recorded and shown where it belongs; a stack in the worker's log would say no more.
        category=ApplicationErrorCategory.BENIGN,
    )
