"""Credentials go with the records that tell of them: soon, in every order, and beside workers of the version before."""

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowHandle

from activities.inventory import SqlControlActivities
from models import messages as m
from models.identifiers import environment_workflow_id
from models.lifecycle import Status
from tests.fakes.runtime import FakeRuntime
from tests.support.waiting import eventually
from tests.workflows.conftest import MakePlane
from tests.workflows.invariants import agree, failed_tasks, gone, runs
from tests.workflows.plane import Plane
from workflows import policies


def status(plane: Plane, environment_id: str) -> str:
    """In the inventory."""
    row = plane.row(environment_id)
    return "" if row is None else row.status


async def activities_of(run: "WorkflowHandle[object, object]") -> list[str]:
    """Names of a run's activities, in the order they were scheduled."""
    history = await run.fetch_history()
    return [
        event.activity_task_scheduled_event_attributes.activity_type.name
        for event in history.events
        if event.HasField("activity_task_scheduled_event_attributes")
    ]


async def whole_life(plane: Plane, environment_id: str) -> None:
    """Started, stopped, started, crashed, reset and deleted; everything agrees at each stage."""
    handle = plane.handle(environment_id)
    await agree(plane, environment_id, Status.RUNNING)
    await handle.signal("stop")
    await agree(plane, environment_id, Status.STOPPED)
    await handle.signal("start")
    await agree(plane, environment_id, Status.RUNNING)
    plane.runtime.crash(environment_id)
    await plane.until(environment_id, lambda view: view.generation == 3 and view.settled, "mended")
    await agree(plane, environment_id, Status.RUNNING)
    await handle.signal("reset", m.CommandSignal(rotate_identity=True))
    await plane.until(environment_id, lambda view: view.generation == 4 and view.settled, "reset")
    await agree(plane, environment_id, Status.RUNNING)
    await handle.signal("delete")
    await gone(plane, environment_id)
    assert await failed_tasks(plane, handle.id) == []


@pytest.mark.parametrize(
    ("command", "reached"), [("stop", "stopping"), ("reset", "starting"), ("delete", "deleting")]
)
async def test_tokens_end_with_the_record_and_before_the_container(
    make_plane: MakePlane, command: str, reached: str
) -> None:
    plane = await make_plane()
    environment_id = await plane.create()
    await agree(plane, environment_id, Status.RUNNING)
    gate = plane.runtime.gate("remove_container")
    await plane.handle(environment_id).signal(command)
    await eventually(lambda: plane.runtime.count("remove_container"), "about to be removed")
    assert plane.live_tokens(environment_id) == []
    assert status(plane, environment_id) == reached
    gate.set()
    await (gone if command == "delete" else agree)(plane, environment_id)


async def test_tokens_of_a_crashed_sandbox_end_before_its_clean_up(make_plane: MakePlane) -> None:
    plane = await make_plane()
    environment_id = await plane.create()
    await agree(plane, environment_id, Status.RUNNING)
    gate = plane.runtime.gate("remove_container")
    plane.runtime.crash(environment_id)
    await eventually(lambda: plane.runtime.count("remove_container"), "about to be cleaned up")
    assert plane.live_tokens(environment_id) == []
    assert status(plane, environment_id) == "error"
    gate.set()
    await plane.until(environment_id, lambda view: view.generation == 2 and view.settled, "mended")


async def test_a_slow_pull_shows_as_starting_and_the_token_is_there(make_plane: MakePlane) -> None:
    plane = await make_plane()
    environment_id = await plane.create(running=False)
    await agree(plane, environment_id, Status.STOPPED)
    gate = plane.runtime.gate("ensure_image")
    await plane.handle(environment_id).signal("start")
    await eventually(lambda: plane.runtime.count("ensure_image"), "pulling")
    await eventually(lambda: status(plane, environment_id) == "starting", "shown")
    await eventually(lambda: plane.live_tokens(environment_id), "registered")
    gate.set()
    await agree(plane, environment_id, Status.RUNNING)


