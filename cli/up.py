"""`desktopctl up`: the whole stack on this machine, in the foreground, until Ctrl-C."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from activities.bridge import bridge_address
from cli import ports, stack, state
from cli.exits import CliError, ExitCode
from cli.logfiles import tail
from cli.state import Endpoints
from cli.supervisor import ChildFailed, Part, Report, Supervisor
from models.settings import ApiSettings, ConfigurationError, HostSettings, load

_TAIL_LINES = 15
_BRIDGE_PATIENCE = 3.0
_NOWHERE = "127.0.0.1"
"""Where the node listener goes when no sandbox could reach it anyway."""


@dataclass(frozen=True)
class Prepared:
    """Everything decided before the first child starts.

    Attributes:
        problem: why no environment can run. note: what else the operator should know.
    """

    state_dir: Path
    endpoints: Endpoints
    admin_token: str
    token_file: Path | None
    host_id: str
    problem: str | None = None
    note: str | None = None


def prepare(state_dir: Path) -> Prepared:
    """Choose addresses, make the admin token and the host id; call it while the state directory is held.

    Raises:
        CliError: a setting cannot be used.
    """
    os.environ["DESKTOP_STATE_DIR"] = str(state_dir)
    try:
        api, host = load(ApiSettings), load(HostSettings)
    except ConfigurationError as error:
        raise CliError(str(error), ExitCode.USAGE) from None
    remembered = state.read_endpoints(state_dir)
    node_host = api.node_host or _bridge(remembered)
    endpoints = ports.plan(
        remembered,
        admin_host=api.admin_host,
        admin_port=api.admin_port,
        node_host=node_host or _NOWHERE,
        node_port=api.node_port,
        fixed=frozenset(n for n in ("admin_port", "node_port") if f"DESKTOP_{n.upper()}" in os.environ),
    )
    problem = note = None
    kept = endpoints
    if node_host is None:
        problem = "Docker's bridge is not there: start Docker, then `up` again; no environment can run before"
        # Containers that run already know the remembered address and no other.
        if remembered is not None:
            kept = replace(endpoints, node_host=remembered.node_host, node_port=remembered.node_port)
    elif remembered is not None and remembered.node_url != endpoints.node_url:
        note = (
            f"the node listener moved from {remembered.node_url} to {endpoints.node_url}: "
            "environments that run already find it again after a reset"
        )
    state.write_endpoints(state_dir, kept)
    return Prepared(
        state_dir=state_dir,
        endpoints=endpoints,
        admin_token=api.admin_token or state.ensure_admin_token(state_dir),
        token_file=None if api.admin_token else state_dir / state.ADMIN_TOKEN,
        host_id=host.host_id or state.ensure_host_id(state_dir),
        problem=problem,
        note=note,
    )


def _bridge(remembered: Endpoints | None) -> str | None:
    """The address of Docker's bridge, once it can be listened on; None when there is none."""
    deadline = time.monotonic() + _BRIDGE_PATIENCE
    while True:
        address = bridge_address() or (remembered.node_host if remembered else None)
        if address is not None and ports.is_free(address, 0):
            return address
        # Without Docker there is nothing to wait for; while it starts, the interface comes a moment later.
        if address is None or time.monotonic() > deadline:
            return None
        time.sleep(0.1)


def run(state_dir: Path, *, as_json: bool, console: Console) -> None:
    """Run the stack until SIGINT, SIGTERM or SIGHUP; returns when every child is gone.

    Args:
        console: where progress goes; with `as_json` it must not be standard output.

    Raises:
        CliError: another `up` runs, a setting cannot be used, or a part did not come up.
    """
    state.prepare(state_dir)
    with state.exclusive(state_dir), ExitStack() as choosing:
        # A port that is free now is taken only when the part that gets it listens.
        choosing.enter_context(ports.nobody_else_chooses())
        prepared = prepare(state_dir)
        try:
            asyncio.run(_supervise(prepared, as_json, console, choosing.close))
        except ChildFailed as failure:
            for line in tail(failure.log, _TAIL_LINES):
                console.print(Text(f"  {failure.name} | {line}", style="dim"), soft_wrap=True)
            message = f"{failure.name} {failure.reason}; its log: {failure.log}"
            raise CliError(message, ExitCode.FAILED) from None


