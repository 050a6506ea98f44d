"""What a system that polled every ten seconds got wrong: each has a test here that would catch it."""

import asyncio
import time
from datetime import timedelta
from functools import partial

import pytest

from models import messages as m
from models.errors import ErrorCode
from models.lifecycle import Recovery, Status
from tests.fakes.runtime import DiesAfterCreate, FakeRuntime, FlakyRuntime
from tests.support.waiting import eventually
from tests.workflows.conftest import MakePlane
from tests.workflows.invariants import agree, gone


async def test_a_killed_container_is_not_shown_running(make_cached_plane: MakePlane) -> None:
    plane = await make_cached_plane()
    environment_id = await plane.create()
    await agree(plane, environment_id, Status.RUNNING)
    gate = plane.runtime.gate("ensure_image")
    plane.runtime.crash(environment_id, exit_code=137)
    await plane.runtime.flush()
    reads = [await plane.view(environment_id) for _ in range(50)]
    assert [view for view in reads if view.status is Status.RUNNING] == []
    await eventually(
        lambda: (row := plane.row(environment_id)) and row.status != "running", "so says the list"
    )
    gate.set()
    view = await agree(plane, environment_id, Status.RUNNING)
    assert view.generation == 2


async def test_a_crash_loop_is_an_error_with_a_count_and_a_next_time(
    make_cached_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.policies.RESTART_ATTEMPTS", 3)
    plane = await make_cached_plane(DiesAfterCreate())
    environment_id = await plane.create()
    waiting = await plane.until(
        environment_id, lambda v: v.recovery is Recovery.SCHEDULED and v.restarts >= 2, "a retry is scheduled"
    )
    assert waiting.status is Status.ERROR and not waiting.settled
    assert waiting.last_error is not None and waiting.last_error.code is ErrorCode.SANDBOX_EXITED
    assert waiting.next_retry_at is not None
    view = await agree(plane, environment_id, Status.ERROR)
    assert view.recovery is Recovery.OPERATOR and view.next_retry_at is None
    assert plane.runtime.count("start_container", environment_id) == 4
    waits = [row.message or "" for row in plane.events(environment_id) if row.name == "retry_scheduled"]
    assert waits == ["in 0.25 s", "in 0.5 s", "in 1 s"]


async def test_an_error_clears_when_the_desktop_runs(make_cached_plane: MakePlane) -> None:
    plane = await make_cached_plane(
        FlakyRuntime("await_node_pairing", times=1, code=ErrorCode.PAIRING_TIMEOUT)
    )
    environment_id = await plane.create()
    view = await plane.until(environment_id, lambda v: v.status is Status.RUNNING, "running")
    assert view.last_error is None and view.next_retry_at is None
    await agree(plane, environment_id, Status.RUNNING)
    row = plane.row(environment_id)
    assert row is not None and row.last_error is None and row.next_retry_at is None


async def test_a_reset_leaves_no_old_container(make_cached_plane: MakePlane) -> None:
    plane = await make_cached_plane()
    environment_id = await plane.create()
    await agree(plane, environment_id, Status.RUNNING)
    old = plane.runtime.containers[environment_id].container_id
    gate = plane.runtime.gate("start_container", environment_id)
    await plane.handle(environment_id).signal("reset")
    await eventually(lambda: plane.runtime.count("start_container") == 2, "the new one is about to be made")
    assert old in plane.runtime.removed, "the old one went before, not after or never"
    assert plane.live_tokens(environment_id)[0].generation == 2
    gate.set()
    await agree(plane, environment_id, Status.RUNNING)


async def test_a_slow_pull_delays_no_other_environment(make_cached_plane: MakePlane) -> None:
    plane = await make_cached_plane()
    other = await plane.create()
    await agree(plane, other, Status.RUNNING)
    slow = [await plane.create(running=False) for _ in range(5)]
    gates = [plane.runtime.gate("ensure_image", one) for one in slow]
    for one in slow:
        await plane.handle(one).signal("start")
    for one in slow:
        await eventually(partial(plane.runtime.count, "ensure_image", one), "the pull is under way")
    began = time.monotonic()
    await plane.handle(other).signal("stop")
    await agree(plane, other, Status.STOPPED)
    await plane.handle(other).signal("start")
    await agree(plane, other, Status.RUNNING)
    print(f"stop and start beside five pulls that hang: {time.monotonic() - began:.2f} s")
    views = await asyncio.gather(*map(plane.view, slow))
    assert {view.phase for view in views} == {"ensure_image"}
    for gate in gates:
        gate.set()
    await asyncio.gather(*(agree(plane, one, Status.RUNNING) for one in slow))


async def test_a_deleted_environments_token_stays_revoked(make_cached_plane: MakePlane) -> None:
    plane = await make_cached_plane()
    environment_id = await plane.create()
    await agree(plane, environment_id, Status.RUNNING)
    assert len(plane.live_tokens(environment_id)) == 1
    await plane.handle(environment_id).signal("delete")
    await gone(plane, environment_id)
    await asyncio.sleep(0.3)
    assert plane.live_tokens(environment_id) == []


async def test_deletes_that_meet_every_moment_of_a_start_leak_no_container(
    make_cached_plane: MakePlane,
) -> None:
    plane = await make_cached_plane()

    async def one(wait: float) -> None:
        environment_id = await plane.create()
        await asyncio.sleep(wait)
        await plane.handle(environment_id).signal("delete")
        await gone(plane, environment_id)

    await asyncio.gather(*(one(number * 0.02) for number in range(40)))
    assert plane.runtime.containers == {} and plane.runtime.directories == set()
    assert sorted(plane.runtime.created) == sorted(plane.runtime.removed)


async def test_a_node_that_was_away_before_an_outage_is_not_held_against_the_sandbox(
    make_cached_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.policies.NODE_GRACE", timedelta(milliseconds=700))
    plane = await make_cached_plane()
    environment_id = await plane.create()
    await agree(plane, environment_id, Status.RUNNING)
    handle = plane.handle(environment_id)
    await handle.signal("node_presence", m.NodePresence(generation=1, connected=False))
    await handle.signal("host_event", m.HostEvent(event="lost"))
    await handle.signal("host_event", m.HostEvent(event="restored"))
    await agree(plane, environment_id, Status.RUNNING)
    await asyncio.sleep(1.2)
    view = await agree(plane, environment_id, Status.RUNNING)
    assert view.generation == 1


async def test_a_node_that_goes_while_the_start_ends_is_noticed(
    make_cached_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.policies.NODE_GRACE", timedelta(milliseconds=300))
    plane = await make_cached_plane(FakeRuntime())
    environment_id = await plane.create(running=False)
    gate = plane.runtime.gate("await_node_pairing", environment_id)
    handle = plane.handle(environment_id)
    await handle.signal("start")
    await eventually(lambda: plane.runtime.count("await_node_pairing"), "pairing awaited")
    await handle.signal("node_presence", m.NodePresence(generation=1, connected=False))
    await plane.view(environment_id)
    gate.set()
    view = await plane.until(environment_id, lambda v: v.generation == 2 and v.settled, "a new one")
    assert view.status is Status.RUNNING


async def test_a_lasting_error_whose_clean_up_fails_is_cleaned_up_later(
    make_cached_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stubborn(FakeRuntime):
        removals = 0

        def before(self, step: str, environment_id: str, generation: int) -> None:
            if step == "remove_container":
                self.removals += 1
                if self.removals <= 5:
                    raise RuntimeError("device or resource busy")

    monkeypatch.setattr("workflows.policies.RESTART_ATTEMPTS", 0)
    plane = await make_cached_plane(Stubborn())
    environment_id = await plane.create()
    await agree(plane, environment_id, Status.RUNNING)
    plane.runtime.crash(environment_id)
    view = await agree(plane, environment_id, Status.ERROR)
    assert view.recovery is Recovery.OPERATOR
    assert plane.runtime.containers == {}
