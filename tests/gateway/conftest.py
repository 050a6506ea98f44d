from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from api.gateway import Limits
from tests.gateway.harness import Stack, new_engine, serving


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = new_engine(tmp_path)
    yield made
    made.dispose()


@pytest.fixture
async def stack(engine: Engine) -> AsyncIterator[Stack]:
    """A gateway whose grace and revocation intervals are short."""
    limits = Limits(reconnect_grace=0.1, revocation_interval=0.05)
    async with serving(engine, limits=limits) as stack:
        yield stack
