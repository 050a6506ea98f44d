"""The inventory's engine: one place that knows how SQLite and PostgreSQL differ (design section 2).

Stores take a `Session` first and never commit; callers open one with `writing` or `reading`:

    with writing(engine) as session:
        environments.record(session, record, now)

Errors that mean "the database is away" are told apart by `is_unavailable`: HTTP answers 503, activities are
retried.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psycopg
from psycopg.abc import RV, PQGen

# Private, and the one way to tell this time-out from the server's own errors.
from psycopg.errors import _WaitTimeout as WaitTimeout
from sqlalchemy import Connection, CursorResult, Engine, UpdateBase, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import Session, SQLModel

from models.settings import ConfigurationError

BUSY_TIMEOUT_SECONDS = 5
"""How long SQLite waits for another writer."""
CONNECT_TIMEOUT_SECONDS = 5
STATEMENT_TIMEOUT_SECONDS = 10
LOCK_TIMEOUT_SECONDS = 5
ANSWER_MARGIN_SECONDS = 5
"""How much later than the server the client gives up: a server that hangs cannot keep its own time-outs."""
POOL_TIMEOUT_SECONDS = 10

_READ_ONLY = "inventory_read_only"
_NOT_MIGRATED = frozenset({"42P01", "42703"})
"""SQLSTATEs of an undefined table and column."""
_READ_ONLY_SERVER = "25006"


def make_engine(url: str, statement_timeout: int = STATEMENT_TIMEOUT_SECONDS) -> Engine:
    """The engine for the inventory at `url`; connects to nothing yet.

    Args:
        url: `sqlite:///<path>` or `postgresql://…`. SQLite's directory is made, 0700, and its file, 0600.
        statement_timeout: seconds that PostgreSQL may work on one statement.

    Raises:
        ConfigurationError: the URL is no URL, names another database, or its directory cannot be made.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError("DESKTOP_DATABASE_URL: is not a database URL") from None
    backend = parsed.drivername.split("+")[0]
    if backend == "sqlite":
        return _sqlite(parsed)
    if backend in ("postgresql", "postgres"):
        return _postgresql(parsed.set(drivername="postgresql+psycopg"), statement_timeout)
    raise ConfigurationError(f"DESKTOP_DATABASE_URL: {backend!r} is not supported; use sqlite or postgresql")


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """A session in one transaction, committed at the end; on SQLite every other writer waits for it."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A session for reads only, which waits for no writer. The rows can be used after it ends."""
    with engine.connect() as connection:
        connection.execution_options(**{_READ_ONLY: True})
        if engine.dialect.name == "postgresql":
            connection.execution_options(postgresql_readonly=True)
        with Session(connection, expire_on_commit=False) as session:
            yield session


def is_unavailable(error: BaseException) -> bool:
    """Whether the database is away, overloaded or not migrated: the same call may succeed later."""
    if isinstance(error, PoolTimeout | OperationalError | InterfaceError):
        return True
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None)
        return error.connection_invalidated or state in _NOT_MIGRATED or state == _READ_ONLY_SERVER
    return False


def describe(error: BaseException) -> str:
    """One line on a database error for people: no statement, no parameters, no password."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = str(cause).strip().splitlines()
    return lines[0].strip() if lines else type(cause).__name__


def insert_into(session: Session, table: type[SQLModel]) -> postgresql.Insert | sqlite.Insert:
    """An INSERT in the dialect of the session's database, which can say ON CONFLICT."""
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def affected(session: Session, statement: UpdateBase) -> int:
    """Run an INSERT, UPDATE or DELETE; returns how many rows it made, changed or removed."""
    result = session.execute(statement, execution_options={"preserve_rowcount": True})
    return cast(CursorResult[Any], result).rowcount


def storable(text: str, limit: int = 4000) -> str:
    """The text as both databases can keep it: no NUL, no lone surrogate, at most `limit` characters."""
    return text[:limit].replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _sqlite(url: URL) -> Engine:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ConfigurationError("DESKTOP_DATABASE_URL: SQLite needs a file; use sqlite:///<path>")
    if url.query:
        raise ConfigurationError("DESKTOP_DATABASE_URL: SQLite takes no parameters; use sqlite:///<path>")
    _private_file(Path(url.database))
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS},
        pool_size=8,
        max_overflow=56,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # The driver's own BEGIN comes late and only before writes; `_begin` below says it instead.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A deferred transaction that reads and then writes fails at once, without the busy time-out, when
        # another process wrote in between; so whoever may write takes the lock first.
        read_only = connection.get_execution_options().get(_READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _private_file(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise ConfigurationError(f"DESKTOP_DATABASE_URL: cannot use {path}: {error.strerror}") from None


def _postgresql(url: URL, statement_timeout: int) -> Engine:
    settings = {
        "statement_timeout": statement_timeout * 1000,
        "lock_timeout": LOCK_TIMEOUT_SECONDS * 1000,
        "idle_in_transaction_session_timeout": 30_000,
    }
    defaults: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 2,
        "tcp_user_timeout": (statement_timeout + ANSWER_MARGIN_SECONDS) * 1000,
        "application_name": "desktop-environments",
        "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
    }
    engine = create_engine(
        url,
        connect_args={name: value for name, value in defaults.items() if name not in url.query},
        pool_pre_ping=True,
        pool_recycle=1800,
        pool_size=8,
        max_overflow=16,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        hide_parameters=True,
    )

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
        connection = _BoundedConnection.connect(*arguments, **options)
        connection.answer_timeout = statement_timeout + ANSWER_MARGIN_SECONDS
        return connection

    return engine


class _BoundedConnection(psycopg.Connection[Any]):
    """A connection that gives up on a server which has taken a statement and answers nothing.

    Attributes:
        answer_timeout: how long it waits for one answer, seconds.
    """

    answer_timeout: float = STATEMENT_TIMEOUT_SECONDS + ANSWER_MARGIN_SECONDS

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """As the base class, with `answer_timeout` where no time-out is given.

        Raises:
            psycopg.OperationalError: no answer came; the connection is closed.
        """
        try:
            return super().wait(gen, interval, self.answer_timeout if timeout is None else timeout)
        except WaitTimeout:
            if timeout is not None:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer within {self.answer_timeout:.0f} s") from None
