"""The demonstration's steps as tests: the real stack, real containers, the real `temporal` command."""

import base64
import time

import docker
import httpx
import pytest

from models.identifiers import LABEL_GENERATION, environment_workflow_id
from scripts import leftovers, pixels
from scripts.rfb import handshake
from tests.e2e.stack import Stack
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.xdist_group("e2e")]


def screenshot(stack: Stack, node_id: str) -> bytes:
    """A PNG through the paired node."""
    answer = stack.call(
        "POST",
        f"/nodes/{node_id}/dispatch",
        {"capability": "tyrum.desktop.screenshot", "args": {"display": "primary"}},
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["ok"], body
    return base64.b64decode(body["evidence"]["bytesBase64"])


def test_the_main_job(stack: Stack, environment_ids: list[str]) -> None:
    began = time.monotonic()
    environment = stack.create(label="main job")
    print(f"create to running: {(time.monotonic() - began) * 1000:.0f} ms, phases {environment['phases']}")
    environment_id, node_id = environment["environment_id"], environment["node_id"]
    environment_ids.append(environment_id)
    assert environment["status"] == "running" and environment["generation"] == 1
    assert environment["takeover_available"] and environment["last_error"] is None

    before = screenshot(stack, node_id)
    for capability, args in (
        ("mouse", {"action": "click", "x": 400, "y": 300, "button": "left"}),
        ("keyboard", {"action": "type", "text": "echo end to end"}),
        ("keyboard", {"action": "press", "key": "Enter"}),
    ):
        answer = stack.call(
            "POST", f"/nodes/{node_id}/dispatch", {"capability": f"tyrum.desktop.{capability}", "args": args}
        )
        assert answer.json()["ok"], answer.text
    deadline = time.monotonic() + 20
    while pixels.difference(pixels.decode(before), pixels.decode(screenshot(stack, node_id))).pixels < 300:
        assert time.monotonic() < deadline, "what was typed is not on the screen"

    session = stack.call("POST", f"/desktop-environments/{environment_id}/takeover-token").json()
    page = httpx.get(session["entry_url"], follow_redirects=True, trust_env=False)
    assert page.status_code == 200 and "noVNC" in page.text
    link = session["entry_url"].split("?")[0].removesuffix("/vnc.html")
    desktop = handshake(link.replace("http", "ws", 1) + "/websockify", timeout=10)
    assert (desktop.width, desktop.height) == (1280, 720)

    workflow_id = environment_workflow_id(environment_id)
    stack.temporal("workflow", "signal", "--workflow-id", workflow_id, "--name", "stop")
    stopped = stack.settled(environment_id, "stop")
    assert stopped["status"] == "stopped"
    assert stack.containers(environment_id) == []
    assert httpx.get(session["entry_url"], trust_env=False).status_code == 404
    assert stack.call("GET", f"/desktop-environments/{environment_id}/takeover").status_code == 409

    started = stack.settled(environment_id, "start")
    assert (started["status"], started["generation"], started["node_id"]) == ("running", 2, node_id)
    reset = stack.settled(environment_id, "reset")
    assert (reset["status"], reset["generation"], reset["node_id"]) == ("running", 3, node_id)
    assert len(stack.containers(environment_id)) == 1

    logs = stack.call("GET", f"/desktop-environments/{environment_id}/logs", refresh="true").json()["logs"]
    assert logs
    names = [entry["name"] for entry in stack.desktopctl("timeline", environment_id)]
    assert {"create", "stop", "start", "reset", "container_started", "node_paired"} <= set(names)

    deleted = stack.call("DELETE", f"/desktop-environments/{environment_id}", wait=60)
    assert deleted.status_code == 200, deleted.text
    assert stack.containers(environment_id) == []
    assert not (stack.state_dir / "desktop-environments" / environment_id).exists()
    assert stack.call("GET", f"/desktop-environments/{environment_id}").status_code == 404
    database = stack.state_dir / "inventory.db"
    # The node's socket ends, and is recorded as ended, a moment after its token.
    until(lambda: not any(leftovers.in_inventory(database, environment_id).values()), "nothing live")
    assert stack.call("GET", f"/desktop-environments/{environment_id}/timeline").status_code == 200


def test_an_operator_at_the_command_line(stack: Stack, environment_ids: list[str]) -> None:
    created = stack.desktopctl("create", "--label", "cli", "--wait")
    environment_id = created["environment_id"]
    environment_ids.append(environment_id)
    assert created["status"] == "running"
    listed = stack.desktopctl("list")
    assert environment_id in {entry["environment_id"] for entry in listed}
    assert stack.desktopctl("stop", "cli", "--wait")["status"] == "stopped"
    assert stack.desktopctl("show", environment_id[:8])["status"] == "stopped"
    stack.desktopctl("show", "no-such-environment", code=3)
    stack.desktopctl("screenshot", environment_id, code=4)
    hosts = stack.desktopctl("hosts")
    assert [host["healthy"] for host in hosts] == [True]
    stack.desktopctl("delete", environment_id, "--yes", "--wait")
    stack.desktopctl("show", environment_id, code=3)


def test_ten_at_once_all_pair(stack: Stack, environment_ids: list[str]) -> None:
    made = [
        stack.call("POST", "/desktop-environments", {"desired_running": True, "label": f"many {number}"})
        for number in range(10)
    ]
    environment_ids += [answer.json()["environment"]["environment_id"] for answer in made]
    began = time.monotonic()
    assert {stack.settled(environment_id)["status"] for environment_id in environment_ids} == {"running"}
    print(f"10 created at once: all running after {time.monotonic() - began:.1f} s")
    assert [len(stack.containers(environment_id)) for environment_id in environment_ids] == [1] * 10


def test_a_killed_container_is_noticed_and_replaced(stack: Stack, environment_ids: list[str]) -> None:
    environment = stack.create(label="killed")
    environment_id = environment["environment_id"]
    environment_ids.append(environment_id)
    engine = docker.from_env()
    try:
        engine.containers.get(stack.containers(environment_id)[0]).kill()
        began = time.monotonic()
        while True:
            seen = stack.call("GET", f"/desktop-environments/{environment_id}").json()["environment"]
            if seen["status"] == "running" and seen["generation"] == 2:
                break
            assert time.monotonic() - began < 60, seen
        print(f"killed to running again: {(time.monotonic() - began) * 1000:.0f} ms")
        labels = engine.containers.get(stack.containers(environment_id)[0]).labels
        assert labels[LABEL_GENERATION] == "2"
    finally:
        engine.close()
