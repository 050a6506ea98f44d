"""The inventory's PostgreSQL stopped, and frozen, under a running control plane (issue 3, point 6)."""

import time
from collections.abc import Iterator

import httpx
import pytest

from models.lifecycle import Status
from tests.chaos.database import Database, database
from tests.chaos.invariants import converge, no_failed_tasks
from tests.chaos.plane import Plane, control_plane

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.docker,
    pytest.mark.postgres,
    pytest.mark.xdist_group("chaos-inventory"),
]

AWAY_SECONDS = 6


@pytest.fixture(scope="module")
def postgres() -> Iterator[Database]:
    with database() as server:
        yield server


@pytest.fixture(scope="module")
def recorded(postgres: Database) -> Iterator[Plane]:
    """A control plane on PostgreSQL."""
    with control_plane(postgres.url) as plane:
        yield plane


def is_refused(plane: Plane, method: str, path: str) -> bool:
    answer: httpx.Response = plane.operator.http.request(method, path, json=None if method == "GET" else {})
    return answer.status_code == 503 and set(answer.json()) == {"error", "message"}


def test_a_stopped_database(recorded: Plane, postgres: Database) -> None:
    plane = recorded
    made = [plane.operator.create() for _ in range(3)]
    stopped, crashed, reset = [environment_id for environment_id in made if environment_id]
    converge(plane)
    postgres.stop()
    assert is_refused(plane, "GET", "/desktop-environments")
    assert is_refused(plane, "POST", f"/desktop-environments/{stopped}/start")
    # An engineer's signal, and the world itself, know nothing of databases.
    plane.workflows.signal(stopped, "stop", plane.operator.note(stopped, "stop"))
    plane.workflows.signal(reset, "reset", plane.operator.note(reset, "reset"))
    [container] = [c["id"] for c in plane.watch.containers() if c["environment_id"] == crashed]
    plane.watch.engine.api.kill(container)
    time.sleep(AWAY_SECONDS)
    assert is_refused(plane, "GET", "/desktop-environments")

    def heard_without_a_database() -> bool:
        view = plane.workflows.look(stopped)
        return view is not None and not view.desired_running

    plane.until(heard_without_a_database, "the workflow has taken the stop in", 60)
    postgres.start()
    took = converge(plane)
    print(f"database stopped for {AWAY_SECONDS} s: all agrees {took:.1f} s after its return")
    shown = {i: plane.operator.show(i) or {} for i in (stopped, crashed, reset)}
    assert shown[stopped]["status"] == Status.STOPPED
    assert [shown[i]["generation"] for i in (crashed, reset)] == [2, 2]
    no_failed_tasks(plane)


def test_a_frozen_database(recorded: Plane, postgres: Database) -> None:
    plane = recorded
    environment_id = plane.operator.create()
    assert environment_id is not None
    converge(plane)
    with postgres.frozen():
        plane.workflows.signal(environment_id, "stop", plane.operator.note(environment_id, "stop"))
        began = time.monotonic()
        assert is_refused(plane, "GET", "/desktop-environments")
        print(f"database frozen: the API says so after {time.monotonic() - began:.1f} s")
    took = converge(plane)
    print(f"database frozen: all agrees {took:.1f} s after it thawed")
    no_failed_tasks(plane)
