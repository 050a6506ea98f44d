"""Container trouble at the real stack (issue 3, point 2): noticed, recovered, explained."""

import functools
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from activities.host import PROBE_SECONDS
from tests.support.pausing import pause
from tests.trouble.field import PARTS, Field, within

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.xdist_group("trouble")]

POLL_SECONDS = 10.5
"""A round of a system that polls every 10 s falls into this."""


def test_killed_is_noticed_recovered_and_explained(field: Field) -> None:
    made = environment_id, *_ = field.many(3)
    for each in made:
        assert field.settle(each, "start")["status"] == "running"
    old = field.token(environment_id)
    check_nobody_polls(field, environment_id)
    recoveries = [field.recover(each, field.container(each).kill) for each in made]
    print(*recoveries, sep="\n")
    # A system that polls every 10 s said `running` in 753 of 753 reads. Nor is it the probe of the engine that told.
    assert statistics.median(recovery.noticed for recovery in recoveries) < PROBE_SECONDS, recoveries
    field.check_agreement(environment_id, "running")
    assert field.token(environment_id) != old
    assert field.refused(old) == 4001
    (error,) = field.errors(environment_id)
    assert error["name"] == "sandbox_exited" and error["generation"] == 1
    assert error["detail"]["exit_code"] == 137 and error["detail"]["log_tail"]
    assert "oom_killed" not in error["detail"]
    seen = field.stack.desktopctl("show", environment_id)
    assert (seen["restarts"], seen["last_error"]) == (1, None)


def check_nobody_polls(field: Field, environment_id: str) -> None:
    """While nothing happens the engine is asked about no container: what is noticed then, its events have told."""
    container = field.container(environment_id)
    look = re.compile(rf"GET \S*/containers/(json|{container.id}|{container.short_id}|{container.name})\b")
    before = len(field.relay.lines)
    time.sleep(POLL_SECONDS)
    came = field.relay.lines[before:]
    # The engine itself is asked whether it is there: the relay does see what the host worker asks.
    assert [line for line in came if "/version" in line], came
    assert [line for line in came if look.search(line)] == []


def test_whatever_happens_to_it(field: Field) -> None:
    def life(way: str) -> None:
        environment_id = field.running()
        container = field.container(environment_id)
        if way == "removed":
            recovery = field.recover(environment_id, functools.partial(container.remove, force=True))
        elif way == "paused":
            recovery = field.recover(environment_id, functools.partial(pause, field.engine.api, container.id))
        else:
            recovery = field.recover(environment_id, field.kill_inside(environment_id, PARTS[way]))
        print(way, recovery)
        field.check_agreement(environment_id, "running")
        (error,) = field.errors(environment_id)
        expected = "sandbox_unhealthy" if way == "paused" else "sandbox_exited"
        assert (error["name"], error["generation"]) == (expected, 1)
        if way in PARTS:
            assert error["detail"]["exit_code"] == 137
            assert "died (signal SIGKILL)" in error["detail"]["log_tail"][-1]

    ways = ["removed", "paused", *PARTS]
    with ThreadPoolExecutor(len(ways)) as pool:
        list(pool.map(life, ways))


def test_out_of_memory_as_a_whole(field: Field) -> None:
    environment_id = field.running()
    recovery = field.recover(environment_id, field.out_of_memory(environment_id, whole=True))
    print(recovery)
    field.check_agreement(environment_id, "running")
    (error,) = field.errors(environment_id)
    assert error["name"] == "sandbox_exited" and "out of memory" in error["message"]
    assert error["detail"]["oom_killed"] is True and error["detail"]["exit_code"] == 137
    assert error["detail"]["log_tail"]


def test_out_of_memory_of_one_program_only(field: Field) -> None:
    """The kernel has ended what was too big, and the desktop is well: it stays, and the operator is told."""
    environment_id = field.running()
    field.out_of_memory(environment_id, whole=False)()
    within(lambda: "out_of_memory" in [entry["name"] for entry in field.timeline(environment_id)], "told")
    seen = field.check_agreement(environment_id, "running")
    assert (seen["generation"], seen["restarts"]) == (1, 0)
    assert field.errors(environment_id) == []
