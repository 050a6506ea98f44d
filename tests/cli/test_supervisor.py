"""The supervisor over dummy children: order, readiness, restarts, and that nothing outlives it."""

import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from cli.children import ChildSpec
from cli.logfiles import LogFile, tail
from cli.supervisor import ChildFailed, Part, Report, Supervisor, Timing
from tests.cli.dummy_stack import POLITE, python
from tests.cli.support_cli import DEADLINE, eventually, eventually_async, is_alive, process

FAST = Timing(first_delay=0.01, longest_delay=0.05, grace=5, probe_every=0.01)


@asynccontextmanager
async def supervising(
    tmp_path: Path,
    *specs: ChildSpec,
    timing: Timing = FAST,
    listener: Callable[[Report], None] = lambda _: None,
) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(specs, tmp_path, listener, timing)
    try:
        yield supervisor
    finally:
        await supervisor.stop()


async def test_children_start_in_the_order_they_need_each_other(tmp_path: Path) -> None:
    reports: list[Report] = []
    first = python("first", "open('done', 'w'); print('made it')")
    first = ChildSpec(
        first.name, ("sh", "-c", f"echo made it; touch {tmp_path}/done"), first.environment, once=True
    )
    needing = python(
        "second",
        f"import os,time; print(os.path.exists('{tmp_path}/done'), flush=True); time.sleep(600)",
        needs=("first",),
    )
    async with supervising(tmp_path, first, needing, listener=reports.append) as supervisor:
        await supervisor.start()
        assert await eventually_async(lambda: tail(tmp_path / "second.log", 1) == ["True"])
        assert tail(tmp_path / "first.log", 1) == ["made it"]
        assert set(supervisor.pids()) == {"second"}
    happened = [(report.name, report.part) for report in reports]
    assert happened.index(("first", Part.DONE)) < happened.index(("second", Part.STARTING))
    assert happened[-2:] == [("second", Part.STOPPED), ("first", Part.STOPPED)]


async def test_ready_means_the_probe_said_yes(tmp_path: Path) -> None:
    answers = iter([False, False, True])

    async def probe() -> bool:
        return next(answers)

    child = ChildSpec("child", (sys.executable, "-c", POLITE), dict(os.environ), probe=probe)
    async with supervising(tmp_path, child) as supervisor:
        await supervisor.start()
        assert next(answers, None) is None


async def test_a_dead_child_is_started_again_with_growing_delay(tmp_path: Path) -> None:
    reports: list[Report] = []
    child = python("child", "import time; time.sleep(600)")
    async with supervising(tmp_path, child, listener=reports.append) as supervisor:
        await supervisor.start()
        for restart in range(1, 4):
            os.kill(supervisor.pids()["child"], signal.SIGKILL)
            started = [Part.STARTING] * (restart + 1)
            assert await eventually_async(partial(_started, reports, started))
            assert await eventually_async(lambda: "child" in supervisor.pids())
    delays = [report.seconds for report in reports if report.part is Part.RESTARTING]
    assert delays == [0.01, 0.02, 0.04]
    assert all("signal 9" in report.message for report in reports if report.part is Part.RESTARTING)


def test_the_delay_doubles_up_to_the_longest() -> None:
    delays = [Timing().delay(failures) for failures in range(1, 10)]
    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10]
    assert Timing().delay(5000) == 10


def _started(reports: list[Report], expected: list[Part]) -> bool:
    return [report.part for report in reports if report.part is Part.STARTING] == expected


