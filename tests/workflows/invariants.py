"""What has to hold of an environment once nothing is under way: workflow, inventory, runtime and tokens agree."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause
from temporalio.client import WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from models import messages as m
from models.lifecycle import Recovery, Status
from tests.workflows.plane import Plane

T = TypeVar("T")

RACES = frozenset(
    {
        WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND,
        WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW,
        WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND,
    }
)
"""Failed workflow tasks that are no failure: a signal that came while the run was ending, a reset by hand, and a task
the server took back because more than a hundred signals waited behind it."""


def disagreements(plane: Plane, environment_id: str, view: m.EnvironmentView) -> list[str]:
    """In words, what does not fit with the workflow's view; empty when all is well."""
    wrong: list[str] = []
    row = plane.row(environment_id)
    if row is None:
        return ["no row in the inventory"]
    shown = (row.status, row.generation, row.desired_running, row.node_id, row.recovery)
    true = (view.status, view.generation, view.desired_running, view.node_id, view.recovery)
    if shown != true:
        wrong.append(f"the inventory says {shown}, the workflow {true}")
    if (row.last_error or {}).get("code") != (view.last_error.code if view.last_error else None):
        wrong.append(f"the inventory's error is {row.last_error}, the workflow's {view.last_error}")
    running = view.status is Status.RUNNING
    if running and view.last_error is not None:
        wrong.append(f"running with the error {view.last_error.code}")
    if view.recovery is not Recovery.HOST:
        # With the host away nobody can say, and what runs there may go on.
        wrong += _on_the_host(plane, environment_id, view.generation if running else None)
    sequences = [event.sequence for event in plane.events(environment_id)]
    if sequences != list(range(1, len(sequences) + 1)):
        wrong.append(f"the timeline has gaps: {sequences}")
    if row.deleted_at is not None:
        wrong.append("a tombstone of a workflow that lives")
    return wrong


def left_over(plane: Plane, environment_id: str) -> list[str]:
    """In words, what is left of a deleted environment; empty when nothing is."""
    wrong = _on_the_host(plane, environment_id, None)
    row = plane.row(environment_id)
    if row is None or row.deleted_at is None:
        wrong.append("no tombstone")
    with plane.runtime.lock:
        if environment_id in plane.runtime.directories:
            wrong.append("a host directory")
        if environment_id in plane.runtime.identities:
            wrong.append("an identity")
    sequences = [event.sequence for event in plane.events(environment_id)]
    if sequences != list(range(1, len(sequences) + 1)):
        wrong.append(f"the timeline has gaps: {sequences}")
    return wrong


def _on_the_host(plane: Plane, environment_id: str, generation: int | None) -> list[str]:
    wrong = []
    expected = [] if generation is None else [generation]
    with plane.runtime.lock:
        there = plane.runtime.containers.get(environment_id)
        containers = [there.generation] if there else []
        idle = there is not None and (not there.running or there.paused)
    if containers != expected:
        wrong.append(f"containers of generations {containers}, not {expected}")
    if generation is not None and idle:
        wrong.append("the container does not run")
    tokens = [token.generation for token in plane.live_tokens(environment_id)]
    if tokens != expected:
        wrong.append(f"live tokens of generations {tokens}, not {expected}")
    return wrong


async def patiently(probe: Callable[[], Awaitable[T | None]], seconds: float) -> T:
    """The first truthy answer, asked for ever more seldom, so that many who wait do not hinder what they wait for.

    Raises:
        AssertionError: none came in time.
    """
    deadline, pause = time.monotonic() + seconds, 0.02
    while not (answer := await probe()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s")
        await asyncio.sleep(pause)
        pause = min(0.25, pause * 1.2)
    return answer


async def agree(
    plane: Plane, environment_id: str, status: Status | None = None, *, seconds: float = 45
) -> m.EnvironmentView:
    """The view, once settled (in `status`, where one is given) and nothing disagrees.

    Raises:
        AssertionError: it does not come to that; says what disagrees.
    """
    last: list[str] = []

    async def probe() -> m.EnvironmentView | None:
        row = plane.row(environment_id)
        if status is not None and (row is None or row.status != status):
            # The row is cheap to read: many environments are waited for at once.
            last[:] = [f"the inventory says {row and row.status}"]
            return None
        view = await plane.view(environment_id)
        last[:] = [f"{view.status}, error {view.last_error}, settled {view.settled}, {view.operation}"]
        if not view.settled or status not in (None, view.status):
            return None
        last[:] = disagreements(plane, environment_id, view)
        return None if last else view

    try:
        return await patiently(probe, seconds)
    except AssertionError:
        raise AssertionError(f"wanted {status}: " + "; ".join(last)) from None


async def gone(plane: Plane, environment_id: str, *, seconds: float = 45) -> None:
    """Wait until the environment's workflow has ended and nothing is left.

    Raises:
        AssertionError: something is.
    """
    last: list[str] = []

    async def probe() -> bool:
        last[:] = left_over(plane, environment_id)
        if last:
            return False
        described = await plane.handle(environment_id).describe()
        if described.close_time is None:
            last.append("the workflow is open")
        return not last

    try:
        await patiently(probe, seconds)
    except AssertionError:
        raise AssertionError("; ".join(last)) from None


async def runs(plane: Plane, workflow_id: str) -> list["WorkflowHandle[object, object]"]:
    """Every run of a workflow, newest first, by following the chain of continue-as-new."""
    handles = []
    run_id = (await plane.client.get_workflow_handle(workflow_id).describe()).run_id
    while run_id:
        handle = plane.client.get_workflow_handle(workflow_id, run_id=run_id)
        handles.append(handle)
        started = None
        async for event in handle.fetch_history_events():
            started = event.workflow_execution_started_event_attributes
            break
        run_id = started.continued_execution_run_id if started else ""
    return handles


async def failed_tasks(plane: Plane, workflow_id: str) -> list[str]:
    """Workflow tasks of any run that failed by themselves."""
    failed = []
    for handle in await runs(plane, workflow_id):
        try:
            history = await handle.fetch_history()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            continue
        for event in history.events:
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
                attributes = event.workflow_task_failed_event_attributes
                if attributes.cause not in RACES:
                    cause = WorkflowTaskFailedCause.Name(attributes.cause)
                    failed.append(f"{workflow_id}: {cause} {attributes.failure.message}")
    return failed
