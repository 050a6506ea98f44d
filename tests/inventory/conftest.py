"""Real databases, migrated: every test of a store runs on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url

from inventory.engine import make_engine
from inventory.migrate import upgrade
from tests.setup.postgres import temporary_postgres


@pytest.fixture
def now() -> datetime:
    return datetime(2030, 5, 1, 12, 0, 0, 250_000, tzinfo=UTC)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL cluster of this test process, by the URL of its database `postgres`."""
    with temporary_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database of each kind with nothing in it."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'state' / 'inventory.db'}"
        return
    base = request.getfixturevalue("postgres_url")
    name = f"test_{uuid4().hex}"
    _administer(base, f"CREATE DATABASE {name}")
    try:
        yield make_url(base).set(database=name).render_as_string(hide_password=False)
    finally:
        _administer(base, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_engine(empty_url: str) -> Iterator[Engine]:
    """An engine on an empty database."""
    engine = make_engine(empty_url)
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture
def engine(empty_engine: Engine) -> Engine:
    """An engine on a migrated database."""
    upgrade(empty_engine, lambda line: None)
    return empty_engine


def _administer(url: str, statement: str) -> None:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(statement))
    finally:
        engine.dispose()
