"""Environments over HTTP, from the first request to the last trace."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlmodel import Session

from api import service
from inventory import environments, events
from inventory.engine import reading
from models.identifiers import CONTROL_TASK_QUEUE, environment_workflow_id, host_workflow_id
from models.lifecycle import Status
from models.messages import HostInput, HostRecord
from models.tables import EnvironmentRow
from tests.api.stack import Stack
from tests.support.temporal import temporal_cli
from tests.support.waiting import eventually

FIELDS = {
    *("environment_id", "host_id", "label", "image_ref", "managed_kind", "status", "desired_running"),
    *(
        "generation",
        "node_id",
        "takeover_available",
        "last_error",
        "created_at",
        "updated_at",
        "last_seen_at",
    ),
}
"""The environment object of design section 5."""


async def shown(stack: Stack, environment_id: str) -> dict[str, Any]:
    answer = await stack.http.get(f"/desktop-environments/{environment_id}")
    assert answer.status_code == 200, answer.text
    environment: dict[str, Any] = answer.json()["environment"]
    return environment


async def test_create_answers_where_it_is(stack: Stack) -> None:
    answer = await stack.http.post(
        "/desktop-environments",
        json={"host_id": stack.host_id, "label": "naïve 🖥", "image_ref": "r.io/a/b:1"},
    )
    assert answer.status_code == 201
    environment = answer.json()["environment"]
    assert set(environment) >= FIELDS
    assert environment["label"] == "naïve 🖥" and environment["image_ref"] == "r.io/a/b:1"
    assert environment["created_at"].endswith("Z") and "." in environment["created_at"]
    location = answer.headers["location"]
    assert location == f"/desktop-environments/{environment['environment_id']}"
    assert (await stack.http.get(location)).json()["environment"]["source"] == "workflow"


async def test_host_may_be_left_out_when_there_is_one_and_image_is_the_default(stack: Stack) -> None:
    answer = await stack.http.post("/desktop-environments", json={})
    assert answer.status_code == 201, answer.text
    assert answer.json()["environment"]["host_id"] == stack.host_id
    assert answer.json()["environment"]["image_ref"] == stack.services.settings.default_image


async def test_whole_life(stack: Stack) -> None:
    environment_id = await stack.create(desired_running=True, label="life")
    path = f"/desktop-environments/{environment_id}"
    answer = await stack.http.post(f"{path}/start?wait=30", json={"reason": "test"})
    assert answer.status_code == 200
    running = answer.json()["environment"]
    assert running["status"] == "running" and running["takeover_available"] and running["node_id"]
    detail = await shown(stack, environment_id)
    assert detail["source"] == "workflow" and detail["settled"] and detail["phases"]
    assert detail["last_seen_at"] is not None

    accepted = await stack.http.post(f"{path}/stop")
    assert accepted.status_code == 202
    stopped = await stack.http.post(f"{path}/stop?wait=30")
    assert stopped.status_code == 200 and stopped.json()["environment"]["status"] == "stopped"

    reset = await stack.http.post(f"{path}/reset?wait=30", json={"reason": "clean", "rotate_identity": True})
    assert reset.status_code == 200 and reset.json()["environment"]["status"] == "stopped"

    gone = await stack.http.request("DELETE", f"{path}?wait=30", json={"reason": "done"})
    assert gone.status_code == 200 and gone.json()["deleted"] is True

    async def is_gone() -> bool:
        return (await stack.http.get(path)).status_code == 404

    await eventually(is_gone, "a deleted environment is 404")
    for method, route in [
        ("POST", "/start"),
        ("POST", "/stop"),
        ("POST", "/reset"),
        ("DELETE", ""),
        ("PATCH", ""),
        ("GET", "/logs"),
        ("POST", "/takeover-token"),
    ]:
        answer = await stack.http.request(method, path + route, json={} if method == "PATCH" else None)
        assert answer.status_code == 404, (method, route, answer.text)
    timeline = (await stack.http.get(f"{path}/timeline")).json()
    names = [f"{entry['kind']}:{entry['name']}" for entry in timeline["entries"]]
    assert "command:reset" in names and "command:delete" in names
    assert any(entry["reason"] == "done" and entry["actor"] == "admin" for entry in timeline["entries"])


async def test_commands_typed_by_hand_are_seen(stack: Stack) -> None:
    environment_id = await stack.started()
    await temporal_cli(
        stack.client.service_client.config.target_host,
        *("workflow", "signal", "--workflow-id", f"desktop-environment/{environment_id}", "--name", "stop"),
    )

    async def stopped() -> bool:
        return bool((await shown(stack, environment_id))["status"] == "stopped")

    await eventually(stopped, "stopped by hand")


async def test_twenty_commands_at_once_settle(stack: Stack) -> None:
    environment_id = await stack.create()
    path = f"/desktop-environments/{environment_id}"
    names = ["start", "stop", "reset"] * 7
    answers = await asyncio.gather(*(stack.http.post(f"{path}/{name}") for name in names))
    assert {answer.status_code for answer in answers} == {202}
    settled = await stack.http.post(f"{path}/start?wait=60")
    assert settled.status_code == 200 and settled.json()["environment"]["status"] == "running"


async def test_patch(stack: Stack) -> None:
    environment_id = await stack.create(label="before")
    path = f"/desktop-environments/{environment_id}"
    assert (await stack.http.patch(path, json={})).json()["environment"]["label"] == "before"
    changed = await stack.http.patch(path, json={"label": "after", "image_ref": "other:2"})
    assert changed.status_code == 200
    assert changed.json()["environment"]["label"] == "after"
    assert changed.json()["environment"]["image_ref"] == "other:2"
    cleared = await stack.http.patch(path, json={"label": None})
    assert cleared.json()["environment"]["label"] is None
    started = await stack.http.patch(path, json={"desired_running": True})
    assert started.json()["environment"]["desired_running"] is True
    settled = await stack.http.post(f"{path}/start?wait=30")
    assert settled.json()["environment"]["status"] == "running"
    renamed = (await stack.http.patch(path, json={"label": "runs on"})).json()["environment"]
    assert (renamed["status"], renamed["takeover_available"]) == ("running", True)
    anew = (await stack.http.patch(path, json={"limits": {"pids": 300}})).json()["environment"]
    assert (anew["status"], anew["takeover_available"], anew["settled"]) == ("starting", False, False)
    assert anew["source"] == "expected" and anew["limits"]["pids"] == 300
    stopped = await stack.http.patch(path, json={"desired_running": False})
    assert stopped.json()["environment"]["desired_running"] is False


async def test_two_changes_of_limits_at_once_lose_none(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/desktop-environments/{await stack.create()}"
    both, begin = asyncio.Barrier(2), service._begin

    async def at_once(row: EnvironmentRow | None, **detail: object) -> None:
        # Each has merged its own by now.
        await both.wait()
        await begin(row, **detail)

    monkeypatch.setattr(service, "_begin", at_once)
    answers = await asyncio.gather(
        stack.http.patch(path, json={"limits": {"cpus": 1}}),
        stack.http.patch(path, json={"limits": {"pids": 256}}),
    )
    assert [answer.status_code for answer in answers] == [200, 200]

    async def both_kept() -> bool:
        limits = (await shown(stack, path.rpartition("/")[2]))["limits"]
        return (limits["cpus"], limits["pids"]) == (1, 256)

    # Later, where a busy worker leaves the answer to the record.
    await eventually(both_kept, "both are kept")


async def test_deleting_refuses_what_is_no_delete(stack: Stack) -> None:
    environment_id = await stack.started()
    gate = stack.runtime.gate("remove_container")
    path = f"/desktop-environments/{environment_id}"
    try:
        assert (await stack.http.delete(path)).status_code == 202

        async def refused() -> bool:
            return (await stack.http.post(f"{path}/start")).status_code == 409

        await eventually(refused, "start of one being deleted is refused")
        for route in ("stop", "reset"):
            assert (await stack.http.post(f"{path}/{route}")).status_code == 409
        assert (await stack.http.patch(path, json={"label": "x"})).status_code == 409
        assert (await stack.http.post(f"{path}/takeover-token")).status_code == 409
        assert (await stack.http.delete(path)).status_code == 202
    finally:
        gate.set()
    assert (await stack.http.delete(f"{path}?wait=30")).status_code in (200, 404)


async def test_list_pages_and_filters(stack: Stack) -> None:
    label = f"page-{uuid4()}"
    made = {await stack.create(label=label) for _ in range(5)}

    async def stopped() -> bool:
        answer = await stack.http.get("/desktop-environments", params={"label": label, "status": "stopped"})
        return len(answer.json()["environments"]) == 5

    await eventually(stopped, "all recorded as stopped")
    seen: list[str] = []
    cursor: str | None = None
    while True:
        query = {"label": label, "limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = (await stack.http.get("/desktop-environments", params=query)).json()
        assert len(page["environments"]) <= 2
        assert all(set(environment) >= FIELDS for environment in page["environments"])
        seen += [environment["environment_id"] for environment in page["environments"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == 5 and set(seen) == made
    other = await stack.http.get("/desktop-environments", params={"label": label, "host_id": "elsewhere"})
    assert other.json() == {"status": "ok", "environments": [], "next_cursor": None}


async def test_logs_retained_and_read_now(stack: Stack) -> None:
    environment_id = await stack.started()
    path = f"/desktop-environments/{environment_id}/logs"
    fresh = await stack.http.get(path, params={"refresh": "true"})
    assert fresh.status_code == 200 and fresh.json()["logs"] == ["desktop up"]
    assert (await stack.http.get(path)).status_code == 200


async def test_timeline_pages_by_sequence(stack: Stack) -> None:
    environment_id = await stack.started()
    path = f"/desktop-environments/{environment_id}/timeline"
    whole = (await stack.http.get(path)).json()["entries"]
    sequences = [entry["sequence"] for entry in whole]
    assert sequences == sorted(set(sequences)) and len(sequences) > 3
    collected: list[int] = []
    after = -1
    while True:
        page = (await stack.http.get(path, params={"after": after, "limit": 2})).json()
        collected += [entry["sequence"] for entry in page["entries"]]
        if page["next_after"] is None:
            break
        after = page["next_after"]
    assert collected[: len(sequences)] == sequences


async def test_timeline_shows_what_is_not_recorded_yet(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    environment_id = await stack.started()
    path = f"/desktop-environments/{environment_id}/timeline"
    with reading(stack.engine) as session:
        recorded = events.page(session, environment_id)
    monkeypatch.setattr(events, "page", lambda *_arguments: recorded[:2])
    entries = (await stack.http.get(path)).json()["entries"]
    assert [entry["sequence"] for entry in entries][: len(recorded)] == [entry.sequence for entry in recorded]


async def test_running_is_not_said_before_it_is_recorded(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dispatch and takeover go by the record: who reads `running` finds them open."""
    environment_id = await stack.started()
    get, late, reads = environments.get, asyncio.Event(), 0

    def behind(session: Session, wanted: str, include_deleted: bool = False) -> EnvironmentRow | None:
        nonlocal reads
        row = get(session, wanted, include_deleted)
        assert row is not None
        reads += 1
        if not late.is_set():
            session.expunge(row)
            row.status = Status.STARTING
        return row

    monkeypatch.setattr(environments, "get", behind)
    answer = asyncio.create_task(shown(stack, environment_id))
    await eventually(lambda: reads > 2, "the record is read again")
    assert not answer.done()
    late.set()
    assert (await answer)["status"] == "running"

    late.clear()
    environment = await shown(stack, environment_id)
    assert environment["status"] == "running", "a record that does not come holds no answer up for ever"


