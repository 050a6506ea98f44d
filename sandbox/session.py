"""Command lines of the desktop's programs, and its home directory."""

import contextlib
import os
from collections.abc import Mapping

from sandbox.settings import DesktopSettings

_CONFIGURATION = os.path.join(os.path.dirname(os.path.abspath(__file__)), "etc")

# The container has its own /tmp, and X has its names there fixed.
_FALLBACK_HOME = "/tmp"  # noqa: S108
_SOCKETS = "/tmp/.X11-unix"  # noqa: S108
_LOCK = "/tmp/.X{}-lock"  # noqa: S108

TERMINAL = (
    "xterm", "-u8", "-class", "XTerm", "-title", "Terminal",
    "-fa", "DejaVu Sans Mono", "-fs", "11", "-geometry", "100x30+60+50",
    "-bg", "#1b2430", "-fg", "#e6edf3", "-cr", "#8ab4f8", "-b", "8", "-sl", "4000", "+sb",
    "-e", "bash", "--noprofile", "--rcfile", os.path.join(_CONFIGURATION, "bashrc"),
)  # fmt: skip

WINDOW_MANAGER = ("pekwm", "--config", os.path.join(_CONFIGURATION, "pekwm", "config"))


def display_server(settings: DesktopSettings, ready_fd: int) -> tuple[str, ...]:
    """The X server which is also the RFB server; it writes to `ready_fd` when both answer."""
    security = (
        ("-SecurityTypes", "VncAuth", "-PasswordFile", settings.vnc_password_file)
        if settings.vnc_password_file
        else ("-SecurityTypes", "None")
    )
    return (
        "Xtigervnc", settings.display,
        "-geometry", f"{settings.width}x{settings.height}", "-depth", str(settings.depth),
        "-rfbport", str(settings.vnc_port), *security, "-AlwaysShared",
        # An agent's coordinates must stay true while somebody watches with another window size.
        "-AcceptSetDesktopSize=0",
        # TigerVNC counts a connection that leaves before authentication as an attack; readiness probes do so.
        "-UseBlacklist=0",
        "-desktop", "desktop", "-Log", "*:stderr:0", "-displayfd", str(ready_fd),
        "-nolisten", "tcp", "-extension", "GLX", "-noreset",
    )  # fmt: skip


def prepare_socket(display: str) -> None:
    """Make the folder of X sockets, and forget the X server of an earlier run of this container.

    The process id in its lock file may be anyone's now, and the new X server would believe it is running.
    """
    number = display.removeprefix(":")
    with contextlib.suppress(OSError):  # what goes wrong here, the X server reports better
        os.makedirs(_SOCKETS, exist_ok=True)
        os.chmod(_SOCKETS, 0o1777)  # noqa: S103 - the mode the X server insists on
    for path in (_LOCK.format(number), f"{_SOCKETS}/X{number}"):
        with contextlib.suppress(OSError):
            os.unlink(path)


def session_environment(
    settings: DesktopSettings, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The variables of programs on the desktop: the container's without the node's, and a home."""
    kept = {name: value for name, value in environment.items() if not name.startswith("TYRUM_")}
    home = _home(environment.get("TYRUM_HOME") or "")
    return {**kept, "DISPLAY": settings.display, "HOME": home, "LANG": "C.UTF-8", "SHELL": "/bin/bash"}


def _home(runtime_home: str) -> str:
    if runtime_home:
        home = os.path.join(runtime_home, "home")
        try:
            os.makedirs(home, mode=0o700, exist_ok=True)
        except OSError:
            return _FALLBACK_HOME
        if os.access(home, os.W_OK):
            return home
    return _FALLBACK_HOME
