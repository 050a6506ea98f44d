"""The parts of one stack as processes that die and come back when a test says so, and at no other time."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from cli.children import ChildSpec, die_with

GRACE_SECONDS = 10


class Processes:
    """Runs children by the very specifications `desktopctl up` uses. Call it from the main thread only: a child dies
    with the thread that started it.

    Args:
        specs: by name. log_dir: each child's output is appended to `<name>.log` here.
    """

    def __init__(self, specs: Mapping[str, ChildSpec], log_dir: Path) -> None:
        self._specs = specs
        self._log_dir = log_dir
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start a child that does not run."""
        assert name not in self._running, f"{name} runs already"
        spec, parent = self._specs[name], os.getpid()
        with (self._log_dir / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                spec.command,
                env=dict(spec.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=spec.umask,
                preexec_fn=lambda: die_with(parent),  # noqa: PLW1509 - two system calls that need no lock
            )

    def complete(self, name: str) -> None:
        """Run a child that ends by itself to its end."""
        self.start(name)
        code = self._running.pop(name).wait(60)
        assert code == 0, f"{name} ended with {code}; see {self._log_dir / name}.log"

    def kill(self, name: str) -> None:
        """SIGKILL, and what is left of its process group too."""
        self._signal(name, signal.SIGKILL)
        self._running.pop(name).wait()

    def terminate(self, name: str) -> float:
        """SIGTERM; returns the seconds it took to end.

        Raises:
            AssertionError: it did not end in time, or not with exit code 0.
        """
        began = time.monotonic()
        self._signal(name, signal.SIGTERM)
        code = self._running.pop(name).wait(GRACE_SECONDS + 5)
        assert code == 0, f"{name} ended with {code}"
        return time.monotonic() - began

    def freeze(self, name: str) -> None:
        """SIGSTOP: it is there and does nothing."""
        self._signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        self._signal(name, signal.SIGCONT)

    def dead(self) -> list[str]:
        """Children that ended though nobody asked them to."""
        return [name for name, process in self._running.items() if process.poll() is not None]

    def close(self) -> None:
        """Kill what runs."""
        for name in list(self._running):
            self.kill(name)

    def _signal(self, name: str, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running[name].pid, number)
