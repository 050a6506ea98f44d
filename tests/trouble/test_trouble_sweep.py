"""Containers and workflows that lost each other (issue 3, point 7)."""

import os
import signal
from collections.abc import Iterator

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

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.xdist_group("trouble")]


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
    orphan, robbed, well = field.many(3)
    for environment_id in (orphan, robbed, well):
        assert field.settle(environment_id, "start")["status"] == "running"
    untouched = field.container(well).id
    field.stack.temporal("workflow", "terminate", "--workflow-id", environment_workflow_id(orphan))
    assert field.stack.containers(orphan)
    if begin == "worker restarted":
        os.kill(field.worker("workers.host"), signal.SIGKILL)
        field.container(robbed).remove(force=True)
    else:
        field.relay.cut()
        field.container(robbed).remove(force=True)
        field.relay.up()
    field.until_no_container(orphan)
    within(lambda: not field.home(orphan).exists(), "the orphan's directory removed")
    field.until(robbed, generation=2)
    assert field.settle(robbed, "start")["status"] == "running"
    field.check_agreement(robbed, "running")
    field.until(well, status="running")
    assert field.check_agreement(well, "running")["generation"] == 1
    assert field.container(well).id == untouched
    for stranger in strangers:
        assert field.engine.containers.get(stranger).status == "created"
    # The operator still sees it: nobody deleted it. It does not run, and it can be deleted.
    field.made.remove(orphan)
