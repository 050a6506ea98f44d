"""The two-way sweep of `monitor_host`: containers and directories, on the real engine and a made-up control plane."""

import asyncio
import json
from typing import Any

import docker
import pytest

from activities import host as monitor
from activities.container_spec import HostConfig
from activities.docker_host import DockerHostActivities
from activities.temporal_link import Life
from models.identifiers import (
    LABEL_ENVIRONMENT,
    LABEL_GENERATION,
    LABEL_HOST,
    LABEL_INSTALLATION,
    new_environment_id,
)
from models.lifecycle import Recovery, Status
from models.messages import PrepareIdentity
from tests.activities.conftest import Desk
from tests.activities.watched import Plane, monitoring, swept
from tests.support.waiting import eventually

pytestmark = pytest.mark.docker


@pytest.fixture
def plane() -> Plane:
    return Plane()


@pytest.fixture
def desk(config: HostConfig, plane: Plane, image: str, host_id: str) -> Any:
    activities = DockerHostActivities(config, plane)
    yield Desk(activities, image, host_id, config.state_dir)
    activities.close()


async def test_the_sweep_tells_what_happened_meanwhile(
    desk: Desk, plane: Plane, engine: docker.APIClient, host_id: str
) -> None:
    started = await asyncio.to_thread(desk.start)
    await asyncio.to_thread(engine.kill, started.container_id)
    await asyncio.to_thread(engine.wait, started.container_id)
    missing, fresh = new_environment_id(), new_environment_id()
    plane.believe(missing, 7, Status.RUNNING)
    plane.believe(desk.id, 1, Status.RUNNING)
    async with monitoring(desk.host, host_id):
        await eventually(lambda: plane.events(desk.id) and plane.events(missing), "both told")
    assert [(e.event, e.exit_code) for e in plane.events(desk.id)] == [("exited", 137)]
    assert [(e.event, e.generation) for e in plane.events(missing)] == [("absent", 7)]
    assert not plane.events(fresh)


async def test_orphans_go_and_only_orphans(
    desk: Desk, plane: Plane, engine: docker.APIClient, host_id: str, image: str, config: HostConfig
) -> None:
    """Closed workflow: gone with its directory. Open, of another host, another installation, unknown: left
    alone.
    """
    await asyncio.to_thread(desk.start)
    closed, forgotten, kept = (Desk(desk.host, image, host_id, config.state_dir) for _ in range(3))
    for other in (closed, forgotten, kept):
        await asyncio.to_thread(other.start)
    plane.lives = {closed.id: Life.CLOSED, forgotten.id: Life.UNKNOWN}

    def stranger(**labels: str) -> str:
        environment_id = new_environment_id()
        marks = {LABEL_ENVIRONMENT: environment_id, LABEL_HOST: host_id, LABEL_GENERATION: "1"}
        marks |= {name.replace("_", "."): value for name, value in labels.items()}
        marks = {name: value for name, value in marks.items() if value}
        plane.lives[environment_id] = Life.UNKNOWN
        return str(engine.create_container(image, labels=marks)["Id"])

    other_host = engine.create_container(
        image, labels={LABEL_HOST: f"{host_id}-x", LABEL_ENVIRONMENT: closed.id}
    )["Id"]
    plane.lives[closed.id] = Life.CLOSED
    unmarked = stranger()
    foreign_id = new_environment_id()
    foreign = engine.create_container(
        image,
        labels={
            LABEL_ENVIRONMENT: foreign_id,
            LABEL_HOST: host_id,
            LABEL_GENERATION: "1",
            LABEL_INSTALLATION: "another",
        },
    )["Id"]
    plane.lives[foreign_id] = Life.CLOSED
    try:
        async with monitoring(desk.host, host_id):
            await eventually(lambda: not closed.home.exists() and not forgotten.home.exists(), "orphans gone")
            await asyncio.sleep(0.3)
        left = {found["Id"] for found in engine.containers(all=True)}
        assert {other_host, unmarked, foreign} <= left
        mine = {
            found["Labels"][LABEL_ENVIRONMENT]
            for found in engine.containers(filters={"label": f"{LABEL_HOST}={host_id}"})
        }
        assert mine == {desk.id, kept.id}
        assert desk.home.exists() and kept.home.exists()
        assert not plane.events(closed.id), "an orphan's end is nobody's news"
    finally:
        engine.remove_container(other_host, force=True)


async def test_directories_without_a_workflow_go(
    desk: Desk, plane: Plane, config: HostConfig, image: str, host_id: str
) -> None:
    """Closed, or forgotten and marked as ours: gone. Living, strange, another's, not one: left alone."""
    closed, forgotten, living, unmarked, foreign = (
        Desk(desk.host, image, host_id, config.state_dir) for _ in range(5)
    )
    for other in (closed, forgotten, living, unmarked, foreign):
        await asyncio.to_thread(other.prepare)
    plane.lives = {closed.id: Life.CLOSED, forgotten.id: Life.UNKNOWN}
    # From before directories were marked, and from an installation that is no more.
    (unmarked.home / "owner.json").unlink()
    plane.lives[unmarked.id] = Life.UNKNOWN
    mark = json.dumps({"host_id": host_id, "installation": "another"})
    (foreign.home / "owner.json").write_text(mark)
    plane.lives[foreign.id] = Life.CLOSED
    outside, link = config.state_dir / "outside", new_environment_id()
    outside.mkdir()
    (desk.home.parent / link).symlink_to(outside)
    (desk.home.parent / "notes").mkdir()
    plane.lives[link] = Life.CLOSED
    async with monitoring(desk.host, host_id):
        await eventually(lambda: not closed.home.exists() and not forgotten.home.exists(), "orphans gone")
        await eventually(lambda: {living.id, unmarked.id} <= set(plane.looked), "all looked at")
        await asyncio.sleep(0.3)
    left = {entry.name for entry in desk.home.parent.iterdir()}
    assert left == {living.id, unmarked.id, foreign.id, link, "notes"}
    assert outside.exists() and link not in plane.looked
    # Its workflow may be given a successor, which is of a newer generation.
    await asyncio.to_thread(closed.prepare, 2)


