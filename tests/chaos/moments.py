"""Environments brought into every moment of their lives at the same time, so that one kill meets all of them."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from models.messages import EnvironmentView
from tests.chaos.invariants import converge
from tests.chaos.plane import Plane

LEADS = {
    "start 1": 0.75,
    "start 2": 0.45,
    "start 3": 0.25,
    "start 4": 0.12,
    "start 5": 0.02,
    "stop": 0.06,
    "delete": 0.08,
}
"""How long before the kill each command is sent, seconds: a start takes about 0.8 s here, a stop 0.3 s."""


@dataclass(frozen=True)
class Fan:
    """`idle` is running and left alone. `members`: environment id by moment. `container`: of the idle one."""

    idle: str
    members: dict[str, str]
    container: str


def prepare(plane: Plane, former: Fan | None = None) -> Fan:
    """Settle what the next kill needs: environments to start, one to stop, one to delete.

    Args:
        former: an earlier fan to use again.
    """
    if former is None:
        idle = _made(plane, running=True)
        members = {name: _made(plane, running=not name.startswith("start")) for name in LEADS}
    else:
        idle = former.idle
        members = former.members | {"delete": _made(plane, running=True)}
        for name, environment_id in members.items():
            plane.operator.send(environment_id, "stop" if name.startswith("start") else "start")
    converge(plane)
    [container] = [c["id"] for c in plane.watch.containers() if c["environment_id"] == idle]
    return Fan(idle, members, container)


def strike(plane: Plane, fan: Fan, kill: Callable[[], None]) -> dict[str, str]:
    """Send the commands and call `kill` in the midst of them; what each environment was doing just before."""
    kill_at = time.monotonic() + max(LEADS.values()) + 0.05

    def send(name: str, lead: float) -> None:
        time.sleep(max(0.0, kill_at - lead - time.monotonic()))
        plane.operator.send(fan.members[name], name.split(maxsplit=1)[0])

    # Commands that are not answered by then go on into the kill, as they should.
    with ThreadPoolExecutor(len(LEADS)) as pool:
        for name, lead in LEADS.items():
            pool.submit(send, name, lead)
        time.sleep(max(0.0, kill_at - time.monotonic()))
        seen = plane.workflows.see(fan.members.values())
        kill()
    return {name: _doing(seen[environment_id].view) for name, environment_id in fan.members.items()}


def _doing(view: EnvironmentView | None) -> str:
    return "no answer" if view is None else f"{view.status}/{view.phase or view.operation or '-'}"


def _made(plane: Plane, *, running: bool) -> str:
    environment_id = plane.operator.create(desired_running=running)
    assert environment_id is not None, "not created"
    return environment_id
