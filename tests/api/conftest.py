"""One stack for a test process: tests share it and make environments of their own."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import pytest_asyncio
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from models.identifiers import host_task_queue, new_host_id
from models.settings import ControlSettings
from tests.api.stack import BEARER, Stack, client, fresh_inventory, make_services, record_host, serving
from tests.api.takeover_desk import desk
from tests.fakes.runtime import FakeRuntime
from tests.support.temporal import start_dev_server
from workers import control
from workers.host import HEARTBEAT_EVERY

__all__ = ["desk", "stack", "temporal"]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def temporal() -> AsyncIterator[WorkflowEnvironment]:
    """One dev server."""
    async with await start_dev_server() as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(
    temporal: WorkflowEnvironment, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    """Admin API, control worker and one host."""
    path = tmp_path_factory.mktemp("api")
    engine = fresh_inventory(path)
    runtime, host_id = FakeRuntime(), new_host_id()
    runtime.connect(temporal.client)
    record_host(engine, host_id)
    services = make_services(engine, temporal.client)
    settings = ControlSettings(state_dir=path, database_url=f"sqlite:///{path / 'inventory.db'}")
    with ThreadPoolExecutor(32) as pool:
        host_worker = Worker(
            temporal.client,
            task_queue=host_task_queue(host_id),
            activities=runtime.activities(),
            activity_executor=pool,
            max_concurrent_activities=32,
            max_heartbeat_throttle_interval=HEARTBEAT_EVERY,
            default_heartbeat_throttle_interval=HEARTBEAT_EVERY,
        )
        async with (
            control.build(temporal.client, settings),
            host_worker,
            serving(services) as (url, app),
            client(url, app, headers=BEARER) as http,
        ):
            yield Stack(url, http, app, services, host_id, runtime, temporal.client)
    await asyncio.to_thread(engine.dispose)
