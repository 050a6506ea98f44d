"""The real dev server, and planes on it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.testing import WorkflowEnvironment

from tests.fakes.runtime import FakeRuntime
from tests.support.temporal import start_dev_server
from tests.workflows.plane import Plane, plane_of
from workflows import policies

MakePlane = Callable[..., Awaitable[Plane]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def temporal() -> AsyncIterator[WorkflowEnvironment]:
    """One dev server a test process."""
    async with await start_dev_server() as server:
        yield server


@pytest.fixture(params=[1000, 0], ids=["cached", "cache-0"])
def cached_workflows(request: pytest.FixtureRequest) -> int:
    """The whole suite once with the workflow cache and once replaying every task from history."""
    return int(request.param)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same waits, shorter: what is tested is what follows them."""
    monkeypatch.setattr("workflows.policies.HOST_RETURN_GRACE", timedelta(seconds=1))
    monkeypatch.setitem(policies.MONITOR, "heartbeat_timeout", timedelta(seconds=2))
    monkeypatch.setattr("workflows.policies.HOST_RETRY_BACKOFF", timedelta(milliseconds=300))
    monkeypatch.setattr("workflows.policies.RESTART_BACKOFF_MAX", timedelta(milliseconds=500))


@pytest_asyncio.fixture(loop_scope="session")
async def make_plane(
    temporal: WorkflowEnvironment, tmp_path: Path, cached_workflows: int
) -> AsyncIterator[MakePlane]:
    """A factory: `await make_plane(runtime)` starts workers and returns a `Plane`; everything ends with the test."""
    async with AsyncExitStack() as stack:
        yield partial(_make, stack, temporal, tmp_path, cached_workflows)


@pytest_asyncio.fixture(loop_scope="session")
async def make_cached_plane(temporal: WorkflowEnvironment, tmp_path: Path) -> AsyncIterator[MakePlane]:
    """The same, only with the workflow cache: for tests that are long, or full of environments."""
    async with AsyncExitStack() as stack:
        yield partial(_make, stack, temporal, tmp_path, 1000)


async def _make(
    stack: AsyncExitStack,
    temporal: WorkflowEnvironment,
    directory: Path,
    cached: int,
    runtime: FakeRuntime | None = None,
    *,
    host_worker: bool = True,
) -> Plane:
    plane = plane_of(
        temporal.client,
        directory,
        runtime or FakeRuntime(),
        host_worker=host_worker,
        max_cached_workflows=cached,
    )
    return await stack.enter_async_context(plane)
