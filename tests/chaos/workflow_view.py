"""Temporal's side of the truth: what the workflows say, and whether any of their tasks failed."""

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from temporalio.api.enums.v1 import EventType, PendingActivityState, WorkflowTaskFailedCause
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowQueryFailedError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Replayer

from models.identifiers import environment_workflow_id, host_workflow_id
from models.messages import EnvironmentView, HostRecord
from workflows.environment import DesktopEnvironment
from workflows.plugin import ControlPlanePlugin

T = TypeVar("T")

ANSWER = timedelta(seconds=2)

_HARMLESS = {
    # A signal came while the task that completes the workflow was under way: the server asks for it again.
    WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND,
    WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_STICKY_TASK_QUEUE,
}


@dataclass(frozen=True)
class Seen:
    """One environment's workflow now.

    Attributes:
        open: it lives. view: its own answer; None where it gave none. attempt: of its pending task, 0 for none.
    """

    open: bool
    view: EnvironmentView | None
    attempt: int


class WorkflowView:
    """Asks Temporal from synchronous code, over an event loop in a thread of its own."""

    def __init__(self, address: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="temporal-view", daemon=True)
        self._thread.start()
        self._client = self._run(Client.connect(address, plugins=[ControlPlanePlugin()], lazy=True))

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def server_answers(self) -> bool:
        """Whether the server serves our namespace."""
        return self._run(_answers(self._describe_namespace()))

    def host_answers(self, host_id: str) -> bool:
        """Whether a control worker answers for the host's workflow."""
        handle = self._client.get_workflow_handle(host_workflow_id(host_id))
        query = handle.query("status", result_type=HostRecord, rpc_timeout=timedelta(seconds=1))
        return self._run(_answers(query))

    def monitored_since(self, host_id: str, since: datetime) -> bool:
        """Whether a host worker picked `monitor_host` up after this moment."""
        return self._run(self._monitored_since(host_id, since))

    def see(self, environment_ids: Iterable[str]) -> dict[str, Seen]:
        """Every environment's workflow now."""
        return self._run(self._see(list(environment_ids)))

    def look(self, environment_id: str) -> EnvironmentView | None:
        """One environment's own answer; None where it gave none."""
        return self._run(self._view(environment_id, timedelta(milliseconds=500)))

    def signal(self, environment_id: str, name: str, reason: str) -> None:
        """Send a command as an engineer with the `temporal` command would."""
        handle = self._client.get_workflow_handle(environment_workflow_id(environment_id))
        self._run(handle.signal(name, {"reason": reason}))

    def history(self, environment_id: str) -> str:
        """The history of the present run, as JSON that the replayer reads."""
        handle = self._client.get_workflow_handle(environment_workflow_id(environment_id))
        return self._run(handle.fetch_history()).to_json()

    def attempts(self, environment_id: str, activity: str) -> int:
        """How often the latest activity of this type was begun until it completed; 0 where it has not."""
        handle = self._client.get_workflow_handle(environment_workflow_id(environment_id))
        begun: dict[int, int] = {}
        latest, attempts = 0, 0
        for event in self._run(handle.fetch_history()).events:
            scheduled = event.activity_task_scheduled_event_attributes
            started = event.activity_task_started_event_attributes
            completed = event.activity_task_completed_event_attributes
            if scheduled.activity_type.name == activity:
                latest, attempts = event.event_id, 0
            elif started.scheduled_event_id:
                begun[started.scheduled_event_id] = started.attempt
            elif latest and completed.scheduled_event_id == latest:
                attempts = begun[latest]
        return attempts

    def not_replayable(self, environment_ids: Iterable[str]) -> list[str]:
        """Environments whose history the present code cannot replay: they would wedge at the next worker's start."""

        async def replay(environment_id: str) -> str | None:
            workflow_id = environment_workflow_id(environment_id)
            history = await self._client.get_workflow_handle(workflow_id).fetch_history()
            replayer = Replayer(workflows=[DesktopEnvironment], plugins=[ControlPlanePlugin()])
            result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
            return f"{environment_id}: {result.replay_failure}"[:300] if result.replay_failure else None

        async def ask() -> list[str]:
            return [wrong for i in environment_ids if (wrong := await replay(i))]

        return self._run(ask())

    def failed_tasks(self, workflow_ids: Iterable[str]) -> list[str]:
        """Every workflow task that failed, in any run of these workflows."""

        async def ask() -> list[str]:
            answers = await asyncio.gather(*map(self._failed_tasks, workflow_ids))
            return [failure for answer in answers for failure in answer]

        return self._run(ask())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _describe_namespace(self) -> None:
        request = DescribeNamespaceRequest(namespace=self._client.namespace)
        await self._client.workflow_service.describe_namespace(request, timeout=timedelta(seconds=1))

    async def _monitored_since(self, host_id: str, since: datetime) -> bool:
        try:
            described = await self._client.get_workflow_handle(host_workflow_id(host_id)).describe(
                rpc_timeout=ANSWER
            )
        except (RPCError, RuntimeError):
            return False
        return any(
            activity.activity_type.name == "monitor_host"
            and activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
            and activity.last_started_time.ToDatetime(tzinfo=UTC) > since
            for activity in described.raw_description.pending_activities
        )

    async def _see(self, environment_ids: list[str]) -> dict[str, Seen]:
        answers = await asyncio.gather(*map(self._see_one, environment_ids))
        return dict(zip(environment_ids, answers, strict=True))

    async def _see_one(self, environment_id: str) -> Seen:
        handle = self._client.get_workflow_handle(environment_workflow_id(environment_id))
        try:
            described = await handle.describe(rpc_timeout=ANSWER)
        except RPCError as error:
            return Seen(error.status is not RPCStatusCode.NOT_FOUND, None, 0)
        is_open = described.status is WorkflowExecutionStatus.RUNNING
        pending = described.raw_description.pending_workflow_task
        view = await self._view(environment_id, ANSWER) if is_open else None
        return Seen(is_open, view, pending.attempt)

    async def _view(self, environment_id: str, answer: timedelta) -> EnvironmentView | None:
        handle = self._client.get_workflow_handle(environment_workflow_id(environment_id))
        try:
            view: EnvironmentView = await handle.query(
                "status", result_type=EnvironmentView, rpc_timeout=answer
            )
            return view
        except (RPCError, WorkflowQueryFailedError, RuntimeError):
            return None

    async def _failed_tasks(self, workflow_id: str) -> list[str]:
        found = []
        query = f"WorkflowId = '{workflow_id}'"
        runs = [run.run_id async for run in self._client.list_workflows(query)]
        for run_id in runs:
            handle = self._client.get_workflow_handle(workflow_id, run_id=run_id)
            async for event in handle.fetch_history_events():
                if event.event_type != EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
                    continue
                failed = event.workflow_task_failed_event_attributes
                if failed.cause not in _HARMLESS:
                    cause = WorkflowTaskFailedCause.Name(failed.cause)
                    found.append(
                        f"{workflow_id}: workflow task failed: {cause}: {failed.failure.message[:200]}"
                    )
        return found


async def _answers(call: Coroutine[Any, Any, Any]) -> bool:
    try:
        await call
    except (RPCError, RuntimeError, WorkflowQueryFailedError):
        return False
    return True
