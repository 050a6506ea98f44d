"""How the monitor reaches real workflows on the real dev server."""

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest
from temporalio import workflow
from temporalio.client import Client
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities.temporal_link import Life, TemporalLink, Unreachable, installation_id
from models.identifiers import (
    SEARCH_ATTRIBUTE_HOST,
    SEARCH_ATTRIBUTE_STATUS,
    environment_workflow_id,
    new_environment_id,
)
from models.lifecycle import Status
from models.messages import ContainerEvent, EnvironmentSpec, EnvironmentView
from tests.support.temporal import start_dev_server
from tests.support.waiting import eventually


@workflow.defn(name="LinkedEnvironment", sandboxed=False)
class LinkedEnvironment:
    """As much of an environment as the link sees."""

    def __init__(self) -> None:
        self.events: list[ContainerEvent] = []

    @workflow.run
    async def run(self, view: EnvironmentView) -> None:
        self.view = view
        await workflow.wait_condition(lambda: bool(self.events))

    @workflow.signal
    def container_event(self, event: ContainerEvent) -> None:
        self.events.append(event)

    @workflow.query
    def status(self) -> EnvironmentView:
        return self.view


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[WorkflowEnvironment]:
    environment = await start_dev_server()
    yield environment
    await environment.shutdown()


@pytest.fixture(scope="module")
async def client(server: WorkflowEnvironment) -> AsyncIterator[Client]:
    async with Worker(server.client, task_queue="link", workflows=[LinkedEnvironment]):
        yield server.client


async def begin(client: Client, host_id: str, status: Status, generation: int = 3) -> str:
    environment_id = new_environment_id()
    spec = EnvironmentSpec(environment_id=environment_id, host_id=host_id, image_ref="x")
    attributes = TypedSearchAttributes(
        [
            SearchAttributePair(SearchAttributeKey.for_keyword(SEARCH_ATTRIBUTE_HOST), host_id),
            SearchAttributePair(SearchAttributeKey.for_keyword(SEARCH_ATTRIBUTE_STATUS), status.value),
        ]
    )
    await client.start_workflow(
        "LinkedEnvironment",
        EnvironmentView(spec=spec, status=status, desired_running=True, generation=generation),
        id=environment_workflow_id(environment_id),
        task_queue="link",
        search_attributes=attributes,
        execution_timeout=timedelta(minutes=2),
    )
    return environment_id


async def test_life_signal_and_end(client: Client) -> None:
    link = TemporalLink(client)
    environment_id = await begin(client, "h1", Status.RUNNING)
    assert await link.life(environment_id) is Life.OPEN
    assert await link.life(new_environment_id()) is Life.UNKNOWN
    event = ContainerEvent(generation=3, event="exited", exit_code=1)
    workflow_id = environment_workflow_id(environment_id)
    assert await link.signal(workflow_id, "container_event", event)
    await client.get_workflow_handle(workflow_id).result()
    assert await link.life(environment_id) is Life.CLOSED
    assert not await link.signal(workflow_id, "container_event", event)
    assert not await link.signal("nothing", "container_event", event)


async def test_another_namespace_says_nothing_of_our_workflows(client: Client) -> None:
    environment_id = await begin(client, "h1", Status.RUNNING)
    ours = TemporalLink(client, await installation_id(client))
    assert await ours.life(new_environment_id()) is Life.UNKNOWN
    former = TemporalLink(client, "an-installation-that-was")
    with pytest.raises(Unreachable, match="another one now"):
        await former.life(new_environment_id())
    assert await former.life(environment_id) is Life.OPEN
    await client.get_workflow_handle(environment_workflow_id(environment_id)).terminate()


async def test_who_believes_in_a_container(client: Client) -> None:
    link, host = TemporalLink(client), f"h-{uuid4().hex[:8]}"
    running = await begin(client, host, Status.RUNNING, 5)
    stopped = await begin(client, host, Status.STOPPED)
    await begin(client, f"{host}x", Status.RUNNING)
    await eventually(lambda: link.believed_running(host), "visibility")
    assert await link.believed_running(host) == [running]
    for environment_id, status, generation in ((running, Status.RUNNING, 5), (stopped, Status.STOPPED, 3)):
        believed = await link.believed(environment_id)
        assert believed is not None and (believed.status, believed.generation) == (status, generation)
    assert await link.believed(new_environment_id()) is None


async def test_an_installation_is_a_namespace(client: Client) -> None:
    first = await installation_id(client)
    assert first and await installation_id(client) == first
