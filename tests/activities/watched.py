"""A made-up control plane for `monitor_host`, and its run for as long as a test needs it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from temporalio.testing import ActivityEnvironment

from activities.docker_host import DockerHostActivities
from activities.temporal_link import Life, Unreachable
from models.lifecycle import Status
from models.messages import (
    ContainerEvent,
    EnvironmentSpec,
    EnvironmentView,
    HostRecord,
    Message,
    MonitorHost,
)
from tests.activities.conftest import Desk
from tests.support.waiting import eventually


class Plane:
    """A control plane in memory."""

    def __init__(self) -> None:
        self.signals: list[tuple[str, str, Message]] = []
        self.lives: dict[str, Life] = {}
        self.views: dict[str, EnvironmentView] = {}
        self.away = False
        self.mute: set[str] = set()
        self.looked: list[str] = []

    async def signal(self, workflow_id: str, name: str, argument: Message) -> bool:
        if self.away:
            raise Unreachable("away")
        self.signals.append((workflow_id, name, argument))
        return True

    async def life(self, environment_id: str) -> Life:
        if self.away:
            raise Unreachable("away")
        self.looked.append(environment_id)
        return self.lives.get(environment_id, Life.OPEN)

    async def believed_running(self, host_id: str) -> list[str]:
        return [name for name, view in self.views.items() if view.status is Status.RUNNING]

    async def believed(self, environment_id: str) -> EnvironmentView | None:
        if self.away or environment_id in self.mute:
            raise Unreachable("away")
        return self.views.get(environment_id)

    def believe(self, environment_id: str, generation: int, status: Status, **view: Any) -> None:
        spec = EnvironmentSpec(environment_id=environment_id, host_id="", image_ref="")
        self.views[environment_id] = EnvironmentView(
            spec=spec,
            generation=generation,
            status=status,
            desired_running=status is Status.RUNNING,
            **{"settled": True} | view,
        )

    def events(self, environment_id: str) -> list[ContainerEvent]:
        return [
            argument
            for workflow_id, name, argument in self.signals
            if workflow_id.endswith(environment_id) and isinstance(argument, ContainerEvent)
        ]

    def health(self) -> list[HostRecord]:
        return [argument for _, _, argument in self.signals if isinstance(argument, HostRecord)]


@contextlib.asynccontextmanager
async def monitoring(host: DockerHostActivities, host_id: str) -> AsyncIterator[ActivityEnvironment]:
    env = ActivityEnvironment()
    task = asyncio.ensure_future(env.run(host.monitor_host, MonitorHost(host_id=host_id)))
    try:
        yield env
    finally:
        env.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, 30)


async def swept(desk: Desk, plane: Plane) -> None:
    """The first sweep has seen the environment, so the event stream is open."""
    await eventually(lambda: desk.id in plane.looked, "the sweep")
