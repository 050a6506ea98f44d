"""The transition function of design section 4: total, the table cell by cell, and a state machine over it."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from models.lifecycle import (
    NEEDS_HOST,
    Command,
    Event,
    Operation,
    Reaction,
    Recovery,
    Situation,
    Status,
    Step,
    apply_command,
    apply_event,
    is_settled,
    next_operation,
)

EVERY_SITUATION = [
    Situation(status, desired, wipe, recovery, host, debris)
    for status, desired, wipe, recovery, host, debris in product(
        Status, (False, True), (False, True), Recovery, (False, True), (False, True)
    )
]

SAME = None
"""In the table: the status stays as it is."""

TABLE: dict[tuple[Status, Command], tuple[Status | None, bool, bool]] = {
    # (status, command): (status after, desired running after, interrupts the operation in flight)
    (Status.PENDING, Command.START): (Status.STARTING, True, False),
    (Status.PENDING, Command.STOP): (SAME, False, False),
    (Status.PENDING, Command.RESET): (SAME, False, False),
    (Status.PENDING, Command.DELETE): (Status.DELETING, False, True),
    (Status.STOPPED, Command.START): (Status.STARTING, True, False),
    (Status.STOPPED, Command.STOP): (SAME, False, False),
    (Status.STOPPED, Command.RESET): (SAME, False, False),
    (Status.STOPPED, Command.DELETE): (Status.DELETING, False, True),
    (Status.STARTING, Command.START): (SAME, True, False),
    (Status.STARTING, Command.STOP): (Status.STOPPING, False, True),
    (Status.STARTING, Command.RESET): (SAME, True, True),
    (Status.STARTING, Command.DELETE): (Status.DELETING, False, True),
    (Status.RUNNING, Command.START): (SAME, True, False),
    (Status.RUNNING, Command.STOP): (Status.STOPPING, False, True),
    (Status.RUNNING, Command.RESET): (Status.STARTING, True, True),
    (Status.RUNNING, Command.DELETE): (Status.DELETING, False, True),
    (Status.STOPPING, Command.START): (SAME, True, False),
    (Status.STOPPING, Command.STOP): (SAME, False, False),
    (Status.STOPPING, Command.RESET): (SAME, False, False),
    (Status.STOPPING, Command.DELETE): (Status.DELETING, False, True),
    (Status.ERROR, Command.START): (Status.STARTING, True, False),
    (Status.ERROR, Command.STOP): (Status.STOPPING, False, True),
    (Status.ERROR, Command.RESET): (Status.STARTING, True, True),
    (Status.ERROR, Command.DELETE): (Status.DELETING, False, True),
}


def _usual(status: Status) -> Situation:
    desired = status in (Status.STARTING, Status.RUNNING, Status.ERROR)
    recovery = Recovery.SCHEDULED if status is Status.ERROR else Recovery.NONE
    return Situation(status=status, desired_running=desired, recovery=recovery)


@pytest.mark.parametrize(("status", "command"), TABLE)
def test_the_table_of_the_design(status: Status, command: Command) -> None:
    after, desired, interrupts = TABLE[status, command]
    step = apply_command(_usual(status), command)
    assert step.situation.status is (status if after is None else after)
    assert step.situation.desired_running is desired
    assert step.interrupts is interrupts
    assert step.reaction is not Reaction.REFUSED
    assert step.situation.wipe is (command is Command.RESET)


@pytest.mark.parametrize("command", Command)
def test_deleting_refuses_all_but_delete(command: Command) -> None:
    step = apply_command(Situation(status=Status.DELETING), command)
    assert step.situation == Situation(status=Status.DELETING)
    assert step.reaction is (Reaction.NO_OP if command is Command.DELETE else Reaction.REFUSED)


def test_total_over_every_situation() -> None:
    for situation in EVERY_SITUATION:
        steps: list[Step] = [apply_command(situation, command) for command in Command]
        steps += [apply_event(situation, event) for event in Event]
        for step in steps:
            assert isinstance(step, Step)
            next_operation(step.situation)
            is_settled(step.situation)


def test_no_op_and_refused_change_nothing_that_shows() -> None:
    for situation in EVERY_SITUATION:
        for command in Command:
            step = apply_command(situation, command)
            if step.reaction is Reaction.REFUSED:
                assert step.situation == situation
            if step.reaction is Reaction.NO_OP:
                assert step.situation.status is situation.status
                assert not step.interrupts
        for event in Event:
            step = apply_event(situation, event)
            if step.reaction is Reaction.NO_OP:
                assert step.situation == situation
                assert not step.interrupts


def test_deleting_is_left_by_nothing() -> None:
    for situation in EVERY_SITUATION:
        deleting = replace(situation, status=Status.DELETING)
        for command in Command:
            assert apply_command(deleting, command).situation.status is Status.DELETING
        for event in Event:
            assert apply_event(deleting, event).situation.status is Status.DELETING


def test_running_is_reached_by_a_proven_start_only() -> None:
    for situation in EVERY_SITUATION:
        if situation.status is Status.RUNNING:
            continue
        steps = [apply_command(situation, command) for command in Command]
        steps += [apply_event(situation, event) for event in Event if event is not Event.STARTED]
        assert all(step.situation.status is not Status.RUNNING for step in steps)


def test_with_the_host_away_nothing_is_claimed() -> None:
    for status, event in product(NEEDS_HOST, [Event.HOST_LOST]):
        step = apply_event(_usual(status), event)
        assert step.situation.status is Status.ERROR
        assert step.situation.recovery is Recovery.HOST
        back = apply_event(step.situation, Event.HOST_RESTORED)
        assert back.situation.status is (
            Status.STARTING if step.situation.desired_running else Status.STOPPING
        )
        assert back.clears_error


def test_a_failure_on_the_host_leaves_the_container_alone() -> None:
    failed = apply_event(Situation(Status.STARTING, desired_running=True), Event.FAILED_ON_HOST).situation
    assert failed.recovery is Recovery.SCHEDULED
    assert next_operation(failed) is None


def test_a_failed_start_is_cleaned_up_before_anything_else() -> None:
    failed = apply_event(Situation(Status.STARTING, desired_running=True), Event.FAILED_LASTING).situation
    assert next_operation(failed) is Operation.CLEAN
    cleaned = apply_event(failed, Event.CLEANED).situation
    assert next_operation(cleaned) is None
    assert is_settled(cleaned)


class LifecycleMachine(RuleBasedStateMachine):
    """Commands and events in any order; the loop in between does what `next_operation` says, well or badly."""

    def __init__(self) -> None:
        super().__init__()
        self.situation = apply_event(Situation(), Event.CREATED).situation
        self.wanted = False

    def settle(self) -> None:
        """The world is well: run operations until nothing is left to do."""
        if not self.situation.host_available:
            self.situation = apply_event(self.situation, Event.HOST_RESTORED).situation
        outcome = {
            Operation.START: Event.STARTED,
            Operation.STOP: Event.STOPPED,
            Operation.WIPE: Event.WIPED,
            Operation.CLEAN: Event.CLEANED,
        }
        for _ in range(10):
            operation = next_operation(self.situation)
            if operation is Operation.DELETE:
                return
            if operation is not None:
                self.situation = apply_event(self.situation, outcome[operation]).situation
            elif self.situation.recovery is Recovery.SCHEDULED:
                self.situation = apply_event(self.situation, Event.RETRY_DUE).situation
            else:
                return
        raise AssertionError(f"does not settle: {self.situation}")

    @rule(command=st.sampled_from([Command.START, Command.STOP, Command.RESET]))
    def command(self, command: Command) -> None:
        step = apply_command(self.situation, command)
        if step.reaction is not Reaction.REFUSED:
            self.wanted = {Command.START: True, Command.STOP: False}.get(command, self.wanted)
        self.situation = step.situation

    @rule(event=st.sampled_from([e for e in Event if e is not Event.CREATED]))
    def event(self, event: Event) -> None:
        self.situation = apply_event(self.situation, event).situation

    @rule()
    def settles_where_the_last_command_says(self) -> None:
        lasting = self.situation.recovery is Recovery.OPERATOR
        self.settle()
        if self.situation.status is Status.DELETING:
            return
        assert is_settled(self.situation)
        if lasting:
            assert self.situation.status is Status.ERROR
        else:
            assert self.situation.status is (Status.RUNNING if self.wanted else Status.STOPPED)

    @precondition(lambda self: self.situation.recovery is Recovery.OPERATOR)
    @rule(command=st.sampled_from([Command.START, Command.STOP, Command.RESET]))
    def an_operator_always_gets_out_of_an_error(self, command: Command) -> None:
        self.command(command)
        assert self.situation.status is not Status.ERROR or self.situation.recovery is Recovery.HOST

    @rule()
    def delete(self) -> None:
        self.situation = apply_command(self.situation, Command.DELETE).situation
        assert next_operation(self.situation) is Operation.DELETE

    @invariant()
    def error_and_recovery_go_together(self) -> None:
        assert (self.situation.status is Status.ERROR) == (self.situation.recovery is not Recovery.NONE)

    @invariant()
    def desired_is_what_was_wanted(self) -> None:
        if self.situation.status is not Status.DELETING:
            assert self.situation.desired_running is self.wanted


TestLifecycleMachine = LifecycleMachine.TestCase
TestLifecycleMachine.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
