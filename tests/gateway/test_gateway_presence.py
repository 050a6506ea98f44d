"""Presence, replacement, revocation, shutdown and the node's own view (design decisions 7, 13 and 14)."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine
from sqlmodel import select

from api.gateway import Gateway, Limits
from api.gateway.presence import PresenceReporter
from inventory import node_tokens
from models.messages import NodePresence
from models.tables import EnvironmentRow, NodeRow
from tests.gateway.harness import ADMIN_TOKEN, DESKTOP, Identity, Node, Stack, eventually, serving

QUIET = 0.3
"""Seconds in which something would have been told."""


def revoke(stack: Stack, environment_id: str, generation: int = 1) -> None:
    now = datetime.now(UTC)
    stack.change(lambda s: node_tokens.revoke_up_to(s, environment_id, generation, "stopped", now))


def heard(stack: Stack) -> list[tuple[str, int, bool]]:
    return [(environment_id, p.generation, p.connected) for environment_id, p in stack.told]


async def managed(stack: Stack, identity: Identity, token: str) -> None:
    """Connect, be approved, go."""
    async with stack.node(token, identity) as node:
        await node.receive_type("pairing.updated")
    await stack.disconnected(identity.device_id)


async def test_normal_life_costs_no_signal(stack: Stack) -> None:
    identity = Identity()
    environment_id = stack.environment()
    for generation in (1, 2):
        token = stack.token(environment_id, identity, generation)
        async with stack.node(token, identity) as node:
            await node.receive_type("pairing.updated")
            revoke(stack, environment_id, generation)
            assert await node.closed() == (4001, "token revoked")
    await asyncio.sleep(QUIET)
    assert stack.told == []


async def test_lost_and_back(stack: Stack) -> None:
    identity = Identity()
    environment_id = stack.environment()
    token = stack.token(environment_id, identity, 7)
    await managed(stack, identity, token)
    await eventually(lambda: len(stack.told) == 1, "the loss is told")
    presence = stack.told[0][1]
    assert (presence.node_id, presence.connected) == (identity.device_id, False)
    assert presence.reason == "disconnected"
    async with stack.node(token, identity):
        await eventually(lambda: len(stack.told) == 2, "the return is told")
        assert heard(stack) == [(environment_id, 7, False), (environment_id, 7, True)]


async def test_ordinary_nodes_and_stopping_environments_are_nobodys_news(stack: Stack) -> None:
    async with stack.node():
        pass
    identity = Identity()
    environment_id = stack.environment(status="stopping")
    await managed(stack, identity, stack.token(environment_id, identity))
    await asyncio.sleep(QUIET)
    assert stack.told == []


async def test_newer_connection_wins_and_nobody_hears_of_it(stack: Stack) -> None:
    identity = Identity()
    token = stack.token(stack.environment(), identity)
    async with stack.node(token, identity) as older:
        await older.receive_type("pairing.updated")
        async with stack.node(token, identity) as newer:
            assert await older.closed() == (4001, "replaced by a newer connection")
            await newer.receive_type("pairing.updated")
            await asyncio.sleep(QUIET)
            assert stack.told == []
            row = stack.change(lambda s: s.get(NodeRow, identity.device_id))
            connection = stack.gateway.connection(identity.device_id)
            assert connection is not None
            assert (row.connected, row.connection_id) == (True, connection.connection_id)
            assert (await newer.request("ping", {}))["ok"]


async def test_revoked_token_closes_its_socket(stack: Stack) -> None:
    identity, other = Identity(), Identity()
    environment_id = stack.environment()
    async with (
        stack.node(stack.token(environment_id, identity), identity) as node,
        stack.node(stack.token(stack.environment(), other), other) as bystander,
    ):
        await stack.connected(identity.device_id)
        revoke(stack, environment_id)
        assert await node.closed() == (4001, "token revoked")
        assert (await bystander.request("ping", {}))["ok"]


@pytest.mark.parametrize("how", ["replaced", "deleted"])
async def test_fenced_token_closes_its_socket(stack: Stack, how: str) -> None:
    identity = Identity()
    environment_id = stack.environment()
    async with stack.node(stack.token(environment_id, identity), identity) as node:
        await stack.connected(identity.device_id)
        if how == "replaced":
            stack.token(environment_id, identity, 2)
        else:

            def delete(session: Any) -> None:
                row = session.get(EnvironmentRow, environment_id)
                row.deleted_at = datetime.now(UTC)
                session.add(row)

            stack.change(delete)
        assert (await node.closed())[0] == 4001
    await asyncio.sleep(QUIET)
    assert stack.told == []


async def test_close_token_at_once(engine: Engine) -> None:
    async with serving(engine, limits=Limits(revocation_interval=3600)) as stack:
        identity = Identity()
        token = stack.token(stack.environment(), identity)
        async with stack.node(token, identity) as node:
            await stack.connected(identity.device_id)
            await stack.gateway.close_token(token.split(".")[2])
            assert await node.closed() == (4001, "token revoked")


async def test_restart_within_the_grace_time_is_no_news(engine: Engine) -> None:
    identity, gone, stopped = Identity(), Identity(), Identity()
    async with serving(engine) as first:
        environments = [first.environment() for _ in range(3)]
        made = [first.token(e, i) for e, i in zip(environments, (identity, gone, stopped), strict=True)]
        async with (
            first.node(made[0], identity) as node,
            first.node(made[1], gone),
            first.node(made[2], stopped),
        ):
            for each in (identity, gone, stopped):
                await first.connected(each.device_id)
            await first.gateway.close()
            assert await node.closed() == (1001, "server shutdown")
        assert first.told == []
        revoke(first, environments[2])
    async with serving(engine, limits=Limits(reconnect_grace=3)) as second, second.node(made[0], identity):
        await eventually(lambda: len(second.told) == 1, "the missing node is told")
        await asyncio.sleep(QUIET)
        assert heard(second) == [(environments[1], 1, False)]
        listed = (await second.admin.get("/nodes")).json()["nodes"]
        assert {n["node_id"] for n in listed if n["connected"]} == {identity.device_id}
        rows = second.change(lambda s: s.exec(select(NodeRow)).all())
        assert {row.node_id for row in rows if row.connected} == {identity.device_id}
    # What was told, or died before it was, is told again by the next process.
    async with serving(engine, limits=Limits(reconnect_grace=0.01)) as third:
        await eventually(lambda: len(third.told) == 2, "both are told")
        assert {told[0] for told in third.told} == set(environments[:2])


async def test_closing_refuses_upgrades(stack: Stack) -> None:
    await stack.gateway.close()
    with pytest.raises(Exception, match="503"):
        async with stack.socket():
            pass


async def test_presence_is_delivered_in_order_and_again() -> None:
    delivered: list[bool] = []
    trouble = 2

    async def listener(_environment_id: str, presence: NodePresence) -> None:
        nonlocal trouble
        if trouble:
            trouble -= 1
            raise RuntimeError("Temporal is away")
        delivered.append(presence.connected)

    reporter = PresenceReporter(listener)
    reporter.report("e", NodePresence(generation=1, connected=False))
    await eventually(lambda: delivered == [False], "delivered at last")
    reporter.report("e", NodePresence(generation=1, connected=True))
    await eventually(lambda: delivered == [False, True], "delivered after it")
    await reporter.close()


# --- what nodes say ---


@pytest.fixture
async def node(stack: Stack) -> AsyncIterator[Node]:
    identity = Identity()
    async with stack.node(stack.token(stack.environment(), identity), identity) as node:
        await node.receive_type("pairing.updated")
        yield node


async def test_ping(node: Node) -> None:
    answer = await node.request("ping", {})
    assert set(answer) == {"request_id", "type", "ok"}
    assert answer["ok"] is True


async def test_capability_ready(stack: Stack, node: Node) -> None:
    state = {
        "capability": DESKTOP[0],
        "actions": [{"name": "screenshot", "enabled": True, "availability_status": "available"}],
    }
    foreign = state | {"capability": {"id": "acme.thing", "version": "1.0.0"}}
    payload = {"capabilities": [DESKTOP[0], {"id": "acme.thing"}], "capability_states": [state, foreign]}
    answer = await node.request("capability.ready", payload)
    assert set(answer) == {"request_id", "type", "ok"}
    event = await node.receive_type("capability.ready")
    assert event["scope"] == {"kind": "node", "node_id": node.identity.device_id}
    assert event["payload"] == {
        "node_id": node.identity.device_id,
        "capabilities": [DESKTOP[0]],
        "capability_states": [state],
    }
    connection = stack.gateway.connection(node.identity.device_id)
    assert connection is not None
    assert connection.ready == {DESKTOP[0]["id"]}
    umbrella = await node.request("capability.ready", {"capabilities": [{"id": "tyrum.desktop"}]})
    assert umbrella["ok"]
    assert len(connection.ready) == 7


async def test_presence_beacon(node: Node) -> None:
    entry = (await node.request("presence.beacon", {}))["result"]["entry"]
    # The sandbox's own mode is none of the entry's (protocol section 12, 15).
    assert set(entry) == {"instance_id", "role", "last_seen_at", "reason", "version"}
    assert entry["last_seen_at"].endswith("Z")
    said = await node.request("presence.beacon", {"mode": "desktop", "host": "h", "last_input_seconds": 3})
    assert said["result"]["entry"]["mode"] == "desktop"


@pytest.mark.parametrize(
    ("kind", "payload", "code"),
    [
        ("capability.ready", {"capabilities": ["x"]}, "invalid_request"),
        ("capability.ready", None, "invalid_request"),
        ("presence.beacon", {"surprise": 1}, "invalid_request"),
        ("presence.beacon", {"mode": "desktop-sandbox"}, "invalid_request"),
        ("location.beacon", {}, "unsupported_request"),
        ("attempt.evidence", {}, "unsupported_request"),
        ("pairing.approve", {}, "forbidden"),
        ("connect.init", {}, "forbidden"),
        ("anything", {}, "forbidden"),
    ],
)
async def test_refused_requests(node: Node, kind: str, payload: Any, code: str) -> None:
    answer = await node.request(kind, payload)
    assert (answer["ok"], answer["error"]["code"]) == (False, code)
    assert "result" not in answer
    assert all(issue["path"] is not None for issue in answer["error"].get("details", {}).get("issues", []))


async def test_admin_peers_are_not_scoped(stack: Stack) -> None:
    identity = Identity()
    init = identity.init() | {"role": "client"}
    async with stack.node(ADMIN_TOKEN, identity, init) as client:
        assert (await client.request("anything", {}))["error"]["code"] == "unsupported_request"
        assert (await client.request("capability.ready", {}))["error"]["code"] == "unauthorized"
    assert (await stack.admin.get("/nodes")).json()["nodes"] == []


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", "invalid_json"),
        ("[]", "invalid_message"),
        (b"{}", "invalid_message"),
        ('{"request_id": "x", "type": "ping"}', "invalid_message"),
        ('{"request_id": "x", "type": "ping", "ok": true, "error": null}', "invalid_message"),
        ('{"event_id": "x", "type": "t", "occurred_at": "now", "payload": 1}', "unexpected_event"),
    ],
)
async def test_bad_frames_are_answered_by_an_error_event(node: Node, frame: str | bytes, code: str) -> None:
    await node.socket.send(frame)
    event = await node.receive_type("error")
    assert set(event) == {"event_id", "type", "occurred_at", "payload"}
    assert event["payload"]["code"] == code
    assert (await node.request("ping", {}))["ok"]


# --- the node's own view ---


async def ask(stack: Stack, token: str, wait: object = None) -> httpx.Response:
    params = {} if wait is None else {"wait": str(wait)}
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        headers = {"Authorization": f"Bearer {token}"}
        return await client.get(f"{stack.node_url}/nodes/self", params=params, headers=headers)


async def test_self_before_and_after(stack: Stack) -> None:
    identity = Identity()
    environment_id = stack.environment()
    token = stack.token(environment_id, identity)
    assert (await ask(stack, token, 0.05)).json() == {
        "status": "ok",
        "node": None,
        "pairing": None,
        "connected": False,
        "approved": False,
    }
    async with stack.node(token, identity) as node:
        pairing = (await node.receive_type("pairing.updated"))["payload"]["pairing"]
        answer = (await ask(stack, token)).json()
        assert answer == {
            "status": "ok",
            "node": pairing["node"],
            "pairing": pairing,
            "connected": True,
            "approved": True,
        }
    await stack.disconnected(identity.device_id)
    answer = (await ask(stack, token)).json()
    assert (answer["connected"], answer["approved"]) == (False, False)
    assert answer["pairing"]["status"] == "approved"
    newer = stack.token(environment_id, identity, 2)
    assert (await ask(stack, token)).status_code == 401
    assert (await ask(stack, newer)).json()["connected"] is False


async def test_self_is_woken_by_the_pairing(stack: Stack, record_property: Any) -> None:
    identity = Identity()
    token = stack.token(stack.environment(), identity)
    waiting = asyncio.create_task(ask(stack, token, 20))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    async with stack.node(token, identity):
        answer = (await waiting).json()
    assert answer["approved"] is True
    assert answer["node"]["node_id"] == identity.device_id


async def test_self_does_not_count_another_tokens_connection(stack: Stack) -> None:
    identity = Identity()
    token = stack.token(stack.environment(), identity)
    async with stack.node(ADMIN_TOKEN, identity):
        await stack.connected(identity.device_id)
        answer = (await ask(stack, token, 0.1)).json()
        assert (answer["connected"], answer["approved"]) == (False, False)


async def test_self_of_a_token_that_ends_meanwhile(stack: Stack) -> None:
    identity = Identity()
    environment_id = stack.environment()
    token = stack.token(environment_id, identity)
    waiting = asyncio.create_task(ask(stack, token, 0.5))
    await asyncio.sleep(0.1)
    revoke(stack, environment_id)
    assert (await waiting).status_code == 401


async def test_self_is_answered_at_shutdown(stack: Stack) -> None:
    identity = Identity()
    token = stack.token(stack.environment(), identity)
    # Whoever asks gives up before that time has passed.
    waiting = asyncio.create_task(ask(stack, token, 60))
    await asyncio.sleep(0.1)
    await stack.gateway.close()
    assert (await waiting).json()["connected"] is False


@pytest.mark.parametrize("token", ["nobody", ADMIN_TOKEN, "f" * 64])
async def test_self_opens_to_node_tokens_only(stack: Stack, token: str) -> None:
    answer = await ask(stack, token)
    assert answer.status_code == 401
    assert set(answer.json()) == {"error", "message"}


@pytest.mark.parametrize("wait", ["-1", "61", "soon", "nan", "inf"])
async def test_self_wait_is_checked(stack: Stack, wait: str) -> None:
    answer = await ask(stack, "x", wait)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/healthz", 200),
        ("/readyz", 200),
        ("/nodes", 404),
        ("/docs", 404),
        ("/openapi.json", 404),
        ("/ws", 404),
    ],
)
async def test_node_listener_has_nothing_else(stack: Stack, path: str, status: int) -> None:
    async with httpx.AsyncClient(base_url=stack.node_url, trust_env=False) as client:
        assert (await client.get(path)).status_code == status


async def test_start_and_close_without_anyone(engine: Engine) -> None:
    gateway = Gateway(engine)
    await gateway.start()
    await gateway.close()
