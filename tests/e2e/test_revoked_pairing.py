"""An operator revokes the pairing of a desktop's node: what he sees, what holds, and how it is undone."""

import time

import pytest

from tests.e2e.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.xdist_group("e2e")]


def test_revoked_is_shown_holds_and_is_undone(stack: Stack, environment_ids: list[str]) -> None:
    environment = stack.create(label="revoked")
    environment_id, node_id = environment["environment_id"], environment["node_id"]
    environment_ids.append(environment_id)
    path = f"/desktop-environments/{environment_id}"
    pairing_id = stack.call("GET", path).json()["environment"]["pairing"]["pairing_id"]
    task = {"capability": "tyrum.desktop.screenshot"}
    assert stack.call("POST", f"/nodes/{node_id}/dispatch", task).json()["ok"]

    assert stack.desktopctl("pairings", "revoke", environment_id, "--reason", "odd")["status"] == "revoked"
    assert stack.desktopctl("pairings", "deny", str(pairing_id), code=4)["status"] == "revoked"
    listed = stack.desktopctl("pairings", "list", "--status", "revoked")
    assert pairing_id in [pairing["pairing_id"] for pairing in listed]
    stack.desktopctl("pairings", "revoke", "nothing of that name", code=3)
    shown = stack.desktopctl("show", environment_id)
    assert (shown["status"], shown["generation"]) == ("running", 1), "the desktop itself is well"
    assert shown["pairing"]["status"] == "revoked" and shown["pairing"]["decided_by"] == "admin"
    assert stack.call("POST", f"/nodes/{node_id}/dispatch", task).status_code == 409
    revoked = [e for e in stack.desktopctl("timeline", environment_id) if e["name"] == "revoke"]
    assert [(e["kind"], e["actor"]) for e in revoked] == [("pairing", "admin")]
    # The node comes back, unpaired.
    deadline = time.monotonic() + 60
    while not next(n for n in stack.call("GET", "/nodes").json()["nodes"] if n["node_id"] == node_id)[
        "connected"
    ]:
        assert time.monotonic() < deadline, "the node did not come back"
        time.sleep(0.2)
    assert stack.call("POST", f"/nodes/{node_id}/dispatch", task).status_code == 409

    # A new generation of the same node is refused too, and at once: repetition cannot mend it.
    reset = stack.settled(environment_id, "reset")
    assert (reset["status"], reset["recovery"], reset["generation"]) == ("error", "operator", 2), reset
    assert "an operator has revoked" in reset["last_error"]["message"]
    assert stack.containers(environment_id) == []
    stack.desktopctl("pairings", "approve", environment_id, "--capability", "no such thing", code=2)
    assert stack.desktopctl("pairings", "approve", environment_id)["trust_level"] == "local"
    started = stack.settled(environment_id, "start")
    assert started["status"] == "running" and started["node_id"] == node_id
    assert stack.call("POST", f"/nodes/{node_id}/dispatch", task).json()["ok"]
