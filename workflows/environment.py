"""The entity workflow of one desktop environment (design decisions 1 to 3).

Signal handlers only append to an inbox. One loop takes the inbox in through the transition function of
`models.lifecycle`, runs at most one operation, and cancels it when a newer intent says so. Nothing but the loop acts, so
commands never race.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue, SearchAttributeKey
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.interface import ControlActivities
    from models import messages as m
    from models.errors import HOST_CODES, LASTING_CODES, ErrorCode
    from models.identifiers import SEARCH_ATTRIBUTE_STATUS
    from models.lifecycle import (
        SETTLED,
        Command,
        Event,
        Operation,
        Reaction,
        Recovery,
        Status,
        Step,
        apply_command,
        apply_event,
        next_operation,
    )
    from workflows import policies
    from workflows.calls import in_inventory
    from workflows.details import describe
    from workflows.failures import classify
    from workflows.inbox import InboxItem, OddSignal, parse
    from workflows.operations import Failure, Operations
    from workflows.state import REQUEST_IDS_KEPT, TIMELINE_KEPT, EnvironmentState, SituationRecord

_STATUS_KEY = SearchAttributeKey.for_keyword(SEARCH_ATTRIBUTE_STATUS)


@workflow.defn(name="DesktopEnvironment")
class DesktopEnvironment:
    """One environment, from the first request to the last trace."""

    @workflow.init
    def __init__(self, start: m.EnvironmentInput) -> None:
        if start.state is not None:
            self._state = EnvironmentState.model_validate(start.state)
        else:
            now = workflow.now()
            self._state = EnvironmentState(
                spec=start.spec,
                situation=SituationRecord(desired_running=start.desired_running),
                created_at=now,
                updated_at=now,
            )
        self._fresh = start.state is None
        self._actor = start.actor
        self._operations = Operations(self._state, self._note, self._record, self._entered)
        self._operation: Operation | None = None
        self._phase: str | None = None
        self._held_back: list[m.ContainerEvent] = []
        self._dirty = self._fresh or bool(self._state.unrecorded)
        self._shown_status = None if self._fresh else self._state.situation.status

    @workflow.run
    async def run(self, start: m.EnvironmentInput) -> None:
        """Live until deleted."""
        if self._fresh:
            desired = "running" if start.desired_running else "stopped"
            self._note(
                "command", "create", actor=self._actor, message=f"on {start.spec.host_id}, desired {desired}"
            )
            self._apply(apply_event(self._state.now_situation, Event.CREATED))
        while not self._state.deleted or self._state.inbox or self._dirty or self._operation:
            try:
                await self._reconcile()
            except asyncio.CancelledError:
                if workflow.cancellation_reason() is None:
                    # Not a request but the worker dropping this instance from its cache.
                    raise
                # Somebody cancelled the workflow by hand. An entity must not leave its container behind, so this means
                # what it says on the tin of every other command: delete.
                self._note("command", "cancel", message="workflow cancelled: taken as delete")
                self._apply(apply_command(self._state.now_situation, Command.DELETE))
        await workflow.wait_condition(workflow.all_handlers_finished)

    async def _reconcile(self) -> None:
        """One pass: take signals in, project, act or wait."""
        self._take_in()
        await self._record()
        if self._state.inbox or (self._state.deleted and self._operation is None):
            return
        operation = next_operation(self._state.now_situation)
        if self._continue_as_new_is_due():
            workflow.continue_as_new(
                m.EnvironmentInput(spec=self._state.spec, state=self._state.model_dump(mode="json")),
            )
        if operation is not None:
            await self._operate(operation)
        else:
            await self._wait()

    def _continue_as_new_is_due(self) -> bool:
        info = workflow.info()
        long = (
            info.is_continue_as_new_suggested() or info.get_current_history_length() > policies.HISTORY_LIMIT
        )
        # Checked with the inbox empty and with no await between here and the command: nothing can be lost in between.
        return long and workflow.all_handlers_finished()

    async def _operate(self, operation: Operation) -> None:
        """Run one operation to its end, or until what came in interrupts it."""
        self._operation = operation
        task = asyncio.create_task(self._operations.begin(operation))
        cancelled = False
        try:
            while not task.done():
                self._show()
                await workflow.wait_condition(lambda: task.done() or bool(self._state.inbox))
                if self._state.inbox and self._take_in() and not cancelled and not task.done():
                    cancelled = True
                    task.cancel()
                    self._note("note", "interrupted", message=f"{operation} interrupted")
        finally:
            if not task.done():
                task.cancel()
            self._operation, self._phase = None, None
        self._conclude(operation, task)

    def _conclude(self, operation: Operation, task: "asyncio.Task[Event]") -> None:
        """What the operation's end means."""
        if task.cancelled():
            pass
        elif (error := task.exception()) is None:
            self._apply(apply_event(self._state.now_situation, task.result()))
        elif isinstance(error, Failure):
            self._fail(error.error, operation)
        else:
            # Nothing unexpected may fail the workflow task: it would be retried for ever, signals waiting behind it.
            workflow.logger.error("operation %s failed unexpectedly", operation, exc_info=error)
            now = workflow.now()
            self._fail(classify(error, phase=operation, generation=self._state.generation, at=now), operation)
        for event in self._take_held_back():
            self._on_container_event(event)

    async def _wait(self) -> None:
        """Until a signal comes in or the nearest deadline passes."""
        deadlines = self._deadlines()
        self._show()
        if not deadlines:
            await workflow.wait_condition(lambda: bool(self._state.inbox))
            return
        at, why = min(deadlines)
        now = workflow.now()
        if at > now:
            try:
                await workflow.wait_condition(
                    lambda: bool(self._state.inbox), timeout=at - now, timeout_summary=why
                )
                return
            except TimeoutError:
                pass
        await self._deadline_passed(why)

    def _deadlines(self) -> list[tuple[datetime, str]]:
        state, deadlines = self._state, []
        if state.situation.recovery is Recovery.SCHEDULED and state.next_retry_at:
            deadlines.append((state.next_retry_at, "next attempt"))
        if state.situation.status is Status.RUNNING:
            if state.node_lost_at:
                deadlines.append((state.node_lost_at + policies.NODE_GRACE, "the node's time to reconnect"))
            if state.token:
                left = policies.NODE_TOKEN_TTL - policies.NODE_TOKEN_RENEWAL
                deadlines.append((state.token.expires_at - left, "token renewal"))
        return deadlines

    async def _deadline_passed(self, why: str) -> None:
        state = self._state
        if why == "next attempt":
            state.next_retry_at = None
            self._apply(apply_event(state.now_situation, Event.RETRY_DUE))
        elif why == "token renewal":
            await self._operations.extend_token()
            self._note("credential", "token_extended")
        else:
            seconds = round(policies.NODE_GRACE.total_seconds())
            state.node_lost_at = None
            self._sandbox_lost(
                ErrorCode.SANDBOX_UNHEALTHY, f"the node has been away for {seconds} s", "running"
            )

    # --- taking signals in -------------------------------------------------------------------------------------

    def _take_in(self) -> bool:
        """Apply everything in the inbox, in order. Returns whether any of it interrupts an operation in flight."""
        interrupts = False
        while self._state.inbox:
            item = self._state.inbox.pop(0)
            try:
                interrupts = self._take(item) or interrupts
            except Exception as error:  # noqa: BLE001 - one bad signal must not wedge the workflow
                workflow.logger.error("signal %s failed unexpectedly", item.name, exc_info=error)
                self._note("error", ErrorCode.INTERNAL, message=f"signal {item.name[:40]}: {error}"[:300])
        return interrupts

    def _take(self, item: InboxItem) -> bool:
        message, remark = parse(item)
        match message:
            case m.CommandSignal():
                return self._on_command(Command(item.name), message, remark)
            case m.SpecChange():
                return self._on_spec_change(message)
            case m.ContainerEvent():
                return self._on_container_event(message)
            case m.HostEvent():
                return self._on_host_event(message)
            case m.NodePresence():
                return self._on_node_presence(message)
            case OddSignal():
                self._note("note", "odd_signal", message=f"{message.name}: {message.message}"[:300])
                return False

    def _on_command(self, command: Command, signal: m.CommandSignal, remark: str | None) -> bool:
        state = self._state
        if self._seen(signal.request_id):
            return False
        step = apply_command(state.now_situation, command)
        self._note(
            "command",
            command,
            message="; ".join(filter(None, [step.reaction.replace("_", "-"), remark])),
            actor=signal.actor,
            reason=signal.reason,
        )
        if step.reaction is Reaction.ACCEPTED:
            state.next_retry_at = None
            state.failures = []
            state.restarts = 0
            if command is Command.RESET:
                state.rotate_identity = state.rotate_identity or signal.rotate_identity
        return self._apply(step)

    def _on_spec_change(self, change: m.SpecChange) -> bool:
        state = self._state
        if self._seen(change.request_id) or state.situation.status is Status.DELETING:
            return False
        before = state.spec
        update = change.model_dump(include={"label", "image_ref", "security_profile"}, exclude_none=True)
        if change.limits is not None:
            update["limits"] = change.limits
        if change.clear_label:
            update["label"] = None
        state.spec = before.model_copy(update=update)
        changed = [
            name
            for name in m.EnvironmentSpec.model_fields
            if getattr(before, name) != getattr(state.spec, name)
        ]
        self._dirty = True
        self._note("command", "change", actor=change.actor, message=", ".join(changed) or "nothing changed")
        if not set(changed) - {"label"}:
            return False
        state.container = None
        return self._apply(apply_event(state.now_situation, Event.SPEC_CHANGED))

    def _on_container_event(self, event: m.ContainerEvent) -> bool:
        state = self._state
        if event.generation != state.generation:
            return False
        if self._operation is Operation.START:
            # The start watches its own container; but if it ends well all the same, this is news.
            self._held_back.append(event)
            return False
        if state.situation.status is not Status.RUNNING:
            return False
        if event.event == "paused":
            return self._sandbox_lost(
                ErrorCode.SANDBOX_UNHEALTHY, "the container was paused by hand", "running"
            )
        text = {
            "exited": f"the container exited with code {event.exit_code}",
            "removed": "the container was removed by hand",
            "absent": "the container is not there any more",
        }[event.event]
        return self._sandbox_lost(
            ErrorCode.SANDBOX_EXITED,
            text + (" after running out of memory" if event.oom_killed else ""),
            "running",
            exit_code=event.exit_code,
            oom_killed=event.oom_killed,
            log_tail=event.log_tail,
        )

    def _take_held_back(self) -> list[m.ContainerEvent]:
        events, self._held_back = self._held_back, []
        return events

    def _on_host_event(self, event: m.HostEvent) -> bool:
        state = self._state
        if event.event == "lost":
            error = m.LastError(code=event.code, message=event.message[:300] or "the host cannot be reached")
            state.host_error = error
            step = apply_event(state.now_situation, Event.HOST_LOST)
        else:
            state.host_error = None
            step = apply_event(state.now_situation, Event.HOST_RESTORED)
            if state.last_error and state.last_error.code in HOST_CODES and state.next_retry_at:
                state.next_retry_at = workflow.now()
        if step.reaction is not Reaction.NO_OP:
            self._note("event", f"host_{event.event}", message=event.message[:300] or None)
        return self._apply(step)

    def _on_node_presence(self, presence: m.NodePresence) -> bool:
        state = self._state
        if presence.generation != state.generation or state.situation.status is not Status.RUNNING:
            return False
        name = "node_connected" if presence.connected else "node_disconnected"
        self._note("event", name, message=presence.reason[:300] or None)
        if presence.connected:
            state.node_lost_at = None
        elif state.node_lost_at is None:
            state.node_lost_at = workflow.now()
        return False

    def _seen(self, request_id: str | None) -> bool:
        """Whether this request was taken in before; remembers it."""
        if request_id is None:
            return False
        if request_id in self._state.request_ids:
            return True
        self._state.request_ids = [*self._state.request_ids, request_id][-REQUEST_IDS_KEPT:]
        return False

    # --- changing the state ------------------------------------------------------------------------------------

    def _sandbox_lost(self, code: ErrorCode, message: str, phase: str, **more: Any) -> bool:
        state = self._state
        error = m.LastError(
            code=code, message=message, phase=phase, generation=state.generation, at=workflow.now(), **more
        )
        state.container = None
        return self._fail(error, None)

    def _fail(self, error: m.LastError, operation: Operation | None) -> bool:
        """Record an error and decide whether and when it is tried again (design section 4)."""
        state, now = self._state, workflow.now()
        before = state.situation.status
        event = self._failure_event(error, now)
        step = apply_event(state.now_situation, event)
        if step.reaction is Reaction.NO_OP:
            return False
        self._note(
            "error",
            error.code,
            message=error.message,
            phase=error.phase,
            exit_code=error.exit_code,
            oom_killed=error.oom_killed or None,
            log_tail=error.log_tail[-20:] or None,
        )
        interrupts = self._apply(step)
        state.last_error = error
        if error.log_tail:
            state.logs = error.log_tail
        if state.situation.recovery is Recovery.SCHEDULED:
            on_host = event is Event.FAILED_ON_HOST
            wait = policies.HOST_RETRY_BACKOFF if on_host else policies.restart_backoff(len(state.failures))
            state.next_retry_at = now + wait
            if before in (Status.RUNNING, Status.STARTING) and not on_host:
                state.restarts += 1
            self._note("note", "retry_scheduled", message=f"in {wait.total_seconds():g} s")
        return interrupts

    def _failure_event(self, error: m.LastError, now: datetime) -> Event:
        state = self._state
        if error.code in HOST_CODES:
            return Event.FAILED_ON_HOST
        if error.code in LASTING_CODES:
            return Event.FAILED_LASTING
        if state.situation.status in (Status.STARTING, Status.RUNNING):
            recent = [at for at in state.failures if at > now - policies.RESTART_WINDOW]
            state.failures = [*recent, now]
            if len(state.failures) > policies.RESTART_ATTEMPTS:
                return Event.FAILED_LASTING
        return Event.FAILED_RETRYABLE

    def _apply(self, step: Step) -> bool:
        """Take a step's situation over. Returns whether it interrupts an operation in flight."""
        state = self._state
        before = state.now_situation
        if step.clears_error and state.last_error is not None:
            state.last_error = None
        if step.situation != before:
            state.situation = SituationRecord(**asdict(step.situation))
            self._dirty = True
        if step.situation.recovery is Recovery.HOST and (
            state.last_error is None or state.last_error.code not in HOST_CODES
        ):
            state.last_error = state.host_trouble(workflow.now())
            self._note("error", state.last_error.code, message=state.last_error.message)
        if step.situation.status is not before.status:
            self._note("status", step.situation.status)
        return step.interrupts and step.reaction is Reaction.ACCEPTED

    def _note(
        self,
        kind: str,
        name: str,
        *,
        message: str | None = None,
        actor: str | None = None,
        reason: str | None = None,
        **detail: Any,
    ) -> None:
        """Add an entry to the timeline."""
        state = self._state
        state.sequence += 1
        state.updated_at = workflow.now()
        entry = m.TimelineEntry(
            sequence=state.sequence,
            at=workflow.now(),
            kind=kind,
            name=name,
            status=state.situation.status,
            generation=state.generation,
            actor=actor,
            reason=reason,
            message=message,
            detail={key: value for key, value in detail.items() if value is not None},
        )
        state.timeline = [*state.timeline, entry][-TIMELINE_KEPT:]
        state.unrecorded.append(entry)
        self._dirty = True

    async def _record(self) -> None:
        """Project the state into the inventory, if there is anything new."""
        while self._dirty:
            self._dirty = False
            record = self._state.record(workflow.now())
            self._state.unrecorded = []
            self._show()
            await in_inventory(
                ControlActivities.record_environment,
                record,
                policy=policies.INVENTORY,
                summary=f"record {record.status}, generation {record.generation}",
            )

    def _entered(self, phase: str) -> None:
        self._phase = phase
        self._show()

    def _show(self) -> None:
        """What the Web UI shows: details at no cost, the status as a search attribute when it is settled."""
        status = self._state.situation.status
        workflow.set_current_details(describe(self._state, self._operation, self._phase))
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
            done = taken_in and not self._state.inbox and self.status().settled and not self._dirty
            return done or self._state.deleted

        try:
            await workflow.wait_condition(
                settled, timeout=timedelta(seconds=wish.timeout_seconds), timeout_summary="await_settled"
            )
        except TimeoutError:
            pass
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
        if captured.found:
            self._state.logs = captured.lines
        return self._state.logs or []
