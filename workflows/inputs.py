"""The inputs of workflows, which somebody may have typed by hand."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from temporalio import workflow
from temporalio.exceptions import ApplicationError

from models.messages import Message

Input = TypeVar("Input", bound=Message)


def read_input(
    blank: Input, payloads: Sequence[Any], id_of: Callable[[Input], str]
) -> tuple[Input, ApplicationError | None]:
    """The one message a workflow is started with; or `blank`, and the `invalid_request` for its run to raise.

    That ends the workflow. What the SDK raises for an input it cannot decode would fail the workflow's task instead,
    again and again for ever.

    Args:
        blank: an input of the kind, to go on with until the run begins.
        payloads: as they came in.
        id_of: the workflow id that belongs to an input; under another a second workflow would act on the same thing.
    """
    kind = type(blank)
    if len(payloads) != 1:
        return blank, _refusal(kind, f"{len(payloads)} inputs")
    try:
        start = kind.model_validate(payloads[0])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part)[:40] for part in first["loc"]) or "the input"
        return blank, _refusal(kind, f"{place}: {first['msg']}"[:300])
    if workflow.info().workflow_id != id_of(start):
        return blank, _refusal(kind, f"the workflow of this one has the id {id_of(start)[:100]}")
    return start, None


def _refusal(kind: type[Input], problem: str) -> ApplicationError:
    text = f"takes exactly one JSON object, of type {kind.__name__}; {problem}"
    return ApplicationError(text, type="invalid_request", non_retryable=True)
