"""A control plane under test: the real control worker on a real SQLite inventory, a host of `tests.fakes.runtime`."""

from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine
from sqlmodel import Session, select
from temporalio.client import Client, WorkflowHandle
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
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
from tests.support.temporal import temporal_cli
from tests.support.waiting import eventually
from workers import control
from workers.host import HEARTBEAT_EVERY
from workflows.environment import DesktopEnvironment


@dataclass
class Plane:
    """A control plane under test: one control worker, one host out of the fakes."""

    client: Client
    address: str
    engine: Engine
    host_id: str
    runtime: FakeRuntime
    control_worker: Worker
    build_control_worker: Callable[[], Worker]

    async def restart_control_worker(self) -> None:
        """Stop the control worker in order and start a fresh one, with nothing cached."""
        await self.control_worker.__aexit__(None, None, None)
        self.control_worker = self.build_control_worker()
        await self.control_worker.__aenter__()

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

        return await eventually(probe, f"environment settled as {status}")

    async def until(
        self, environment_id: str, is_so: Callable[[m.EnvironmentView], bool], what: str
    ) -> m.EnvironmentView:
        """The first view for which `is_so` holds."""

        async def probe() -> m.EnvironmentView | None:
            view = await self.view(environment_id)
            return view if is_so(view) else None

        return await eventually(probe, what)

    async def await_settled(self, environment_id: str, wish: m.AwaitSettled) -> m.EnvironmentView:
        """Update `await_settled`."""
        handle = self.client.get_workflow_handle(environment_workflow_id(environment_id))
        view: m.EnvironmentView = await handle.execute_update(
            "await_settled", wish, result_type=m.EnvironmentView
        )
        return view

    def deleted(self, environment_id: str) -> bool:
        """Whether the inventory has a tombstone."""
        row = self.row(environment_id)
        return row is not None and row.deleted_at is not None

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
            rows = session.exec(
                select(NodeTokenRow).where(NodeTokenRow.environment_id == environment_id)
            ).all()
            return [row for row in rows if row.revoked_at is None]


@asynccontextmanager
async def plane_of(
    client: Client,
    directory: Path,
    runtime: FakeRuntime,
    *,
    host_worker: bool = True,
    max_cached_workflows: int = 1000,
) -> AsyncIterator[Plane]:
    """A plane whose workers run for as long as the context lasts."""
    async with AsyncExitStack() as stack:
        url = f"sqlite:///{directory / 'inventory.db'}"
        engine = make_engine(url)
        stack.callback(engine.dispose)
        upgrade(engine, lambda line: None)
        host_id = new_host_id()
        with Session(engine) as session, session.begin():
            known = m.HostRecord(host_id=host_id, healthy=True, docker_available=True, revision=1)
            hosts.record(session, known, datetime.now(UTC))
        settings = ControlSettings(
            state_dir=directory, database_url=url, max_cached_workflows=max_cached_workflows
        )
        runtime.connect(client)

        def build() -> Worker:
            return control.build(client, settings)

        plane = Plane(
            client=client,
            address=client.service_client.config.target_host,
            engine=engine,
            host_id=host_id,
            runtime=runtime,
            control_worker=build(),
            build_control_worker=build,
        )
        await plane.control_worker.__aenter__()
        stack.push_async_callback(lambda: plane.control_worker.__aexit__(None, None, None))
        if host_worker:
            await stack.enter_async_context(host_worker_of(plane))
        yield plane


@asynccontextmanager
async def host_worker_of(plane: Plane, slots: int = 32) -> AsyncIterator[Worker]:
    """A worker on the plane's host queue, for as long as the context lasts; `slots` steps at once."""
    with ThreadPoolExecutor(slots) as pool:
        worker = Worker(
            plane.client,
            task_queue=host_task_queue(plane.host_id),
            activities=plane.runtime.activities(),
            activity_executor=pool,
            max_concurrent_activities=slots,
            max_heartbeat_throttle_interval=HEARTBEAT_EVERY,
            default_heartbeat_throttle_interval=HEARTBEAT_EVERY,
        )
        async with worker:
            yield worker
