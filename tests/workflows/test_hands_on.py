"""Terminated, cancelled, signalled by hand: credentials end, and a delete reaches what is really there."""

import asyncio
import threading
from datetime import datetime

import pytest
from sqlmodel import Session

from inventory import environments
from models import messages as m
from models.identifiers import CONTROL_TASK_QUEUE, environment_workflow_id
from models.lifecycle import Status
from tests.support.waiting import eventually
from tests.workflows.conftest import MakePlane

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.mark.parametrize("command", ["stop", "reset"])
async def test_a_workflow_that_replaces_another_ends_credentials_it_never_knew(
    make_cached_plane: MakePlane, command: str
) -> None:
    plane = await make_cached_plane()
    environment_id = await plane.create()
    view = await plane.settled(environment_id, Status.RUNNING)
    assert len(plane.live_tokens(environment_id)) == 1
    await plane.handle(environment_id).terminate("by hand")
    again = m.EnvironmentInput(
        spec=view.spec, desired_running=True, generation=view.generation, sequence=1000
    )
    gate = plane.runtime.gate("remove_container")
    await plane.client.start_workflow(
        "DesktopEnvironment",
        again,
        id=environment_workflow_id(environment_id),
        task_queue=CONTROL_TASK_QUEUE,
        start_signal=command,
    )
    await eventually(lambda: plane.live_tokens(environment_id) == [], "its token is revoked")
    gate.set()
    ended = await plane.settled(environment_id)
    assert len(plane.live_tokens(environment_id)) == (ended.status is Status.RUNNING)


async def test_a_generation_that_cannot_be_is_not_believed(make_cached_plane: MakePlane) -> None:
    plane = await make_cached_plane()
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    word = m.ContainerEvent(generation=99_999_999_999, event="newer", container_id="c" * 64)
    await plane.handle(environment_id).signal("container_event", word)
    view = await plane.settled(environment_id, Status.RUNNING)
    assert view.generation == 1 and "note:odd_signal" in await plane.names(environment_id)
    await plane.handle(environment_id).signal("delete")
    await plane.handle(environment_id).result()


async def test_a_delete_that_hears_of_a_newer_container_begins_again_with_it(
    make_cached_plane: MakePlane,
) -> None:
    plane = await make_cached_plane()
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    gate = plane.runtime.gate("wipe_runtime")
    handle = plane.handle(environment_id)
    await handle.signal("host_event", m.HostEvent(event="lost", message="gone fishing"))
    await plane.settled(environment_id, Status.ERROR)
    await handle.signal("delete")
    await eventually(lambda: plane.runtime.count("wipe_runtime"), "the last phase")
    await handle.signal("container_event", m.ContainerEvent(generation=5, event="newer"))
    await eventually(
        lambda: any(call.generation == 5 for call in plane.runtime.calls if call.name == "remove_container"),
        "the newer one is removed",
    )
    gate.set()
    await handle.result()


async def test_a_cancellation_that_meets_a_record_is_not_lost(
    make_cached_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK lets an activity that ends well swallow it."""
    plane = await make_cached_plane()
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    record, holding, released = environments.record, threading.Event(), threading.Event()

    def held(session: Session, what: m.EnvironmentRecord, now: datetime) -> None:
        holding.set()
        released.wait(30)
        record(session, what, now)

    monkeypatch.setattr(environments, "record", held)
    handle = plane.handle(environment_id)
    await handle.signal("change_spec", m.SpecChange(label="renamed"))
    await eventually(holding.is_set, "a record is under way")
    await handle.cancel()
    await asyncio.sleep(0.3)
    released.set()
    await handle.result()
    assert plane.runtime.containers == {} and plane.deleted(environment_id)
