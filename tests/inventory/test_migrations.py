"""The schema comes up, goes down and is the tables' own, on both databases."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect
from sqlmodel import SQLModel

from inventory import migrate
from models import tables


def test_upgraded_schema_is_that_of_the_tables(engine: Engine) -> None:
    assert tables.EnvironmentRow.metadata is SQLModel.metadata
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        difference = compare_metadata(MigrationContext.configure(connection, opts=options), SQLModel.metadata)
    assert difference == []


def test_comparison_can_fail(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE nodes DROP COLUMN remote_ip")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), SQLModel.metadata)


def test_up_down_up(empty_engine: Engine) -> None:
    lines: list[str] = []
    migrate.upgrade(empty_engine, lines.append)
    assert lines == [
        "applied: 0001 The inventory's tables.",
        "applied: 0002 The audit, and takeover sessions that only look.",
        f"applied: {migrate.head_revision()} The most an environment on a host may have.",
    ]
    assert migrate.current_revision(empty_engine) == migrate.head_revision()
    migrate.downgrade(empty_engine, lines.append)
    assert migrate.current_revision(empty_engine) is None
    assert inspect(empty_engine).get_table_names() == ["alembic_version"]
    migrate.upgrade(empty_engine, lines.append)
    assert migrate.current_revision(empty_engine) == migrate.head_revision()


def test_repetition_says_so(engine: Engine) -> None:
    lines: list[str] = []
    migrate.upgrade(engine, lines.append)
    assert lines == [f"nothing to do: the inventory is at revision {migrate.head_revision()}"]


def test_a_failing_revision_leaves_nothing(empty_engine: Engine) -> None:
    with empty_engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE takeover_sessions (id INTEGER)")
    with pytest.raises(Exception, match="already exists"):
        migrate.upgrade(empty_engine, lambda line: None)
    assert inspect(empty_engine).get_table_names() == ["takeover_sessions"]


def test_command_migrates_once_when_four_run_at_once(empty_url: str) -> None:
    processes = [_start(empty_url) for _ in range(4)]
    results = [(process.communicate(timeout=60), process.returncode) for process in processes]
    assert [code for _, code in results] == [0, 0, 0, 0], results
    printed = sorted(line for (out, _), _ in results for line in out.splitlines())
    assert [line.split(":")[0] for line in printed] == [*["applied"] * 3, *["nothing to do"] * 3]


def test_check(empty_url: str) -> None:
    process = _start(empty_url, "--check")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, "at revision none" in out) == (1, True)
    for arguments in ([], ["--check"]):
        process = _start(empty_url, *arguments)
        process.communicate(timeout=60)
        assert process.returncode == 0


def test_unreachable_database_is_one_line() -> None:
    process = _start("postgresql://somebody:hunter2@127.0.0.1:1/inventory", "--wait", "0")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    assert err.startswith("error: the inventory's database does not answer")
    assert len(err.splitlines()) == 1
    assert "hunter2" not in err


def test_unknown_revision_is_one_line(empty_url: str, empty_engine: Engine) -> None:
    migrate.upgrade(empty_engine, lambda line: None)
    with empty_engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'newer'")
    process = _start(empty_url)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(err.splitlines()) == 1, err
    assert "newer" in err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DESKTOP_DATABASE_URL", "nonsense"),
        ("DESKTOP_DATABASE_URL", "mysql://localhost/x"),
        ("DESKTOP_DATABASE_URL", "sqlite://"),
        ("DESKTOP_DATABASE_URL", "sqlite:////dev/null/inventory.db"),
        ("DESKTOP_DATABASE_URL", "postgresql://localhost:port/x"),
        ("DESKTOP_DATABASE_URL", "postgresql://localhost/x?nonsense=1"),
        ("DESKTOP_DATABASE_URL", "sqlite:////nowhere/inventory.db?nonsense=1"),
        ("DESKTOP_MIGRATE_WAIT", "soon"),
    ],
)
def test_bad_setting_is_one_line(name: str, value: str, tmp_path: Path) -> None:
    settings = {"DESKTOP_STATE_DIR": str(tmp_path), "DESKTOP_MIGRATE_WAIT": "0", name: value}
    process = _run(settings)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")


def _start(url: str, *arguments: str) -> subprocess.Popen[str]:
    return _run({"DESKTOP_DATABASE_URL": url}, *arguments)


def _run(settings: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "inventory.migrate", *arguments],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
