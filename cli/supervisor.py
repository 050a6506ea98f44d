"""Runs child processes: in the order they need each other, restarted when they die, ended together."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cli.children import ChildProcess, ChildSpec
from cli.logfiles import LogFile


class Part(StrEnum):
    """What a part is doing, as shown to people."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    DONE = "done"
    LATE = "late"
    RESTARTING = "restarting"
    FAILED = "failed"
    OUTPUT = "output"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Report:
    """Something happened to a part.

    Attributes:
        name: the part. part: what it is doing now.
        seconds: how long it took to get there. message: what happened, for people; may be empty.
    """

    name: str
    part: Part
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class Timing:
    """The supervisor's times, seconds.

    Attributes:
        first_delay, longest_delay: back-off before a restart; it doubles in between.
        steady: a child that ran this long starts its back-off anew.
        grace: between SIGTERM and SIGKILL.
        probe_every: between two questions whether a child is ready.
        early_deaths: how often a child may die before it was ever ready.
    """

    first_delay: float = 0.2
    longest_delay: float = 10.0
    steady: float = 10.0
    grace: float = 10.0
    probe_every: float = 0.05
    early_deaths: int = 3

    def delay(self, failures: int) -> float:
        """Back-off before the restart after so many failures in a row, the first being 1."""
        return float(min(self.first_delay * 2 ** min(failures - 1, 30), self.longest_delay))


class ChildFailed(Exception):
    """A child that the stack cannot do without did not come up.

    Args:
        name: the child. reason: what it did instead. log: where its output is.
    """

    def __init__(self, name: str, reason: str, log: Path) -> None:
        super().__init__(f"{name} {reason}")
        self.name = name
        self.reason = reason
        self.log = log


class Supervisor:
    """Keeps children running from `start` to `stop`.

    Args:
        specs: in the order of starting; stopped in the reverse order.
        log_dir: each child's output goes to `<name>.log` here.
        listener: told of everything that happens, in the event loop; must not block.
        timing: back-off and patience.
    """

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        log_dir: Path,
        listener: Callable[[Report], None],
        timing: Timing | None = None,
    ) -> None:
        timing = timing or Timing()
        self._keepers: dict[str, _Keeper] = {}
        for spec in specs:
            needed = [self._keepers[name] for name in spec.needs]
            self._keepers[spec.name] = _Keeper(spec, needed, log_dir / f"{spec.name}.log", listener, timing)

    async def start(self) -> None:
        """Start everything and wait until all of it is ready.

        Raises:
            ChildFailed: a required child did not come up; call `stop` all the same.
        """
        for keeper in self._keepers.values():
            keeper.launch()
        await asyncio.gather(*(keeper.settled for keeper in self._keepers.values()))

    async def stop(self) -> None:
        """End every child, last started first; returns when all of them are gone."""
        for keeper in self._keepers.values():
            keeper.stopping = True
        for keeper in reversed(self._keepers.values()):
            await keeper.stop()

    def kill(self) -> None:
        """End every child without grace; `stop` still has to be awaited."""
        for pid in self.pids().values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def pids(self) -> dict[str, int]:
        """Process ids of the children that run now, by name."""
        return {name: keeper.child.pid for name, keeper in self._keepers.items() if keeper.child is not None}


class _Keeper:
    """Keeps one child running."""

    def __init__(
        self,
        spec: ChildSpec,
        needed: list["_Keeper"],
        log_path: Path,
        listener: Callable[[Report], None],
        timing: Timing,
    ) -> None:
        self.spec = spec
        self.stopping = False
        self.child: ChildProcess | None = None
        self._needed = needed
        self._log_path = log_path
        self._listener = listener
        self._timing = timing
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def launch(self) -> None:
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Retrieved here too, so that a second failure beside the one `start` raises is not reported as lost.
        self.settled.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._tell(Part.WAITING)
        self._task = asyncio.create_task(self._keep(), name=self.spec.name)

    async def stop(self) -> None:
        if self._task is None:
            return
        started = time.monotonic()
        if self.child is not None:
            self._tell(Part.STOPPING)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        self._tell(Part.STOPPED, time.monotonic() - started)

    async def _keep(self) -> None:
        for keeper in self._needed:
            await keeper._ready.wait()
        log = LogFile(self._log_path)
        try:
            await self._run_again_and_again(log)
        except OSError as error:
            self._fail(f"cannot be started: {self.spec.command[0]}: {error.strerror or error}")
        finally:
            log.close()

    async def _run_again_and_again(self, log: LogFile) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            code = await self._run(log)
            if self.spec.once and code == 0:
                self._settle(Part.DONE, time.monotonic() - began)
                return
            failures = 1 if time.monotonic() - began >= self._timing.steady else failures + 1
            ended = f"ended with exit code {code}" if code >= 0 else f"was ended by signal {-code}"
            if self.spec.once or (not self._ready.is_set() and failures >= self._timing.early_deaths):
                self._fail(ended)
                return
            delay = self._timing.delay(failures)
            self._tell(Part.RESTARTING, delay, f"{ended}; again in {delay:.1f} s; log: {self._log_path}")
            await asyncio.sleep(delay)

    async def _run(self, log: LogFile) -> int:
        self._tell(Part.STARTING)
        child = ChildProcess(self.spec, log, self._echo)
        self.child = child
        readiness = asyncio.create_task(self._become_ready())
        try:
            return await child.wait()
        finally:
            readiness.cancel()
            await child.end(self._timing.grace)
            self.child = None

    async def _become_ready(self) -> None:
        if self.spec.once:
            return
        began = time.monotonic()
        deadline = began + self.spec.ready_within
        while self.spec.probe is not None and not await self.spec.probe():
            if time.monotonic() > deadline and not self.settled.done():
                reason = f"was not ready after {self.spec.ready_within:.0f} s"
                if self.spec.required:
                    self._fail(reason)
                    return
                self.settled.set_result(None)
                self._tell(Part.LATE, time.monotonic() - began, reason)
            await asyncio.sleep(self._timing.probe_every)
        self._settle(Part.READY, time.monotonic() - began)

    def _settle(self, part: Part, seconds: float) -> None:
        self._ready.set()
        if not self.settled.done():
            self.settled.set_result(None)
        self._tell(part, seconds)

    def _fail(self, reason: str) -> None:
        self._tell(Part.FAILED, message=f"{reason}; log: {self._log_path}")
        if not self.settled.done():
            self.settled.set_exception(ChildFailed(self.spec.name, reason, self._log_path))

    def _echo(self, line: str) -> None:
        if not self.stopping:
            self._tell(Part.OUTPUT, message=line)

    def _tell(self, part: Part, seconds: float = 0.0, message: str = "") -> None:
        self._listener(Report(self.spec.name, part, seconds, message))
