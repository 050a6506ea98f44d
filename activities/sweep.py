"""The two-way sweep (design decision 10): containers without a workflow go, workflows without a container are
told.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from activities.container_spec import HostConfig
from activities.containers import Containers
from activities.daemon_threads import in_daemon_thread
from activities.engine import Engine
from activities.guards import Guards
from activities.hostfiles import environment_files, remove_tree
from activities.steps import Step
from activities.temporal_link import ControlPlane, Life
from models.identifiers import (
    LABEL_ENVIRONMENT,
    LABEL_GENERATION,
    LABEL_HOST,
    LABEL_INSTALLATION,
    is_environment_id,
)
from models.messages import ContainerEvent

AT_ONCE = 16
"""Containers looked into at the same time."""

Report = Callable[[str, str, int, str], Awaitable[None]]
"""Reports `event` of (environment id, container id, generation)."""

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

    async def run(self, report: Report, tell: Callable[[str, ContainerEvent], Awaitable[None]]) -> None:
        """Sweep once.

        Args:
            report: reports what was found of a container that exists.
            tell: sends an event of one that does not.

        Raises:
            Unreachable: Temporal does not answer; what was found by then is done.
            DOCKER_ERRORS: the engine does not answer.
        """
        owned = await in_daemon_thread("sweep", self._owned)
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(container: dict[str, Any]) -> None:
            async with limit:
                await self._look_into(container, report)

        outcomes = await asyncio.gather(*(one(container) for container in owned), return_exceptions=True)
        await self._tell_those_without(owned, tell)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

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

    async def _look_into(self, container: dict[str, Any], report: Report) -> None:
        labels = container["Labels"]
        environment_id, generation = labels[LABEL_ENVIRONMENT], int(labels[LABEL_GENERATION])
        life = await self._control_plane.life(environment_id)
        if life is Life.UNKNOWN and not self._marked(labels):
            log.warning(
                "container %s is left alone: no workflow of %s is known", container["Id"][:12], environment_id
            )
        elif life is not Life.OPEN:
            log.warning("removing orphan container %s of %s", container["Id"][:12], environment_id)
            await in_daemon_thread("orphan", lambda: self._remove_orphan(environment_id, container["Id"]))
        elif container.get("State") in ("exited", "dead"):
            await report(environment_id, container["Id"], generation, "exited")
        elif container.get("State") == "paused":
            await report(environment_id, container["Id"], generation, "paused")

    def _marked(self, labels: dict[str, str]) -> bool:
        """Whether the container was made for the very Temporal namespace that no longer knows its
        workflow.
        """
        return bool(self._config.installation) and labels.get(LABEL_INSTALLATION) == self._config.installation

    def _remove_orphan(self, environment_id: str, container_id: str) -> None:
        with self._guards.only(environment_id, Step()):
            container = self._containers.find(environment_id)
            if container is None or container["Id"] != container_id:
                return
            self._guards.mark_gone(environment_id)
            self._containers.remove_inspected(container, grace_seconds=1)
            remove_tree(environment_files(self._config.state_dir, environment_id).home)

    async def _tell_those_without(
        self, owned: list[dict[str, Any]], tell: Callable[[str, ContainerEvent], Awaitable[None]]
    ) -> None:
        have = {container["Labels"][LABEL_ENVIRONMENT] for container in owned}
        for environment_id in await self._control_plane.believed_running(self._config.host_id):
            if environment_id in have:
                continue
            generation = await self._control_plane.believed_generation(environment_id)
            if generation is None:
                continue
            # Looked up again: it may have been made since the list was taken.
            there = await in_daemon_thread("sweep", partial(self._containers.find, environment_id))
            if there is None:
                await tell(environment_id, ContainerEvent(generation=generation, event="absent"))
