"""The real dev server, the real control worker on a real SQLite inventory, and a host out of `tests.fakes.runtime`."""

from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import Engine
from sqlmodel import Session, select
from temporalio.client import Client, WorkflowHandle
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from inventory import hosts
from inventory.engine import make_engine
from inventory.migrate import upgrade
from models import messages as m
from models.identifiers import (
    CONTROL_TASK_QUEUE,
    SEARCH_ATTRIBUTE_HOST,
    environment_workflow_id,
    host_task_queue,
    new_environment_id,
    new_host_id,
)
from models.lifecycle import Status
from models.settings import ControlSettings
from models.tables import EnvironmentEventRow, EnvironmentRow, NodeTokenRow
from tests.fakes.runtime import FakeRuntime
from tests.support.temporal import start_dev_server, temporal_cli
from tests.support.waiting import eventually
from workers import control
from workflows.environment import DesktopEnvironment


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def temporal() -> AsyncIterator[WorkflowEnvironment]:
    """One dev server a test process."""
    async with await start_dev_server() as server:
        yield server


@dataclass
class Plane:
    """A control plane under test: one control worker, one host out of the fakes."""

    client: Client
    address: str
    engine: Engine
    host_id: str
    runtime: FakeRuntime

    async def create(self, *, running: bool = True, environment_id: str | None = None) -> str:
        """Start the workflow of a new environment; its id."""
        environment_id = environment_id or new_environment_id()
        spec = m.EnvironmentSpec(environment_id=environment_id, host_id=self.host_id, image_ref="image:1")
        host_key = SearchAttributeKey.for_keyword(SEARCH_ATTRIBUTE_HOST)
        await self.client.start_workflow(
            DesktopEnvironment.run,
            m.EnvironmentInput(spec=spec, desired_running=running, actor="test"),
            id=environment_workflow_id(environment_id),
            task_queue=CONTROL_TASK_QUEUE,
            search_attributes=TypedSearchAttributes([SearchAttributePair(host_key, self.host_id)]),
            static_summary="test",
        )
        return environment_id

    def handle(self, environment_id: str) -> WorkflowHandle[DesktopEnvironment, None]:
        """The environment's workflow."""
        return self.client.get_workflow_handle_for(
            DesktopEnvironment.run, environment_workflow_id(environment_id)
        )

    async def cli_signal(self, environment_id: str, name: str, *args: str) -> None:
        """Signal by hand, as an engineer would."""
        await temporal_cli(
            self.address,
            *("workflow", "signal", "--workflow-id", environment_workflow_id(environment_id), "--name", name),
            *args,
        )

    async def view(self, environment_id: str) -> m.EnvironmentView:
        """Query `status`."""
        return await self.handle(environment_id).query(DesktopEnvironment.status)

    async def settled(self, environment_id: str, status: Status | None = None) -> m.EnvironmentView:
        """The view once settled, in `status` where one is given."""

        async def probe() -> m.EnvironmentView | None:
            view = await self.view(environment_id)
            return view if view.settled and status in (None, view.status) else None

        return await eventually(probe, f"environment settled as {status}")  # type: ignore[return-value]

    async def until(self, environment_id: str, is_so: Callable[[m.EnvironmentView], bool], what: str) -> m.EnvironmentView:
        """The first view for which `is_so` holds."""

        async def probe() -> m.EnvironmentView | None:
            view = await self.view(environment_id)
            return view if is_so(view) else None

        return await eventually(probe, what)  # type: ignore[return-value]

    async def names(self, environment_id: str) -> list[str]:
        """`kind:name` of each timeline entry of the workflow."""
        entries = await self.handle(environment_id).query(DesktopEnvironment.timeline)
        return [f"{entry.kind}:{entry.name}" for entry in entries]

    def row(self, environment_id: str) -> EnvironmentRow | None:
        """The inventory's row."""
        with Session(self.engine) as session:
            return session.get(EnvironmentRow, environment_id)

    def events(self, environment_id: str) -> list[EnvironmentEventRow]:
        """The inventory's timeline."""
        with Session(self.engine) as session:
            query = select(EnvironmentEventRow).where(EnvironmentEventRow.environment_id == environment_id)
            return sorted(session.exec(query).all(), key=lambda row: row.sequence)

    def live_tokens(self, environment_id: str) -> list[NodeTokenRow]:
        """Tokens not revoked."""
        with Session(self.engine) as session:
            rows = session.exec(select(NodeTokenRow).where(NodeTokenRow.environment_id == environment_id)).all()
            return [row for row in rows if row.revoked_at is None]


MakePlane = Callable[..., Awaitable[Plane]]


@pytest.fixture(params=[1000, 0], ids=["cached", "cache-0"])
def cached_workflows(request: pytest.FixtureRequest) -> int:
    """The whole suite once with the workflow cache and once replaying every task from history."""
    return int(request.param)


@pytest_asyncio.fixture(loop_scope="session")
async def make_plane(
    temporal: WorkflowEnvironment, tmp_path: Path, cached_workflows: int
) -> AsyncIterator[MakePlane]:
    """A factory: `await make_plane(runtime)` starts workers and returns a `Plane`; everything ends with the test."""
    async with AsyncExitStack() as stack:

        async def make(runtime: FakeRuntime | None = None, *, host_worker: bool = True) -> Plane:
            runtime = runtime or FakeRuntime()
            url = f"sqlite:///{tmp_path / 'inventory.db'}"
            engine = make_engine(url)
            upgrade(engine, lambda line: None)
            stack.callback(engine.dispose)
            host_id = new_host_id()
            settings = ControlSettings(
                state_dir=tmp_path, database_url=url, max_cached_workflows=cached_workflows
            )
            await stack.enter_async_context(control.build(temporal.client, settings))
            runtime.connect(temporal.client)
            plane = Plane(
                client=temporal.client,
                address=temporal.client.service_client.config.target_host,
                engine=engine,
                host_id=host_id,
                runtime=runtime,
            )
            with Session(engine) as session, session.begin():
                known = m.HostRecord(host_id=host_id, healthy=True, docker_available=True, revision=1)
                hosts.record(session, known, datetime.now(UTC))
            if host_worker:
                await stack.enter_async_context(host_worker_of(plane))
            return plane

        yield make


@asynccontextmanager
async def host_worker_of(plane: Plane) -> AsyncIterator[Worker]:
    """A worker on the plane's host queue, for as long as the context lasts."""
    with ThreadPoolExecutor(32) as pool:
        worker = Worker(
            plane.client,
            task_queue=host_task_queue(plane.host_id),
            activities=plane.runtime.activities(),
            activity_executor=pool,
            max_concurrent_activities=32,
        )
        async with worker:
            yield worker
