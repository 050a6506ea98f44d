"""The host workflow: registration, loss, return, Docker trouble; and what its environments learn."""

import pytest
from sqlmodel import Session

from models import messages as m
from models.errors import ErrorCode
from models.identifiers import CONTROL_TASK_QUEUE, host_workflow_id
from models.lifecycle import Recovery, Status
from models.tables import HostRow
from tests.support.temporal import temporal_cli
from tests.support.waiting import eventually
from tests.workflows.conftest import MakePlane
from tests.workflows.plane import Plane, host_worker_of
from workflows.host import DesktopHost

pytestmark = pytest.mark.usefixtures("impatient")


async def watch(plane: Plane) -> None:
    """Start the host's workflow, as the host worker does."""
    await plane.client.start_workflow(
        DesktopHost.run,
        m.HostInput(record=m.HostRecord(host_id=plane.host_id, label="test", revision=1)),
        id=host_workflow_id(plane.host_id),
        task_queue=CONTROL_TASK_QUEUE,
    )


def row(plane: Plane) -> HostRow | None:
    """The host as recorded."""
    with Session(plane.engine) as session:
        return session.get(HostRow, plane.host_id)


def is_(plane: Plane, *, healthy: bool, docker: bool) -> bool:
    """Whether the record says so."""
    host = row(plane)
    return host is not None and (host.healthy, host.docker_available) == (healthy, docker)


async def test_a_host_is_recorded_lost_and_recorded_back(make_plane: MakePlane) -> None:
    plane = await make_plane(host_worker=False)
    await watch(plane)
    async with host_worker_of(plane):
        await eventually(lambda: (h := row(plane)) and h.healthy and h.version == "fake", "recorded healthy")
        environment_id = await plane.create()
        await plane.settled(environment_id, Status.RUNNING)
    await eventually(lambda: is_(plane, healthy=False, docker=False), "recorded lost")
    view = await plane.settled(environment_id, Status.ERROR)
    assert view.last_error is not None and view.last_error.code is ErrorCode.HOST_UNREACHABLE
    assert view.recovery is Recovery.HOST
    plane.runtime.set_docker(True)
    async with host_worker_of(plane):
        await eventually(lambda: is_(plane, healthy=True, docker=True), "recorded back")
        view = await plane.settled(environment_id, Status.RUNNING)
        assert (view.generation, view.restarts) == (1, 0)
        await temporal_cli(
            plane.address, "workflow", "cancel", "--workflow-id", host_workflow_id(plane.host_id)
        )
        await plane.client.get_workflow_handle(host_workflow_id(plane.host_id)).result()


async def test_docker_trouble_is_told_and_commands_wait_for_its_end(make_plane: MakePlane) -> None:
    plane = await make_plane()
    await watch(plane)
    await eventually(lambda: is_(plane, healthy=True, docker=True), "healthy")
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    plane.runtime.set_docker(False)
    await eventually(lambda: is_(plane, healthy=True, docker=False), "docker trouble recorded")
    view = await plane.settled(environment_id, Status.ERROR)
    assert view.last_error is not None and view.last_error.code is ErrorCode.DOCKER_UNAVAILABLE
    await plane.cli_signal(environment_id, "stop")
    view = await plane.until(environment_id, lambda v: not v.desired_running, "stop accepted")
    assert view.status is Status.ERROR
    plane.runtime.set_docker(True)
    view = await plane.settled(environment_id, Status.STOPPED)
    assert view.restarts == 0 and view.last_error is None
    assert plane.runtime.containers == {}
    handle = plane.client.get_workflow_handle(host_workflow_id(plane.host_id))
    await handle.terminate("test ends")


async def test_unknown_signals_are_survived(make_plane: MakePlane) -> None:
    plane = await make_plane()
    await watch(plane)
    workflow_id = host_workflow_id(plane.host_id)
    for arguments in (["--name", "frob", "--input", "1"], ["--name", "docker_health", "--input", '{"x": 1}']):
        await temporal_cli(plane.address, "workflow", "signal", "--workflow-id", workflow_id, *arguments)
    await eventually(lambda: is_(plane, healthy=True, docker=True), "healthy all the same")
    status = await plane.client.get_workflow_handle_for(DesktopHost.run, workflow_id).query(
        DesktopHost.status
    )
    assert status.healthy
    await plane.client.get_workflow_handle(workflow_id).terminate("test ends")