async def test_a_host_that_does_not_take_a_start_up_shows_as_starting(make_plane: MakePlane) -> None:
    plane = await make_plane(host_worker=False)
    environment_id = await plane.create(running=False)
    await eventually(lambda: status(plane, environment_id) == "stopped", "stopped")
    await plane.handle(environment_id).signal("start")
    await eventually(lambda: status(plane, environment_id) == "starting", "shown")
    await plane.handle(environment_id).signal("delete")


async def test_a_token_is_live_before_its_container_is_made(make_plane: MakePlane) -> None:
    live: list[int] = []

    class Watched(FakeRuntime):
        def before(self, step: str, environment_id: str, generation: int) -> None:
            if step == "start_container":
                live.extend(token.generation for token in planes[0].live_tokens(environment_id))

    planes: list[Plane] = []
    planes.append(await make_plane(Watched()))
    environment_id = await planes[0].create()
    await whole_life(planes[0], environment_id)
    assert live == [1, 2, 3, 4]


async def test_beside_a_host_of_the_version_before(make_cached_plane: MakePlane) -> None:
    plane = await make_cached_plane()
    plane.runtime.prepares_all = False
    environment_id = await plane.create()
    await whole_life(plane, environment_id)
    assert plane.runtime.count("mint_node_token") == plane.runtime.count("prepare_identity") == 4


def ignorant(original: Callable[..., Any]) -> Callable[..., Any]:
    """The activity as a control worker of the version before has it: what it does not know, it does not see."""

    @functools.wraps(original)
    def record_environment(activities: SqlControlActivities, record: m.EnvironmentRecord) -> m.Recorded:
        seen = record.model_copy(update={"registers": None, "revokes": None})
        known: m.Recorded = original(activities, seen)
        return known.model_copy(update={"credentials": False})

    return record_environment


async def test_beside_a_control_worker_of_the_version_before(
    make_cached_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = vars(SqlControlActivities)["record_environment"]
    monkeypatch.setattr(SqlControlActivities, "record_environment", ignorant(original))
    plane = await make_cached_plane()
    environment_id = await plane.create()
    await whole_life(plane, environment_id)
    (run,) = await runs(plane, environment_workflow_id(environment_id))
    assert {"register_node_token", "revoke_credentials"} <= set(await activities_of(run))


async def test_a_workflow_of_the_version_before_lives_on_and_changes_over_when_it_continues(
    make_cached_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "HISTORY_LIMIT", 150)
    plane = await make_cached_plane()
    with monkeypatch.context() as before:
        before.setattr("temporalio.workflow.patched", lambda name: False)
        environment_id = await plane.create()
        await agree(plane, environment_id, Status.RUNNING)
    # Nothing is cached: from here on its history is replayed.
    await plane.restart_control_worker()
    await whole_life(plane, environment_id)
    last, *_, first = [
        await activities_of(run) for run in await runs(plane, environment_workflow_id(environment_id))
    ]
    assert first.count("register_node_token") >= 2 and first.count("revoke_credentials") >= 2
    assert not {"register_node_token", "revoke_credentials", "mint_node_token"} & set(last)


async def test_the_timer_of_the_renewal_outlives_a_stop_and_renews_what_lives_then(
    make_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "NODE_TOKEN_TTL", timedelta(seconds=6))
    monkeypatch.setattr(policies, "NODE_TOKEN_RENEWAL", timedelta(seconds=3))
    plane = await make_plane()
    environment_id = await plane.create()
    await agree(plane, environment_id, Status.RUNNING)
    handle = plane.handle(environment_id)
    await handle.signal("stop")
    await agree(plane, environment_id, Status.STOPPED)
    await handle.signal("start")
    await agree(plane, environment_id, Status.RUNNING)

    async def extended() -> bool:
        return (await plane.names(environment_id)).count("credential:token_extended") >= 2

    await eventually(extended, "extended twice")
    (token,) = plane.live_tokens(environment_id)
    assert token.generation == 2 and token.expires_at > token.issued_at + policies.NODE_TOKEN_TTL
    history = await handle.fetch_history()
    timers = [event for event in history.events if event.HasField("timer_canceled_event_attributes")]
    assert timers == []
    await handle.signal("stop")
    await agree(plane, environment_id, Status.STOPPED)
