"""Each command in each phase of each operation: it settles where the last command says (design section 4)."""

import asyncio
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from activities.inventory import SqlControlActivities
from models import messages as m
from models.lifecycle import Command, Status
from tests.support.waiting import eventually
from tests.workflows.conftest import MakePlane
from tests.workflows.invariants import agree, failed_tasks, gone
from tests.workflows.plane import Plane, host_worker_of

AT_ONCE = 24
"""Cases at the same time; each may hold a step of the host and a control activity."""

CONTROL_STEPS = ["registers", "revokes"]
"""Records that carry credentials, by the field that does."""

PHASES = {
    "start": [
        "ensure_image",
        "prepare_identity",
        "registers",
        "start_container",
        "await_node_pairing",
    ],
    "adopt": ["start_container", "await_node_pairing"],
    "stop": ["revokes", "remove_container"],
    "wipe": ["revokes", "remove_container", "wipe_runtime"],
    "clean": ["revokes", "remove_container"],
    "delete": ["revokes", "remove_container", "wipe_runtime"],
}


class ControlGates:
    """Holds records of single environments that carry credentials, outside their transactions."""

    def __init__(self) -> None:
        self._gates: dict[tuple[str, str], threading.Event] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def gate(self, step: str, environment_id: str) -> threading.Event:
        """From now on the step of this environment waits until the returned event is set."""
        return self._gates.setdefault((step, environment_id), threading.Event())

    def count(self, step: str, environment_id: str) -> int:
        """How often the step was attempted."""
        return self._counts.get((step, environment_id), 0)

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The activity, held by its gate."""

        @functools.wraps(original)
        def held(activities: SqlControlActivities, record: m.EnvironmentRecord) -> Any:
            for step in CONTROL_STEPS:
                if getattr(record, step) is None:
                    continue
                key = (step, record.spec.environment_id)
                self._counts[key] = self._counts.get(key, 0) + 1
                gate = self._gates.get(key)
                while gate is not None and not gate.is_set():
                    # Short turns, so that a cancellation gets in.
                    time.sleep(0.02)
            return original(activities, record)

        return held


@pytest.fixture
def control_gates(monkeypatch: pytest.MonkeyPatch) -> ControlGates:
    """Gates before the records of planes made after this."""
    gates = ControlGates()
    original = vars(SqlControlActivities)["record_environment"]
    monkeypatch.setattr(SqlControlActivities, "record_environment", gates.wrap(original))
    return gates


async def bring_into(plane: Plane, gates: ControlGates, operation: str, step: str) -> tuple[str, Any]:
    """An environment whose `operation` hangs in `step`, and the gate that holds it."""
    holder: Any = gates if step in CONTROL_STEPS else plane.runtime
    environment_id = await plane.create(running=False)
    handle = plane.handle(environment_id)
    await plane.settled(environment_id, Status.STOPPED)
    if operation != "start":
        await handle.signal("start")
        await plane.settled(environment_id, Status.RUNNING)
    gate = holder.gate(step, environment_id)
    before = holder.count(step, environment_id)
    if operation == "clean":
        plane.runtime.crash(environment_id)
    elif operation == "adopt":
        await handle.signal("host_event", m.HostEvent(event="lost"))
        await handle.signal("host_event", m.HostEvent(event="restored"))
    else:
        await handle.signal("reset" if operation == "wipe" else operation)
    await eventually(lambda: holder.count(step, environment_id) > before, f"{operation} in {step}")
    return environment_id, gate


def expected(operation: str, command: Command) -> Status | None:
    """Where it has to settle; None where nothing may be left."""
    if command is Command.DELETE or operation == "delete":
        return None
    if command is Command.STOP or (command is Command.RESET and operation == "stop"):
        return Status.STOPPED
    return Status.RUNNING


async def one_case(plane: Plane, gates: ControlGates, operation: str, step: str, command: Command) -> None:
    """Bring it there, send the command, let go, and look."""
    environment_id, gate = await bring_into(plane, gates, operation, step)
    handle = plane.handle(environment_id)
    before = plane.runtime.count("start_container", environment_id)
    await handle.signal(command)
    status = expected(operation, command)
    if step in CONTROL_STEPS:
        # A write is waited for although it is cancelled, so nothing of it shows: the signal has time to come in.
        await asyncio.sleep(0.05)
    else:
        assert (await plane.view(environment_id)).desired_running is (status is Status.RUNNING)
    start_is_over = operation in ("start", "adopt") and command in (Command.STOP, Command.DELETE)
    if start_is_over and step not in CONTROL_STEPS:
        # It must not wait for the step it interrupts.
        await (gone(plane, environment_id) if status is None else agree(plane, environment_id, status))
    gate.set()
    if status is None:
        await gone(plane, environment_id)
    else:
        view = await agree(plane, environment_id, status)
        names = [f"{event.kind}:{event.name}" for event in plane.events(environment_id)]
        assert f"command:{command}" in names
        if command is Command.START and operation in ("start", "adopt"):
            assert (
                view.generation == 1 and plane.runtime.count("start_container", environment_id) <= before + 1
            )
    assert await failed_tasks(plane, handle.id) == []


@pytest.mark.usefixtures("impatient")
async def test_each_command_in_each_phase_of_each_operation(
    make_cached_plane: MakePlane, control_gates: ControlGates
) -> None:
    plane = await make_cached_plane(host_worker=False)
    cases = [
        (operation, step, command)
        for operation in PHASES
        for step in PHASES[operation]
        for command in Command
    ]
    turns = asyncio.Semaphore(AT_ONCE)
    took: list[tuple[float, str, str, Command]] = []

    async def in_turn(operation: str, step: str, command: Command) -> None:
        async with turns:
            began = time.monotonic()
            await one_case(plane, control_gates, operation, step, command)
            took.append((time.monotonic() - began, operation, step, command))

    async with host_worker_of(plane, slots=2 * AT_ONCE):
        outcomes = await asyncio.gather(*(in_turn(*case) for case in cases), return_exceptions=True)
    wrong = [f"{case}: {outcome!r}" for case, outcome in zip(cases, outcomes, strict=True) if outcome]
    assert not wrong, "\n".join(wrong)
    slowest = "; ".join(f"{seconds:.1f} s {' '.join(case)}" for seconds, *case in sorted(took)[-4:])
    print(f"{len(cases)} cases: operation x phase x command; the slowest: {slowest}")
