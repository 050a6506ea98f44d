"""The entity workflow of one desktop environment (design decisions 1 to 3).

Signal handlers only append to an inbox. One loop takes the inbox in through the transition function of
`models.lifecycle`, runs at most one operation, and cancels it when a newer intent says so. Nothing but the loop acts,
so commands never race.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue, SearchAttributeKey
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.interface import ControlActivities
    from models import messages as m
    from models.identifiers import SEARCH_ATTRIBUTE_STATUS, environment_workflow_id
    from models.lifecycle import SETTLED, Event, Operation, Recovery, Status, next_operation
    from workflows import policies
    from workflows.alarm import Alarm
    from workflows.calls import in_inventory
    from workflows.details import describe
    from workflows.failures import classify
    from workflows.former_operations import FormerOperations
    from workflows.inbox import InboxItem
    from workflows.inputs import read_input
    from workflows.operations import Failure, Operations
    from workflows.reactions import Reactions
    from workflows.state import TIMELINE_KEPT, Credentials, EnvironmentState, SituationRecord, read_state

_RETRY = "next attempt"
_NODE = "the node's time to reconnect"
_RENEWAL = "token renewal"
_PROJECTION = "until the record is offered again"
_POSTPONED = "until the operation is tried again"

_CREDENTIALS_WITH_RECORDS = "credentials-with-records"
"""The patch by which workflows write fewer events; see `former_operations`."""
_DELETED = "deleted"
"""Last value of search attribute `EnvironmentStatus`."""

_NO_INPUT = m.EnvironmentInput(spec=m.EnvironmentSpec(environment_id="", host_id="", image_ref=""))

_STATUS_KEY = SearchAttributeKey.for_keyword(SEARCH_ATTRIBUTE_STATUS)


def _workflow_id(start: m.EnvironmentInput) -> str:
    return environment_workflow_id(start.spec.environment_id)


@workflow.defn(name="DesktopEnvironment")
class DesktopEnvironment:
    """One environment, from the first request to the last trace."""

    @workflow.init
    def __init__(self, *payloads: Any) -> None:
        start, self._refusal = read_input(_NO_INPUT, payloads, _workflow_id)
        self._unreadable: str | None = None
        if start.state is not None:
            self._state, self._unreadable = read_state(start.spec, start.state)
        else:
            # Not `workflow.now()`: a replay may see it a moment later.
            now = workflow.info().start_time
            self._state = EnvironmentState(
                spec=start.spec,
                situation=SituationRecord(desired_running=start.desired_running),
                generation=start.generation,
                sequence=start.sequence,
                created_at=now,
                updated_at=now,
            )
        self._fresh = start.state is None
        self._created_by = start.actor
        self._as_formerly = not workflow.patched(_CREDENTIALS_WITH_RECORDS)
        self._reactions = Reactions(self._state, dirty=self._fresh or bool(self._state.unrecorded))
        operations = FormerOperations if self._as_formerly else Operations
        self._operations = operations(self._state, self._reactions.note, self._record, self._entered)
        self._renewal = Alarm(_RENEWAL)
        self._operation: Operation | None = None
        self._task: asyncio.Task[Event] | None = None
        self._phase: str | None = None
        self._shown_status = None if self._fresh else self._state.situation.status
        self._cancelled = False
        self._recording = False

    @workflow.run
    async def run(self, *payloads: Any) -> None:
        """Live until deleted. Takes one `models.messages.EnvironmentInput`; anything else fails at once."""
        if self._refusal is not None:
            raise self._refusal
        if self._fresh:
            self._reactions.created(self._created_by)
        if self._unreadable:
            self._reactions.state_unreadable(self._unreadable)
        while not self._state.erased or self._state.inbox or self._reactions.dirty:
            try:
                if self._newly_cancelled():
                    self._cancelled = True
                    self._reactions.cancelled_by_hand()
                if self._is_long():
                    # No await between here and the command: nothing can come in in between, and the inbox is carried.
                    self._continue_as_new()
                await self._reconcile()
            except asyncio.CancelledError:
                if workflow.cancellation_reason() is None:
                    # Not a request but the worker dropping this instance from its cache.
                    raise
                # Taken in at the head of the loop.
                await self._operation_over()
            except Exception as error:
                await self._stumbled(error)
        await workflow.wait_condition(workflow.all_handlers_finished)
        if not self._as_formerly:
            workflow.upsert_search_attributes([_STATUS_KEY.value_set(_DELETED)])

    async def _reconcile(self) -> None:
        """One pass: take signals in, project, act or wait."""
        self._reactions.take_in(self._operation)
        operation = self._due()
        if operation is None or not (self._reactions.known and self._operations.records(operation)):
            await self._record()
            if self._state.inbox:
                return
            operation = self._due()
        if operation is not None:
            await self._operate(operation)
        elif not self._state.erased or self._reactions.dirty:
            await self._wait()

    def _due(self) -> Operation | None:
        """What is to be done now."""
        if self._state.erased or self._state.not_before is not None:
            return None
        return next_operation(self._state.now_situation)

    def _is_long(self, limit: int | None = None) -> bool:
        """Whether the history is long enough to continue as new, and nobody waits for an answer of this run."""
        info = workflow.info()
        length = info.get_current_history_length()
        suggested = limit is None and info.is_continue_as_new_suggested()
        long = suggested or length > (limit or policies.HISTORY_LIMIT)
        return long and workflow.all_handlers_finished() and self._state.size() < policies.STATE_LIMIT

    def _continue_as_new(self) -> None:
        state = self._state
        workflow.continue_as_new(m.EnvironmentInput(spec=state.spec, state=state.model_dump(mode="json")))

    async def _stumbled(self, error: Exception) -> None:
        """A bug. Were it let through, the workflow would end, or its task fail for ever with signals waiting behind."""
        workflow.logger.error("the reconcile loop failed unexpectedly", exc_info=error)
        await self._operation_over()
        waiting = len(self._state.inbox)
        self._reactions.stumbled(error)
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: len(self._state.inbox) > waiting,
                timeout=policies.restart_backoff(self._state.setbacks),
                timeout_summary="after an unexpected exception",
            )

    async def _operation_over(self) -> None:
        """Nothing of an operation that was left in a hurry runs on beside the next one."""
        if self._task is not None:
            self._operations.interrupted = True
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _operate(self, operation: Operation) -> None:
        """Run one operation to its end, or until what came in interrupts it."""
        self._operation = operation
        task = self._task = asyncio.create_task(self._operations.begin(operation))
        interrupted = False
        try:
            while not task.done():
                self._show()
                await workflow.wait_condition(lambda: task.done() or bool(self._state.inbox))
                unwanted = self._reactions.take_in(self._operation)
                unwanted = unwanted or self._is_long(policies.HISTORY_LIMIT_IN_OPERATION)
                if unwanted and not interrupted and not task.done():
                    interrupted = self._operations.interrupted = True
                    task.cancel()
                    self._reactions.note("note", "interrupted", message=f"{operation} interrupted")
        finally:
            self._operation, self._phase = None, None
        self._task = None
        self._conclude(operation, task, interrupted)

    def _conclude(self, operation: Operation, task: "asyncio.Task[Event]", interrupted: bool) -> None:
        """What the operation's end means; of one that was interrupted, nothing."""
        if task.cancelled() or interrupted:
            if not task.cancelled() and (error := task.exception()):
                workflow.logger.info("%s ended while it was interrupted: %s", operation, error)
        elif (error := task.exception()) is None:
            self._reactions.ended_well(task.result())
        elif isinstance(error, Failure):
            self._reactions.fail(error.error)
        else:
            # Nothing unexpected may fail the workflow task: it would be retried for ever, signals waiting behind it.
            workflow.logger.error("operation %s failed unexpectedly", operation, exc_info=error)
            generation, now = self._state.generation, workflow.now()
            self._reactions.fail(classify(error, phase=operation, generation=generation, at=now))
        self._reactions.operation_ended()

    async def _wait(self) -> None:
        """Until a signal comes in or the nearest deadline passes."""
        deadlines = self._deadlines()
        self._show()
        if not deadlines:
            await workflow.wait_condition(self._stirred)
            return
        at, why = min(deadlines)
        now = workflow.now()
        if at > now and why == _RENEWAL and not self._as_formerly:
            self._renewal.set(at)
            await workflow.wait_condition(lambda: self._stirred() or self._renewal.rings())
            return
        if at > now:
            try:
                await workflow.wait_condition(self._stirred, timeout=at - now, timeout_summary=why)
                return
            except TimeoutError:
                pass
        await self._deadline_passed(why)

    def _stirred(self) -> bool:
        """Whether something came in or is to be recorded, or the last who waited for an answer went, and the run may
        end at last.
        """
        unrecorded = self._reactions.dirty and self._state.projection_retry_at is None
        return bool(self._state.inbox) or unrecorded or self._newly_cancelled() or self._is_long()

    def _newly_cancelled(self) -> bool:
        """Somebody has cancelled the workflow; a record under way then ends well, and swallows the exception."""
        return workflow.cancellation_reason() is not None and not self._cancelled

    def _deadlines(self) -> list[tuple[datetime, str]]:
        state = self._state
        deadlines: list[tuple[datetime, str]] = []
        if self._reactions.dirty and state.projection_retry_at:
            deadlines.append((state.projection_retry_at, _PROJECTION))
        if state.not_before:
            deadlines.append((state.not_before, _POSTPONED))
        if state.situation.recovery is Recovery.SCHEDULED and state.next_retry_at:
            deadlines.append((state.next_retry_at, _RETRY))
        if state.situation.status is Status.RUNNING:
            if state.node_lost_at:
                deadlines.append((state.node_lost_at + policies.NODE_GRACE, _NODE))
            if state.token:
                left = policies.NODE_TOKEN_TTL - policies.NODE_TOKEN_RENEWAL
                deadlines.append((state.token.expires_at - left, _RENEWAL))
        return deadlines

    async def _deadline_passed(self, why: str) -> None:
        if why == _PROJECTION:
            self._state.projection_retry_at = None
        elif why == _POSTPONED:
            self._state.not_before = None
        elif why == _RETRY:
            self._reactions.retry_due()
        elif why == _NODE:
            self._reactions.node_stayed_away()
        else:
            await self._operations.extend_token()
            self._reactions.note("credential", "token_extended")

    async def _record(self, credentials: Credentials | None = None) -> bool:
        """Project the state into the inventory, if there is anything new or credentials go with it.

        With the database away this waits. What the inventory refuses although it is there, which is a bug, blocks
        nothing: it is kept, and offered again later; first without the credentials, as it may be these.

        Returns:
            Whether the credentials were dealt with.
        """
        state, reactions = self._state, self._reactions
        while (reactions.dirty or credentials is not None) and state.projection_retry_at is None:
            reactions.dirty = False
            record, sequence = state.record(workflow.now(), credentials), state.sequence
            state.unrecorded = []
            self._show()
            self._recording = True
            try:
                known: m.Recorded | None = await in_inventory(
                    ControlActivities.record_environment,
                    record,
                    policy=policies.INVENTORY,
                    summary=f"record {record.status}, generation {record.generation}",
                )
            except (ActivityError, asyncio.CancelledError) as error:
                state.unrecorded = [*record.entries, *state.unrecorded]
                reactions.dirty = True
                if is_cancelled_exception(error):
                    raise asyncio.CancelledError from error
                workflow.logger.error("the inventory refuses the record", exc_info=error)
                if credentials is None:
                    reactions.projection_failed(error.__cause__ or error)
                    return False
                credentials = None
                continue
            finally:
                self._recording = False
            reactions.recorded(known, record.entries, sequence)
            if credentials is not None:
                return known is not None and known.credentials
        return False

    def _entered(self, phase: str) -> None:
        self._phase = phase
        self._show()

    def _show(self) -> None:
        """What the Web UI shows: details at no cost, the status as a search attribute when it is settled."""
        status = self._state.situation.status
        try:
            workflow.set_current_details(describe(self._state, self._operation, self._phase))
        except Exception as error:
            # Only for the eye: no operation stops for it.
            workflow.logger.error("the state cannot be described", exc_info=error)
        if status in SETTLED and status is not self._shown_status:
            self._shown_status = status
            workflow.upsert_search_attributes([_STATUS_KEY.value_set(status)])

    # --- signals, queries, updates -----------------------------------------------------------------------------

    def _append(self, name: str, payloads: Sequence[Any]) -> None:
        args = [value for value in payloads if not isinstance(value, RawValue)]
        undecodable = len(payloads) - len(args)
        self._state.inbox.append(InboxItem(name=name, args=args, undecodable=undecodable, at=workflow.now()))

    @workflow.signal(description='Have the desktop running. Optional: {"reason": …, "actor": …}')
    def start(self, *payloads: Any) -> None:
        """Design decision 4."""
        self._append("start", payloads)

    @workflow.signal(description='Have it stopped; interrupts a start. Optional: {"reason": …, "actor": …}')
    def stop(self, *payloads: Any) -> None:
        """Design decision 4."""
        self._append("stop", payloads)

    @workflow.signal(
        description='A clean desktop, new generation. Optional: {"reason": …, "rotate_identity": true}'
    )
    def reset(self, *payloads: Any) -> None:
        """Design decision 4."""
        self._append("reset", payloads)

    @workflow.signal(description='Remove it for good. Optional: {"reason": …, "actor": …}')
    def delete(self, *payloads: Any) -> None:
        """Design decision 4."""
        self._append("delete", payloads)

    @workflow.signal(description="From the API: label, image or limits changed")
    def change_spec(self, *payloads: Any) -> None:
        """`models.messages.SpecChange`."""
        self._append("change_spec", payloads)

    @workflow.signal(description="From the host: what became of the container")
    def container_event(self, *payloads: Any) -> None:
        """`models.messages.ContainerEvent`."""
        self._append("container_event", payloads)

    @workflow.signal(description="From the host's workflow: the host was lost or is back")
    def host_event(self, *payloads: Any) -> None:
        """`models.messages.HostEvent`."""
        self._append("host_event", payloads)

    @workflow.signal(description="From the gateway: the node went away or is back")
    def node_presence(self, *payloads: Any) -> None:
        """`models.messages.NodePresence`."""
        self._append("node_presence", payloads)

    @workflow.signal(dynamic=True, description="Any other name is noted in the timeline")
    def unknown(self, name: str, payloads: Sequence[RawValue]) -> None:
        """A signal nobody knows, typed by hand: survived and shown."""
        self._append(name, payloads)

    @workflow.query(description="The environment now, every signal sent before included")
    def status(self) -> m.EnvironmentView:
        """Design decision 1."""
        return self._state.view(operation=self._operation, phase=self._phase)

    @workflow.query(description=f"The last {TIMELINE_KEPT} entries of the timeline")
    def timeline(self) -> list[m.TimelineEntry]:
        """Design section 5; the inventory has all of it."""
        return self._state.timeline

    @workflow.update(description="Wait until the last command's outcome is known")
    async def await_settled(self, request: m.AwaitSettled | None = None) -> m.EnvironmentView:
        """Answer when settled, or with the present view after the timeout (design decision 4)."""
        wish = request or m.AwaitSettled()

        def settled() -> bool:
            taken_in = wish.after_request_id is None or wish.after_request_id in self._state.request_ids
            # Not before the record has ended: who is told finds it, and the run may end before the next command comes.
            unrecorded = self._reactions.dirty or (self._recording and not self._as_formerly)
            projected = not unrecorded or self._state.projection_failures > 0
            done = taken_in and not self._state.inbox and self.status().settled and projected
            gone = self._state.deleted and (projected or self._as_formerly)
            # A run that has to end cannot be held up by somebody who always waits.
            overdue = workflow.info().get_current_history_length() > policies.HISTORY_LIMIT_IN_OPERATION
            return done or overdue or gone

        timeout = timedelta(seconds=wish.timeout_seconds)
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(settled, timeout=timeout, timeout_summary="await_settled")
        return self.status()

    @await_settled.validator
    def _check_await_settled(self, request: m.AwaitSettled | None = None) -> None:
        if request and not 0 <= request.timeout_seconds <= 600:
            raise ApplicationError("timeout_seconds must be between 0 and 600", type="invalid_request")

    @workflow.update(description="Read the container's log tail now")
    async def refresh_logs(self) -> list[str]:
        """The log tail as the host reads it now. Raises: ApplicationError of the error's code."""
        try:
            captured = await self._operations.capture_logs()
        except Failure as failure:
            raise ApplicationError(failure.error.message, type=failure.error.code) from failure
        if captured.found and captured.lines != self._state.logs:
            self._state.logs = captured.lines
            # The loop projects it, as soon as it is idle.
            self._reactions.dirty = self._reactions.dirty or not self._as_formerly
        return self._state.logs or []