async def _supervise(prepared: Prepared, as_json: bool, console: Console, chosen: Callable[[], None]) -> None:
    started = time.monotonic()
    stopping = asyncio.Event()
    # A host's record has milliseconds only.
    since = datetime.now(UTC) - timedelta(milliseconds=1)
    children = stack.specs(
        prepared.state_dir, prepared.endpoints, prepared.admin_token, prepared.host_id, since
    )
    progress = Progress([spec.name for spec in children], console)
    supervisor = Supervisor(children, prepared.state_dir / "logs", progress.report)

    def on_signal() -> None:
        if stopping.is_set():
            supervisor.kill()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    starting = asyncio.create_task(supervisor.start())
    interrupted = asyncio.create_task(stopping.wait())
    try:
        with progress:
            await asyncio.wait({starting, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        chosen()
        if starting.done():
            starting.result()
            _announce(prepared, progress, time.monotonic() - started, as_json, console)
            await interrupted
    finally:
        starting.cancel()
        interrupted.cancel()
        console.print(Text("stopping …", style="dim"))
        await supervisor.stop()
        console.print(Text("stopped; environments keep running and the next `up` finds them"))


def _announce(
    prepared: Prepared, progress: "Progress", seconds: float, as_json: bool, console: Console
) -> None:
    endpoints = prepared.endpoints
    late = progress.late()
    waiting = (f"{name} is not ready yet: {reason}" for name, reason in late.items())
    notes = [*filter(None, (prepared.problem, prepared.note)), *waiting]
    ready = not late and prepared.problem is None
    answer: dict[str, Any] = {
        "ready": ready,
        "api_url": endpoints.api_url,
        "docs_url": endpoints.docs_url,
        "temporal_ui_url": endpoints.temporal_ui_url,
        "temporal_address": endpoints.temporal_address,
        "node_url": endpoints.node_url,
        "host_id": prepared.host_id,
        "state_dir": str(prepared.state_dir),
        "token_file": str(prepared.token_file) if prepared.token_file else None,
        "log_dir": str(prepared.state_dir / "logs"),
        "seconds": round(seconds, 3),
        "parts": progress.seconds(),
        "notes": notes,
    }
    if as_json:
        print(json.dumps(answer), flush=True)
        return
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in (
        ("API", answer["api_url"]),
        ("API docs", answer["docs_url"]),
        ("Temporal Web UI", answer["temporal_ui_url"]),
        ("Temporal", f"TEMPORAL_ADDRESS={answer['temporal_address']}"),
        ("State", answer["state_dir"]),
        ("Admin token", answer["token_file"] or "from DESKTOP_ADMIN_TOKEN"),
        ("Logs", answer["log_dir"]),
    ):
        table.add_row(name, Text(value))
    console.print(Text(f"up in {seconds:.1f} s", style="bold green" if ready else "bold yellow"))
    console.print(table)
    for note in notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    console.print(
        Text("Ctrl-C stops it. Next, in another shell: desktopctl create --start --wait", style="dim")
    )


class Progress:
    """Shows which part is how far: a live table on a terminal, a line per change elsewhere.

    Args:
        names: the parts, in order. console: where it is shown.
    """

    _STYLES: ClassVar = {
        Part.READY: "green",
        Part.DONE: "green",
        Part.STARTING: "cyan",
        Part.WAITING: "dim",
        Part.FAILED: "bold red",
    }

    def __init__(self, names: list[str], console: Console) -> None:
        self._console = console
        self._latest = {name: Report(name, Part.WAITING) for name in names}
        self._since = dict.fromkeys(names, time.monotonic())
        self._live: Live | None = None
        self._width = max(map(len, names))

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=10)
            self._live.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*problem)
            self._live = None

    def report(self, report: Report) -> None:
        """Take in and show what happened."""
        if report.part is not Part.OUTPUT:
            self._latest[report.name] = report
            self._since[report.name] = time.monotonic()
        if report.part in (Part.OUTPUT, Part.RESTARTING, Part.FAILED, Part.LATE):
            line = Text(f"{report.name:<{self._width}} | {report.message}", style="yellow")
            self._console.print(line, soft_wrap=True)
        elif report.part in (Part.READY, Part.DONE) and self._live is None:
            self._console.print(
                Text(f"{report.name:<{self._width}}   {report.part} in {report.seconds:.2f} s")
            )

    def late(self) -> dict[str, str]:
        """Parts that are not ready, and why."""
        ready = (Part.READY, Part.DONE)
        return {
            name: report.message or report.part.value
            for name, report in self._latest.items()
            if report.part not in ready
        }

    def seconds(self) -> dict[str, float]:
        """How long each ready part took, seconds."""
        return {
            name: round(report.seconds, 3)
            for name, report in self._latest.items()
            if report.part in (Part.READY, Part.DONE)
        }

    def _table(self) -> Table:
        table = Table(box=None, show_header=False, padding=(0, 2))
        for name, report in self._latest.items():
            settled = report.part in self._STYLES and report.part not in (Part.STARTING, Part.WAITING)
            seconds = report.seconds if settled else time.monotonic() - self._since[name]
            style = self._STYLES.get(report.part, "yellow")
            table.add_row(name, Text(report.part.value, style=style), Text(f"{seconds:5.2f} s", style="dim"))
        return table
