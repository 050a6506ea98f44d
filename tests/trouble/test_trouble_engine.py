"""The Docker engine down, hung, slow, or busy with a pull, at the real stack (issue 3, point 3)."""

import time
from datetime import UTC, datetime

import pytest

from tests.trouble.field import Field, within
from tests.trouble.registry import slow_registry

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.xdist_group("trouble")]


@pytest.mark.parametrize("way", ["down", "hung"])
def test_engine_lost_and_back(field: Field, way: str) -> None:
    """Told, and everything asked for meanwhile is carried out when it is back; nothing that runs is touched."""
    untouched, stopped, started, deleted = field.many(4)
    for environment_id, command in (
        (untouched, "start"),
        (stopped, "start"),
        (started, "stop"),
        (deleted, "start"),
    ):
        field.settle(environment_id, command)
    before = field.container(untouched).id
    token = field.token(deleted)
    link = field.stack.call("POST", f"/desktop-environments/{deleted}/takeover-token").json()["entry_url"]
    began = time.monotonic()
    if way == "down":
        field.relay.cut()
    else:
        field.relay.hang = True
    within(lambda: not field.host()["docker_available"], "the host recorded")
    print(f"{way}: host recorded after {time.monotonic() - began:.2f} s")
    host = field.host()
    assert ("in time" in host["last_error"]) is (way == "hung"), host
    for environment_id in (untouched, stopped, deleted):
        seen = field.until(environment_id, status="error")
        assert seen["last_error"]["code"] == "docker_unavailable", seen
        assert seen["desired_running"] and seen["recovery"] == "host", seen
    for environment_id, command in ((stopped, "stop"), (started, "start"), (deleted, "delete")):
        field.command(environment_id, command)
    field.until_gone(deleted)
    field.until_nothing_live(deleted)
    assert field.refused(token) == 4001
    assert field.stack.http.get(link).status_code == 404
    assert len(field.stack.containers(deleted)) == 1
    began = time.monotonic()
    if way == "down":
        field.relay.up()
    else:
        field.relay.hang = False
    within(lambda: field.host()["docker_available"], "the host recorded")
    # The host's record comes first, the word to its environments a moment later.
    field.until(untouched, status="running")
    print(f"{way}: running again after {time.monotonic() - began:.2f} s")
    field.until(stopped, status="stopped")
    field.until(started, status="running")
    seen = field.check_agreement(untouched, "running")
    assert (seen["generation"], seen["restarts"], field.container(untouched).id) == (1, 0, before)
    field.check_agreement(stopped, "stopped")
    assert field.check_agreement(started, "running")["restarts"] == 0
    field.check_nothing_left(deleted)


def test_slow_is_not_hung(field: Field) -> None:
    environment_id = field.running()
    field.relay.delay = 1
    try:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            assert field.host()["docker_available"]
            assert field.show(environment_id)["status"] == "running"
            time.sleep(0.2)
    finally:
        field.relay.delay = 0


def test_a_slow_pull_delays_nobody(field: Field) -> None:
    """One slow pull delayed another environment's stop by 190 s in a system with one loop for all."""
    other = field.running()
    with slow_registry() as registry:
        pulling = field.create(image_ref=registry.image)
        assert registry.asked.wait(20)
        field.until(pulling, status="starting", phase="ensure_image")
        began = time.monotonic()
        assert field.settle(other, "stop")["status"] == "stopped"
        assert field.settle(other, "start")["status"] == "running"
        print(f"stop and start beside a pull: {time.monotonic() - began:.2f} s")
        beat = datetime.fromisoformat(field.host()["last_seen_at"])
        assert (datetime.now(UTC) - beat).total_seconds() < 15
        assert field.show(pulling)["phase"] == "ensure_image"
        # Each command interrupts the pull, too.
        assert field.settle(pulling, "stop")["status"] == "stopped"
        field.settle(pulling, "start", seconds=1)
        field.command(pulling, "reset")
        field.until(pulling, phase="ensure_image")
        field.delete(pulling)
    field.check_agreement(other, "running")
