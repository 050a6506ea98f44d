"""The budgets of design section 7 that are no recovery: start, commands, lists, rest, history.

`python -m benchmarks.budgets [--runs N] [--part NAME …]`, or `make bench`. Recovery is `make bench-recovery`.
"""

import argparse
import asyncio
import json
import os
import sqlite3
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from temporalio.client import Client, WorkflowHandle

from benchmarks.by_hand import ByHand
from benchmarks.report import Table, end_in_order, machine
from inventory import environments
from inventory.engine import make_engine, writing
from models.identifiers import environment_workflow_id, new_environment_id
from models.messages import EnvironmentSpec
from tests.e2e.stack import IMAGE
from tests.trouble.field import Field, prepared_field

LISTED = 1000
REST_SECONDS = 60


class Bench:
    """The parts of the benchmark, on one field."""

    def __init__(self, field: Field, runs: int) -> None:
        self._field = field
        self._runs = runs

    def start(self) -> None:
        """Start to running with the image present, beside the same container run by hand."""
        table = Table("Start to running, image present")
        by_hand, ours, restarted = [], [], []
        with tempfile.TemporaryDirectory(prefix="bench-by-hand-") as folder:
            Path(folder).chmod(0o755)
            first = self._field.running()
            copy = ByHand.of(self._field.container(first), self._field.home(first), Path(folder))
            self._field.delete(first)
            for _ in range(self._runs):
                by_hand.append(copy.seconds())
                began = time.monotonic()
                environment_id = self._field.running()
                ours.append(time.monotonic() - began)
                self._field.settle(environment_id, "stop")
                began = time.monotonic()
                self._field.settle(environment_id, "start")
                restarted.append(time.monotonic() - began)
                self._field.delete(environment_id)
        floor = table.floor("the same container by hand, until RFB, noVNC and node answer", by_hand)
        table.row("created wanted running, until running", ours, "ratio 1.3", floor=floor)
        table.row("stopped, start until running", restarted, "ratio 1.3", floor=floor)

    def commands(self) -> None:
        """How long an operator waits until a command is accepted."""
        table, field = Table("Command accepted"), self._field
        made = [field.create(desired_running=False) for _ in range(4)]
        floor = table.floor("the bare signal, by Temporal's client", asyncio.run(self._signalled(made[0])))
        alone, busy = _Times(), _Times()
        for _ in range(self._runs):
            for name in ("start", "reset", "stop"):
                alone.take(name, partial(field.command, made[0], name))
                field.settle(made[0], "stop" if name == "stop" else "start")
        for _ in range(self._runs):
            for environment_id in made:
                for name in ("stop", "start", "reset"):
                    busy.take(name, partial(field.command, environment_id, name))
        for what, times in (("nothing else going on", alone), ("4 starting and stopping meanwhile", busy)):
            for name, seconds in times.of.items():
                table.row(f"{name}, {what}", seconds, "p95 0.050 s", floor=floor)
        for environment_id in made:
            field.delete(environment_id)

    def lists(self) -> None:
        """A list of a thousand."""
        field, database = self._field, self._field.stack.state_dir / "inventory.db"
        host_id = field.host()["host_id"]
        engine, now = make_engine(f"sqlite:///{database}"), datetime.now(UTC)
        with writing(engine) as session:
            for number in range(LISTED):
                spec = EnvironmentSpec(
                    environment_id=new_environment_id(),
                    host_id=host_id,
                    label=f"listed {number}",
                    image_ref=IMAGE,
                )
                environments.insert_pending(session, spec, False, now - timedelta(seconds=number))
        engine.dispose()
        table = Table(f"List of {LISTED:,} environments")
        for limit in (50, 200, LISTED):
            floor = table.floor(
                f"{limit} rows by sqlite3, as JSON", self._repeat(partial(_rows, database, limit))
            )
            assert len(self._page(limit).json()["environments"]) == limit
            seconds = self._repeat(partial(self._page, limit))
            table.row(f"a page of {limit}", seconds, "p95 0.030 s", floor=floor)

    def rest(self) -> None:
        """What environments cost that nobody touches."""
        field = self._field
        nothing = self._engine_calls()
        made = field.many(5)
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(lambda found: field.settle(found, "start"), made))
        # What a start leaves to be done afterwards is no rest.
        time.sleep(5)
        before = sum(self._events(environment_id) for environment_id in made)
        calls = self._engine_calls()
        grown = sum(self._events(environment_id) for environment_id in made) - before
        print(
            f"\n### At rest\n\n5 running environments, {REST_SECONDS} s: {grown} history events (budget 0); "
            f"{calls} calls of the Docker engine, {nothing} with no environment at all "
            f"(budget: no more than without)."
        )
        cycles = [self._cycle(environment_id) for environment_id in made]
        print(f"\nHistory events of one start, running, stop cycle: {sorted(cycles)} (budget 60).")
        for environment_id in made:
            field.delete(environment_id)

    def _cycle(self, environment_id: str) -> int:
        """History events of one cycle, from stopped to stopped."""
        self._field.settle(environment_id, "stop")
        # The last record comes after the status that was waited for, before the cycle and at its end.
        time.sleep(1)
        before = self._events(environment_id)
        for name, status in (("start", "running"), ("stop", "stopped")):
            # Waiting by the API's update would add to the history.
            self._field.command(environment_id, name)
            self._field.until(environment_id, status=status, settled=True)
        time.sleep(1)
        return self._events(environment_id) - before

    def _events(self, environment_id: str) -> int:
        async def count() -> int:
            handle = await self._workflow(environment_id)
            return (await handle.describe()).history_length

        return asyncio.run(count())

    async def _workflow(self, environment_id: str) -> "WorkflowHandle[Any, Any]":
        client = await Client.connect(self._field.stack.up["temporal_address"])
        return client.get_workflow_handle(environment_workflow_id(environment_id))

    def _engine_calls(self) -> int:
        before = self._field.relay.requests
        time.sleep(REST_SECONDS)
        return self._field.relay.requests - before

    async def _signalled(self, environment_id: str) -> list[float]:
        handle = await self._workflow(environment_id)
        seconds = []
        for _ in range(4 * self._runs):
            began = time.monotonic()
            await handle.signal("stop")
            seconds.append(time.monotonic() - began)
        return seconds

    def _repeat(self, work: Callable[[], object]) -> list[float]:
        work()
        return [_timed(work) for _ in range(max(20, self._runs))]

    def _page(self, limit: int) -> httpx.Response:
        answer = self._field.stack.call("GET", "/desktop-environments", limit=limit)
        assert answer.status_code == 200, answer.text
        return answer


def _rows(database: Path, limit: int) -> str:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "SELECT * FROM desktop_environments WHERE deleted_at IS NULL ORDER BY created_at DESC LIMIT ?",
            (limit,),
        ).fetchall()
    return json.dumps(rows, default=str)


class _Times:
    """Seconds by the name of what took them."""

    def __init__(self) -> None:
        self.of: dict[str, list[float]] = defaultdict(list)

    def take(self, name: str, work: Callable[[], object]) -> None:
        """Do it, and note how long it took."""
        self.of[name].append(_timed(work))


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def main() -> None:
    """Run what was asked for."""
    parts = ["start", "commands", "lists", "rest"]
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="of each measurement (default: 30)")
    parser.add_argument("--part", choices=parts, action="append", help="only this part; may be repeated")
    asked = parser.parse_args()
    end_in_order()
    print(f"Machine: {machine()}")
    os.environ.pop("DOCKER_HOST", None)
    for part in asked.part or parts:
        with (
            tempfile.TemporaryDirectory(prefix="bench-budgets-") as directory,
            prepared_field(Path(directory), relayed=part == "rest") as field,
        ):
            getattr(Bench(field, asked.runs), part)()


if __name__ == "__main__":
    main()
