"""What this machine is, its packages, and locks between several runs of the set-up."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.console import SetupError, Ticker, say, tail

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""

VAR = ROOT / "var"
"""What the set-up keeps in the checkout; git ignores it."""

_LOCKS = Path("/run/lock")


def os_release() -> dict[str, str]:
    """The fields of `/etc/os-release`; empty where there is none."""
    try:
        lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {name: value.strip("\"'") for name, _, value in (line.partition("=") for line in lines)}


def is_debian_family() -> bool:
    """Whether Debian's packages can be installed here."""
    release = os_release()
    family = {release.get("ID", ""), *release.get("ID_LIKE", "").split()}
    return "debian" in family and shutil.which("apt-get") is not None


def can_install_packages() -> bool:
    """Whether we may install Debian packages: root on a Debian-family machine."""
    return os.geteuid() == 0 and is_debian_family()


def apt_install(packages: Sequence[str]) -> None:
    """Install Debian packages; asks nothing, shows that it moves.

    Raises:
        SetupError: they could not be installed.
    """
    say(f"apt-get install {' '.join(packages)}")
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    # Package lists may be missing, or name versions that are gone: then fetch them and try once more.
    if _apt(install) != 0:
        say("apt-get update")
        _apt(["apt-get", "update"])
        if _apt(install, show_failure=True) != 0:
            raise SetupError(f"apt-get could not install {' '.join(packages)}; its output is above")


def _apt(command: Sequence[str], *, show_failure: bool = False) -> int:
    # Another apt-get may be at work, such as unattended-upgrades: wait for it.
    waiting = [command[0], "-o", "DPkg::Lock::Timeout=300", *command[1:]]
    return run_shown(
        waiting, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, show_failure=show_failure
    )


def run_shown(command: Sequence[str], *, env: dict[str, str] | None = None, show_failure: bool = True) -> int:
    """Run a command with its output thinned out; the end of the output is shown when it fails."""
    ticker, last = Ticker(), deque[str](maxlen=20)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=env,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line)
            ticker.tick(line)
    if process.returncode and show_failure:
        tail(last)
    return process.returncode


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold a lock that every checkout of this user on this machine shares: they share the engine, too."""
    folder = _LOCKS if os.access(_LOCKS, os.W_OK) else VAR
    path = folder / f"desktop-environments-{os.geteuid()}-{name}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is busy with the {name}: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def content_hash(folder: Path) -> str:
    """SHA-256 over names, executable bits and contents of all files below `folder`; times do not count."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if "__pycache__" in path.parts or path.suffix == ".pyc" or not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        executable = bool(path.stat().st_mode & 0o100)
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{name}\0{executable}\0{content}\n".encode())
    return digest.hexdigest()
