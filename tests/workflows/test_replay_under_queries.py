"""Histories that came about under dense commands and queries replay; with local activities some did not."""

import asyncio
import random

from temporalio.worker import Replayer

from models.lifecycle import Command, Status
from tests.fakes.runtime import SlowRuntime
from tests.workflows.conftest import MakePlane
from tests.workflows.plane import Plane
from workflows.environment import DesktopEnvironment
from workflows.host import DesktopHost
from workflows.plugin import ControlPlanePlugin

ENVIRONMENTS = 6
COMMANDS = 25


async def disturb(plane: Plane, environment_id: str, chooser: random.Random) -> None:
    """Commands and queries as fast as they are answered."""
    handle = plane.handle(environment_id)
    for _ in range(COMMANDS):
        await handle.signal(chooser.choice([Command.START, Command.STOP, Command.RESET]))
        await asyncio.gather(
            handle.query(DesktopEnvironment.status), handle.query(DesktopEnvironment.timeline)
        )
        await asyncio.sleep(chooser.uniform(0, 0.03))
    await handle.signal(Command.STOP)


async def test_they_replay(make_cached_plane: MakePlane) -> None:
    plane = await make_cached_plane(SlowRuntime(0.01))
    ids = [await plane.create() for _ in range(ENVIRONMENTS)]
    seeds = enumerate(ids)
    await asyncio.gather(
        *(disturb(plane, environment_id, random.Random(seed)) for seed, environment_id in seeds)  # noqa: S311 - no secret
    )
    replayer = Replayer(workflows=[DesktopEnvironment, DesktopHost], plugins=[ControlPlanePlugin()])
    for environment_id in ids:
        await plane.settled(environment_id, Status.STOPPED)
        history = await plane.handle(environment_id).fetch_history()
        print(f"{len(history.events)} events")
        await replayer.replay_workflow(history)
