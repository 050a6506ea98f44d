"""What must hold once the dust has settled: workflow, inventory, Docker, gateway and tokens agree.

`disagreements` looks once and says in words what does not fit; `converge` looks until nothing is left.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, select

from models import tables as t
from models.identifiers import environment_workflow_id, host_workflow_id
from models.lifecycle import Status
from models.messages import EnvironmentView
from models.pairing import PairingStatus
from tests.chaos.operator import Ledger
from tests.chaos.plane import Plane
from tests.chaos.workflow_view import Seen

SETTLE_SECONDS = 120


@dataclass(frozen=True)
class Facts:
    """The inventory at one moment."""

    rows: dict[str, t.EnvironmentRow]
    events: dict[str, list[t.EnvironmentEventRow]]
    tokens: dict[str, list[t.NodeTokenRow]]
    sessions: dict[str, list[t.TakeoverSessionRow]]
    pairings: dict[str, list[t.PairingRow]]
    hosts: list[t.HostRow]


def converge(plane: Plane, seconds: float = SETTLE_SECONDS) -> float:
    """Wait until everything agrees; returns the seconds it took.

    Raises:
        AssertionError: it does not within `seconds`; says what disagrees.
    """
    began = time.monotonic()
    while wrong := disagreements(plane):
        if time.monotonic() - began > seconds:
            raise AssertionError(f"after {seconds:g} s:\n" + "\n".join(wrong))
        time.sleep(0.05)
    never_happened(plane)
    return time.monotonic() - began


def never_happened(plane: Plane) -> None:
    """What no later moment mends: two containers at once, an internal error of the API, a part that ended by itself.

    Raises:
        AssertionError: one of them happened.
    """
    wrong = plane.watch.wrong() + plane.operator.ledger.wrong
    wrong += [f"{name} ended by itself" for name in plane.processes.dead()]
    assert not wrong, "\n".join(wrong)


def no_failed_tasks(plane: Plane) -> None:
    """No workflow task ever failed, in any run.

    Raises:
        AssertionError: one did.
    """
    with Session(plane.engine) as session:
        ids = list(session.exec(select(t.EnvironmentRow.environment_id)))
    workflow_ids = [host_workflow_id(plane.host_id), *map(environment_workflow_id, ids)]
    failed = plane.workflows.failed_tasks(workflow_ids)
    assert not failed, "\n".join(failed)


def replayable(plane: Plane) -> None:
    """Every living environment's history can be replayed, as the next control worker will have to.

    Raises:
        AssertionError: one cannot.
    """
    with Session(plane.engine) as session:
        living = select(t.EnvironmentRow.environment_id).where(col(t.EnvironmentRow.deleted_at).is_(None))
        ids = list(session.exec(living))
    wrong = plane.workflows.not_replayable(ids)
    assert not wrong, "\n".join(wrong)


def disagreements(plane: Plane) -> list[str]:
    """Everything that does not fit now; empty when all is well."""
    ledger = plane.operator.ledger
    facts = _facts(plane)
    ids = {*facts.rows, *ledger.created}
    live = [i for i in ids if i not in facts.rows or facts.rows[i].deleted_at is None]
    seen = plane.workflows.see(live)
    containers = plane.watch.containers()
    answer = plane.operator.get("/nodes")
    if answer is None:
        return ["the API does not list nodes"]
    nodes = {node["node_id"]: node for node in answer["nodes"]}
    wrong = [f"host {host.host_id} is recorded unhealthy" for host in facts.hosts if not host.healthy]
    strangers = [c for c in containers if c["environment_id"] not in ids]
    wrong += [f"container {c['id'][:12]} belongs to no known environment" for c in strangers]
    for environment_id in sorted(ids):
        mine = [c for c in containers if c["environment_id"] == environment_id]
        row, events = facts.rows.get(environment_id), facts.events.get(environment_id, [])
        if row is None:
            problems = ["is not in the inventory"]
        elif row.deleted_at is not None:
            problems = _of_deleted(plane.state_dir, row, mine, facts, nodes)
        else:
            problems = _of_living(row, seen[environment_id], mine, facts, nodes)
        problems += _of_timeline(row, events, environment_id, ledger)
        wrong += [f"{environment_id}: {problem}" for problem in problems]
    return wrong


def _facts(plane: Plane) -> Facts:
    def grouped(rows: Sequence[Any]) -> dict[str, list[Any]]:
        groups: dict[str, list[Any]] = {}
        for row in rows:
            groups.setdefault(row.environment_id, []).append(row)
        return groups

    with Session(plane.engine, expire_on_commit=False) as session:
        tokens = select(t.NodeTokenRow).where(col(t.NodeTokenRow.revoked_at).is_(None))
        sessions = select(t.TakeoverSessionRow).where(col(t.TakeoverSessionRow.revoked_at).is_(None))
        events = (
            select(t.EnvironmentEventRow)
            .where(t.EnvironmentEventRow.kind == "command")
            .order_by(col(t.EnvironmentEventRow.sequence))
        )
        return Facts(
            rows={row.environment_id: row for row in session.exec(select(t.EnvironmentRow))},
            events=grouped(session.exec(events).all()),
            tokens=grouped(session.exec(tokens).all()),
            sessions=grouped(session.exec(sessions).all()),
            pairings=grouped(session.exec(select(t.PairingRow)).all()),
            hosts=list(session.exec(select(t.HostRow))),
        )


def _of_living(
    row: t.EnvironmentRow,
    seen: Seen,
    containers: list[dict[str, Any]],
    facts: Facts,
    nodes: dict[str, dict[str, Any]],
) -> list[str]:
    if not seen.open:
        return ["its workflow does not run"]
    if seen.view is None:
        return ["its workflow does not answer"]
    view, wrong = seen.view, []
    if not view.settled:
        wrong.append(f"is not settled: {view.status}, {view.operation or 'no operation'}, {view.phase}")
    if seen.attempt > 1:
        wrong.append(f"attempt {seen.attempt} of its workflow task is under way")
    wrong += _row_differs(row, view)
    wanted = Status.RUNNING if view.desired_running else Status.STOPPED
    if view.status is not wanted:
        error = f" ({view.last_error.code}: {view.last_error.message})" if view.last_error else ""
        wrong.append(f"is {view.status}{error}, wanted {wanted}")
    node = nodes.get(view.node_id or "", {"connected": False, "paired_status": None})
    tokens = facts.tokens.get(row.environment_id, [])
    if view.status is Status.RUNNING:
        have = [(c["generation"], c["state"]) for c in containers]
        if have != [(view.generation, "running")]:
            wrong.append(f"runs generation {view.generation}, its containers are {have}")
        if [token.generation for token in tokens] != [view.generation]:
            wrong.append(f"live tokens of generations {[token.generation for token in tokens]}")
        if not node["connected"] or node["paired_status"] != PairingStatus.APPROVED:
            wrong.append(f"its node: connected {node['connected']}, pairing {node['paired_status']}")
        old = [s for s in facts.sessions.get(row.environment_id, []) if s.generation != view.generation]
        wrong += [f"takeover session of generation {s.generation} lives" for s in old]
    else:
        wrong += _left_over(row.environment_id, containers, facts, node)
    return wrong


def _row_differs(row: t.EnvironmentRow, view: EnvironmentView) -> list[str]:
    recorded = (row.status, row.desired_running, row.generation, row.node_id, row.rfb_port, row.novnc_port)
    actual = (
        view.status.value,
        view.desired_running,
        view.generation,
        view.node_id,
        view.rfb_port,
        view.novnc_port,
    )
    wrong = [] if recorded == actual else [f"inventory has {recorded}, the workflow {actual}"]
    codes = ((row.last_error or {}).get("code"), view.last_error.code.value if view.last_error else None)
    if codes[0] != codes[1]:
        wrong.append(f"inventory has error {codes[0]}, the workflow {codes[1]}")
    return wrong


def _left_over(
    environment_id: str, containers: list[dict[str, Any]], facts: Facts, node: dict[str, Any]
) -> list[str]:
    wrong = [f"container of generation {c['generation']} is left ({c['state']})" for c in containers]
    wrong += [
        f"token of generation {token.generation} lives" for token in facts.tokens.get(environment_id, [])
    ]
    wrong += [
        f"takeover session of generation {s.generation} lives" for s in facts.sessions.get(environment_id, [])
    ]
    if node["connected"]:
        wrong.append("its node is connected")
    return wrong


def _of_deleted(
    state_dir: Path,
    row: t.EnvironmentRow,
    containers: list[dict[str, Any]],
    facts: Facts,
    nodes: dict[str, dict[str, Any]],
) -> list[str]:
    node = nodes.get(row.node_id or "", {"connected": False})
    wrong = _left_over(row.environment_id, containers, facts, node)
    pairings = facts.pairings.get(row.environment_id, [])
    wrong += [f"pairing is {p.status}" for p in pairings if p.status == PairingStatus.APPROVED]
    if (state_dir / "desktop-environments" / row.environment_id).exists():
        wrong.append("its host directory is left")
    return wrong


def _of_timeline(
    row: t.EnvironmentRow | None, events: list[t.EnvironmentEventRow], environment_id: str, ledger: Ledger
) -> list[str]:
    """Nothing accepted was lost, nothing was done twice, and the outcome is what was said last."""
    wrong, sent = [], ledger.commands.get(environment_id, [])
    shown = [event.reason for event in events]
    for command in sent:
        times = shown.count(command.marker)
        if times > 1 or (command.accepted and times == 0):
            wrong.append(f"{command.name} ({command.marker}) is in the timeline {times} times")
    desired = ledger.created.get(environment_id)
    deleted = False
    for event in events:
        if event.name == "create":
            desired = "desired running" in (event.message or "")
        elif event.name in ("start", "stop"):
            desired = event.name == "start"
        elif event.name == "delete":
            deleted = True
            break
    if row is None or wrong:
        return wrong
    if (row.deleted_at is not None) != deleted:
        wrong.append(f"deleted: wanted {deleted}")
    elif not deleted and row.desired_running != desired:
        wrong.append(f"desired_running is {row.desired_running}, the last command says {desired}")
    return wrong
