"""The real dev server, and planes on it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.testing import WorkflowEnvironment

from tests.fakes.runtime import FakeRuntime
from tests.support.temporal import start_dev_server
from tests.workflows.plane import Plane, plane_of

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


@pytest_asyncio.fixture(loop_scope="session")
async def make_plane(
    temporal: WorkflowEnvironment, tmp_path: Path, cached_workflows: int
) -> AsyncIterator[MakePlane]:
    """A factory: `await make_plane(runtime)` starts workers and returns a `Plane`; everything ends with the test."""
    async with AsyncExitStack() as stack:

        async def make(runtime: FakeRuntime | None = None, *, host_worker: bool = True) -> Plane:
            plane = plane_of(
                temporal.client,
                tmp_path,
                runtime or FakeRuntime(),
                host_worker=host_worker,
                max_cached_workflows=cached_workflows,
            )
            return await stack.enter_async_context(plane)

        yield make
