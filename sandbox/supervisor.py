"""PID 1 of the sandbox: starts the parts, reaps everything, and ends when a part that matters ends.

The Python parts are forked from this process after one shared import of asyncio and websockets: that import
is most of their start-up time, and doing it once matters in a container with a CPU limit.
"""

import contextlib
import gc
import os
import select
import signal
import sys
import time
from collections.abc import Callable

from sandbox.log import log
from sandbox.session import (
    TERMINAL,
    WINDOW_MANAGER,
    display_server,
    prepare_socket,
    session_environment,
)
from sandbox.settings import DesktopSettings, SettingsError

_STOP_SECONDS = 0.6
_DISPLAY_SECONDS = 30.0
_SHORT_LIFE_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 30.0
_EXIT_CONFIGURATION = 2

#: Why the container ends when one of these does: without it the desktop is no use to anyone.
_VITAL = {"display": "display (X and VNC server)", "novnc": "novnc (web server)", "node": "node"}


class Supervisor:
    """Owns every child process; `run` returns the container's exit code."""

    def __init__(self, settings: DesktopSettings) -> None:
        self._settings = settings
        self._environment = session_environment(settings)
        self._children: dict[int, str] = {}
        self._started: dict[str, float] = {}
        self._pauses: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._farewell = ""
        self._wake_reader, self._wake_writer = os.pipe()

    def run(self) -> int:
        """Boot, supervise and stop; the exit code is 0 only for a stop that was asked for."""
        self._watch_signals()
        prepare_socket(self._settings.display)
        display_ready, writer = os.pipe()
        self._spawn("display", display_server(self._settings, writer), inherited=writer)
        os.close(writer)
        self._start_python_parts()
        deadline = time.monotonic() + _DISPLAY_SECONDS
        code = self._wait(display_ready, deadline)
        if code is None:
            os.close(display_ready)
            log("display", f"X and VNC up, port {self._settings.vnc_port}")
            self._start_session()
            while code is None:
                code = self._wait(None, min(self._due.values(), default=None))
        self._stop_children()
        # After everybody else's last words, because operators read the last line first.
        log("sandbox", self._farewell)
        return code

    def _watch_signals(self) -> None:
        for end in (self._wake_reader, self._wake_writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def _start_python_parts(self) -> None:
        from sandbox import novnc
        from sandbox.node import main as node

        # Objects that live for ever need not be looked at by any collector, nor copied because it looked.
        gc.freeze()
        self._fork("node", node.main)
        self._fork("novnc", lambda: novnc.main(self._settings.novnc_port, self._settings.vnc_port))

    def _start_session(self) -> None:
        def paint() -> int:
            from sandbox import wallpaper

            wallpaper.paint(self._settings.display)
            return 0

        self._fork("wallpaper", paint)
        self._start_restartable("window-manager")
        self._start_restartable("terminal")

    def _start_restartable(self, name: str) -> None:
        self._due.pop(name, None)
        self._spawn(name, WINDOW_MANAGER if name == "window-manager" else TERMINAL)

    def _spawn(self, name: str, command: tuple[str, ...], inherited: int | None = None) -> None:
        if inherited is not None:
            os.set_inheritable(inherited, True)
        # What a window manager or terminal writes helps nobody; the X server's words may explain its death.
        quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        actions = quiet if inherited is None else quiet[:1]
        pid = os.posix_spawnp(command[0], command, self._environment, file_actions=actions)
        self._children[pid] = name
        self._started[name] = time.monotonic()

    def _fork(self, name: str, function: Callable[[], int]) -> None:
        pid = os.fork()
        if pid == 0:
            self._become(name, function)
        self._children[pid] = name

    def _become(self, name: str, function: Callable[[], int]) -> None:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.close(self._wake_reader)
            os.close(self._wake_writer)
            _name_process(name)
            code = function()
        except BaseException as error:  # a forked child must never run on into its parent's code
            log(name, f"failed: {type(error).__name__}: {error}")
        finally:
            sys.stdout.flush()
            os._exit(code)

    def _wait(self, display_ready: int | None, until: float | None) -> int | None:
        """Wait for a signal, for the display, or `until` a monotonic time; an exit code means: end now."""
        poll = select.poll()
        poll.register(self._wake_reader, select.POLLIN)
        if display_ready is not None:
            poll.register(display_ready, select.POLLIN)
        while True:
            left = None if until is None else max(0.0, until - time.monotonic()) * 1000 + 1
            ready = {fd for fd, _ in poll.poll(left)}
            if self._wake_reader in ready:
                code = self._handle_signals()
                if code is not None:
                    return code
            if display_ready is not None:
                if display_ready in ready:
                    if os.read(display_ready, 32):
                        return None
                    poll.unregister(display_ready)  # it died; SIGCHLD is about to say so
                elif until is not None and time.monotonic() >= until:
                    self._farewell = f"{_VITAL['display']} did not come up in {_DISPLAY_SECONDS:.0f} s"
                    return 1
                continue
            now = time.monotonic()
            for name in [name for name, due in self._due.items() if due <= now]:
                self._start_restartable(name)
            return None

    def _handle_signals(self) -> int | None:
        numbers = set(os.read(self._wake_reader, 4096))
        if numbers & {signal.SIGTERM, signal.SIGINT}:
            self._farewell = "stopped as asked"
            return 0
        return self._reap()

    def _reap(self) -> int | None:
        ended = [(self._children.pop(pid, ""), status) for pid, status in _exited()]
        for name, status in ended:
            if name in _VITAL:
                self._farewell = f"{_VITAL[name]} died ({_describe(status)}); the container ends"
                return _exit_code(status)
        for name, _ in ended:
            if name in ("window-manager", "terminal"):
                self._schedule_restart(name)
        return None

    def _schedule_restart(self, name: str) -> None:
        lived = time.monotonic() - self._started[name]
        pause = (
            min(_LONGEST_PAUSE_SECONDS, self._pauses.get(name, 0.25) * 2)
            if lived < _SHORT_LIFE_SECONDS
            else 0.0
        )
        self._pauses[name] = pause or 0.25
        self._due[name] = time.monotonic() + pause
        log(name, "ended; it is started again")

    def _stop_children(self) -> None:
        """Ask every child to end and wait a little; what is left dies with PID 1."""
        for pid in self._children:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        poll = select.poll()
        poll.register(self._wake_reader, select.POLLIN)
        while self._children and time.monotonic() < deadline:
            if poll.poll(max(1.0, (deadline - time.monotonic()) * 1000)):
                os.read(self._wake_reader, 4096)
            for pid, _ in _exited():
                self._children.pop(pid, None)


def _exited() -> list[tuple[int, int]]:
    """Every child that has ended, including orphans which became ours: (process id, wait status)."""
    found: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found.append((pid, status))


def _name_process(name: str) -> None:
    """Name a forked part, so that ``ps`` and ``docker top -o comm`` tell the parts apart."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(name)


def _describe(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code or 1


def main() -> int:
    """Run the sandbox; the exit code is 2 when the environment variables cannot work."""
    try:
        settings = DesktopSettings.from_environment()
    except SettingsError as error:
        log("sandbox", f"bad configuration: {error}")
        return _EXIT_CONFIGURATION
    return Supervisor(settings).run()
