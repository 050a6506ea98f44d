"""`monitor_host`: health, container events, an engine that goes away; the real engine and a made-up control plane."""

import asyncio
import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from tempfile import mkdtemp
from typing import Any

import docker
import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import host as monitor
from activities.container_spec import HostConfig
from activities.docker_host import DockerHostActivities
from models.messages import (
    MonitorHost,
    RemoveContainer,
)
from tests.activities.conftest import SDK_LEAKS, Desk
from tests.activities.watched import Plane, monitoring, swept
from tests.support.pausing import pause
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


async def test_health_is_told_once_and_heartbeats_go_on(
    desk: Desk, plane: Plane, host_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(monitor, "BEAT_SECONDS", 0.05)
    beats: list[int] = []
    env = ActivityEnvironment()
    env.on_heartbeat = lambda *details: beats.append(1)
    task = asyncio.ensure_future(env.run(desk.host.monitor_host, MonitorHost(host_id=host_id)))
    await eventually(lambda: plane.health() and len(beats) > 10, "health and heartbeats")
    await asyncio.sleep(0.5)
    env.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)
    (record,) = plane.health()
    assert (
        record.docker_available
        and record.healthy
        and record.version
        and record.label.startswith("desktop-runtime:")
    )
    assert [to for to, name, _ in plane.signals if name == "docker_health"] == [f"desktop-host/{host_id}"]


async def test_another_host_is_refused(desk: Desk) -> None:
    with pytest.raises(ApplicationError, match="asked to be"):
        await ActivityEnvironment().run(desk.host.monitor_host, MonitorHost(host_id="other"))


async def test_a_crash_is_told_with_code_and_log(
    desk: Desk, plane: Plane, engine: docker.APIClient, host_id: str
) -> None:
    started = await asyncio.to_thread(desk.start, 4)
    async with monitoring(desk.host, host_id):
        await swept(desk, plane)
        assert not plane.events(desk.id), "nothing is told of one that runs"
        await asyncio.to_thread(engine.kill, started.container_id, "SIGKILL")
        await eventually(lambda: plane.events(desk.id), "the crash")
        await asyncio.to_thread(engine.remove_container, started.container_id)
        await asyncio.sleep(0.5)
    (event,) = plane.events(desk.id)
    assert (event.event, event.generation, event.exit_code) == ("exited", 4, 137)
    assert event.container_id == started.container_id and event.log_tail


async def test_removed_and_paused_by_hand(
    desk: Desk, plane: Plane, engine: docker.APIClient, host_id: str
) -> None:
    started = await asyncio.to_thread(desk.start)
    async with monitoring(desk.host, host_id):
        await swept(desk, plane)
        await asyncio.to_thread(pause, engine, started.container_id)
        await eventually(lambda: [e.event for e in plane.events(desk.id)] == ["paused"], "paused")
        await asyncio.to_thread(engine.remove_container, started.container_id, force=True)
        await eventually(lambda: len(plane.events(desk.id)) == 2, "removed")
    assert plane.events(desk.id)[1].event in ("exited", "removed")


async def test_what_we_remove_ourselves_is_not_told(
    desk: Desk, plane: Plane, engine: docker.APIClient, host_id: str
) -> None:
    await asyncio.to_thread(desk.start)
    async with monitoring(desk.host, host_id):
        await swept(desk, plane)
        await asyncio.to_thread(desk.start, 2)
        request = RemoveContainer(environment_id=desk.id, generation=2, grace_seconds=0)
        await asyncio.to_thread(desk.run, desk.host.remove_container, request)
        # A crash afterwards shows that events arrive.
        third = await asyncio.to_thread(desk.start, 3)
        await asyncio.to_thread(engine.kill, third.container_id)
        await eventually(lambda: plane.events(desk.id), "the crash")
    assert {event.generation for event in plane.events(desk.id)} == {3}


async def test_while_pairing_is_awaited_its_step_tells(desk: Desk, plane: Plane, host_id: str) -> None:
    async with monitoring(desk.host, host_id):
        await eventually(plane.health, "health")
        started = await asyncio.to_thread(desk.start, label="fades")
        with pytest.raises(ApplicationError) as caught:
            await asyncio.to_thread(desk.wait_for_pairing, started)
        await asyncio.sleep(0.3)
    if caught.value.details[0]["log_tail"] and plane.events(desk.id):
        # It died before the wait began, on a busy machine: then both tell, of the same generation.
        assert {event.generation for event in plane.events(desk.id)} == {1}


async def test_events_wait_for_temporal(
    desk: Desk, plane: Plane, engine: docker.APIClient, host_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "RETRY_SECONDS", 0.1)
    started = await asyncio.to_thread(desk.start)
    async with monitoring(desk.host, host_id):
        await swept(desk, plane)
        plane.away = True
        await asyncio.to_thread(engine.kill, started.container_id)
        await asyncio.sleep(0.5)
        plane.away = False
        await eventually(lambda: plane.events(desk.id), "the crash, late")


class Relay:
    """A socket in front of the real engine's that can hang up, hang and come back."""

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, "docker.sock")
        self.hang = False
        self._server: socket.socket | None = None
        self._open: list[socket.socket] = []
        self.up()

    def up(self) -> None:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.path)
        self._server.listen(64)
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def down(self) -> None:
        """Connections break, new ones are refused."""
        assert self._server is not None
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        os.unlink(self.path)
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            engine = socket.socket(socket.AF_UNIX)
            engine.connect("/var/run/docker.sock")
            self._open += [client, engine]
            for source, target in ((client, engine), (engine, client)):
                threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                while self.hang:
                    threading.Event().wait(0.02)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def relay() -> Any:
    directory = mkdtemp(prefix="relay")
    relay = Relay(directory)
    yield relay
    relay.hang = False
    with contextlib.suppress(OSError):
        relay.down()
    shutil.rmtree(directory)


@SDK_LEAKS
@pytest.mark.usefixtures("sdk_leaks")
@pytest.mark.parametrize("way", ["away", "hung"])
async def test_engine_lost_and_back(
    way: str,
    relay: Relay,
    config: HostConfig,
    plane: Plane,
    image: str,
    host_id: str,
    engine: docker.APIClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Told once each, and what happened meanwhile is told afterwards: nothing is missed."""
    monkeypatch.setattr(monitor, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(monitor, "PROBE_DEADLINE", 1.0)
    host = DockerHostActivities(replace(config, docker_host=f"unix://{relay.path}"), plane)
    desk = Desk(host, image, host_id, config.state_dir)
    started = await asyncio.to_thread(desk.start)
    health: Callable[[], list[bool]] = lambda: [record.docker_available for record in plane.health()]  # noqa: E731
    async with monitoring(host, host_id):
        await swept(desk, plane)
        await eventually(lambda: health() == [True], "healthy")
        if way == "away":
            await asyncio.to_thread(relay.down)
        else:
            relay.hang = True
        await eventually(lambda: health() and not health()[-1], "unhealthy")
        # Whoever waits for the next round is too late.
        monkeypatch.setattr(monitor, "PROBE_SECONDS", 60.0)
        await asyncio.sleep(1.5)
        await asyncio.to_thread(engine.kill, started.container_id)
        if way == "away":
            relay.up()
        relay.hang = False
        await eventually(lambda: health()[-1], "healthy again")
        await eventually(lambda: plane.events(desk.id), "what happened meanwhile")
    text = next(record.last_error for record in plane.health() if not record.docker_available)
    assert ("in time" in str(text)) is (way == "hung") or way == "away"
    assert plane.events(desk.id)[0].event == "exited"
    host.close()
