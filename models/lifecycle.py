"""Statuses and the one place that decides: a pure, total transition function (design section 4).

Commands and events only change a `Situation`; `next_operation` says what the reconcile loop does about it. Nothing
here knows Temporal, Docker or SQL, so every cell of the table can be tested by calling it.
"""

from dataclasses import dataclass, replace
from enum import StrEnum


class Status(StrEnum):
    """What an environment is, as operators see it."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"
    DELETING = "deleting"


SETTLED = frozenset({Status.RUNNING, Status.STOPPED, Status.ERROR})
"""Statuses in which nothing is under way; an `error` may still have a retry scheduled."""

IN_TRANSITION = frozenset(Status) - SETTLED

NEEDS_HOST = frozenset({Status.STARTING, Status.RUNNING, Status.STOPPING})
"""Statuses that are a claim about the host, and so cannot be made while the host is away."""


class Command(StrEnum):
    """What an operator can ask for; also the names of the workflow's signals."""

    START = "start"
    STOP = "stop"
    RESET = "reset"
    DELETE = "delete"


class Event(StrEnum):
    """What the world, or an operation's end, tells the environment."""

    CREATED = "created"
    """The workflow took the environment over."""
    STARTED = "started"
    """A start proved the desktop ready."""
    FAILED_RETRYABLE = "failed_retryable"
    """An operation failed, or a running sandbox was lost, and repetition may help."""
    FAILED_LASTING = "failed_lasting"
    """An operation failed in a way repetition cannot mend, or attempts are used up."""
    FAILED_ON_HOST = "failed_on_host"
    """An operation failed because the host or its engine did not answer: tried again, and nothing is cleaned up, since
    a container there may be well."""
    STOPPED = "stopped"
    """The container is gone because it was asked to go."""
    WIPED = "wiped"
    """The container and the runtime home are gone."""
    SPEC_CHANGED = "spec_changed"
    """The operator changed what a container is made from, such as the image: a running desktop is made anew."""
    CLEANED = "cleaned"
    """What a failed start or a lost sandbox left behind is gone, or is left to the next operation."""
    REWOUND = "rewound"
    """The workflow was reset by hand to an earlier point: what the host has now is not known."""
    RETRY_DUE = "retry_due"
    """The back-off has passed."""
    HOST_LOST = "host_lost"
    """The host, or its Docker engine, cannot be reached."""
    HOST_RESTORED = "host_restored"
    """The host and its Docker engine answer again."""


class Recovery(StrEnum):
    """How an `error` ends."""

    NONE = "none"
    SCHEDULED = "scheduled"
    """By itself, after the back-off."""
    OPERATOR = "operator"
    """By an operator's command only."""
    HOST = "host"
    """By itself, when the host is back."""


class Operation(StrEnum):
    """What the reconcile loop can be doing; one at a time."""

    START = "start"
    STOP = "stop"
    WIPE = "wipe"
    CLEAN = "clean"
    DELETE = "delete"


class Reaction(StrEnum):
    """What became of a command or event."""

    ACCEPTED = "accepted"
    NO_OP = "no_op"
    REFUSED = "refused"


@dataclass(frozen=True)
class Situation:
    """Everything the decisions depend on.

    Attributes:
        status: what operators see.
        desired_running: where operators want it.
        wipe: a reset was accepted and its wipe is not done.
        recovery: how the error ends; `Recovery.NONE` unless `status` is `error`.
        host_available: the host and its Docker engine are reachable, as far as is known.
        debris: a failure may have left a container or live credentials behind.
    """

    status: Status = Status.PENDING
    desired_running: bool = False
    wipe: bool = False
    recovery: Recovery = Recovery.NONE
    host_available: bool = True
    debris: bool = False


@dataclass(frozen=True)
class Step:
    """The answer to one command or event.

    Attributes:
        situation: what holds from now on.
        reaction: accepted, nothing to do, or refused.
        interrupts: the operation in flight no longer serves the desired state and has to be cancelled.
        clears_error: the recorded error no longer holds and the restart window begins anew.
    """

    situation: Situation
    reaction: Reaction
    interrupts: bool = False
    clears_error: bool = False


