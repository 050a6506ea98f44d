"""The two-way sweep (design decision 10): containers and directories without a workflow go, workflows without their
container are told.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any

from activities.container_spec import HostConfig
from activities.containers import Containers
from activities.credentials import read_record
from activities.daemon_threads import in_daemon_thread
from activities.engine import Engine
from activities.guards import Guards
from activities.homes import Home, Homes
from activities.hostfiles import environment_files
from activities.inspection import generation_of
from activities.steps import Step
from activities.temporal_link import ControlPlane, Life, Unreachable
from models.identifiers import (
    LABEL_ENVIRONMENT,
    LABEL_GENERATION,
    LABEL_HOST,
    LABEL_INSTALLATION,
    container_name,
    is_environment_id,
)
from models.lifecycle import Recovery, Status
from models.messages import ContainerEvent, EnvironmentView, RemoveContainer

AT_ONCE = 16
"""Containers and directories looked into at the same time."""

Report = Callable[[str, str, int, str], Awaitable[None]]
"""Reports `event` of (environment id, container id, generation)."""
Tell = Callable[[str, ContainerEvent], Awaitable[None]]
"""Sends an event to an environment."""

log = logging.getLogger(__name__)


class Sweep:
    """One host's sweep."""

    def __init__(
        self,
        engine: Engine,
        config: HostConfig,
        guards: Guards,
        containers: Containers,
        control_plane: ControlPlane,
    ) -> None:
        self._engine = engine
        self._config = config
        self._guards = guards
        self._containers = containers
        self._control_plane = control_plane
        self._homes = Homes(config)

    async def run(self, report: Report, tell: Tell) -> None:
        """Sweep once.

        Args:
            report: reports what was found of a container that exists.
            tell: sends an event of what a workflow does not know.

        Raises:
            Unreachable: Temporal does not answer; what was found by then is done.
            DOCKER_ERRORS: the engine does not answer.
            ApplicationError, OSError: a directory cannot be removed, or not be looked at.
        """
        # What is there is looked at first and its workflow asked after: it was there before anything was.
        homes = {home.environment_id: home for home in await in_daemon_thread("sweep", self._homes.found)}
        owned = await in_daemon_thread("sweep", self._owned)
        parts = [
            self._look_into(found, homes.get(found["Labels"][LABEL_ENVIRONMENT]), report, tell)
            for found in owned
        ]
        housed = {found["Labels"][LABEL_ENVIRONMENT] for found in owned}
        parts += [self._look_at_home(home) for name, home in homes.items() if name not in housed]
        await _all([*parts, self._tell_those_without(owned, tell)])

    def _owned(self) -> list[dict[str, Any]]:
        filters = {"label": f"{LABEL_HOST}={self._config.host_id}"}
        found = self._engine.look.containers(all=True, filters=filters)
        return [container for container in found if self._is_known(container.get("Labels") or {})]

    def _is_known(self, labels: dict[str, str]) -> bool:
        """Whether the labels are whole and of this installation: anything else is left alone."""
        installation = labels.get(LABEL_INSTALLATION, "")
        return (
            is_environment_id(labels.get(LABEL_ENVIRONMENT, ""))
            and labels.get(LABEL_GENERATION, "").isdecimal()
            and (
                not installation or not self._config.installation or installation == self._config.installation
            )
        )

    # --- what is there ---

    async def _look_into(
        self, container: dict[str, Any], home: Home | None, report: Report, tell: Tell
    ) -> None:
        labels, container_id = container["Labels"], container["Id"]
        environment_id, generation = labels[LABEL_ENVIRONMENT], int(labels[LABEL_GENERATION])
        life = await self._control_plane.life(environment_id)
        if life is Life.UNKNOWN and not self._marked(labels):
            log.warning(
                "container %s is left alone: no workflow of %s is known", container_id[:12], environment_id
            )
            return
        if life is not Life.OPEN:
            log.warning("removing orphan container %s of %s", container_id[:12], environment_id)
            await in_daemon_thread(
                "orphan", partial(self._remove_orphan, environment_id, container_id, generation, home)
            )
            return
        # First, so that nothing is told again and again while no worker takes it in.
        believed = await self._control_plane.believed(environment_id)
        if container.get("State") in ("exited", "dead"):
            await report(environment_id, container_id, generation, "exited")
        elif container.get("State") == "paused":
            await report(environment_id, container_id, generation, "paused")
        if believed is None:
            return
        if generation > believed.generation:
            log.warning("%s does not know generation %s, which is here", environment_id, generation)
            newer = ContainerEvent(generation=generation, event="newer", container_id=container_id)
            await tell(environment_id, newer)
            if believed.status is Status.DELETING:
                # It may end before it has heard of this one, which is then an orphan.
                raise Unreachable(f"{environment_id} is being deleted; looked at again")
        elif _wants_none(believed):
            log.warning("removing container %s of %s, which has none", container_id[:12], environment_id)
            await in_daemon_thread(
                "unwanted", partial(self._remove_up_to, environment_id, believed.generation)
            )

    async def _look_at_home(self, home: Home) -> None:
        if home.foreign:
            return
        life = await self._control_plane.life(home.environment_id)
        if life is Life.CLOSED or (life is Life.UNKNOWN and home.marked):
            await in_daemon_thread("orphan", partial(self._remove_home, home))

    def _marked(self, labels: dict[str, str]) -> bool:
        """Whether the container was made for the very Temporal namespace that no longer knows its
        workflow.
        """
        return bool(self._config.installation) and labels.get(LABEL_INSTALLATION) == self._config.installation

    def _remove_orphan(
        self, environment_id: str, container_id: str, generation: int, home: Home | None
    ) -> None:
        with self._guards.only(environment_id, Step()):
            container = self._containers.find(environment_id)
            if container is None or container["Id"] != container_id:
                return
            self._guards.mark_gone(environment_id, generation)
            self._containers.remove_inspected(container, grace_seconds=1)
            if home is not None and not home.foreign:
                self._homes.remove(home)

    def _remove_home(self, home: Home) -> None:
        environment_id = home.environment_id
        with self._guards.only(environment_id, Step()):
            # Whoever made it: a container that is there may use the directory.
            if self._engine.inspect(container_name(environment_id)) is not None:
                return
            record = read_record(environment_files(self._config.state_dir, environment_id))
            if self._homes.remove(home):
                log.warning("removed the orphan directory of %s", environment_id)
                self._guards.mark_gone(environment_id, record.generation if record else 0)

    def _remove_up_to(self, environment_id: str, generation: int) -> None:
        """As activity `remove_container` does: a container that a newer generation has made since is left."""
        self._guards.fence(environment_id, generation)
        with self._guards.only(environment_id, Step()):
            self._containers.remove(RemoveContainer(environment_id=environment_id, generation=generation))

    # --- what is not there ---

    async def _tell_those_without(self, owned: list[dict[str, Any]], tell: Tell) -> None:
        have = {
            container["Labels"][LABEL_ENVIRONMENT]: int(container["Labels"][LABEL_GENERATION])
            for container in owned
        }
        environment_ids = await self._control_plane.believed_running(self._config.host_id)
        await _all(self._tell_one_without(found, have.get(found), tell) for found in environment_ids)

    async def _tell_one_without(self, environment_id: str, generation: int | None, tell: Tell) -> None:
        believed = await self._control_plane.believed(environment_id)
        if believed is None or believed.status is not Status.RUNNING or generation == believed.generation:
            return
        # Looked up again: it may have been made since the list was taken.
        there = await in_daemon_thread("sweep", partial(self._containers.find, environment_id))
        if there is None or generation_of(there) < believed.generation:
            # An older one goes with the start that follows.
            await tell(environment_id, ContainerEvent(generation=believed.generation, event="absent"))


async def _all(parts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Carry out every part, some at a time; what one raises is raised when all have ended, so that it hinders none."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def limited(part: Coroutine[Any, Any, None]) -> None:
        async with limit:
            await part

    outcomes = await asyncio.gather(*map(limited, parts), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


def _wants_none(believed: EnvironmentView) -> bool:
    """Whether the workflow has ended its last generation and made sure of it, so that any container up to it is one
    that came too late, such as from a worker that was cut off from Temporal. What waits for its host, or is under
    way, may still want one.
    """
    at_rest = believed.status is Status.STOPPED or (
        believed.status is Status.ERROR and believed.recovery is Recovery.OPERATOR
    )
    return believed.settled and believed.operation is None and at_rest
