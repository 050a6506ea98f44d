"""Containers and workflows that lost each other (issue 3, point 7)."""

import functools
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.identifiers import (
    LABEL_ENVIRONMENT,
    LABEL_GENERATION,
    LABEL_HOST,
    LABEL_INSTALLATION,
    container_name,
    environment_workflow_id,
    new_environment_id,
)
from tests.e2e.stack import IMAGE
from tests.trouble.field import Field, within

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.xdist_group("lost-and-broken")]


@pytest.fixture
def strangers(field: Field) -> Iterator[list[str]]:
    """Containers that look much like ours and are none of our business."""
    host_id, made = field.stack.up["host_id"], list[str]()
    environment_id = new_environment_id()
    labels = {LABEL_ENVIRONMENT: environment_id, LABEL_HOST: host_id, LABEL_GENERATION: "1"}
    for other in (
        {LABEL_HOST: "desktop-host-of-somebody-else", LABEL_INSTALLATION: "this"},
        {LABEL_INSTALLATION: "another-installation"},
        {LABEL_ENVIRONMENT: "not-an-id"},
        # Ours by all its labels, but no workflow of that id was ever known, and it names no installation.
        {},
    ):
        stranger = new_environment_id()
        container = field.engine.containers.create(
            IMAGE, name=container_name(stranger), labels=labels | {LABEL_ENVIRONMENT: stranger} | other
        )
        made.append(str(container.id))
    yield made
    for made_id in made:
        field.engine.containers.get(made_id).remove(force=True)


@pytest.mark.parametrize("begin", ["worker restarted", "event stream cut"])
def test_two_way_sweep(field: Field, strangers: list[str], begin: str) -> None:
    orphan, homeless, robbed, swapped, ahead, late, behind, well = made = field.many(8)
    settle_all(field, made, "start")
    settle_all(field, [homeless, late, behind], "stop")
    untouched = field.container(well).id
    for environment_id in (orphan, homeless):
        field.stack.temporal(
            "workflow", "terminate", "--workflow-id", environment_workflow_id(environment_id)
        )
    assert field.stack.containers(orphan) and field.home(homeless).exists()
    worker = field.worker("workers.host")
    if begin == "worker restarted":
        os.kill(worker, signal.SIGSTOP)
    else:
        field.relay.cut()
    field.container(robbed).remove(force=True)
    field.container(swapped).remove(force=True)
    field.container(ahead).remove(force=True)
    # Made by a worker that was cut off, or left when a backup of Temporal or of the engine was restored.
    by_hand(field, swapped, generation=0)
    by_hand(field, ahead, generation=5)
    by_hand(field, late, generation=1)
    by_hand(field, behind, generation=5)
    if begin == "worker restarted":
        os.kill(worker, signal.SIGKILL)
    else:
        field.relay.up()
    field.until_no_container(orphan)
    for environment_id in (orphan, homeless):
        home = field.home(environment_id)
        within(functools.partial(_is_gone, home), "the orphan's directory removed")
    for environment_id, generation in ((robbed, 2), (swapped, 2), (ahead, 6)):
        field.until(environment_id, generation=generation)
        assert field.settle(environment_id, "start")["status"] == "running"
        field.check_agreement(environment_id, "running")
    for environment_id, generation in ((late, 1), (behind, 5)):
        field.until_no_container(environment_id)
        seen = field.until(environment_id, status="stopped", generation=generation)
        # That the engine was away is told; nothing else went wrong.
        assert {error["name"] for error in field.errors(environment_id)} <= {"docker_unavailable"}
        assert seen["last_error"] is None
    field.until(well, status="running")
    assert field.check_agreement(well, "running")["generation"] == 1
    assert field.container(well).id == untouched
    for stranger in strangers:
        assert field.engine.containers.get(stranger).status == "created"
    # The operator still sees those whose workflow was terminated: nobody deleted them. A start gives them a new one.
    for environment_id, generation in ((homeless, 2), (behind, 6)):
        seen = field.settle(environment_id, "start")
        assert (seen["status"], seen["generation"]) == ("running", generation), seen


def _is_gone(home: Path) -> bool:
    return not home.exists()


def settle_all(field: Field, environment_ids: list[str], command: str) -> None:
    expected = {"start": "running", "stop": "stopped"}[command]
    with ThreadPoolExecutor(len(environment_ids)) as pool:
        settled = pool.map(lambda environment_id: field.settle(environment_id, command), environment_ids)
        assert {environment["status"] for environment in settled} == {expected}


def by_hand(field: Field, environment_id: str, *, generation: int) -> None:
    """A container of this environment, by all its labels, that its workflow does not know of."""
    labels = {
        LABEL_ENVIRONMENT: environment_id,
        LABEL_HOST: field.stack.up["host_id"],
        LABEL_GENERATION: str(generation),
    }
    field.engine.containers.create(IMAGE, name=container_name(environment_id), labels=labels)