def apply_command(situation: Situation, command: Command) -> Step:
    """Answer an operator's command; every status accepts every command but `deleting` (design section 4)."""
    if situation.status is Status.DELETING:
        reaction = Reaction.NO_OP if command is Command.DELETE else Reaction.REFUSED
        return Step(situation, reaction)
    match command:
        case Command.START:
            return _start(situation)
        case Command.STOP:
            return _stop(situation)
        case Command.RESET:
            return _reset(situation)
        case Command.DELETE:
            deleting = replace(_with(situation, Status.DELETING), desired_running=False, wipe=False)
            return Step(deleting, Reaction.ACCEPTED, interrupts=True, clears_error=True)


def apply_event(situation: Situation, event: Event) -> Step:
    """Answer an event; an event that says nothing new in a status leaves it as it is, as a no-op."""
    if event is Event.HOST_LOST:
        return _host_lost(situation)
    if event is Event.HOST_RESTORED:
        return _host_restored(situation)
    status = situation.status
    if status is Status.PENDING and event is Event.CREATED:
        return _accept(situation, Status.STARTING if situation.desired_running else Status.STOPPED)
    if event is Event.WIPED:
        if not situation.wipe:
            return Step(situation, Reaction.NO_OP)
        return Step(replace(situation, wipe=False), Reaction.ACCEPTED)
    if status is Status.STARTING and event is Event.STARTED and not situation.wipe:
        return _clearing_error(_accept(situation, Status.RUNNING))
    if status is Status.STOPPING and event is Event.STOPPED:
        return _accept(situation, Status.STARTING if situation.desired_running else Status.STOPPED)
    if event is Event.CLEANED:
        return Step(
            replace(situation, debris=False), Reaction.ACCEPTED if situation.debris else Reaction.NO_OP
        )
    if event is Event.SPEC_CHANGED:
        return _spec_changed(situation)
    if event is Event.REWOUND:
        return _rewound(situation)
    if event in (Event.FAILED_RETRYABLE, Event.FAILED_LASTING, Event.FAILED_ON_HOST):
        return _failed(situation, event)
    if status is Status.ERROR and event is Event.RETRY_DUE and situation.recovery is Recovery.SCHEDULED:
        return _accept(situation, _toward_desired(situation))
    return Step(situation, Reaction.NO_OP)


def next_operation(situation: Situation) -> Operation | None:
    """What the reconcile loop has to do now, or None where it waits."""
    if situation.status is Status.DELETING:
        return Operation.DELETE
    if not situation.host_available:
        return None
    if situation.status is Status.ERROR:
        return Operation.CLEAN if situation.debris else None
    if situation.status is Status.STOPPING:
        return Operation.STOP
    if situation.wipe:
        return Operation.WIPE
    if situation.status is Status.STARTING:
        return Operation.START
    return None


def is_settled(situation: Situation) -> bool:
    """Whether the last command's outcome is known: nothing under way and no retry scheduled."""
    if situation.status is Status.ERROR:
        return situation.recovery in (Recovery.OPERATOR, Recovery.HOST) and not situation.debris
    return situation.status in SETTLED and not situation.wipe


def _start(situation: Situation) -> Step:
    wanted = replace(situation, desired_running=True)
    match situation.status:
        case Status.PENDING | Status.STOPPED:
            return _held_by_host(Step(_with(wanted, Status.STARTING), Reaction.ACCEPTED, clears_error=True))
        case Status.ERROR:
            return _held_by_host(Step(_with(wanted, Status.STARTING), Reaction.ACCEPTED, clears_error=True))
        case Status.STOPPING if not situation.desired_running:
            return Step(wanted, Reaction.ACCEPTED)
        case _:
            return Step(wanted, Reaction.NO_OP)


