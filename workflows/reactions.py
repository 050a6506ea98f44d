"""How an environment reacts: signals, outcomes and deadlines turned into state, and the timeline of it all.

Everything here changes an `EnvironmentState` and nothing else; what is decided comes from `models.lifecycle`.
"""

from dataclasses import asdict
from datetime import datetime
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from models import messages as m
    from models.errors import HOST_CODES, LASTING_CODES, ErrorCode
    from models.lifecycle import (
        Command,
        Event,
        Operation,
        Reaction,
        Recovery,
        Status,
        Step,
        apply_command,
        apply_event,
        is_settled,
    )
    from workflows import policies
    from workflows.inbox import InboxItem, OddSignal, parse
    from workflows.state import REQUEST_IDS_KEPT, TIMELINE_KEPT, EnvironmentState, SituationRecord


_FURTHEST = 10_000
"""Generations: a container cannot be further ahead than that; a number typed by hand can, and would fit no column."""


class Reactions:
    """Applies what happens to a state.

    Args:
        state: changed in place.

    Attributes:
        dirty: the state has something the inventory does not.
        known: the inventory has taken a record of this run, and so has said what it knows better.
    """

    def __init__(self, state: EnvironmentState, *, dirty: bool) -> None:
        self._state = state
        self.dirty = dirty
        self.known = False
        self._held_back: list[m.ContainerEvent | m.NodePresence] = []

    # --- taking signals in -------------------------------------------------------------------------------------

    def take_in(self, operation: Operation | None) -> bool:
        """Apply everything in the inbox, in order. Returns whether any of it interrupts `operation`, in flight."""
        interrupts = False
        while self._state.inbox:
            item = self._state.inbox.pop(0)
            try:
                interrupts = self._take(item, operation) or interrupts
            except Exception as error:
                workflow.logger.error("signal %s failed unexpectedly", item.name, exc_info=error)
                self.note("error", ErrorCode.INTERNAL, message=f"signal {item.name[:40]}: {error}"[:300])
        return interrupts

    def _take(self, item: InboxItem, operation: Operation | None) -> bool:
        message, remark = parse(item)
        match message:
            case m.CommandSignal():
                return self._on_command(Command(item.name), message, remark)
            case m.SpecChange():
                return self._on_spec_change(message)
            case m.ContainerEvent():
                return self._on_container_event(message, operation)
            case m.HostEvent():
                return self._on_host_event(message)
            case m.NodePresence():
                return self._on_node_presence(message, operation)
            case OddSignal():
                self.note("note", "odd_signal", message=f"{message.name}: {message.message}"[:300])
                return False

    def _on_command(self, command: Command, signal: m.CommandSignal, remark: str | None) -> bool:
        state = self._state
        if self._seen(signal.request_id):
            return False
        step = apply_command(state.now_situation, command)
        self.note(
            "command",
            command,
            message="; ".join(filter(None, [step.reaction.replace("_", "-"), remark])),
            actor=signal.actor,
            reason=signal.reason,
        )
        # Whoever asks, for a delete that hangs too, need not wait for a back-off.
        state.not_before = None
        if step.reaction is Reaction.ACCEPTED:
            self._begin_anew()
            if command is Command.RESET:
                state.rotate_identity = state.rotate_identity or signal.rotate_identity
        return self.apply(step)

    def _on_spec_change(self, change: m.SpecChange) -> bool:
        state = self._state
        if self._seen(change.request_id) or state.situation.status is Status.DELETING:
            return False
        before = state.spec
        update = change.model_dump(include={"label", "image_ref", "security_profile"}, exclude_none=True)
        if change.limits is not None:
            update["limits"] = before.limits.with_those(change.limits_given, change.limits)
        if change.clear_label:
            update["label"] = None
        state.spec = before.model_copy(update=update)
        changed = [
            name
            for name in m.EnvironmentSpec.model_fields
            if getattr(before, name) != getattr(state.spec, name)
        ]
        self.dirty = True
        self.note("command", "change", actor=change.actor, message=", ".join(changed) or "nothing changed")
        if not set(changed) - {"label"}:
            return False
        state.container = None
        step = apply_event(state.now_situation, Event.SPEC_CHANGED)
        if step.reaction is Reaction.ACCEPTED:
            self._begin_anew()
        return self.apply(step)

    def _begin_anew(self) -> None:
        """An operator asked for something: what failed before does not count against it."""
        state = self._state
        state.next_retry_at = state.not_before = None
        state.failures = []
        state.restarts = state.setbacks = 0

    def _on_container_event(self, event: m.ContainerEvent, operation: Operation | None) -> bool:
        state = self._state
        if event.event == "newer":
            return self._on_newer_container(event, operation)
        if event.generation != state.generation:
            return False
        if event.event == "out_of_memory":
            # The kernel has ended what was too big; the desktop is well, and a new one would be worse.
            self.note(
                "event",
                "out_of_memory",
                message="a program in the container ran out of memory and was killed",
            )
            return False
        if operation is Operation.START:
            # The start watches its own container; but if it ends well all the same, this is news.
            self._held_back.append(event)
            return False
        if state.situation.status is not Status.RUNNING:
            return False
        if event.event == "paused":
            return self.sandbox_lost(ErrorCode.SANDBOX_UNHEALTHY, "the container was paused by hand")
        text = {
            "exited": f"the container exited with code {event.exit_code}",
            "removed": "the container was removed by hand",
            "absent": "the container is not there any more",
        }[event.event]
        return self.sandbox_lost(
            ErrorCode.SANDBOX_EXITED,
            text + (" after running out of memory" if event.oom_killed else ""),
            exit_code=event.exit_code,
            oom_killed=event.oom_killed,
            log_tail=event.log_tail,
        )

    def _on_newer_container(self, event: m.ContainerEvent, operation: Operation | None) -> bool:
        """The host has a container that this workflow has not come to: it, or the server, was set back by hand."""
        state = self._state
        if event.generation <= state.generation:
            return False
        if event.generation > state.generation + _FURTHEST:
            self.note("note", "odd_signal", message=f"there can be no generation {event.generation}")
            return False
        if operation is not None and operation is not Operation.DELETE:
            # What is under way was begun for the generation that it knows.
            self._held_back.append(event)
            return False
        state.generation = event.generation
        state.container = None
        self.note(
            "note",
            "rewound",
            message=f"the host has a container of generation {event.generation}; it is ended",
        )
        # A delete that is under way ends what it knew of; it begins again.
        return self.apply(apply_event(state.now_situation, Event.REWOUND)) or operation is Operation.DELETE

    def _on_host_event(self, event: m.HostEvent) -> bool:
        state = self._state
        at = workflow.now() if event.at == m.EPOCH else event.at
        if at < state.host_event_at:
            return False
        state.host_event_at = at
        if event.event == "lost":
            error = m.LastError(code=event.code, message=event.message[:300] or "the host cannot be reached")
            state.host_error = error
            step = apply_event(state.now_situation, Event.HOST_LOST)
        else:
            state.host_error = None
            step = apply_event(state.now_situation, Event.HOST_RESTORED)
            state.not_before = None
            if state.last_error and state.last_error.code in HOST_CODES and state.next_retry_at:
                state.next_retry_at = workflow.now()
        if step.reaction is not Reaction.NO_OP:
            self.note("event", f"host_{event.event}", message=event.message[:300] or None)
        # A delete that still tries the host is begun again: it is a tombstone at once (design decision 11).
        hopeless = event.event == "lost" and state.situation.status is Status.DELETING and not state.deleted
        return self.apply(step) or hopeless

    def _on_node_presence(self, presence: m.NodePresence, operation: Operation | None) -> bool:
        state = self._state
        if presence.generation != state.generation:
            return False
        if operation is Operation.START:
            self._held_back.append(presence)
            return False
        if state.situation.status is not Status.RUNNING:
            return False
        name = "node_connected" if presence.connected else "node_disconnected"
        self.note("event", name, message=presence.reason[:300] or None)
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

    # --- outcomes and deadlines --------------------------------------------------------------------------------

    def created(self, actor: str | None) -> None:
        """The workflow took the environment over."""
        state = self._state
        desired = "running" if state.situation.desired_running else "stopped"
        self.note("command", "create", actor=actor, message=f"on {state.spec.host_id}, desired {desired}")
        self.apply(apply_event(state.now_situation, Event.CREATED))

    def cancelled_by_hand(self) -> None:
        """Somebody cancelled the workflow. An entity must not leave its container behind: that is a delete."""
        self.note("command", "cancel", message="workflow cancelled: taken as delete")
        self.apply(apply_command(self._state.now_situation, Command.DELETE))

    def ended_well(self, event: Event) -> None:
        """An operation reached its end."""
        state = self._state
        state.not_before = None
        self.apply(apply_event(state.now_situation, event))
        if state.situation.status is not Status.ERROR and is_settled(state.now_situation):
            state.setbacks = 0

    def operation_ended(self) -> None:
        """What came in during a start about its container and node counts now."""
        events, self._held_back = self._held_back, []
        for event in events:
            if isinstance(event, m.ContainerEvent):
                self._on_container_event(event, None)
            else:
                self._on_node_presence(event, None)

    def retry_due(self) -> None:
        """The back-off has passed."""
        self._state.next_retry_at = None
        self.apply(apply_event(self._state.now_situation, Event.RETRY_DUE))

    def node_stayed_away(self) -> None:
        """The node's time to reconnect has passed (design decision 14)."""
        self._state.node_lost_at = None
        seconds = round(policies.NODE_GRACE.total_seconds())
        self.sandbox_lost(ErrorCode.SANDBOX_UNHEALTHY, f"the node has been away for {seconds} s")

    # --- changing the state ------------------------------------------------------------------------------------

    def sandbox_lost(self, code: ErrorCode, message: str, **more: Any) -> bool:
        """The running sandbox is gone or useless. Returns whether that interrupts an operation in flight."""
        state = self._state
        error = m.LastError(
            code=code,
            message=message,
            phase="running",
            generation=state.generation,
            at=workflow.now(),
            **more,
        )
        state.container = None
        return self.fail(error)

    def fail(self, error: m.LastError) -> bool:
        """Record an error and decide whether and when it is tried again (design section 4)."""
        state, now = self._state, workflow.now()
        before = state.situation.status
        event = self._failure_event(error, now)
        step = apply_event(state.now_situation, event)
        if before is not Status.STARTING and before is not Status.RUNNING:
            state.setbacks += 1
        if step.reaction is Reaction.NO_OP:
            self._postpone(error)
            return False
        self.note(
            "error",
            error.code,
            message=error.message,
            phase=error.phase,
            exit_code=error.exit_code,
            oom_killed=error.oom_killed or None,
            log_tail=error.log_tail[-20:] or None,
        )
        interrupts = self.apply(step)
        state.last_error = error
        if error.log_tail:
            state.logs = error.log_tail
        if state.situation.recovery is Recovery.SCHEDULED:
            on_host = event is Event.FAILED_ON_HOST
            failures = max(len(state.failures), state.setbacks)
            wait = policies.HOST_RETRY_BACKOFF if on_host else policies.restart_backoff(failures)
            state.next_retry_at = now + wait
            if before in (Status.RUNNING, Status.STARTING) and not on_host:
                state.restarts += 1
            self.note("note", "retry_scheduled", message=f"in {wait.total_seconds():g} s")
        return interrupts

    def _postpone(self, error: m.LastError) -> None:
        """A delete or a clean-up failed: the status stays, and the same is tried again after a back-off."""
        state = self._state
        wait = policies.restart_backoff(state.setbacks)
        state.not_before = workflow.now() + wait
        if state.setbacks == 1:
            message = f"{error.message[:300]}; tried again until it succeeds"
            self.note("error", error.code, message=message, phase=error.phase)

    def stumbled(self, error: Exception) -> None:
        """Something unexpected was raised in the workflow itself."""
        self._state.setbacks += 1
        text = f"unexpected {type(error).__name__}: {error}"[:300]
        self.note("error", ErrorCode.INTERNAL, message=text)

    def projection_failed(self, error: BaseException) -> None:
        """The inventory refuses a record for a reason of its own: the environment goes on without its projection."""
        state = self._state
        state.projection_failures += 1
        wait = policies.doubling(state.projection_failures, policies.PROJECTION_WAIT_MAX)
        state.projection_retry_at = workflow.now() + wait
        if state.projection_failures == 1:
            self.note("error", ErrorCode.INTERNAL, message=f"the inventory refuses the record: {error}"[:300])

    def recorded(self, known: m.Recorded | None, entries: list[m.TimelineEntry], sequence: int) -> None:
        """A record was written.

        Args:
            known: what the inventory has then. entries: what was sent. sequence: of the timeline when it was sent.
        """
        state = self._state
        state.projection_failures, state.projection_retry_at = 0, None
        self.known = True
        if known is None or (known.generation <= state.generation and known.sequence <= sequence):
            return
        if known.deleted and state.situation.status is not Status.DELETING:
            self.apply(apply_command(state.now_situation, Command.DELETE))
        # More than this run can have written: the workflow was reset by hand to an earlier point, or its carried state
        # was lost. Its numbers go on from there, or everything it makes would be refused as outdated.
        missed = [*entries, *state.unrecorded]
        state.sequence = max(state.sequence, known.sequence)
        for entry in missed:
            state.sequence += 1
            entry.sequence = state.sequence
        state.unrecorded = missed
        if known.generation > state.generation:
            state.generation = known.generation
            state.container = None
        self.note(
            "note", "rewound", message="an earlier state was taken up; what the host has is proven anew"
        )
        self.apply(apply_event(state.now_situation, Event.REWOUND))

    def state_unreadable(self, names: str) -> None:
        """Part of what continue-as-new carried could not be read."""
        message = f"the state carried over could not be read: {names}"
        self.note("error", ErrorCode.INTERNAL, message=message[:300])
        state = self._state
        if state.situation.status is Status.ERROR and state.last_error is None:
            state.last_error = m.LastError(code=ErrorCode.INTERNAL, message=message, at=workflow.now())

    def _failure_event(self, error: m.LastError, now: datetime) -> Event:
        state = self._state
        if error.code in HOST_CODES:
            return Event.FAILED_ON_HOST
        if error.lasting or error.code in LASTING_CODES:
            return Event.FAILED_LASTING
        recent = [at for at in state.failures if at > now - policies.RESTART_WINDOW]
        state.failures = [*recent, now]
        # A stop is never given up: what is to be gone has to go, however slowly it is tried again.
        starting = state.situation.status in (Status.STARTING, Status.RUNNING)
        if starting and len(state.failures) > policies.RESTART_ATTEMPTS:
            return Event.FAILED_LASTING
        return Event.FAILED_RETRYABLE

    def apply(self, step: Step) -> bool:
        """Take a step's situation over. Returns whether it interrupts an operation in flight."""
        state = self._state
        before = state.now_situation
        if step.clears_error and state.last_error is not None:
            state.last_error = None
        if step.situation.recovery is not Recovery.SCHEDULED:
            state.next_retry_at = None
        if step.situation != before:
            state.situation = SituationRecord(**asdict(step.situation))
            self.dirty = True
        if step.situation.recovery is Recovery.HOST and (
            state.last_error is None or state.last_error.code not in HOST_CODES
        ):
            state.last_error = state.host_trouble(workflow.now())
            self.note("error", state.last_error.code, message=state.last_error.message)
        if step.situation.status is not before.status:
            self.note("status", step.situation.status)
        return step.interrupts and step.reaction is Reaction.ACCEPTED

    def note(
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
        self.dirty = True
