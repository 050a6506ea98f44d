"""One stack with two hardened desktops and a compatible one, for every test of a module."""

from collections.abc import Iterator

import pytest

from tests.e2e.stack import Stack, running_stack
from tests.isolation.probes import Inside, inside

LIMITS = {"cpus": 0.5, "memory_mb": 512, "pids": 128, "shm_mb": 64}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole stack with real containers."""
    with running_stack(tmp_path_factory.mktemp("state")) as running:
        yield running


@pytest.fixture(scope="module")
def desktop(stack: Stack) -> Iterator[Inside]:
    """A hardened desktop with limits of its own."""
    yield from _desktop(stack, limits=LIMITS)


@pytest.fixture(scope="module")
def neighbour(stack: Stack) -> Iterator[Inside]:
    """A second one beside it."""
    yield from _desktop(stack)


@pytest.fixture(scope="module")
def compatible(stack: Stack) -> Iterator[Inside]:
    """One of the looser profile."""
    yield from _desktop(stack, security_profile="compatible")


def _desktop(stack: Stack, **body: object) -> Iterator[Inside]:
    environment = stack.create(**body)
    assert environment["status"] == "running", environment["last_error"]
    with inside(environment) as entered:
        yield entered
    stack.call("DELETE", f"/desktop-environments/{environment['environment_id']}", wait=60)
    assert stack.containers(environment["environment_id"]) == []
