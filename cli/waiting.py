"""Waiting for a command's outcome while showing each phase as it is done."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli import render
from cli.client import Json
from cli.exits import CliError, ExitCode
from cli.session import Session

_LONGEST_REQUEST = 30.0
"""Seconds one request waits; a longer wait goes on by asking for the detail."""
_EVERY = 0.12
_SETTLED = ("running", "stopped", "error")
_STARTED = ("starting", "running", "error")
"""Statuses in which the phases are those of the start that is, or was, waited for."""
_TOTAL = "total"
"""The phase that completes a start: seen at once, it is an earlier one's."""


def is_settled(environment: Json) -> bool:
    """Whether nothing is under way (design section 4); a scheduled retry is still something."""
    # What the inventory says may be older than the command that is waited for.
    return bool(environment.get("settled")) and environment.get("source") == "workflow"


def settle(
    session: Session,
    environment_id: str,
    send: Callable[[float], Json],
    timeout: float,
    show: bool,
) -> Json:
    """Send a command and wait until it settled.

    Args:
        send: sends it; its argument is the seconds the API is to wait before it answers.
        timeout: seconds. show: whether phases are shown meanwhile.

    Raises:
        CliError: refused, or not settled in time.
    """
    deadline = time.monotonic() + timeout
    request = _Request(lambda: send(min(timeout, _LONGEST_REQUEST)))
    with Phases(session, environment_id, show) as phases:
        while show and request.running(_EVERY):
            phases.update(session.api.environment(environment_id))
        environment = request.result()
        phases.update(environment)
        while not is_settled(environment):
            if time.monotonic() > deadline:
                raise timed_out(environment_id, str(environment.get("status")), timeout)
            time.sleep(_EVERY)
            environment = session.api.environment(environment_id)
            phases.update(environment)
    return environment


def delete(session: Session, environment_id: str, timeout: float, show: bool) -> Json:
    """Delete an environment and wait until it is gone.

    Raises:
        CliError: refused, or not gone in time.
    """
    deadline = time.monotonic() + timeout
    with Phases(session, environment_id, show) as phases:
        answer = session.api.delete(environment_id, min(timeout, _LONGEST_REQUEST))
        while not answer.get("deleted"):
            environment: Json = answer.get("environment") or {}
            phases.update(environment)
            if time.monotonic() > deadline:
                raise timed_out(environment_id, str(environment.get("status")), timeout)
            time.sleep(_EVERY)
            try:
                answer = {"environment": session.api.environment(environment_id)}
            except CliError as error:
                if error.exit_code is not ExitCode.NOT_FOUND:
                    raise
                answer |= {"deleted": True}
    return answer


def timed_out(environment_id: str, status: str, timeout: float) -> CliError:
    """The error for a wait that took too long."""
    return CliError(
        f"environment {environment_id}: still {status} after {timeout:g} s; it goes on by itself, "
        f"see `desktopctl show {render.short(environment_id)}`",
        ExitCode.TIMED_OUT,
    )


class Phases:
    """Shows the status and each phase: live on a terminal, a line per change elsewhere.

    Args:
        show: false shows nothing at all.
    """

    def __init__(self, session: Session, environment_id: str, show: bool) -> None:
        self._session = session
        self._name = render.short(environment_id)
        self._show = show
        self._began = time.monotonic()
        self._status = ""
        self._now = ""
        self._phases: Json = {}
        self._earlier: Json = {}
        self._live: Live | None = None

    def __enter__(self) -> "Phases":
        if self._show and self._session.out.is_terminal:
            self._live = Live(get_renderable=self._table, console=self._session.out, refresh_per_second=10)
            self._live.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*problem)

    def update(self, environment: Json) -> None:
        """Take in the present state and show what is new in it."""
        status, phases = str(environment.get("status")), dict(environment.get("phases") or {})
        if not self._status and not is_settled(environment) and _TOTAL in phases:
            self._earlier = phases
        if phases == self._earlier or status not in _STARTED:
            phases = {}
        if self._show and self._live is None:
            if status != self._status:
                self._session.say(f"{self._name}  {status}  {self._elapsed():.1f} s")
            for name, value in phases.items():
                if self._phases.get(name) != value:
                    line = f"{self._name}    {render.clean(name)}  {render.milliseconds(value)}"
                    self._session.say(line)
        self._status, self._phases = status, phases
        self._now = str(environment.get("phase") or environment.get("operation") or "")

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _table(self) -> Table:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_row(self._name, render.status(self._status), f"{self._elapsed():5.1f} s")
        for name, value in self._phases.items():
            table.add_row("", Text(render.clean(name), style="green"), render.milliseconds(value))
        if self._now and self._status not in _SETTLED:
            table.add_row("", Text(f"{render.clean(self._now)} …", style="yellow"), "")
        return table


class _Request:
    """A request on its own thread, which does not keep the command alive after Ctrl-C."""

    def __init__(self, send: Callable[[], Json]) -> None:
        self._answer: Future[Json] = Future()
        self._thread = threading.Thread(target=self._run, args=(send,), daemon=True)
        self._thread.start()

    def running(self, seconds: float) -> bool:
        """Whether it still runs after waiting so long for its end."""
        self._thread.join(seconds)
        return self._thread.is_alive()

    def result(self) -> Json:
        """Its answer; waits for it."""
        return self._answer.result()

    def _run(self, send: Callable[[], Json]) -> None:
        try:
            self._answer.set_result(send())
        except BaseException as problem:
            self._answer.set_exception(problem)
