"""Everything at once, in any order: a hypothesis state machine over a real dev server, workers and a fake host.

Rules do things to up to three environments and to their surroundings; `look` heals the surroundings, waits until
nothing is under way, and checks `tests.workflows.invariants`. `DESKTOP_MODEL_EXAMPLES` makes it longer.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from temporalio.service import RPCError, RPCStatusCode

from models import messages as m
from models.errors import ErrorCode
from models.identifiers import CONTROL_TASK_QUEUE, host_workflow_id
from models.lifecycle import Status
from tests.fakes.runtime import MoodyRuntime
from tests.support.waiting import eventually
from tests.workflows.conftest import MakePlane
from tests.workflows.invariants import agree, failed_tasks, gone
from tests.workflows.plane import Plane, host_worker_of
from workflows.host import DesktopHost

EXAMPLES = int(os.environ.get("DESKTOP_MODEL_EXAMPLES", "6"))
STEPS = 25
ENVIRONMENTS = 3
PATIENCE = 45

T = TypeVar("T")
STEPS_THAT_FAIL = [
    "ensure_image",
    "prepare_identity",
    "start_container",
    "await_node_pairing",
    "remove_container",
    "wipe_runtime",
]


ACTIONS = [
    *["commands"] * 3,
    *["command_when_idle"] * 4,
    *["meddle"] * 4,
    *["nudge"] * 2,
    *["fail_next"] * 2,
    *["surroundings"] * 2,
    *["look"] * 2,
    "time_passes",
    "delete",
]
"""As often as they are here."""


class World:
    """What all examples share: a plane, and a host worker that comes and goes. Lives in the test's event loop."""

    def __init__(self, plane: Plane, runtime: MoodyRuntime) -> None:
        self.plane = plane
        self.runtime = runtime
        self.done: Counter[str] = Counter()
        self.loop = asyncio.get_running_loop()
        self._host: AsyncExitStack | None = None

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it in the event loop, from hypothesis' thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE * 3)

    async def host_up(self) -> None:
        """The host's worker begins, unless it runs."""
        if self._host is None:
            self._host = AsyncExitStack()
            await self._host.enter_async_context(host_worker_of(self.plane))

    async def host_down(self) -> None:
        """The host's worker ends, if it runs."""
        if self._host is not None:
            host, self._host = self._host, None
            await host.aclose()

    async def heal(self) -> None:
        """Nothing is broken any more, as far as surroundings go."""
        with self.runtime.lock:
            self.runtime.moods.clear()
        self.runtime.set_docker(True)
        await self.host_up()
        await self.runtime.flush()

    async def idle(self, environment_id: str) -> None:
        """Wait a moment for the environment to settle; with its surroundings broken it may not."""
        for _ in range(20):
            row = self.plane.row(environment_id)
            if row is not None and row.status in ("running", "stopped"):
                return
            await asyncio.sleep(0.05)

    async def signal(self, environment_id: str, name: str, *payload: Any) -> None:
        """Send one; an environment that is gone hears nothing."""
        try:
            await self.plane.handle(environment_id).signal(name, args=payload)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise


