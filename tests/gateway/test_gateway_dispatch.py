"""Dispatch: every refusal, what reaches the node, what comes back, one input at a time (protocol section 6)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import Engine

from api.gateway import Limits
from api.gateway.dispatch import Task
from models import capabilities
from models.tables import EnvironmentRow, PairingRow
from tests.gateway.harness import DESKTOP, Identity, Node, Stack, serving

SCREENSHOT = {"capability": "tyrum.desktop.screenshot"}
CLICK = {"capability": "tyrum.desktop.mouse", "args": {"action": "click", "x": 1, "y": 2}}


@contextlib.asynccontextmanager
async def desktop(stack: Stack, init: dict[str, Any] | None = None) -> AsyncIterator[tuple[Node, str]]:
    """A paired managed node and its environment."""
    identity = Identity()
    environment_id = stack.environment()
    described = identity.init() | (init or {})
    async with stack.node(stack.token(environment_id, identity), identity, described) as node:
        await node.receive_type("pairing.updated")
        yield node, environment_id


@contextlib.asynccontextmanager
async def answering(node: Node, respond: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(node.answer(respond))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def dispatch(stack: Stack, node_id: str, body: dict[str, Any], status: int = 200) -> dict[str, Any]:
    answer = await stack.admin.post(f"/nodes/{node_id}/dispatch", json=body)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def failure(code: str, message: str, details: object = None) -> dict[str, Any]:
    return {"ok": False, "error": {"code": code, "message": message, "details": details}}


async def test_screenshot(stack: Stack) -> None:
    seen: list[dict[str, Any]] = []

    def respond(payload: dict[str, Any]) -> dict[str, Any]:
        seen.append(payload)
        return {"ok": True, "result": {"evidence": {"type": "screenshot", "bytesBase64": "A" * 3_000_000}}}

    async with desktop(stack) as (node, _), answering(node, respond):
        answer = await dispatch(stack, node.identity.device_id, SCREENSHOT)
    assert seen[0]["action"] == {"type": "Desktop", "args": {"op": "screenshot", "display": "primary"}}
    assert set(seen[0]) == {"dispatch_id", "action"}
    assert answer["task_id"].startswith("task-")
    assert answer["dispatch_id"] == seen[0]["dispatch_id"]
    assert (answer["ok"], answer["error"], answer["result"]) == (True, None, None)
    assert len(answer["evidence"]["bytesBase64"]) == 3_000_000
    assert (answer["node_id"], answer["capability"]) == (node.identity.device_id, SCREENSHOT["capability"])


@pytest.mark.parametrize(
    ("capability", "action"),
    [
        ("tyrum.desktop.wait-for", ("Desktop", "wait_for")),
        ("tyrum.desktop.clipboard-write", ("Desktop", "clipboard_write")),
        ("tyrum.fs.apply-patch", ("Filesystem", "apply_patch")),
        ("tyrum.browser.navigate-back", ("Web", "navigate_back")),
        ("tyrum.location.get", None),
        ("acme.custom-thing", None),
    ],
)
def test_actions(capability: str, action: tuple[str, str] | None) -> None:
    assert capabilities.action_of(capability) == action


@pytest.mark.parametrize(
    ("branch", "code"),
    [
        (failure("task_failed", "backend error"), "execution_failed"),
        (failure("task_failed", "no provider for capability"), "action_not_supported"),
        (failure("invalid_request", "x", {"issues": []}), "invalid_input"),
        (failure("task_failed", "Permission denied"), "permission_denied"),
        ({"ok": True, "result": {"surprise": 1}}, "execution_failed"),
        ({"ok": True, "result": 7}, "execution_failed"),
    ],
)
async def test_failures_of_the_node(stack: Stack, branch: dict[str, Any], code: str) -> None:
    async with desktop(stack) as (node, _), answering(node, lambda _payload: branch):
        answer = await dispatch(stack, node.identity.device_id, SCREENSHOT)
    assert (answer["ok"], answer["error"]["code"], answer["error"]["retryable"]) == (False, code, False)


async def test_evidence_of_a_failure_is_kept(stack: Stack) -> None:
    error = {"code": "task_failed", "message": "no", "details": {"evidence": {"type": "x"}}}
    async with desktop(stack) as (node, _), answering(node, lambda _: {"ok": False, "error": error}):
        answer = await dispatch(stack, node.identity.device_id, SCREENSHOT)
    assert answer["evidence"] == {"type": "x"}


async def test_timeout_and_late_answer(stack: Stack) -> None:
    async with desktop(stack) as (node, _):
        answer = await dispatch(stack, node.identity.device_id, SCREENSHOT | {"timeout_seconds": 1})
        assert answer["error"]["code"] == "dispatch_timeout"
        assert answer["error"]["retryable"] is True
        task = await node.receive_type("task.execute")
        await node.send({"request_id": task["request_id"], "type": "task.execute", "ok": True, "result": {}})
        assert (await node.request("ping", {}))["ok"]
        assert node.events == []
        answer = await dispatch(stack, node.identity.device_id, CLICK | {"timeout_seconds": 1})
        assert answer["error"]["retryable"] is False


async def test_disconnection_ends_the_wait(stack: Stack) -> None:
    async with desktop(stack) as (node, _):
        asked = asyncio.create_task(dispatch(stack, node.identity.device_id, SCREENSHOT))
        await node.receive_type("task.execute")
        await node.socket.close()
        answer = await asked
    assert answer["error"] == {
        "code": "runtime_unavailable",
        "message": "the node disconnected before it answered",
        "retryable": True,
    }


async def test_another_node_cannot_answer(stack: Stack) -> None:
    async with desktop(stack) as (node, _), desktop(stack) as (thief, _):
        asked = asyncio.create_task(dispatch(stack, node.identity.device_id, SCREENSHOT))
        task = await node.receive_type("task.execute")
        response = {"request_id": task["request_id"], "type": "task.execute", "ok": True}
        await thief.send(response | {"result": {"result": "forged"}})
        assert (await thief.receive_type("error"))["payload"]["code"] == "unauthorized"
        await node.send(response | {"result": {"result": "mine"}})
        assert (await asked)["result"] == "mine"


async def test_wait_for_leaves_a_margin(engine: Engine) -> None:
    async with serving(engine, limits=Limits(wait_margin=10)) as stack, desktop(stack) as (node, _):
        body = {"capability": "tyrum.desktop.wait-for", "args": {"timeout_ms": 1200}, "timeout_seconds": 1}
        asked = asyncio.create_task(dispatch(stack, node.identity.device_id, body))
        task = await node.receive_type("task.execute")
        await asyncio.sleep(1.3)
        head = {"request_id": task["request_id"], "type": "task.execute"}
        await node.send(head | {"ok": True, "result": {"result": {"status": "timeout"}}})
        assert (await asked)["result"] == {"status": "timeout"}


async def test_refusals_each_say_why(stack: Stack) -> None:
    async with desktop(stack, {"capabilities": DESKTOP[:6]}) as (node, environment_id):
        node_id = node.identity.device_id

        async def refused(body: dict[str, Any], *words: str) -> None:
            answer = await dispatch(stack, node_id, body, 409)
            assert answer["error"] == "conflict"
            assert all(word in answer["message"] for word in words), answer["message"]

        def set_row(row: type[Any], key: Any, **values: Any) -> None:
            def work(session: Any) -> None:
                found = session.get(row, key)
                for name, value in values.items():
                    setattr(found, name, value)
                session.add(found)

            stack.change(work)

        await refused({"capability": "tyrum.desktop.wait-for"}, "not in the allowlist")
        set_row(PairingRow, 1, capability_allowlist=[*DESKTOP])
        await refused({"capability": "tyrum.desktop.wait-for"}, "does not advertise")
        set_row(PairingRow, 1, capability_allowlist=[{"id": DESKTOP[0]["id"], "version": "2.0.0"}])
        await refused(SCREENSHOT, "1.0.0 is not in the allowlist")
        set_row(PairingRow, 1, capability_allowlist=DESKTOP[:6])
        for status in ("starting", "stopping", "error"):
            set_row(EnvironmentRow, environment_id, status=status)
            await refused(SCREENSHOT, f"is {status}, not running")
        set_row(EnvironmentRow, environment_id, status="running")
        assert (await node.request("capability.ready", {"capabilities": []}))["ok"]
        await refused(SCREENSHOT, "not ready")
        set_row(PairingRow, 1, status="revoked")
        await refused(SCREENSHOT, "revoked, not approved")
        set_row(PairingRow, 1, status="approved")
    await stack.disconnected(node_id)
    await refused(SCREENSHOT, "not connected")
    identity = node.identity
    async with stack.node(identity=identity):
        await stack.connected(node_id)
        await refused(SCREENSHOT, "without its environment's token")


@pytest.mark.parametrize(
    ("node_id", "body", "status"),
    [
        ("dev_" + "a" * 52, SCREENSHOT, 404),
        ("nobody", SCREENSHOT, 404),
        ("%00", SCREENSHOT, 404),
        ("x", {"capability": "tyrum.desktop"}, 400),
        ("x", {"capability": "tyrum.location.get"}, 400),
        ("x", {"capability": "Not A Capability"}, 400),
        ("x", {}, 400),
        ("x", SCREENSHOT | {"args": []}, 400),
        ("x", SCREENSHOT | {"args": {"op": "keyboard"}}, 400),
        ("x", SCREENSHOT | {"args": {"op": None}}, 400),
        ("x", SCREENSHOT | {"timeout_seconds": 0}, 400),
        ("x", SCREENSHOT | {"timeout_seconds": 301}, 400),
        ("x", SCREENSHOT | {"surprise": 1}, 400),
        ("x", {"capability": "tyrum.desktop.wait-for", "args": {"timeout_ms": -1}}, 400),
        ("x", {"capability": "tyrum.desktop.wait-for", "args": {"timeout_ms": "soon"}}, 400),
    ],
)
async def test_bad_dispatches(stack: Stack, node_id: str, body: dict[str, Any], status: int) -> None:
    answer = await dispatch(stack, node_id, body, status)
    assert set(answer) == {"error", "message"}


async def test_odd_arguments(stack: Stack) -> None:
    async with desktop(stack) as (node, _), answering(node, lambda p: {"ok": True, "result": {"result": p}}):
        path = f"/nodes/{node.identity.device_id}/dispatch"
        headers = {"Content-Type": "application/json"}
        head = '{"capability": "tyrum.desktop.keyboard", "args": {"text": '
        answer = await stack.admin.post(path, content=head + "NaN}}", headers=headers)
        assert answer.status_code == 400
        answer = await stack.admin.post(path, content=head + '"\\ud83d\\ude00 \\u0000"}}', headers=headers)
        assert answer.json()["result"]["action"]["args"]["text"] == "\U0001f600 \x00"
        answer = await stack.admin.post(path, content=head + '"\\ud800"}}', headers=headers)
        assert answer.status_code == 400
        assert (await dispatch(stack, node.identity.device_id, SCREENSHOT))["ok"]


async def test_input_is_one_at_a_time_in_order(stack: Stack) -> None:
    async with desktop(stack) as (node, _):
        node_id = node.identity.device_id
        # Not over HTTP, where requests arrive in any order.
        tasks = [Task("tyrum.desktop.mouse", {"action": "click", "x": number, "y": 0}) for number in range(4)]
        clicks = [asyncio.create_task(stack.gateway.dispatch(node_id, task)) for task in tasks]
        # What does not touch the pointer does not wait.
        look = asyncio.create_task(dispatch(stack, node_id, SCREENSHOT))
        order: list[int] = []
        both = [await node.receive_type("task.execute") for _ in range(2)]
        by_op = {task["payload"]["action"]["args"]["op"]: task for task in both}
        first, shot = by_op["mouse"], by_op["screenshot"]
        for task in (shot, first):
            await node.send(
                {"request_id": task["request_id"], "type": "task.execute", "ok": True, "result": {}}
            )
        order.append(first["payload"]["action"]["args"]["x"])
        for _ in range(3):
            task = await node.receive_type("task.execute")
            order.append(task["payload"]["action"]["args"]["x"])
            await node.send(
                {"request_id": task["request_id"], "type": "task.execute", "ok": True, "result": {}}
            )
        assert order == [0, 1, 2, 3]
        assert (await look)["ok"]
        assert [outcome.error for outcome in await asyncio.gather(*clicks)] == [None] * 4


async def test_input_queue_is_bounded(stack: Stack) -> None:
    async with desktop(stack) as (node, _):
        node_id = node.identity.device_id
        first = asyncio.create_task(dispatch(stack, node_id, CLICK | {"timeout_seconds": 10}))
        task = await node.receive_type("task.execute")
        answer = await dispatch(stack, node_id, CLICK | {"timeout_seconds": 1}, 409)
        assert "busy with other input" in answer["message"]
        await node.send({"request_id": task["request_id"], "type": "task.execute", "ok": True, "result": {}})
        assert (await first)["ok"]


async def test_queued_input_is_looked_at_again(stack: Stack) -> None:
    async with desktop(stack) as (node, environment_id):
        node_id = node.identity.device_id
        first = asyncio.create_task(dispatch(stack, node_id, CLICK))
        await node.receive_type("task.execute")
        second = asyncio.create_task(dispatch(stack, node_id, CLICK, 409))
        await asyncio.sleep(0.05)

        def stop(session: Any) -> None:
            row = session.get(EnvironmentRow, environment_id)
            row.status = "stopping"
            session.add(row)

        stack.change(stop)
        await node.socket.close()
        assert (await first)["error"]["code"] == "runtime_unavailable"
        assert "is stopping, not running" in (await second)["message"]
