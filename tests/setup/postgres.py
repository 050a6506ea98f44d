"""A PostgreSQL server of the tests' own: made, started, stopped and deleted again within one `with` statement."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg

from scripts.postgresql import programs

_START_SECONDS = 30
_USER = "desktop"

# Durability is for data that anybody wants to keep.
_FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "32MB",
}


@contextmanager
def temporary_postgres() -> Iterator[str]:
    """A running server with one empty database; yields its SQLAlchemy URL, `postgresql+psycopg://…`.

    It listens on a Unix socket only, in a folder nobody else can enter, so no port can be taken and no password is
    needed. The server dies with the thread that called this, however that ends.

    Raises:
        RuntimeError: it cannot be made or does not start; the message holds the end of its log.
    """
    binaries = programs()
    if binaries is None:
        raise RuntimeError("PostgreSQL's programs are missing: run `make setup`")
    # Not below $TMPDIR: a socket's path may be 107 bytes long, and PostgreSQL's user must be able to get there.
    folder = Path(tempfile.mkdtemp(prefix="desktop-pg-", dir="/tmp"))
    with _removed_at_last(folder), _server(binaries, folder) as url:
        yield url


@contextmanager
def _removed_at_last(folder: Path) -> Iterator[None]:
    """Remove the folder at the end, also when that end is a SIGKILL, of which the server dies as well."""
    # It reads what nobody writes: the end of that is our end, too.
    heir = subprocess.Popen(
        ["sh", "-c", 'cat > /dev/null; until rm -rf "$0"; do sleep 0.2; done', folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert heir.stdin is not None
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        heir.stdin.close()
        heir.wait()


@contextmanager
def _server(binaries: Path, folder: Path) -> Iterator[str]:
    data, log = folder / "data", folder / "log"
    account = _unprivileged()
    if account is not None:
        os.chown(folder, account.pw_uid, account.pw_gid)
    prefix = _as_account(account)
    # A `postgres` section in the caller's environment would reach the server and its clients.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    environment |= {"HOME": str(folder), "LC_ALL": "C.UTF-8"}
    made = subprocess.run(
        [*prefix, binaries / "initdb", "-D", data, "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-sync"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise RuntimeError(f"initdb failed: {made.stderr.strip()}")
    settings = {**_FAST, "listen_addresses": "", "unix_socket_directories": str(folder)}
    command = [*prefix, str(binaries / "postgres"), "-D", str(data)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C in the terminal is for pytest; we stop the server ourselves.
            start_new_session=True,
        )
    try:
        _wait(server, folder, log)
        yield f"postgresql+psycopg://{_USER}@/{_USER}?host={quote(str(folder), safe='')}"
    finally:
        # SIGQUIT: no checkpoint of what is deleted at once.
        server.send_signal(signal.SIGQUIT)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _unprivileged() -> pwd.struct_passwd | None:
    """The account to run as when we are root, whom PostgreSQL refuses."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _as_account(account: pwd.struct_passwd | None) -> list[str]:
    """Command prefix: drop root, and end the program when the thread that started it ends."""
    prefix = ["setpriv", "--pdeathsig", "QUIT"]
    if account is not None:
        prefix += [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    return prefix


def _wait(server: subprocess.Popen[bytes], folder: Path, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with psycopg.connect(
                host=str(folder), user=_USER, dbname="postgres", autocommit=True
            ) as connection:
                connection.execute(f"CREATE DATABASE {_USER}")
                return
        except psycopg.OperationalError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise RuntimeError(f"PostgreSQL does not start: {error}\n{end}") from error
            time.sleep(0.02)
