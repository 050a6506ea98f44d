"""The temporary PostgreSQL server."""

import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import create_engine, text

from scripts.machine import ROOT
from tests.setup.postgres import temporary_postgres
from tests.support.waiting import until

pytestmark = pytest.mark.postgres


def folder_of(url: str) -> Path:
    return Path(parse_qs(urlsplit(url).query)["host"][0])


def test_it_is_a_real_server_and_is_gone_afterwards() -> None:
    with temporary_postgres() as url:
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE things (name text PRIMARY KEY)"))
            connection.execute(text("INSERT INTO things VALUES ('one')"))
            assert connection.execute(text("SELECT name FROM things")).scalars().all() == ["one"]
            assert connection.execute(text("SHOW listen_addresses")).scalar() == ""
        engine.dispose()
        folder = folder_of(url)
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_it_is_gone_after_a_failure_too() -> None:
    folders = []

    def fail() -> None:
        with temporary_postgres() as url:
            folders.append(folder_of(url))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not folders[0].exists()


def test_the_server_dies_with_a_killed_test_run() -> None:
    program = """
import sys, time
from tests.setup.postgres import temporary_postgres
with temporary_postgres() as url:
    print(url, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        folder = folder_of(process.stdout.readline().strip())
        pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])
        process.send_signal(signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists(), "the server ended")
    until(lambda: not folder.exists(), "its folder removed")


def test_a_server_that_cannot_be_made_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.setup.postgres.programs", lambda: None)
    with pytest.raises(RuntimeError, match="run `make setup`"), temporary_postgres():
        pass
