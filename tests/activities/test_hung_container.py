"""A container whose runtime hangs in an engine that is well."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest
from temporalio.exceptions import ApplicationError

from activities import docker_host
from activities.container_spec import HostConfig
from activities.docker_host import DockerHostActivities
from activities.engine import ANSWER_SECONDS, Engine
from models.identifiers import container_name
from models.messages import ContainerRemoved, RemoveContainer
from tests.activities.conftest import Desk

pytestmark = pytest.mark.docker


@contextmanager
def frozen_shim(engine: docker.APIClient, container_id: str) -> Iterator[None]:
    """The container's containerd-shim does nothing for as long as this lasts."""
    inside = engine.inspect_container(container_id)["State"]["Pid"]
    shim = int(Path(f"/proc/{inside}/stat").read_text().rpartition(")")[2].split()[1])
    assert "containerd-shim" in Path(f"/proc/{shim}/cmdline").read_text(), "this engine runs elsewhere"
    os.kill(shim, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(shim, signal.SIGCONT)


def test_it_is_told_from_a_hung_engine_and_hinders_nobody_else(
    desk: Desk,
    make_desk: Callable[[], Desk],
    engine: docker.APIClient,
    config: HostConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(docker_host, "Engine", lambda address: Engine(address, ANSWER_SECONDS, 2))
    hasty = DockerHostActivities(config)
    removal = RemoveContainer(environment_id=desk.id, generation=1, grace_seconds=0)
    with frozen_shim(engine, desk.start().container_id):
        with pytest.raises(ApplicationError) as caught:
            desk.run(hasty.remove_container, removal)
        hasty.close()
        assert caught.value.type == "docker_unavailable"
        assert "engine answers" in caught.value.message and container_name(desk.id) in caught.value.message
        other = make_desk()
        other.start()
        gone = other.run(
            other.host.remove_container,
            RemoveContainer(environment_id=other.id, generation=1, grace_seconds=0),
        )
        assert gone.removed
    removed = desk.run(desk.host.remove_container, removal)
    assert isinstance(removed, ContainerRemoved)
    with pytest.raises(docker.errors.NotFound):
        engine.inspect_container(container_name(desk.id))