async def test_defaults_have_revisions(stack: Stack) -> None:
    path = "/config/desktop-environments/defaults"
    before = (await stack.http.get(path)).json()
    put = await stack.http.put(path, json={"default_image_ref": "desktop-sandbox:dev", "reason": "pin"})
    assert put.status_code == 200
    assert put.json()["revision"] > before["revision"] and put.json()["created_by"] == "admin"
    assert put.json()["reverted_from_revision"] is None
    assert (await stack.http.get(path)).json() == put.json()


async def test_hosts(stack: Stack) -> None:
    listed = (await stack.http.get("/desktop-environment-hosts")).json()["hosts"]
    assert [host["host_id"] for host in listed] == [stack.host_id]
    shown_host = (await stack.http.get(f"/desktop-environment-hosts/{stack.host_id}")).json()["host"]
    assert shown_host["healthy"] and shown_host["docker_available"]
    assert (await stack.http.get("/desktop-environment-hosts/unknown")).status_code == 404


async def test_host_last_seen_is_the_monitors_heartbeat(stack: Stack) -> None:
    before = datetime.now(UTC)
    record = HostRecord(host_id=stack.host_id, healthy=True, docker_available=True, revision=2)
    handle = await stack.client.start_workflow(
        "DesktopHost",
        HostInput(record=record),
        id=host_workflow_id(stack.host_id),
        task_queue=CONTROL_TASK_QUEUE,
    )
    try:

        async def beaten() -> bool:
            host = (await stack.http.get(f"/desktop-environment-hosts/{stack.host_id}")).json()["host"]
            seen = host["last_seen_at"]
            return seen is not None and datetime.fromisoformat(seen) >= before

        await eventually(beaten, "the host's heartbeat shows")
    finally:
        await handle.terminate()


