"""What the gateway leaves in the audit: pairing decisions, dispatch without typed text, alarms about tokens."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from api.gateway import alarms
from inventory import audit, node_tokens
from inventory.audit import TOKEN_REFUSED, Filters
from inventory.engine import reading
from models import tokens
from models.tables import AuditRow
from tests.gateway.harness import DESKTOP, Identity, Node, Stack
from tests.support.waiting import eventually

SOURCE = "192.0.2.9"
TYPED = "correct horse battery staple"


def rows(gateway: Stack, **filters: Any) -> list[AuditRow]:
    with reading(gateway.engine) as session:
        return audit.page(session, Filters(**filters), None, 100)


async def refused(gateway: Stack, token: str, identity: Identity | None = None) -> tuple[int | None, str]:
    """The close of a node's attempt."""
    async with gateway.socket(token) as socket:
        node = Node(socket, identity or Identity())
        await node.send({"request_id": "1", "type": "connect.init", "payload": node.identity.init()})
        return await node.closed()


async def alarm(gateway: Stack, count: int = 1) -> list[AuditRow]:
    return await eventually(
        lambda: found if len(found := rows(gateway, action=TOKEN_REFUSED)) >= count else None, "the alarm", 10
    )


async def test_policy_and_operators_decide_about_pairings(gateway: Stack) -> None:
    managed, other = Identity(), Identity()
    environment_id = gateway.environment()
    token = gateway.token(environment_id, managed, generation=3)
    async with gateway.node(token, managed), gateway.node(identity=other):
        pairing = await gateway.pairing(managed.device_id)
        by_policy = rows(gateway, action="pairing.approve")[0]
        assert (by_policy.actor_kind, by_policy.target) == ("system", managed.device_id)
        assert (by_policy.environment_id, by_policy.generation) == (environment_id, 3)
        asked = await gateway.pairing(other.device_id)
        request = rows(gateway, action="pairing.request")[0]
        assert (request.actor_kind, request.actor) == ("node", other.device_id)
        path = f"/pairings/{asked['pairing_id']}"
        body = {"trust_level": "remote", "capability_allowlist": DESKTOP[:1], "reason": "known"}
        assert (await gateway.admin.post(f"{path}/approve", json=body)).is_success
        assert (await gateway.admin.post(f"{path}/deny")).json()["pairing"]["status"] == "approved"
        assert (await gateway.admin.post(f"/pairings/{pairing['pairing_id']}/revoke")).is_success
        assert (await gateway.admin.post("/pairings/4711/revoke")).status_code == 404
    approve, deny, revoke = (
        rows(gateway, actor="admin", action=f"pairing.{n}") for n in ("approve", "deny", "revoke")
    )
    assert approve[0].detail == {
        "pairing_id": asked["pairing_id"], "status": "approved", "changed": True, "reason": "known",
    }  # fmt: skip
    assert (approve[0].source, approve[0].target, approve[0].environment_id) == (
        SOURCE,
        other.device_id,
        None,
    )
    assert deny[0].detail["changed"] is False
    assert [(row.outcome, row.code) for row in revoke] == [("refused", "not_found"), ("accepted", None)]
    assert (revoke[1].environment_id, revoke[1].generation) == (environment_id, 3)


async def test_a_denial_is_recorded(gateway: Stack) -> None:
    identity = Identity()
    async with gateway.node(identity=identity):
        pairing = await gateway.pairing(identity.device_id)
        path = f"/pairings/{pairing['pairing_id']}/deny"
        assert (await gateway.admin.post(path, json={"reason": "unknown"})).is_success
    (row,) = rows(gateway, action="pairing.deny")
    assert (row.outcome, row.actor, row.target) == ("accepted", "admin", identity.device_id)
    assert (row.detail["changed"], row.detail["status"], row.detail["reason"]) == (True, "denied", "unknown")