@pytest.mark.parametrize("step", ["identity", "identity and token", "container"])
async def test_a_directory_is_safe_once_a_start_has_begun(
    desk: Desk, plane: Plane, host_id: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The workflow was closed when it was asked after, and has a successor that starts before the sweep acts."""
    await asyncio.to_thread(desk.prepare)
    before = (desk.home / "identity" / "desktop-node" / "device-identity.json").read_text()

    async def closed_then_begun(environment_id: str) -> Life:
        plane.lives[environment_id] = Life.OPEN
        if step == "identity":
            request = PrepareIdentity(environment_id=desk.id, generation=2)
            await asyncio.to_thread(desk.run, desk.host.prepare_identity, request)
        else:
            await asyncio.to_thread(desk.prepare if step == "identity and token" else desk.start, 2)
        plane.looked.append(environment_id)
        return Life.CLOSED

    monkeypatch.setattr(plane, "life", closed_then_begun)
    async with monitoring(desk.host, host_id):
        await swept(desk, plane)
        await asyncio.sleep(0.5)
    assert (desk.home / "identity" / "desktop-node" / "device-identity.json").read_text() == before
    assert (desk.home / "secrets" / "gateway-token").exists()


@pytest.mark.parametrize(
    ("here", "generation", "view", "told", "stays"),
    [
        (3, 3, {"status": Status.RUNNING}, [], True),
        # Its own is not here; the start that follows removes this one.
        (2, 3, {"status": Status.RUNNING}, [("absent", 3)], True),
        (4, 3, {"status": Status.RUNNING}, [("newer", 4)], True),
        (4, 3, {"status": Status.STOPPED}, [("newer", 4)], True),
        # What came too late, such as from a worker that was cut off.
        (3, 3, {"status": Status.STOPPED}, [], False),
        (2, 3, {"status": Status.STOPPED}, [], False),
        (3, 3, {"status": Status.ERROR, "recovery": Recovery.OPERATOR}, [], False),
        # It may be well, and is taken over.
        (3, 3, {"status": Status.ERROR, "recovery": Recovery.HOST}, [], True),
        (3, 3, {"status": Status.ERROR, "recovery": Recovery.SCHEDULED, "settled": False}, [], True),
        # Under way: the operation knows what it does.
        (2, 3, {"status": Status.STARTING, "operation": "start", "settled": False}, [], True),
        (3, 3, {"status": Status.STOPPED, "operation": "wipe", "settled": False}, [], True),
    ],
)
async def test_a_container_of_another_generation(
    desk: Desk,
    plane: Plane,
    engine: docker.APIClient,
    host_id: str,
    here: int,
    generation: int,
    view: dict[str, Any],
    told: list[tuple[str, int]],
    stays: bool,
) -> None:
    started = await asyncio.to_thread(desk.start, here)
    plane.believe(desk.id, generation, **view)
    async with monitoring(desk.host, host_id):
        await swept(desk, plane)
        if not stays:
            await eventually(lambda: not containers_of(engine, desk.id), "removed")
        await eventually(lambda: len(plane.events(desk.id)) == len(told), "told")
        await asyncio.sleep(0.3)
    assert [(event.event, event.generation) for event in plane.events(desk.id)] == told
    assert containers_of(engine, desk.id) == ([started.container_id] if stays else [])
    assert desk.home.exists(), "its environment lives"
    # Whatever was removed: the next generation starts.
    assert (await asyncio.to_thread(desk.start, 5)).container_id


def containers_of(engine: docker.APIClient, environment_id: str) -> list[str]:
    found = engine.containers(all=True, filters={"label": f"{LABEL_ENVIRONMENT}={environment_id}"})
    return [str(container["Id"]) for container in found]


async def test_a_workflow_that_does_not_answer_hinders_no_other(
    desk: Desk, plane: Plane, host_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "RETRY_SECONDS", 0.1)
    mute, missing = new_environment_id(), new_environment_id()
    for environment_id in (mute, missing):
        plane.believe(environment_id, 2, Status.RUNNING)
    plane.mute = {mute}
    async with monitoring(desk.host, host_id):
        await eventually(lambda: plane.events(missing), "the other is told")
        assert plane.events(mute) == []


async def test_nothing_is_removed_while_temporal_is_away(
    desk: Desk, plane: Plane, engine: docker.APIClient, host_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "RETRY_SECONDS", 0.1)
    started = await asyncio.to_thread(desk.start)
    plane.away, plane.lives = True, {desk.id: Life.CLOSED}
    async with monitoring(desk.host, host_id):
        await asyncio.sleep(0.6)
        assert engine.inspect_container(started.container_id)["State"]["Running"]
        plane.away = False
        await eventually(lambda: not desk.home.exists(), "the orphan gone, late")