def _stop(situation: Situation) -> Step:
    unwanted = replace(situation, desired_running=False)
    match situation.status:
        case Status.STARTING | Status.RUNNING | Status.ERROR:
            step = Step(
                _with(unwanted, Status.STOPPING), Reaction.ACCEPTED, interrupts=True, clears_error=True
            )
            return _held_by_host(step)
        case Status.STOPPING if situation.desired_running:
            return Step(unwanted, Reaction.ACCEPTED)
        case Status.PENDING if situation.desired_running:
            return Step(unwanted, Reaction.ACCEPTED)
        case _:
            return Step(unwanted, Reaction.NO_OP)


def _reset(situation: Situation) -> Step:
    wiping = replace(situation, wipe=True)
    match situation.status:
        case Status.STARTING | Status.RUNNING:
            return Step(_with(wiping, Status.STARTING), Reaction.ACCEPTED, interrupts=True, clears_error=True)
        case Status.ERROR:
            step = Step(_with(wiping, _toward_desired(wiping)), Reaction.ACCEPTED, True, clears_error=True)
            return _held_by_host(step)
        case _:
            return Step(wiping, Reaction.ACCEPTED)


def _spec_changed(situation: Situation) -> Step:
    if situation.status in (Status.STARTING, Status.RUNNING):
        return Step(_with(situation, Status.STARTING), Reaction.ACCEPTED, interrupts=True, clears_error=True)
    if situation.status is Status.ERROR and situation.desired_running:
        return _held_by_host(Step(_with(situation, Status.STARTING), Reaction.ACCEPTED, clears_error=True))
    return Step(situation, Reaction.NO_OP)


def _rewound(situation: Situation) -> Step:
    """Whatever is claimed of the container is proven anew."""
    if situation.status in (Status.RUNNING, Status.STOPPED):
        return _accept(situation, _toward_desired(situation))
    if situation.status is Status.ERROR and situation.recovery is not Recovery.HOST:
        return Step(replace(situation, debris=True), Reaction.ACCEPTED)
    return Step(situation, Reaction.NO_OP)


def _failed(situation: Situation, event: Event) -> Step:
    idle = situation.status in (Status.PENDING, Status.STOPPED) and not situation.wipe
    if idle or situation.status in (Status.DELETING, Status.ERROR):
        return Step(situation, Reaction.NO_OP)
    recovery = Recovery.OPERATOR if event is Event.FAILED_LASTING else Recovery.SCHEDULED
    debris = event is not Event.FAILED_ON_HOST
    failed = replace(situation, status=Status.ERROR, recovery=recovery, debris=debris)
    return Step(failed, Reaction.ACCEPTED, interrupts=True)


def _host_lost(situation: Situation) -> Step:
    if not situation.host_available:
        return Step(situation, Reaction.NO_OP)
    return _held_by_host(Step(replace(situation, host_available=False), Reaction.ACCEPTED))


def _host_restored(situation: Situation) -> Step:
    back = replace(situation, host_available=True)
    if situation.status is Status.ERROR and situation.recovery is Recovery.HOST:
        return _clearing_error(_accept(back, _toward_desired(situation)))
    return Step(back, Reaction.NO_OP if situation.host_available else Reaction.ACCEPTED)


def _held_by_host(step: Step) -> Step:
    """With the host away nothing can be claimed about a container: an error that ends when the host is back."""
    if step.situation.host_available or step.situation.status not in NEEDS_HOST:
        return step
    held = replace(step.situation, status=Status.ERROR, recovery=Recovery.HOST)
    return replace(step, situation=held, interrupts=True, clears_error=False)


def _toward_desired(situation: Situation) -> Status:
    return Status.STARTING if situation.desired_running else Status.STOPPING


def _with(situation: Situation, status: Status) -> Situation:
    return replace(situation, status=status, recovery=Recovery.NONE, debris=False)


def _accept(situation: Situation, status: Status) -> Step:
    return _held_by_host(Step(_with(situation, status), Reaction.ACCEPTED))


def _clearing_error(step: Step) -> Step:
    """The same step, with the recorded error dropped."""
    return replace(step, clears_error=True)
