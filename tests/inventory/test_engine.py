"""Engines: private files, transactions that wait for each other, and databases that go away."""

import os
import signal
import sqlite3
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlmodel import Session

from inventory import engine as engines
from inventory import environments, hosts
from inventory.engine import describe, is_unavailable, make_engine, reading, storable, writing
from inventory.migrate import upgrade
from models.settings import ConfigurationError
from models.tables import HostRow
from tests.inventory.makers import record as record_of
from tests.inventory.makers import spec, write
from tests.setup.postgres import temporary_postgres


def test_sqlite_files_are_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "inventory.db"
    engine = make_engine(f"sqlite:///{path}")
    upgrade(engine, lambda line: None)
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        }
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    engine.dispose()
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 1, "busy_timeout": 5000}
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert modes == dict.fromkeys(("inventory.db", "inventory.db-wal", "inventory.db-shm"), 384)


def test_sqlite_file_of_others_is_made_private_and_their_directory_is_left(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "inventory.db"
    path.touch(0o644)
    make_engine(f"sqlite:///{path}").dispose()
    assert path.stat().st_mode & 0o777 == 0o600
    assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    "url", ["", "x", "mysql://h/d", "sqlite://", "sqlite:///:memory:", "sqlite:////dev/null/x"]
)
def test_unusable_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="DESKTOP_DATABASE_URL"):
        make_engine(url)


def test_reads_and_then_writes_lose_nothing(engine: Engine, now: datetime) -> None:
    with writing(engine) as session:
        hosts.ensure_known(session, "h", now)
    failures: list[BaseException] = []

    def count_up() -> None:
        try:
            for _ in range(10):
                with writing(engine) as session:
                    row = session.get(HostRow, "h", with_for_update=True)
                    assert row is not None
                    row.revision += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=count_up) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    with reading(engine) as session:
        row = hosts.get(session, "h")
    assert row is not None and row.revision == -1 + 60


def test_readers_do_not_wait_for_a_writer(engine: Engine, now: datetime) -> None:
    write(engine, record_of(spec(), 1, now))
    with writing(engine) as session:
        hosts.ensure_known(session, "h", now)
        with reading(engine) as other:
            assert hosts.get(other, "h") is None
            assert len(environments.list_page(other).environments) == 1


def test_a_failed_block_changes_nothing(engine: Engine, now: datetime) -> None:

    def fail() -> None:
        with writing(engine) as session:
            hosts.ensure_known(session, "h", now)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with reading(engine) as session:
        assert hosts.get(session, "h") is None


def test_a_database_without_tables_is_unavailable(empty_engine: Engine) -> None:
    with pytest.raises(SQLAlchemyError) as caught, reading(empty_engine) as session:
        hosts.list_all(session)
    assert is_unavailable(caught.value)


def test_a_bug_is_not_unavailability(engine: Engine, now: datetime) -> None:
    with pytest.raises(IntegrityError) as caught, writing(engine) as session:
        session.execute(text("INSERT INTO nodes (node_id) VALUES ('x')"))
    assert not is_unavailable(caught.value)
    assert not is_unavailable(ValueError("x"))


def test_parameters_stay_out_of_errors(engine: Engine) -> None:
    with pytest.raises(SQLAlchemyError) as caught, writing(engine) as session:
        session.execute(text("INSERT INTO nodes (node_id) VALUES (:value)"), {"value": "canary"})
    assert "canary" not in str(caught.value).split("DETAIL")[0]
    assert "canary" not in describe(caught.value)
    assert "\n" not in describe(caught.value)


def test_sqlite_held_by_another_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_SECONDS", 0.05)
    path = tmp_path / "inventory.db"
    engine = make_engine(f"sqlite:///{path}")
    upgrade(engine, lambda line: None)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(SQLAlchemyError) as caught, writing(engine) as session:
            hosts.list_all(session)
        assert is_unavailable(caught.value)
        with reading(engine) as session:
            assert hosts.list_all(session) == []
    finally:
        other.close()
        engine.dispose()


@pytest.mark.postgres
def test_crashed_postgresql_is_unavailable_and_comes_back() -> None:
    with temporary_postgres() as url:
        engine = make_engine(url)
        with reading(engine) as session:
            # The server ends every connection and recovers when one of its processes is killed.
            os.kill(backend(session), signal.SIGKILL)
            with pytest.raises(SQLAlchemyError) as caught:
                backend(session)
        assert is_unavailable(caught.value)
        refusals = refusals_until_it_answers(engine)
        assert all(map(is_unavailable, refusals)), refusals
    with pytest.raises(SQLAlchemyError) as gone, reading(engine) as session:
        backend(session)
    assert is_unavailable(gone.value)
    engine.dispose()


@pytest.mark.postgres
def test_hung_postgresql_is_unavailable(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "ANSWER_MARGIN_SECONDS", 0)
    engine = make_engine(postgres_url, statement_timeout=1)
    with reading(engine) as session:
        hung = backend(session)
        os.kill(hung, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(SQLAlchemyError) as caught:
                session.execute(text("SELECT 1"))
        finally:
            os.kill(hung, signal.SIGCONT)
        print(f"a hung statement became an error after {time.monotonic() - started:.1f} s")
    assert is_unavailable(caught.value)
    assert describe(caught.value) == "no answer within 1 s"
    with reading(engine) as session:
        assert backend(session) != hung
    engine.dispose()


@pytest.mark.postgres
def test_a_long_statement_is_unavailability(postgres_url: str) -> None:
    engine = make_engine(postgres_url, statement_timeout=1)
    with pytest.raises(SQLAlchemyError, match="statement timeout") as caught, reading(engine) as session:
        session.execute(text("SELECT pg_sleep(30)"))
    assert is_unavailable(caught.value)
    engine.dispose()


@pytest.mark.postgres
def test_a_long_lock_is_unavailability(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "LOCK_TIMEOUT_SECONDS", 0.1)
    engine = make_engine(postgres_url)
    lock = text("SELECT pg_advisory_xact_lock(77)")
    with writing(engine) as holder:
        holder.execute(lock)
        with pytest.raises(SQLAlchemyError, match="lock timeout") as caught, writing(engine) as session:
            session.execute(lock)
    assert is_unavailable(caught.value)
    engine.dispose()


def refusals_until_it_answers(engine: Engine) -> list[SQLAlchemyError]:
    """What was raised by each attempt until one was answered."""
    refusals: list[SQLAlchemyError] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with reading(engine) as session:
                backend(session)
        except SQLAlchemyError as error:
            refusals.append(error)
            time.sleep(0.05)
        else:
            return refusals
    raise AssertionError(f"PostgreSQL did not recover: {refusals[-1]}")


def backend(session: Session) -> int:
    """Process id of the server's side of a session."""
    pid: int = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
    return pid


@pytest.mark.parametrize(
    ("given", "kept"), [("ok ü", "ok ü"), ("a\0b", "a\ufffdb"), ("\ud800", "?"), ("", "")]
)
def test_storable(given: str, kept: str) -> None:
    assert storable(given) == kept
    assert len(storable("x" * 5000)) == 4000