async def test_a_child_that_only_dies_ends_the_start(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    broken = ChildSpec("broken", ("sh", "-c", "echo no database >&2; exit 7"), dict(os.environ), probe=never)
    async with supervising(tmp_path, broken) as supervisor:
        with pytest.raises(ChildFailed, match="broken ended with exit code 7"):
            await supervisor.start()
    assert tail(tmp_path / "broken.log", 5) == ["no database"] * FAST.early_deaths


async def test_a_failed_preparation_is_not_repeated(tmp_path: Path) -> None:
    migrate = ChildSpec("migrate", ("sh", "-c", "echo once; exit 1"), dict(os.environ), once=True)
    async with supervising(tmp_path, migrate, python("after", POLITE, needs=("migrate",))) as supervisor:
        with pytest.raises(ChildFailed, match="migrate ended with exit code 1"):
            await supervisor.start()
        assert supervisor.pids() == {}
    assert tail(tmp_path / "migrate.log", 5) == ["once"]


async def test_a_missing_program_is_told(tmp_path: Path) -> None:
    missing = ChildSpec("missing", (str(tmp_path / "nowhere"),), dict(os.environ))
    async with supervising(tmp_path, missing) as supervisor:
        with pytest.raises(ChildFailed, match="cannot be started"):
            await supervisor.start()


async def test_a_late_child_is_told_and_only_a_required_one_ends_the_start(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    reports: list[Report] = []
    command = (sys.executable, "-c", POLITE)
    late = ChildSpec("late", command, dict(os.environ), probe=never, ready_within=0.05, required=False)
    needed = ChildSpec("needed", command, dict(os.environ), probe=never, ready_within=0.05)
    async with supervising(tmp_path, late, listener=reports.append) as supervisor:
        await supervisor.start()
    assert Part.LATE in [report.part for report in reports]
    async with supervising(tmp_path, needed) as supervisor:
        with pytest.raises(ChildFailed, match="needed was not ready"):
            await supervisor.start()


async def test_only_warnings_of_the_output_are_shown(tmp_path: Path) -> None:
    reports: list[Report] = []
    child = ChildSpec(
        "child",
        ("sh", "-c", "echo INFO all well; echo WARNING smoke; exec sleep 600"),
        dict(os.environ),
        echo=re.compile("WARNING"),
    )
    async with supervising(tmp_path, child, listener=reports.append) as supervisor:
        await supervisor.start()
        assert await eventually_async(lambda: Part.OUTPUT in [report.part for report in reports])
    assert [r.message for r in reports if r.part is Part.OUTPUT] == ["WARNING smoke"]
    assert tail(tmp_path / "child.log", 5) == ["INFO all well", "WARNING smoke"]


def test_a_large_log_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "part.log"
    path.write_bytes(b"old\n" * 100)
    log = LogFile(path, largest=100)
    log.write(b"new\n")
    assert path.read_bytes() == b"new\n"
    assert (tmp_path / "part.log.1").stat().st_size == 400
    log.write(b"x" * 200)
    log.write(b"after\n")
    log.close()
    assert path.read_bytes() == b"after\n"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_supervisor(tmp_path: Path, number: signal.Signals) -> None:
    with process(sys.executable, "-m", "tests.cli.dummy_stack", str(tmp_path)) as supervisor:
        assert supervisor.stdout is not None
        pids = json.loads(supervisor.stdout.readline())
        assert set(pids) == {"polite", "stubborn", "parent"}
        grandchild = tmp_path / "grandchild"
        assert eventually(lambda: grandchild.exists() and grandchild.read_text() != "")
        everyone = list(pids.values())
        # A child's own children go with its group; after the supervisor's SIGKILL nobody is left for that.
        if number is signal.SIGTERM:
            everyone.append(int(grandchild.read_text()))
        try:
            assert all(is_alive(pid) for pid in everyone)
            os.kill(supervisor.pid, number)
            assert eventually(lambda: not any(is_alive(pid) for pid in everyone))
            rest, _ = supervisor.communicate(timeout=DEADLINE)
            if number is signal.SIGTERM:
                assert supervisor.returncode == 0
                stopped = [line for line in json.loads(rest) if line.endswith("stopped")]
                assert stopped == ["parent stopped", "stubborn stopped", "polite stopped"]
        finally:
            for pid in [*pids.values(), int(grandchild.read_text())]:
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)
