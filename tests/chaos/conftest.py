"""One control plane for the kills of this package; the next test finds it settled or not at all."""

from collections.abc import Iterator

import pytest

from tests.chaos.plane import Plane, control_plane


@pytest.fixture(scope="package")
def plane() -> Iterator[Plane]:
    """A control plane on SQLite."""
    with control_plane() as running:
        yield running
