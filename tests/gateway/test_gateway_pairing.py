"""The managed-pairing policy, operators' decisions and scoped tokens (design decision 12, protocol 4.3, 7.3, 10)."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from inventory import node_tokens, pairings
from models import capabilities, tokens
from models.tables import PairingRow
from tests.gateway.harness import ADMIN_TOKEN, DESKTOP, Identity, Node, Stack

ALLOW = {"trust_level": "remote", "capability_allowlist": DESKTOP[:1], "reason": "known"}
REVIEW_KEYS = {
    "review_id", "target_type", "target_id", "reviewer_kind", "reviewer_id", "state", "reason", "risk_level",
    "risk_score", "evidence", "decision_payload", "created_at", "started_at", "completed_at",
}  # fmt: skip


async def decide(
    stack: Stack, pairing: dict[str, Any], what: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    answer = await stack.admin.post(f"/pairings/{pairing['pairing_id']}/{what}", json=body or {})
    assert answer.status_code == 200, answer.text
    assert "scoped" not in answer.text
    decided: dict[str, Any] = answer.json()["pairing"]
    return decided


async def test_managed_node_is_approved_at_once(stack: Stack) -> None:
    identity = Identity()
    environment_id = stack.environment()
    token = stack.token(environment_id, identity, generation=3)
    init = identity.init() | {
        "capabilities": [
            *DESKTOP,
            {"id": "tyrum.desktop.clipboard-write"},
            {"id": "acme.thing", "version": "2.0.0"},
        ]
    }
    async with stack.node(token, identity, init) as node:
        event = await node.receive_type("pairing.updated")
        assert set(event) == {"event_id", "type", "occurred_at", "payload"}
        assert event["occurred_at"].endswith("Z")
        assert set(event["payload"]) == {"pairing"}
        pairing = event["payload"]["pairing"]
        assert set(pairing) == {
            "pairing_id", "status", "motivation", "trust_level", "requested_at", "node", "capability_allowlist",
            "latest_review",
        }  # fmt: skip
        assert (pairing["status"], pairing["trust_level"]) == ("approved", "local")
        assert pairing["capability_allowlist"] == DESKTOP
        assert pairing["node"]["managed_desktop"] == {"environment_id": environment_id}
        assert len(pairing["node"]["capabilities"]) == 9
        assert set(pairing["latest_review"]) == REVIEW_KEYS
        assert pairing["latest_review"]["reviewer_kind"] == "system"
        assert pairing == await stack.pairing(identity.device_id)


async def test_managed_allowlist_follows_what_is_advertised(stack: Stack) -> None:
    identity = Identity()
    token = stack.token(stack.environment(), identity)
    assert len(capabilities.MANAGED_ALLOWLIST) == 36
    for advertised in (DESKTOP[:2], DESKTOP[:1], DESKTOP):
        async with stack.node(token, identity, identity.init() | {"capabilities": advertised}) as node:
            event = await node.receive_type("pairing.updated")
            assert event["payload"]["pairing"]["capability_allowlist"] == advertised


async def test_ordinary_node_waits_and_gets_its_scoped_token_alone(stack: Stack) -> None:
    identity = Identity()
    async with stack.node(identity=identity) as node, stack.node() as bystander:
        pairing = await stack.pairing(identity.device_id)
        assert pairing["status"] == "awaiting_human"
        assert pairing["capability_allowlist"] == []
        assert pairing["latest_review"]["state"] == "requested_human"
        assert "managed_desktop" not in pairing["node"]
        approved = await decide(stack, pairing, "approve", ALLOW)
        assert approved["status"] == "approved"
        assert approved["latest_review"]["reviewer_kind"] == "human"
        assert approved["latest_review"]["reviewer_id"]
        event = await node.receive_type("pairing.updated")
        scoped = event["payload"]["scoped_token"]
        assert tokens.is_scoped(scoped)
        assert (await bystander.request("ping", {}))["ok"]
        assert bystander.events == []
    async with stack.node(scoped, identity) as node:
        event = await node.receive_type("pairing.updated")
        assert "scoped_token" not in event["payload"]
    stranger = Identity()
    async with stack.socket(scoped) as socket:
        other = Node(socket, stranger)
        await other.send({"request_id": "r", "type": "connect.init", "payload": stranger.init()})
        assert await other.closed() == (4008, "scoped token mismatch")
    async with stack.socket(scoped) as socket:
        client = Node(socket, identity)
        init = identity.init() | {"role": "client"}
        await client.send({"request_id": "r", "type": "connect.init", "payload": init})
        assert await client.closed() == (4001, "unauthorized")


async def test_approved_while_away_gets_its_scoped_token_later(stack: Stack) -> None:
    identity = Identity()
    async with stack.node(identity=identity):
        pairing = await stack.pairing(identity.device_id)
    await stack.disconnected(identity.device_id)
    await decide(stack, pairing, "approve", ALLOW)
    async with stack.node(identity=identity) as node:
        event = await node.receive_type("pairing.updated")
        assert tokens.is_scoped(event["payload"]["scoped_token"])


async def test_revoked_ordinary_node_asks_again(stack: Stack) -> None:
    identity = Identity()
    async with stack.node(identity=identity) as node:
        pairing = await stack.pairing(identity.device_id)
        await decide(stack, pairing, "approve", ALLOW)
        scoped = (await node.receive_type("pairing.updated"))["payload"]["scoped_token"]
        revoked = await decide(stack, pairing, "revoke", {"reason": "no more"})
        assert revoked["status"] == "revoked"
        assert await node.closed() == (1008, "pairing revoked")
    async with stack.socket(scoped) as socket:
        assert await Node(socket, identity).closed() == (4001, "unauthorized")
    async with stack.node(identity=identity):
        await stack.connected(identity.device_id)
        again = await stack.pairing(identity.device_id)
    assert (again["status"], again["trust_level"]) == ("awaiting_human", "remote")
    assert again["capability_allowlist"] == []
    assert again["latest_review"] is None
    assert again["requested_at"] >= pairing["requested_at"]


async def test_revocation_ends_a_scoped_connection_for_good(stack: Stack) -> None:
    identity = Identity()
    async with stack.node(identity=identity) as node:
        pairing = await stack.pairing(identity.device_id)
        await decide(stack, pairing, "approve", ALLOW)
        scoped = (await node.receive_type("pairing.updated"))["payload"]["scoped_token"]
    async with stack.node(scoped, identity) as node:
        await node.receive_type("pairing.updated")
        await decide(stack, pairing, "revoke")
        assert (await node.closed())[0] == 4001


async def test_managed_revocation_is_durable_until_an_operator_approves(stack: Stack) -> None:
    identity = Identity()
    environment_id = stack.environment()
    token = stack.token(environment_id, identity)
    async with stack.node(token, identity) as node:
        pairing = (await node.receive_type("pairing.updated"))["payload"]["pairing"]
        await decide(stack, pairing, "revoke", {"reason": "suspicious"})
        assert await node.closed() == (1008, "pairing revoked")
    for generation in (1, 2):
        token = stack.token(environment_id, identity, generation) if generation == 2 else token
        async with stack.node(token, identity):
            await stack.connected(identity.device_id)
            still = await stack.pairing(identity.device_id)
            assert still["status"] == "revoked"
            assert still["latest_review"]["reason"] == "suspicious"
    async with stack.node(token, identity) as node:
        await stack.connected(identity.device_id)
        await decide(stack, pairing, "approve", {"trust_level": "local", "capability_allowlist": DESKTOP[:1]})
        event = await node.receive_type("pairing.updated")
        assert "scoped_token" not in event["payload"]
    async with stack.node(token, identity) as node:
        event = await node.receive_type("pairing.updated")
        assert event["payload"]["pairing"]["capability_allowlist"] == DESKTOP[:1]


async def test_system_revocation_ends_with_the_next_generation(stack: Stack) -> None:
    identity = Identity()
    environment_id = stack.environment()
    async with stack.node(stack.token(environment_id, identity), identity) as node:
        await node.receive_type("pairing.updated")
    now = datetime.now(UTC)
    assert stack.change(lambda s: pairings.revoke_of_environment(s, environment_id, "deleted", now)) == 1
    assert stack.change(lambda s: pairings.revoke_of_environment(s, environment_id, "deleted", now)) == 0
    assert (await stack.pairing(identity.device_id))["status"] == "revoked"
    async with stack.node(stack.token(environment_id, identity, 2), identity) as node:
        event = await node.receive_type("pairing.updated")
        assert event["payload"]["pairing"]["status"] == "approved"


async def test_decisions_in_other_states_change_nothing(stack: Stack) -> None:
    identity = Identity()
    async with stack.node(identity=identity):
        pairing = await stack.pairing(identity.device_id)
        assert (await decide(stack, pairing, "revoke"))["status"] == "awaiting_human"
        assert (await decide(stack, pairing, "deny", {"reason": "who?"}))["status"] == "denied"
        assert (await decide(stack, pairing, "approve", ALLOW))["status"] == "denied"
        assert (await decide(stack, pairing, "deny"))["status"] == "denied"
    answer = await stack.admin.get(f"/pairings/{pairing['pairing_id']}")
    states = [review["state"] for review in answer.json()["pairing"]["reviews"]]
    assert states == ["requested_human", "denied"]


async def test_tokens_of_other_generations_devices_and_times_are_refused(stack: Stack) -> None:
    identity = Identity()
    environment_id = stack.environment()
    first = stack.token(environment_id, identity, 1)
    second = stack.token(environment_id, identity, 2)
    expired = stack.token(stack.environment(), identity, ttl_seconds=-1)
    for token in (first, expired):
        async with stack.socket(token) as socket:
            assert await Node(socket, identity).closed() == (4001, "unauthorized")
    stranger = Identity()
    async with stack.socket(second) as socket:
        node = Node(socket, stranger)
        await node.send({"request_id": "r", "type": "connect.init", "payload": stranger.init()})
        assert await node.closed() == (4001, "unauthorized")
    late = stack.token(environment_id, identity, 1)
    async with stack.socket(late) as socket:
        assert await Node(socket, identity).closed() == (4001, "unauthorized")
    async with stack.node(second, identity):
        pass


def test_token_rows(stack: Stack) -> None:
    identity = Identity()
    environment_id = stack.environment()
    token = tokens.sha256_hex(stack.token(environment_id, identity))
    now = datetime.now(UTC)
    row = stack.change(lambda s: node_tokens.live_token(s, token, now))
    assert row.device_id == identity.device_id
    assert stack.change(lambda s: node_tokens.live_token(s, token, now + timedelta(days=1))) is None
    assert stack.change(lambda s: node_tokens.ended_among(s, {row.token_id, "x"})) == {"x"}
    assert stack.change(lambda s: node_tokens.revoke_up_to(s, environment_id, 0, "no", now)) == 0
    assert stack.change(lambda s: node_tokens.revoke_up_to(s, environment_id, 1, "stopped", now)) == 1
    assert stack.change(lambda s: node_tokens.revoke_up_to(s, environment_id, 1, "stopped", now)) == 0
    assert stack.change(lambda s: node_tokens.ended_among(s, {row.token_id})) == {row.token_id}


async def test_token_revoked_during_the_handshake_is_not_paired(stack: Stack) -> None:
    identity = Identity()
    environment_id = stack.environment()
    async with stack.socket(stack.token(environment_id, identity)) as socket:
        node = Node(socket, identity)
        issued = await node.request("connect.init", identity.init())
        now = datetime.now(UTC)
        stack.change(lambda s: node_tokens.revoke_up_to(s, environment_id, 1, "stopped", now))
        proof = identity.proof(issued["result"])
        await node.send({"request_id": "p", "type": "connect.proof", "payload": proof})
        assert await node.closed() == (4001, "token revoked")
    assert (await stack.admin.get("/pairings")).json()["pairings"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/pairings/999999", None, 404),
        ("GET", "/pairings/0", None, 400),
        ("GET", "/pairings/-1", None, 400),
        ("GET", "/pairings/x", None, 400),
        ("GET", "/pairings/99999999999999999999", None, 404),
        ("GET", "/pairings?status=strange", None, 400),
        ("GET", "/nodes?capability=tyrum.desktop", None, 400),
        ("GET", "/nodes?capability=A%20b", None, 400),
        ("POST", "/pairings/999999/approve", ALLOW, 404),
        ("POST", "/pairings/999999/deny", {}, 404),
        ("POST", "/pairings/999999/revoke", None, 404),
        ("POST", "/pairings/1/approve", {"trust_level": "local"}, 400),
        ("POST", "/pairings/1/approve", ALLOW | {"trust_level": "full"}, 400),
        ("POST", "/pairings/1/approve", ALLOW | {"capability_allowlist": [{"id": "tyrum.browser"}]}, 400),
        ("POST", "/pairings/1/approve", ALLOW | {"extra": 1}, 400),
        ("POST", "/pairings/1/revoke", {"reason": 5}, 400),
        ("POST", "/pairings/1/revoke", {"reason": "a\x00b"}, 400),
    ],
)
async def test_bad_requests(
    stack: Stack, method: str, path: str, body: dict[str, Any] | None, status: int
) -> None:
    answer = await stack.admin.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "message"}


async def test_operators_routes_need_an_operator(stack: Stack) -> None:
    for path in ("/nodes", "/pairings", "/pairings/1"):
        answer = await stack.admin.get(path, headers={"Authorization": "Bearer nobody"})
        assert answer.status_code == 401


async def test_list_of_nodes(stack: Stack) -> None:
    identity, away = Identity(), Identity()
    environment_id = stack.environment()
    async with stack.node(identity=away):
        await stack.connected(away.device_id)
    await stack.disconnected(away.device_id)
    async with stack.node(stack.token(environment_id, identity), identity) as node:
        await node.receive_type("pairing.updated")
        found = {n["node_id"]: n for n in (await stack.admin.get("/nodes")).json()["nodes"]}
        assert set(found) == {identity.device_id, away.device_id}
        mine = found[identity.device_id]
        assert (mine["connected"], mine["paired_status"]) == (True, "approved")
        assert mine["managed_desktop"] == {"environment_id": environment_id}
        assert all(entry["dispatchable"] for entry in mine["capabilities"])
        assert found[away.device_id]["connected"] is False
        only = (await stack.admin.get("/nodes?dispatchable_only=true")).json()["nodes"]
        assert [entry["node_id"] for entry in only] == [identity.device_id]
        none = (await stack.admin.get("/nodes?capability=tyrum.fs.bash")).json()["nodes"]
        assert none == []


async def test_secrets_are_not_at_rest(stack: Stack) -> None:
    identity = Identity()
    managed = stack.token(stack.environment(), Identity())
    async with stack.node(identity=identity) as node:
        await decide(stack, await stack.pairing(identity.device_id), "approve", ALLOW)
        scoped = (await node.receive_type("pairing.updated"))["payload"]["scoped_token"]
    row = stack.change(lambda s: s.get(PairingRow, 1))
    assert row.scoped_token_sha256 == tokens.sha256_hex(scoped)
    files = Path(str(stack.engine.url.database)).parent.iterdir()
    dump = b"".join(file.read_bytes() for file in files).decode(errors="replace")
    assert not any(secret in dump for secret in (scoped, managed, managed.split(".")[3], ADMIN_TOKEN))


async def test_racing_connections_of_one_new_device(stack: Stack) -> None:
    identity = Identity()

    async def once() -> None:
        async with stack.socket() as socket:
            node = Node(socket, identity)
            try:
                await node.handshake()
                await node.closed()
            except TimeoutError:
                return
            except Exception:
                assert socket.close_code == 4001

    tasks = [asyncio.create_task(once()) for _ in range(5)]
    await stack.connected(identity.device_id)
    await stack.pairing(identity.device_id)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