async def test_an_environment_whose_workflow_was_terminated_is_told_and_brought_back(stack: Stack) -> None:
    environment_id = await stack.started()
    workflow_id = environment_workflow_id(environment_id)
    path = f"/desktop-environments/{environment_id}"
    before = await shown(stack, environment_id)
    recorded = (await stack.http.get(f"{path}/timeline")).json()["entries"]

    await temporal_cli(
        stack.client.service_client.config.target_host, "workflow", "terminate", "--workflow-id", workflow_id
    )
    ghost = await shown(stack, environment_id)
    assert (ghost["status"], ghost["source"]) == ("error", "inventory")
    assert "its workflow is gone" in ghost["last_error"]["message"]
    assert not ghost["takeover_available"]

    answer = await stack.http.post(f"{path}/start", params={"wait": 30})
    back = answer.json()["environment"]
    assert (answer.status_code, back["status"], back["source"]) == (200, "running", "workflow")
    assert back["generation"] > before["generation"]
    timeline = (await stack.http.get(f"{path}/timeline")).json()["entries"]
    assert timeline[: len(recorded)] == recorded and len(timeline) > len(recorded)

    await temporal_cli(
        stack.client.service_client.config.target_host, "workflow", "terminate", "--workflow-id", workflow_id
    )
    stopped = await stack.http.post(f"{path}/stop", params={"wait": 30})
    assert (stopped.status_code, stopped.json()["environment"]["status"]) == (200, "stopped"), stopped.text
    assert environment_id not in stack.runtime.containers

    await temporal_cli(
        stack.client.service_client.config.target_host, "workflow", "terminate", "--workflow-id", workflow_id
    )
    deleted = await stack.http.delete(path, params={"wait": 30})
    assert deleted.status_code == 200, deleted.text
    assert (await stack.http.get(path)).status_code == 404