async def test_dispatch_without_what_was_typed(gateway: Stack) -> None:
    identity = Identity()
    environment_id = gateway.environment()
    token = gateway.token(environment_id, identity, generation=2)
    path = f"/nodes/{identity.device_id}/dispatch"
    args = {"text": TYPED, "delay_ms": 5, "keys": ["a", "b"]}
    keyboard = {"capability": "tyrum.desktop.keyboard", "args": args}
    async with gateway.node(token, identity) as node:
        await node.receive_type("pairing.updated")
        answering = asyncio.create_task(node.answer(lambda _: {"ok": True, "result": {}}))
        answer = await gateway.admin.post(path, json=keyboard)
        assert answer.status_code == 200 and answer.json()["ok"], answer.text
        answering.cancel()
        failing = asyncio.create_task(
            node.answer(lambda _: {"ok": False, "error": {"code": "x", "message": f"cannot type {TYPED}"}})
        )
        await asyncio.gather(answering, return_exceptions=True)
        assert not (await gateway.admin.post(path, json=keyboard)).json()["ok"]
        failing.cancel()
        await asyncio.gather(failing, return_exceptions=True)
    await gateway.disconnected(identity.device_id)
    assert (await gateway.admin.post(path, json=keyboard)).status_code == 409
    found = rows(gateway, action="dispatch")
    assert [(row.outcome, row.code) for row in found] == [
        ("refused", "conflict"), ("failed", "execution_failed"), ("accepted", None), ("accepted", None),
    ]  # fmt: skip
    for row in found:
        assert (row.actor, row.source, row.target) == ("admin", SOURCE, identity.device_id)
        assert (row.environment_id, row.detail["capability"]) == (environment_id, "tyrum.desktop.keyboard")
    assert found[3].generation == 2
    assert found[3].detail["args"]["text"] == f"<{len(TYPED)} characters>"
    assert found[3].detail["args"]["keys"] == "<list of 2>"
    assert TYPED not in json.dumps([row.model_dump(mode="json") for row in rows(gateway)])


async def test_token_of_an_older_generation(gateway: Stack) -> None:
    identity = Identity()
    environment_id = gateway.environment()
    old = gateway.token(environment_id, identity, generation=1)
    gateway.token(environment_id, identity, generation=2)
    for _ in range(5):
        assert (await refused(gateway, old, identity))[0] == 4001
    found = await alarm(gateway)
    await asyncio.sleep(0.3)
    assert len(rows(gateway, action=TOKEN_REFUSED)) == 1, "one a minute"
    assert (found[0].code, found[0].generation, found[0].source) == ("older generation", 1, "127.0.0.1")
    assert found[0].environment_id == environment_id
    parsed = tokens.parse(old)
    assert parsed is not None and found[0].target == parsed.token_id


async def test_ended_token_at_the_nodes_own_view(gateway: Stack) -> None:
    identity = Identity()
    environment_id = gateway.environment()
    old = gateway.token(environment_id, identity, generation=1)
    gateway.token(environment_id, identity, generation=2)
    async with httpx.AsyncClient(base_url=gateway.node_url, timeout=60, trust_env=False) as http:
        answer = await http.get("/nodes/self", headers={"Authorization": f"Bearer {old}"})
        assert answer.status_code == 401
        found = await alarm(gateway)
        assert (found[0].code, found[0].source) == ("older generation", "127.0.0.1")
        answer = await http.get("/nodes/self", headers={"Authorization": "Bearer nonsense"})
        assert answer.status_code == 401
    await eventually(lambda: rows(gateway, action="auth.refused"), "the row")


async def test_token_of_another_device_or_without_its_key(gateway: Stack) -> None:
    owner, thief = Identity(), Identity()
    environment_id = gateway.environment()
    token = gateway.token(environment_id, owner)
    assert (await refused(gateway, token, thief))[0] == 4001
    found = await alarm(gateway)
    assert (found[0].code, found[0].environment_id) == ("used by another device", environment_id)
    # With the right public key and no private one.
    second = gateway.token(gateway.environment(), owner)
    async with gateway.socket(second) as socket:
        node = Node(socket, owner)
        issued = await node.request("connect.init", owner.init())
        proof = owner.proof(issued["result"]) | {"proof": thief.proof(issued["result"])["proof"]}
        await node.send({"request_id": "2", "type": "connect.proof", "payload": proof})
        assert (await node.closed())[0] == 4007
    assert (await alarm(gateway, 2))[0].code == "used by another device"


@pytest.mark.parametrize("late", [False, True])
async def test_revoked_token_alarms_only_after_the_grace(
    gateway: Stack, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    if late:
        monkeypatch.setattr(alarms, "GRACE", timedelta(0))
    identity = Identity()
    environment_id = gateway.environment()
    token = gateway.token(environment_id, identity)
    now = datetime.now(UTC)
    gateway.change(lambda session: node_tokens.revoke_up_to(session, environment_id, 1, "stop", now))
    assert (await refused(gateway, token, identity))[0] == 4001
    if late:
        assert (await alarm(gateway))[0].code == "revoked: stop"
    else:
        await asyncio.sleep(0.3)
        assert rows(gateway, action=TOKEN_REFUSED) == []


async def test_strangers_at_the_node_listener(gateway: Stack) -> None:
    for _ in range(5):
        assert (await refused(gateway, tokens.mint().text))[0] == 4001
    found = await eventually(lambda: rows(gateway, action="auth.refused"), "the row")
    await asyncio.sleep(0.3)
    assert len(rows(gateway, action="auth.refused")) == 1
    assert found[0].detail == {"listener": "node"} and found[0].environment_id is None
    assert found[0].code == "4001 unauthorized"
