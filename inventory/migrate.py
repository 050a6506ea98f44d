"""Brings the inventory's schema to the newest revision: `python -m inventory.migrate [--check] [--wait S]`.

Two that run at once do not disturb each other: the first holds a lock until it has committed everything, the
other finds nothing left to do.
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError

import migrations
from inventory.engine import describe, is_unavailable, make_engine, reading
from models.settings import ConfigurationError, MigrateSettings, load

_LOCK_KEY = 0x6465736B746F70
"""Key of PostgreSQL's advisory lock: "desktop"."""
_STATEMENT_TIMEOUT_SECONDS = 600
_RETRY_SECONDS = 0.5
_PROCESS_LOCK = threading.Lock()


def upgrade(engine: Engine, report: Callable[[str], None], revision: str = "head") -> None:
    """Bring the schema to `revision`, reporting a line for each revision applied, or that none was needed.

    Raises:
        SQLAlchemyError: the database is away, or refuses.
        CommandError: the database is at a revision this version does not know.
    """
    with _locked(engine) as connection:
        applied = _run(connection, lambda config: command.upgrade(config, revision), report, "applied")
        if not applied:
            report(f"nothing to do: the inventory is at revision {_current(connection)}")


def downgrade(engine: Engine, report: Callable[[str], None], revision: str = "base") -> None:
    """Take the schema back to `revision`, with everything newer in it; raises as `upgrade`."""
    with _locked(engine) as connection:
        _run(connection, lambda config: command.downgrade(config, revision), report, "taken back")


def current_revision(engine: Engine) -> str | None:
    """The revision the schema is at, or None; raises `SQLAlchemyError` with the database away."""
    with reading(engine) as session:
        return _current(session.connection())


def head_revision() -> str:
    """The revision this version of the code works with."""
    return ScriptDirectory.from_config(_config()).get_current_head() or "none"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code: 0 done or up to date, 1 not up to date or failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m inventory.migrate", description="Migrate the inventory.")
    parser.add_argument("--check", action="store_true", help="only tell whether the schema is up to date")
    parser.add_argument(
        "--wait",
        type=int,
        metavar="SECONDS",
        help="how long to wait for the database to answer (default: DESKTOP_MIGRATE_WAIT, or 30)",
    )
    options = parser.parse_args(arguments)
    try:
        settings = load(MigrateSettings)
        wait = settings.migrate_wait if options.wait is None else options.wait
        engine = make_engine(settings.inventory_url, statement_timeout=_STATEMENT_TIMEOUT_SECONDS)
        try:
            return _patiently(lambda: _check(engine) if options.check else _upgrade(engine), wait)
        finally:
            engine.dispose()
    except (ConfigurationError, CommandError) as error:
        return _fail(str(error).splitlines()[0])
    except SQLAlchemyError as error:
        what = "does not answer" if is_unavailable(error) else "refuses"
        return _fail(f"the inventory's database {what}: {describe(error)}")


def _upgrade(engine: Engine) -> int:
    upgrade(engine, lambda line: print(line, flush=True))
    return 0


def _check(engine: Engine) -> int:
    current, head = current_revision(engine), head_revision()
    if current == head:
        print(f"the inventory is at revision {head}")
        return 0
    print(f"the inventory is at revision {current or 'none'}, not at {head}: run python -m inventory.migrate")
    return 1


def _patiently(action: Callable[[], int], wait: int) -> int:
    deadline = time.monotonic() + wait
    told = False
    while True:
        try:
            return action()
        except SQLAlchemyError as error:
            if not is_unavailable(error) or time.monotonic() >= deadline:
                raise
            if not told:
                print(
                    f"waiting up to {wait} s for the database: {describe(error)}", file=sys.stderr, flush=True
                )
                told = True
            time.sleep(_RETRY_SECONDS)


@contextmanager
def _locked(engine: Engine) -> Iterator[Connection]:
    """A transaction that no other migration can be in."""
    # Alembic's `context` is one per process, so threads take turns as well.
    with _PROCESS_LOCK, engine.begin() as connection:
        # On SQLite the transaction holds the write lock anyway.
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SET LOCAL lock_timeout = '{_STATEMENT_TIMEOUT_SECONDS}s'"))
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
        yield connection


def _run(
    connection: Connection, action: Callable[[Config], None], report: Callable[[str], None], verb: str
) -> int:
    applied = 0

    def tell(*, step: Any, **_: Any) -> None:
        nonlocal applied
        applied += 1
        report(f"{verb}: {step.up_revision.revision} {step.up_revision.doc}")

    config = _config()
    config.attributes["connection"] = connection
    config.attributes["on_version_apply"] = tell
    action(config)
    return applied


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