class Environments(RuleBasedStateMachine):
    """Up to three environments and what an operator wants of each."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.wanted: dict[str, bool] = {}
        self.deleted: set[str] = set()
        self.generations: dict[str, int] = {}
        self.chance = random.Random()  # noqa: S311 - a repeatable order, no secret

    @initialize(wanted=st.lists(st.booleans(), min_size=ENVIRONMENTS, max_size=ENVIRONMENTS))
    def create(self, wanted: list[bool]) -> None:
        """Before all else."""
        self.world.do(self.world.host_up())
        for running in wanted:
            environment_id = self.world.do(self.world.plane.create(running=running))
            self.ids.append(environment_id)
            self.wanted[environment_id] = running

    @rule(action=st.sampled_from(ACTIONS), seed=st.integers(0, 2**30))
    def act(self, action: str, seed: int) -> None:
        """One rule for all: of several, hypothesis leaves out most in most examples, and prefers simple arguments."""
        self.chance = random.Random(seed)  # noqa: S311 - a repeatable order, no secret
        self.world.done[action] += 1
        getattr(self, action)()

    # --- actions -------------------------------------------------------------------------------------------------

    def one(self, *, idle: bool) -> str:
        """One of the environments that live, or any; once it has settled, if asked for."""
        live = [one for one in self.ids if one not in self.deleted]
        environment_id = self.chance.choice(live or self.ids)
        if idle:
            self.world.do(self.world.idle(environment_id))
        return environment_id

    def send(self, environment_id: str, command: str) -> None:
        """Send a command and remember what it means."""
        self.world.done[command] += 1
        self.world.do(self.world.signal(environment_id, command))
        self.wanted[environment_id] = {"start": True, "stop": False}.get(command, self.wanted[environment_id])

    def commands(self) -> None:
        """Several, without waiting for anything."""
        environment_id = self.one(idle=False)
        for _ in range(self.chance.randint(1, 4)):
            self.send(environment_id, self.chance.choice(["start", "stop", "reset"]))

    def command_when_idle(self) -> None:
        self.send(self.one(idle=True), self.chance.choice(["start", "stop", "reset"]))

    def delete(self) -> None:
        environment_id = self.one(idle=False)
        self.send(environment_id, "delete")
        self.deleted.add(environment_id)

    def meddle(self) -> None:
        """Somebody at the host, at any moment or once it runs."""
        environment_id = self.one(idle=self.chance.random() < 0.7)
        how = self.chance.choice(["crash", "remove_by_hand", "pause_by_hand"])
        runtime = self.world.runtime
        with runtime.lock:
            container = runtime.containers.get(environment_id)
            if container is not None and container.running and not container.paused:
                self.world.done[how] += 1
                getattr(runtime, how)(environment_id)

    def nudge(self) -> None:
        """The node comes and goes, an operator changes the image, somebody types nonsense."""
        environment_id = self.one(idle=self.chance.random() < 0.5)
        name = self.chance.choice(["away", "back", "old", "image:1", "image:2", "frob", "host_event"])
        self.world.done[name] += 1
        container = self.world.runtime.containers.get(environment_id)
        generation = (container.generation if container else 1) - (name == "old")
        match name:
            case "away" | "back" | "old":
                presence = m.NodePresence(generation=generation, connected=name == "back")
                self.world.do(self.world.signal(environment_id, "node_presence", presence))
            case "image:1" | "image:2":
                self.world.do(self.world.signal(environment_id, "change_spec", m.SpecChange(image_ref=name)))
            case _:
                self.world.do(self.world.signal(environment_id, name, {"odd": [1, None]}))

    def fail_next(self) -> None:
        with self.world.runtime.lock:
            step = self.chance.choice(STEPS_THAT_FAIL)
            self.world.runtime.moods[step] = self.chance.choice([ErrorCode.START_FAILED, ErrorCode.INTERNAL])

    def surroundings(self) -> None:
        """Docker, the host's worker and the control worker go and come."""
        what = self.chance.choice(["docker", "docker", "host", "host", "host for long", "control", "control"])
        self.world.done[what] += 1
        match what:
            case "docker":
                self.world.runtime.set_docker(not self.world.runtime.docker_available)
            case "host":
                self.world.do(self.world.host_down())
                self.world.do(asyncio.sleep(self.chance.random()))
                self.world.do(self.world.host_up())
            case "host for long":
                self.world.do(self.world.host_down())
                self.world.do(asyncio.sleep(3.5))
            case _:
                self.world.do(self.world.plane.restart_control_worker())

    def time_passes(self) -> None:
        self.world.do(asyncio.sleep(self.chance.choice([0.0, 0.05, 0.3])))

    def look(self) -> None:
        self.world.do(self._look())

    def teardown(self) -> None:
        """Look once more; then delete everything, and nothing may be left, nor any task have failed."""
        if self.ids:
            self.world.do(self._look())
            self.world.do(self._end())

    async def _look(self) -> None:
        await self.world.heal()
        await asyncio.gather(*map(self._look_at, self.ids))

    async def _look_at(self, environment_id: str) -> None:
        plane = self.world.plane
        if environment_id in self.deleted:
            await gone(plane, environment_id, seconds=PATIENCE)
            return
        status = Status.RUNNING if self.wanted[environment_id] else Status.STOPPED
        view = await agree(plane, environment_id, status, seconds=PATIENCE)
        assert view.generation >= self.generations.get(environment_id, 0), "generations never fall"
        self.generations[environment_id] = view.generation
        runtime = self.world.runtime
        with runtime.lock:
            left = (
                set(runtime.created)
                - set(runtime.removed)
                - {c.container_id for c in runtime.containers.values()}
            )
        assert not left, "containers neither there nor removed"

    async def _end(self) -> None:
        for environment_id in self.ids:
            await self.world.signal(environment_id, "delete")
        for environment_id in self.ids:
            await gone(self.world.plane, environment_id, seconds=PATIENCE)
            assert await failed_tasks(self.world.plane, self.world.plane.handle(environment_id).id) == []


@pytest.mark.timeout(120 + EXAMPLES * 30)
@pytest.mark.usefixtures("impatient")
async def test_everything_at_once_always_settles_and_agrees(
    make_cached_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Attempts are not what is looked at here: with none used up, where everything settles is known exactly.
    monkeypatch.setattr("workflows.policies.RESTART_ATTEMPTS", 1_000)
    monkeypatch.setattr("workflows.policies.NODE_GRACE", timedelta(milliseconds=300))
    monkeypatch.setattr("workflows.policies.HISTORY_LIMIT", 150)
    runtime = MoodyRuntime()
    plane = await make_cached_plane(runtime, host_worker=False)
    world = World(plane, runtime)
    await plane.client.start_workflow(
        DesktopHost.run,
        m.HostInput(record=m.HostRecord(host_id=plane.host_id, label="test", revision=1)),
        id=host_workflow_id(plane.host_id),
        task_queue=CONTROL_TASK_QUEUE,
    )
    await world.host_up()
    machine: type[Environments] = type("Machine", (Environments,), {"world": world})
    try:
        await asyncio.to_thread(
            run_state_machine_as_test,
            machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize=True,
                database=None,
                # Shrinking would take many examples of seconds each; the rules that failed are printed anyway.
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
        assert await failed_tasks(plane, host_workflow_id(plane.host_id)) == []
        print(f"{EXAMPLES} examples of {STEPS} steps: {dict(world.done)}, {len(runtime.created)} containers")
    finally:
        await plane.client.get_workflow_handle(host_workflow_id(plane.host_id)).terminate("test ends")
        await world.host_down()
    await eventually(lambda: runtime.containers == {}, "no container is left")
