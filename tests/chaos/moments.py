"""Environments brought into every moment of their lives at the same time, so that one kill meets all of them."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.chaos.invariants import converge
from tests.chaos.plane import Plane

PATIENCE_SECONDS = 60

PARTS = {"start 1": 0.9, "start 2": 0.55, "start 3": 0.1, "stop": 0.1, "delete": 0.1}
"""How long before the kill each command is sent, as a part of what a start took here last; a stop takes a third."""


AT_LEAST = 3
"""So many environments are in the midst of something when a kill comes."""


@dataclass(frozen=True)
class Fan:
    """`idle` is running and left alone.

    Attributes:
        members: environment id by moment. container: of the idle one. start_seconds: what a start took last.
    """

    idle: str
    members: dict[str, str]
    container: str
    start_seconds: float


def prepare(plane: Plane, former: Fan | None = None) -> Fan:
    """Settle what the next kill needs: environments to start, one to stop, one to delete.

    Args:
        former: an earlier fan to use again.
    """
    if former is None:
        idle = _made(plane, running=True)
        members = {name: _made(plane, running=not name.startswith("start")) for name in PARTS}
    else:
        idle = former.idle
        members = former.members | {"delete": _made(plane, running=True)}
        for name, environment_id in members.items():
            plane.operator.send(environment_id, "stop" if name.startswith("start") else "start")
    converge(plane)
    [container] = [c["id"] for c in plane.watch.containers() if c["environment_id"] == idle]
    seen = plane.workflows.see([idle, *members.values()])
    totals = [one.view.phases["total"] for one in seen.values() if one.view and "total" in one.view.phases]
    return Fan(idle, members, container, start_seconds=statistics.median(totals) / 1000)


def strike(plane: Plane, fan: Fan, kill: Callable[[], None]) -> dict[str, str]:
    """Send the commands and call `kill` in the midst of them.

    Returns:
        What each environment was in the midst of just before, by its name in the fan: `AT_LEAST` of them.

    Raises:
        AssertionError: they could not be caught in the midst of anything.
    """
    kill_at = time.monotonic() + fan.start_seconds + 0.05

    def send(name: str, part: float) -> None:
        time.sleep(max(0.0, kill_at - part * fan.start_seconds - time.monotonic()))
        plane.operator.send(fan.members[name], name.split(maxsplit=1)[0])

    # Commands that are not answered by then go on into the kill, as they should.
    with ThreadPoolExecutor(len(PARTS)) as pool:
        sent = [pool.submit(send, name, part) for name, part in PARTS.items()]
        time.sleep(max(0.0, kill_at - time.monotonic()))
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(doing := _doing(plane, fan)) < AT_LEAST:
            assert time.monotonic() < deadline, f"in the midst of something: {doing}"
            if all(each.done() for each in sent):
                # This machine was faster than it was before.
                for name in fan.members.keys() - doing.keys() - {"delete"}:
                    plane.operator.send(fan.members[name], "reset")
        kill()
    return doing


def _doing(plane: Plane, fan: Fan) -> dict[str, str]:
    seen = plane.workflows.see(fan.members.values())
    views = {name: seen[environment_id].view for name, environment_id in fan.members.items()}
    return {
        name: f"{view.status}/{view.phase or view.operation or '-'}"
        for name, view in views.items()
        if view is not None and not view.settled
    }


def _made(plane: Plane, *, running: bool) -> str:
    environment_id = plane.operator.create(desired_running=running)
    assert environment_id is not None, "not created"
    return environment_id
