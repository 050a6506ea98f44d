"""A PostgreSQL server that goes away and comes back when a test says so."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg

from tests.setup.postgres import temporary_postgres

PATIENCE_SECONDS = 30


class Database:
    """One server. `url`: SQLAlchemy URL of its database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._folder = Path(parse_qs(urlsplit(url).query)["host"][0])
        self._server: subprocess.Popen[bytes] | None = None
        command = Path(f"/proc/{self._pid()}/cmdline").read_text().split("\0")[:-1]
        owner = self._folder.stat()
        drop = [f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups"]
        self._command = ["setpriv", "--pdeathsig", "QUIT", *(drop if os.geteuid() == 0 else []), *command]

    def stop(self) -> None:
        """End it at once, as a crash would."""
        pid = self._pid()
        os.kill(pid, signal.SIGQUIT)
        if self._server is not None:
            self._server.wait(PATIENCE_SECONDS)
            self._server = None
        self._until(lambda: not (self._folder / "data" / "postmaster.pid").exists(), "PostgreSQL ends")

    def start(self) -> None:
        """Start it again; returns when it takes connections."""
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                self._command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._until(self._answers, "PostgreSQL answers")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections and queries, and answers none, for as long as the context lasts."""
        stopped = [self._pid(), *_children(self._pid())]
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """End it if it was started anew here."""
        if self._server is not None:
            self.stop()

    def _pid(self) -> int:
        return int((self._folder / "data" / "postmaster.pid").read_text().split(maxsplit=1)[0])

    def _answers(self) -> bool:
        try:
            with psycopg.connect(host=str(self._folder), user="desktop", dbname="postgres"):
                return True
        except psycopg.OperationalError:
            return False

    @staticmethod
    def _until(probe: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not probe():
            assert time.monotonic() < deadline, f"not in time: {what}"
            time.sleep(0.02)


@contextmanager
def database() -> Iterator[Database]:
    """A server for as long as the context lasts."""
    with temporary_postgres() as url, closing(Database(url)) as server:
        yield server


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]
