"""Everything at once, in any order: a hypothesis state machine over a real dev server, workers and a fake host.

Rules do things to up to three environments and to their surroundings; `look` heals the surroundings, waits until
nothing is under way, and checks `tests.workflows.invariants`. `DESKTOP_MODEL_EXAMPLES` makes it longer.
"""

import asyncio
import os
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
    precondition,
    rule,
    run_state_machine_as_test,
)
from temporalio.service import RPCError, RPCStatusCode

from models import messages as m
from models.errors import ErrorCode
from models.identifiers import CONTROL_TASK_QUEUE, host_workflow_id
from models.lifecycle import Command, Status
from tests.fakes.runtime import MoodyRuntime
from tests.support.waiting import eventually
from tests.workflows.conftest import MakePlane
from tests.workflows.invariants import agree, failed_tasks, gone
from tests.workflows.plane import Plane, host_worker_of
from workflows.host import DesktopHost

EXAMPLES = int(os.environ.get("DESKTOP_MODEL_EXAMPLES", "8"))
STEPS = 30
ENVIRONMENTS = 3
PATIENCE = 45

T = TypeVar("T")
which = st.integers(0, ENVIRONMENTS - 1)
STEPS_THAT_FAIL = [
    "ensure_image",
    "prepare_identity",
    "mint_node_token",
    "start_container",
    "await_node_pairing",
    "remove_container",
    "wipe_runtime",
]


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
        self.done[getattr(work, "__name__", "?")] += 1
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

    def at(self, index: int) -> str:
        """One of the environments."""
        return self.ids[index % len(self.ids)]

    @initialize(wanted=st.lists(st.booleans(), min_size=ENVIRONMENTS, max_size=ENVIRONMENTS))
    def create(self, wanted: list[bool]) -> None:
        self.world.do(self.world.host_up())
        for running in wanted:
            environment_id = self.world.do(self.world.plane.create(running=running))
            self.ids.append(environment_id)
            self.wanted[environment_id] = running

    @rule(index=which, commands=st.lists(st.sampled_from(["start", "stop", "reset"]), min_size=1, max_size=4))
    def command(self, index: int, commands: list[str]) -> None:
        environment_id = self.at(index)
        for command in commands:
            self.world.do(self.world.signal(environment_id, command))
            self.wanted[environment_id] = {"start": True, "stop": False}.get(
                command, self.wanted[environment_id]
            )

    @rule(index=which, chance=st.integers(0, 3))
    def delete(self, index: int, chance: int) -> None:
        if chance == 0:
            self.world.do(self.world.signal(self.at(index), Command.DELETE))
            self.deleted.add(self.at(index))

    @rule(index=which, how=st.sampled_from(["crash", "remove_by_hand", "pause_by_hand"]))
    def meddle(self, index: int, how: str) -> None:
        runtime = self.world.runtime
        with runtime.lock:
            container = runtime.containers.get(self.at(index))
            self.world.done[how if container else "nothing to meddle with"] += 1
            if container is not None and container.running and not container.paused:
                getattr(runtime, how)(self.at(index))

    @rule(index=which, connected=st.booleans(), behind=st.integers(0, 1))
    def presence(self, index: int, connected: bool, behind: int) -> None:
        view = self.world.runtime.containers.get(self.at(index))
        generation = (view.generation if view else 1) - behind
        presence = m.NodePresence(generation=generation, connected=connected)
        self.world.do(self.world.signal(self.at(index), "node_presence", presence))

    @rule(index=which, image=st.sampled_from(["image:1", "image:2"]))
    def change(self, index: int, image: str) -> None:
        self.world.do(self.world.signal(self.at(index), "change_spec", m.SpecChange(image_ref=image)))

    @rule(index=which, name=st.sampled_from(["frob", "container_event", "host_event"]))
    def odd(self, index: int, name: str) -> None:
        self.world.do(self.world.signal(self.at(index), name, {"odd": [1, None]}))

    @rule(
        step=st.sampled_from(STEPS_THAT_FAIL),
        code=st.sampled_from([ErrorCode.START_FAILED, ErrorCode.INTERNAL]),
    )
    def fail_next(self, step: str, code: ErrorCode) -> None:
        with self.world.runtime.lock:
            self.world.runtime.moods[step] = code

    @rule(available=st.booleans())
    def docker(self, available: bool) -> None:
        self.world.runtime.set_docker(available)

    @rule()
    def host_goes(self) -> None:
        self.world.do(self.world.host_down())

    @rule(seconds=st.sampled_from([0.0, 0.0, 3.5]))
    def host_comes(self, seconds: float) -> None:
        self.world.do(asyncio.sleep(seconds))
        self.world.do(self.world.host_up())

    @rule()
    def control_worker_restarts(self) -> None:
        self.world.do(self.world.plane.restart_control_worker())

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.3]))
    def time_passes(self, seconds: float) -> None:
        self.world.do(asyncio.sleep(seconds))

    @precondition(lambda self: bool(self.ids))
    @rule()
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
