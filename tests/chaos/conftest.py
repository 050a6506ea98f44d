"""One control plane for the kills of a module; the next test finds it settled or not at all."""

from collections.abc import Iterator

import pytest

from tests.chaos.plane import Plane, control_plane


@pytest.fixture(scope="module")
def plane() -> Iterator[Plane]:
    """A control plane on SQLite."""
    with control_plane() as running:
        yield running
