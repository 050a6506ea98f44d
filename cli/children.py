"""One supervised child process: its own session, its output in a log file, its death with its parent's."""

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from cli.logfiles import LogFile

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)

_LONGEST_LINE = 64 * 1024

Probe = Callable[[], Awaitable[bool]]


@dataclass(frozen=True)
class ChildSpec:
    """What to run and how to tell that it is ready.

    Attributes:
        name: short name; also the log file's.
        command: program and arguments.
        environment: the child's whole environment.
        needs: names of the children that have to be ready first.
        once: it runs to its end, and exit code 0 is readiness.
        probe: asked again and again until it says yes; None: running is readiness.
        ready_within: seconds until not being ready counts as a failure.
        required: without it the stack does not count as up; otherwise its lateness is only told.
        echo: output lines worth showing at once.
        umask: its file mode creation mask; -1 for this process' own.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    needs: tuple[str, ...] = ()
    once: bool = False
    probe: Probe | None = None
    ready_within: float = 60.0
    required: bool = True
    echo: re.Pattern[str] | None = None
    umask: int = -1


class ChildProcess:
    """A running child. Made inside a running event loop.

    Args:
        spec: what to run.
        log: where its output goes.
        on_line: called with each output line that `spec.echo` matches.

    Raises:
        OSError: the program cannot be started.
    """

    def __init__(self, spec: ChildSpec, log: LogFile, on_line: Callable[[str], None]) -> None:
        self._spec = spec
        self._log = log
        self._on_line = on_line
        self._partial = b""
        self._loop = asyncio.get_running_loop()
        self._output, writing = os.pipe()
        os.set_blocking(self._output, False)
        parent = os.getpid()
        try:
            self._process = subprocess.Popen(
                spec.command,
                env=dict(spec.environment),
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
                umask=spec.umask,
                # Between fork and exec: two system calls that need no lock another thread may hold.
                preexec_fn=lambda: die_with(parent),  # noqa: PLW1509 - see above
            )
        except OSError:
            os.close(self._output)
            raise
        finally:
            os.close(writing)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._exited = asyncio.Event()
        self._loop.add_reader(self._pidfd, self._exited.set)
        self._loop.add_reader(self._output, self._read_output)

    @property
    def pid(self) -> int:
        """Process id, which is its process group's as well."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for its end; returns the exit code, negative for a signal."""
        await self._exited.wait()
        return self._process.wait()

    async def end(self, grace: float) -> int:
        """End it and all it started: SIGTERM, and SIGKILL after `grace` seconds. Frees everything it holds.

        Returns the exit code.
        """
        try:
            if not self._exited.is_set():
                self._signal_group(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._exited.wait(), grace)
        finally:
            # Also what is left of its group when it went by itself or the wait was cut short.
            self._signal_group(signal.SIGKILL)
            code = self._process.wait()
            self._close()
        return code

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def _read_output(self) -> None:
        try:
            data = os.read(self._output, _LONGEST_LINE)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._output)
            return
        self._log.write(data)
        if self._spec.echo is None:
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[:_LONGEST_LINE]
        for line in lines:
            text = line.decode(errors="replace").rstrip()
            if self._spec.echo.search(text):
                self._on_line(text)

    def _close(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._loop.remove_reader(self._output)
        for _ in range(64):
            try:
                rest = os.read(self._output, _LONGEST_LINE)
            except BlockingIOError:
                break
            if not rest:
                break
            self._log.write(rest)
        os.close(self._pidfd)
        os.close(self._output)


def die_with(parent: int) -> None:
    """In the child: be killed when the supervisor goes, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The supervisor may have gone before the line above.
    if os.getppid() != parent:
        os._exit(1)
