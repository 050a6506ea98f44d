"""One stack for all end-to-end tests of a process."""

from collections.abc import Iterator

import pytest

from tests.e2e.stack import Stack, running_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole stack with real containers."""
    with running_stack(tmp_path_factory.mktemp("state")) as running:
        yield running


@pytest.fixture
def environment_ids(stack: Stack) -> Iterator[list[str]]:
    """Environments to be deleted after the test, also when it failed."""
    made: list[str] = []
    yield made
    for environment_id in made:
        stack.call("DELETE", f"/desktop-environments/{environment_id}", wait=60)
        assert stack.containers(environment_id) == []
