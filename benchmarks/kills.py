"""Hundreds of kills at random moments under load; what holds after each, and how soon.

Several control planes, each a process of its own, are disturbed at the same time, since most of a recovery is waiting.
A violated invariant ends the run with exit code 1 and says what did not fit. `docs/reliability.md` explains the table.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from benchmarks.report import end_in_order, middle_and_p95
from scripts.machine import ROOT
from tests.chaos.invariants import converge, no_failed_tasks, replayable
from tests.chaos.load import Load
from tests.chaos.plane import COMPONENTS, Plane, control_plane

ENVIRONMENTS = 4
"""Kept busy on each control plane."""
BATCH = 15
"""Kills between two readings of every history."""
BOTH = 0.1
"""How often a second part is killed while the first recovers."""


@dataclass
class Kill:
    """One kill. Seconds since the kill: `serves` until the part does its work again, `agrees` until all agrees."""

    component: str
    serves: float
    agrees: float


@dataclass
class Run:
    """What became of one control plane."""

    kills: list[Kill] = field(default_factory=list)
    commands: int = 0
    accepted: int = 0
    refused: int = 0
    command_seconds: list[float] = field(default_factory=list)
    violation: str | None = None


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="in all (default: 300)")
    parser.add_argument("--planes", type=int, default=3, help="control planes at the same time (default: 3)")
    parser.add_argument(
        "--seconds", type=float, default=3600, help="begin no further kill after (default: 3600)"
    )
    parser.add_argument("--seed", type=int, default=None, help="makes choices repeatable (default: random)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    end_in_order()
    seed = wanted.seed if wanted.seed is not None else random.SystemRandom().randrange(10**6)
    if wanted.one:
        run = disturb(seed, wanted.kills, wanted.seconds)
        print(json.dumps(asdict(run)))
        return 1 if run.violation else 0
    began = time.monotonic()
    print(f"seed {seed}: {wanted.kills} kills on {wanted.planes} control planes", flush=True)
    shares = [len(range(n, wanted.kills, wanted.planes)) for n in range(wanted.planes)]
    runs = _in_parallel([(seed + n, share) for n, share in enumerate(shares)], wanted.seconds)
    print(report(runs, seed, time.monotonic() - began))
    return 1 if any(run.violation for run in runs) else 0


def disturb(seed: int, kills: int, seconds: float) -> Run:
    """Kill parts of one control plane again and again."""
    run, chance = Run(), random.Random(seed)  # noqa: S311 - repeatable, no secret
    deadline = time.monotonic() + seconds
    with control_plane() as plane:
        load, read = Load(plane.operator, seed, ENVIRONMENTS), 0
        try:
            while len(run.kills) < kills and time.monotonic() < deadline:
                _one(plane, load, chance, run)
                print(f"plane {seed}: {len(run.kills)}/{kills} {run.kills[-1]}", file=sys.stderr, flush=True)
                if len(run.kills) // BATCH > read:
                    read = len(run.kills) // BATCH
                    no_failed_tasks(plane)
                    replayable(plane)
            no_failed_tasks(plane)
            replayable(plane)
        except AssertionError as error:
            run.violation = f"seed {seed}, after {len(run.kills)} kills: {error}"
            _keep_evidence(plane, f"recovery-{seed}", str(error))
        finally:
            load.close()
        ledger = plane.operator.ledger
        sent = [command for commands in ledger.commands.values() for command in commands]
        run.commands, run.accepted = len(sent), sum(command.accepted for command in sent)
        run.refused, run.command_seconds = ledger.refused, ledger.seconds
    return run


def _one(plane: Plane, load: Load, chance: random.Random, run: Run) -> None:
    load.resume()
    time.sleep(chance.uniform(0.1, 1.2))
    chosen = chance.sample(COMPONENTS, 2 if chance.random() < BOTH else 1)
    killed = {}
    for name in chosen:
        killed[name] = datetime.now(UTC)
        plane.processes.kill(name)
        time.sleep(chance.uniform(0, 0.5))
    for name in chosen:
        plane.processes.start(name)
    serves = {}
    for name in chosen:
        plane.until(lambda name=name: plane.serves(name, killed[name]), f"{name} serves again", 60)  # type: ignore[misc]  # bound at once
        serves[name] = _since(killed[name])
    load.pause()
    converge(plane)
    for name in chosen:
        shown = name if len(chosen) == 1 else "two at once"
        run.kills.append(Kill(shown, serves[name], _since(killed[name])))


def report(runs: list[Run], seed: int, seconds: float) -> str:
    """The table, in Markdown."""
    by: dict[str, list[Kill]] = defaultdict(list)
    for run in runs:
        for kill in run.kills:
            by[kill.component].append(kill)
    lines = [
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[2]:.1f} (15 min), Python {platform.python_version()}, "
        f"{datetime.now(UTC):%Y-%m-%d}, seed {seed}, {seconds / 60:.0f} min",
        "",
        "| killed (SIGKILL) | n | serves again: median | p95 | all agrees: median | p95 | worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (*COMPONENTS, "two at once"):
        if not by[name]:
            continue
        serves, agrees = [k.serves for k in by[name]], [k.agrees for k in by[name]]
        times = (*middle_and_p95(serves), *middle_and_p95(agrees), max(agrees))
        lines.append(f"| {name} | {len(by[name])} | " + " | ".join(f"{t:.1f} s" for t in times) + " |")
    answered = [seconds for run in runs for seconds in run.command_seconds]
    median, p95 = middle_and_p95(answered) if answered else (0.0, 0.0)
    lost = "see below" if any(run.violation for run in runs) else "none of those lost"
    lines += [
        "",
        f"{sum(len(run.kills) for run in runs)} kills; {sum(run.commands for run in runs)} commands sent, "
        f"{sum(run.accepted for run in runs)} accepted, {lost}; "
        f"a command was answered within {median * 1000:.0f} ms (median), {p95 * 1000:.0f} ms (p95).",
    ]
    lines += [f"VIOLATED: {run.violation}" for run in runs if run.violation]
    return "\n".join(lines)


def _in_parallel(shares: list[tuple[int, int]], seconds: float) -> list[Run]:
    command = [sys.executable, "-m", "benchmarks.kills", "--one", f"--seconds={seconds}"]
    children = [
        subprocess.Popen(
            [*command, f"--seed={seed}", f"--kills={kills}"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for seed, kills in shares
        if kills
    ]
    try:
        return [_result(child.communicate()[0], child.returncode) for child in children]
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()


def _result(output: str, code: int) -> Run:
    try:
        answer = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        return Run(violation=f"a control plane's process ended with exit code {code} and no result")
    kills = [Kill(**kill) for kill in answer.pop("kills")]
    return Run(kills=kills, **answer)


def _keep_evidence(plane: Plane, name: str, message: str) -> None:
    """Logs, inventory, and the histories of the environments that the message names."""
    target = ROOT / "var" / name
    target.mkdir(parents=True, exist_ok=True)
    for path in [*(plane.state_dir / "logs").iterdir(), *plane.state_dir.glob("inventory.db*")]:
        (target / path.name).write_bytes(path.read_bytes())
    for environment_id in plane.operator.ledger.created:
        if environment_id in message:
            (target / f"{environment_id}.json").write_text(plane.workflows.history(environment_id))
    print(f"logs, inventory and histories are kept in {target}", file=sys.stderr)


def _since(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()


if __name__ == "__main__":
    sys.exit(main())
