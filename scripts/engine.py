"""Docker Engine: use the one that answers; where none does, install and start Debian's."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import docker
import requests
from docker.errors import DockerException
from docker.utils import kwargs_from_env

from scripts.console import SetupError, Ticker, say, tail
from scripts.machine import VAR, apt_install, can_install_packages, exclusive

SOCKET = Path("/var/run/docker.sock")
STARTED = VAR / "dockerd.pid"
"""Process id of the daemon that this checkout started, for whoever wants to stop what it started."""

_START_SECONDS = 90


@dataclass(frozen=True)
class Daemon:
    """How to start an engine where no service manager does it.

    Never start a second real one beside an engine that runs: whatever its options, they share the machine's bridges
    and firewall, and `--bridge=none`, say, deletes the other's `docker0`.

    Attributes:
        program: what to run.
        url: where it will answer; None for what the environment says.
        pid_file: where `dockerd` itself writes its process id.
        started: where we write it.
        log: its output.
    """

    program: Sequence[str] = ("dockerd",)
    url: str | None = None
    pid_file: Path = Path("/var/run/docker.pid")
    started: Path = STARTED
    log: Path = VAR / "dockerd.log"


def client(url: str | None = None, timeout: int = 60) -> docker.APIClient:
    """A low-level client of the engine that the environment names, or of `url`."""
    environment = dict(os.environ)
    if url is not None:
        environment["DOCKER_HOST"] = url
    return docker.APIClient(timeout=timeout, **kwargs_from_env(environment=environment))


def version(url: str | None = None) -> str | None:
    """Version of the engine that answers, or None when none does."""
    if not _listens(url or os.environ.get("DOCKER_HOST") or f"unix://{SOCKET}"):
        return None
    try:
        with client(url, timeout=10) as api:
            return str(api.version()["Version"])
    except (DockerException, requests.RequestException, OSError):
        return None


def _listens(url: str) -> bool:
    """False when nobody listens on a Unix socket: the SDK leaks a socket for every attempt that is refused."""
    scheme, _, path = url.partition("://")
    if scheme != "unix":
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(10)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def ensure() -> None:
    """See to it that an engine answers.

    Raises:
        SetupError: none answers, and we cannot help it.
    """
    if _found():
        return
    if host := os.environ.get("DOCKER_HOST"):
        raise SetupError(f"no Docker Engine answers at DOCKER_HOST={host}: start it, or unset DOCKER_HOST")
    if SOCKET.exists() and not os.access(SOCKET, os.R_OK | os.W_OK):
        raise SetupError(
            f"this user may not use {SOCKET}: run `adduser USER docker` as root, then log in again"
        )
    if not can_install_packages():
        raise SetupError(
            "no Docker Engine answers: install and start one (on Debian, as root: apt-get install docker.io)"
        )
    with exclusive("docker engine"):
        # Another run may have started it while we waited for the lock.
        if _found():
            return
        if shutil.which("dockerd") is None:
            # docker.io only recommends apparmor, but a kernel that enforces it needs its parser.
            enforced = Path("/sys/module/apparmor/parameters/enabled")
            apparmor = enforced.exists() and enforced.read_text(encoding="ascii").startswith("Y")
            apt_install(["docker.io", "ca-certificates", *(["apparmor"] if apparmor else [])])
        if Path("/run/systemd/system").is_dir():
            say("systemctl start docker")
            subprocess.run(["systemctl", "start", "docker"], check=False)
            wait(Daemon(), None)
        else:
            start(Daemon())


def _found() -> bool:
    if (found := version()) is None:
        return False
    say(f"Docker Engine {found} answers at {os.environ.get('DOCKER_HOST') or f'unix://{SOCKET}'}")
    return True


def start(daemon: Daemon) -> None:
    """Start `dockerd` in the background, to outlive us, and wait for it.

    Raises:
        SetupError: it does not come up.
    """
    process = None
    if (running := _running(daemon.pid_file)) is not None:
        say(f"dockerd runs already (process {running}): waiting for it")
    else:
        # dockerd refuses to start when the id in a file left by a crash belongs to some process today.
        daemon.pid_file.unlink(missing_ok=True)
        daemon.log.parent.mkdir(parents=True, exist_ok=True)
        say(f"starting dockerd in the background; log: {daemon.log}")
        with daemon.log.open("ab") as log:
            process = subprocess.Popen(
                list(daemon.program),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
            )
        daemon.started.write_text(f"{process.pid}\n", encoding="ascii")
    wait(daemon, process)


def wait(daemon: Daemon, process: subprocess.Popen[bytes] | None) -> None:
    """Wait until the engine answers; `process` is its daemon where we started it.

    Raises:
        SetupError: it ended, or did not answer in time.
    """
    ticker = Ticker(2.0)
    deadline = time.monotonic() + _START_SECONDS
    while (found := version(daemon.url)) is None:
        if process is not None and process.poll() is not None:
            daemon.started.unlink(missing_ok=True)
            tail(daemon.log.read_text(encoding="utf-8", errors="replace").splitlines())
            raise SetupError(
                f"dockerd ended with exit code {process.returncode}; the end of its log is above"
            )
        if time.monotonic() > deadline:
            raise SetupError(f"the Docker Engine did not answer within {_START_SECONDS} s of its start")
        ticker.tick("waiting for the Docker Engine to answer")
        time.sleep(0.1)
    if process is not None:
        # It is meant to outlive us: nobody waits for it any more.
        process.returncode = 0
    say(f"Docker Engine {found} answers")


def _running(pid_file: Path) -> int | None:
    """Process id of the `dockerd` that the file names, if that is what runs under this id."""
    try:
        pid = int(pid_file.read_text(encoding="ascii"))
        comm = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return pid if comm == "dockerd" else None


def stop(daemon: Daemon, timeout: float = 30) -> None:
    """End the daemon that we started, and no other."""
    pid = _running(daemon.started)
    daemon.started.unlink(missing_ok=True)
    if pid is None:
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    # A child of ours stays as a zombie until somebody asks for it.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return Path(f"/proc/{pid}").exists()
