"""Long life: storms of signals across continue-as-new, many cycles, and what each costs in history events."""

import asyncio
import os
import time

import pytest

from models import messages as m
from models.lifecycle import Status
from tests.fakes.runtime import SlowRuntime
from tests.support.waiting import eventually
from tests.workflows.conftest import MakePlane
from tests.workflows.invariants import agree, failed_tasks, gone, runs
from tests.workflows.plane import Plane
from tests.workflows.test_commands import HISTORY_EVENTS

CYCLES = int(os.environ.get("DESKTOP_CYCLES", "100"))
"""Start and stop this often; `make bench-recovery` sets 1000."""

STORM = 400


async def length(plane: Plane, environment_id: str) -> int:
    """Events in the present run's history."""
    return int((await plane.handle(environment_id).describe()).history_length)


async def steady_length(plane: Plane, environment_id: str) -> int:
    """The same once nothing has been added for a while: what the last activity's end costs comes after it."""
    since, seen = time.monotonic(), await length(plane, environment_id)
    deadline = since + 60
    while time.monotonic() - since < 1:
        assert time.monotonic() < deadline, f"{seen} events and still growing"
        await asyncio.sleep(0.1)
        now = await length(plane, environment_id)
        if now != seen:
            since, seen = time.monotonic(), now
    return seen


def noted(plane: Plane, environment_id: str) -> list[str]:
    """What the odd signals carried, as the timeline tells it, in its order."""
    return [row.message or "" for row in plane.events(environment_id) if row.name == "odd_signal"]


@pytest.mark.parametrize("manner", ["burst", "steady"])
async def test_a_storm_of_signals_loses_none(
    make_cached_plane: MakePlane, monkeypatch: pytest.MonkeyPatch, manner: str
) -> None:
    monkeypatch.setattr("workflows.policies.HISTORY_LIMIT", 100)
    plane = await make_cached_plane()
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    handle = plane.handle(environment_id)
    names = [f"storm-{number}" for number in range(STORM)]
    if manner == "burst":
        await asyncio.gather(*(handle.signal(name) for name in names))
    else:
        for name in names:
            await handle.signal(name)
    await eventually(lambda: len(noted(plane, environment_id)) >= STORM, f"all {STORM} noted", 60)
    heard = sorted(int(text.split(":")[0].removeprefix("storm-")) for text in noted(plane, environment_id))
    assert heard == list(range(STORM))
    view = await agree(plane, environment_id, Status.RUNNING)
    assert view.generation == 1
    chain = await runs(plane, handle.id)
    assert len(chain) > 1
    print(f"{STORM} signals, {manner}: {len(chain) - 1} times continued as new")
    assert await failed_tasks(plane, handle.id) == []


async def test_a_storm_during_a_long_operation_is_continued_as_new_too(
    make_cached_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.policies.HISTORY_LIMIT", 50)
    monkeypatch.setattr("workflows.policies.HISTORY_LIMIT_IN_OPERATION", 100)
    plane = await make_cached_plane()
    environment_id = await plane.create(running=False)
    gate = plane.runtime.gate("ensure_image", environment_id)
    handle = plane.handle(environment_id)
    await handle.signal("start")
    first_run = (await handle.describe()).run_id
    for number in range(60):
        await handle.signal(f"storm-{number}")

    async def continued() -> bool:
        return (await handle.describe()).run_id != first_run

    await eventually(continued, "continued as new although the pull hangs")
    gate.set()
    await agree(plane, environment_id, Status.RUNNING)
    assert len(noted(plane, environment_id)) == 60
    assert len(plane.runtime.running()) == 1


async def test_commands_across_continue_as_new_are_carried_out_in_their_order(
    make_cached_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.policies.HISTORY_LIMIT", 40)
    plane = await make_cached_plane(SlowRuntime(0.005))
    ids = [await plane.create() for _ in range(4)]
    commands = ["stop", "start", "reset", "stop", "start"] * 6

    async def storm(environment_id: str, last: str) -> None:
        for command in [*commands, last]:
            await plane.handle(environment_id).signal(command)

    await asyncio.gather(*(storm(one, "stop" if index % 2 else "start") for index, one in enumerate(ids)))
    for index, one in enumerate(ids):
        await agree(plane, one, Status.STOPPED if index % 2 else Status.RUNNING)
        heard = [row.name for row in plane.events(one) if row.kind == "command"][1:]
        assert heard == [*commands, "stop" if index % 2 else "start"]


@pytest.mark.timeout(30 + CYCLES)
async def test_many_cycles_keep_history_bounded(make_cached_plane: MakePlane) -> None:
    plane = await make_cached_plane()
    environment_id = await plane.create(running=False)
    handle = plane.handle(environment_id)
    wish = m.AwaitSettled(timeout_seconds=60)
    began = time.monotonic()
    for number in range(CYCLES):
        for command, status in (("start", Status.RUNNING), ("stop", Status.STOPPED)):
            request_id = f"{number}-{command}"
            await handle.signal(command, m.CommandSignal(request_id=request_id))
            view = await plane.await_settled(
                environment_id, wish.model_copy(update={"after_request_id": request_id})
            )
            assert view.status is status, f"cycle {number}: {view}"
    seconds = time.monotonic() - began
    view = await agree(plane, environment_id, Status.STOPPED)
    assert view.generation == CYCLES
    lengths = [int((await run.describe()).history_length) for run in await runs(plane, handle.id)]
    print(
        f"{CYCLES} cycles in {seconds:.1f} s ({CYCLES / seconds:.1f} a second):"
        f" continued as new {len(lengths) - 1} times, longest history {max(lengths)} events"
    )
    assert max(lengths) < 4096
    assert len(lengths) > CYCLES * 30 // 3000
    assert len(plane.runtime.created) == len(plane.runtime.removed) == CYCLES
    await handle.signal("delete")
    await gone(plane, environment_id)


async def test_what_things_cost_in_history_events(make_cached_plane: MakePlane) -> None:
    plane = await make_cached_plane()
    environment_id = await plane.create(running=False)
    await agree(plane, environment_id, Status.STOPPED)
    image_ref = (await plane.view(environment_id)).spec.image_ref
    plane.runtime.images[image_ref] = m.ImageReady(image_id="sha256:there")
    handle = plane.handle(environment_id)
    costs: dict[str, int] = {}
    before = await steady_length(plane, environment_id)

    async def spent(name: str) -> None:
        nonlocal before
        after = await steady_length(plane, environment_id)
        costs[name], before = after - before, after

    await handle.signal("start")
    await agree(plane, environment_id, Status.RUNNING)
    await spent("start to running")
    plane.runtime.crash(environment_id)
    await plane.until(environment_id, lambda view: view.generation == 2, "mended")
    await agree(plane, environment_id, Status.RUNNING)
    await spent("crash to running")
    await handle.signal("stop")
    await agree(plane, environment_id, Status.STOPPED)
    await spent("stop to stopped")
    await asyncio.sleep(1)
    await spent("a second of idling")
    await handle.signal("delete")
    await gone(plane, environment_id)
    await spent("delete to gone")
    print("; ".join(f"{name}: {events} events" for name, events in costs.items()))
    assert costs["start to running"] + costs["stop to stopped"] <= HISTORY_EVENTS
    assert costs["crash to running"] <= HISTORY_EVENTS
    assert costs["a second of idling"] == 0
