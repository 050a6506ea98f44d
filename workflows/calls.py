"""How workflows call activities: typed, on the right queue, with a summary the Web UI shows."""

from collections.abc import Callable
from typing import TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutError
from temporalio.workflow import ActivityConfig

with workflow.unsafe.imports_passed_through():
    from activities.interface import ControlActivities, HostActivities
    from models.identifiers import host_task_queue
    from workflows import policies

Request = TypeVar("Request")
Result = TypeVar("Result")

INVENTORY_UNAVAILABLE = "inventory_unavailable"
"""Type of the `ApplicationError` by which the control activities say that the database is away."""

SUMMARY_LIMIT = 180
"""Bytes the server takes for a summary are 200."""


async def on_host(
    method: Callable[[HostActivities, Request], Result],
    request: Request,
    *,
    host_id: str,
    policy: ActivityConfig,
    summary: str,
) -> Result:
    """Run a host activity on its host's task queue (design section 2).

    Raises:
        temporalio.exceptions.ActivityError: it failed, timed out or was cancelled.
    """
    config: ActivityConfig = {
        **policy,
        "task_queue": host_task_queue(host_id),
        "summary": summary[:SUMMARY_LIMIT],
    }
    result: Result = await workflow.execute_activity_method(method, args=[request], **config)
    return result


async def in_inventory(
    method: Callable[[ControlActivities, Request], Result],
    request: Request,
    *,
    policy: ActivityConfig,
    summary: str,
) -> Result:
    """Run a control activity on the control worker's own task queue, where it is dispatched with the task's answer.

    Not a local activity, as design section 3 has it: a query that comes with a workflow task makes the SDK write a
    local activity's marker before the workflow has seen its result, and a history with a signal in between does not
    replay (`docs/architecture.md`). With the database away this waits, by durable timers, for as long as it takes.

    Raises:
        temporalio.exceptions.ActivityError: it failed for another reason, which is a bug, or was cancelled.
    """
    config: ActivityConfig = {**policy, "summary": summary[:SUMMARY_LIMIT]}
    attempts = 0
    while True:
        try:
            result: Result = await workflow.execute_activity_method(method, args=[request], **config)
            return result
        except ActivityError as error:
            if not is_away(error):
                raise
        attempts += 1
        wait = policies.doubling(attempts, policies.INVENTORY_WAIT_MAX)
        await workflow.sleep(wait, summary="until the inventory answers")


def is_away(error: ActivityError) -> bool:
    """Whether an activity failed because the database is away: it said so, or did not answer in time."""
    cause = error.cause
    if isinstance(cause, ApplicationError):
        return cause.type == INVENTORY_UNAVAILABLE
    return isinstance(cause, TimeoutError)
