"""A node token ends with its generation: whatever ends that, live sockets and new ones are refused within a second."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlmodel import select
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from api.gateway import Gateway
from api.node_app import create_node_app
from inventory.audit import TOKEN_REFUSED
from inventory.engine import reading
from models import messages as m
from models import tokens
from models.tables import NodeTokenRow
from tests.api.stack import Stack
from tests.gateway.harness import Identity, Node, served
from tests.support.waiting import eventually


@asynccontextmanager
async def socket(url: str, token: str) -> AsyncIterator[Any]:
    offered = [Subprotocol("tyrum-v1"), Subprotocol(tokens.encode_subprotocol(token))]
    async with connect(url, subprotocols=offered, proxy=None, close_timeout=1) as opened:
        yield opened


async def refused(url: str, token: str, seconds: float) -> bool:
    """Whether a new connection is closed for its token, within so many seconds."""
    async with socket(url, token) as opened:
        try:
            async with asyncio.timeout(seconds):
                await opened.recv()
        except (ConnectionClosed, TimeoutError):
            return bool(opened.close_code == 4001)
    return False


@pytest.mark.parametrize("ending", ["stop", "reset", "delete", "replacement"])
async def test_socket_and_connections_end_with_the_generation(stack: Stack, ending: str) -> None:
    environment_id = await stack.create()
    path = f"/desktop-environments/{environment_id}"
    identity, token, now = Identity(), tokens.mint(), datetime.now(UTC)
    stack.runtime.identities[environment_id] = m.Identity(
        device_id=identity.device_id, public_key=identity.pubkey
    )
    stack.runtime.tokens[environment_id, 1] = m.NodeToken(
        token_id=token.token_id,
        token_sha256=tokens.sha256_hex(token.text),
        issued_at=now,
        expires_at=now + timedelta(hours=1),
    )
    assert (await stack.http.post(f"{path}/start?wait=30")).status_code == 200
    gateway = Gateway(stack.engine)
    await gateway.start()
    async with served(create_node_app(replace(stack.services, gateway=gateway)), gateway) as origin:
        url = f"{origin.replace('http', 'ws', 1)}/ws"
        async with socket(url, token.text) as opened:
            node = Node(opened, identity)
            await node.handshake()
            told = await node.receive_type("pairing.updated")
            assert told["payload"]["pairing"]["status"] == "approved"
            if ending == "replacement":
                stack.runtime.crash(environment_id)
            else:
                method, rest = ("DELETE", "") if ending == "delete" else ("POST", f"/{ending}")
                assert (await stack.http.request(method, path + rest)).status_code == 202
            since = time.monotonic()
            closing = asyncio.create_task(node.closed())
            # One that comes before the end is not answered: the next one is made soon.
            await eventually(lambda: refused(url, token.text, 0.5), "new connections are refused")
            shut = time.monotonic() - since
            assert await refused(url, token.text, 10)
            assert (await closing)[0] == 4001
            print(
                f"{ending}: refused after {shut:.2f} s, live socket closed after {time.monotonic() - since:.2f} s"
            )
        if ending in ("reset", "replacement"):

            async def replaced() -> bool:
                entry = (await stack.http.get(path)).json()["environment"]
                return bool(entry["status"] == "running" and entry["generation"] == 2)

            await eventually(replaced, "the next generation runs")
            assert await refused(url, token.text, 10)

            async def alarmed() -> bool:
                entries = (await stack.http.get("/audit", params={"action": TOKEN_REFUSED})).json()["entries"]
                return any(e["target"] == token.token_id and e["code"] == "older generation" for e in entries)

            await eventually(alarmed, "the alarm in the audit")


async def test_the_expiry_moves_as_long_as_the_generation_lives(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node reads its token once: a durable timer moves the expiry, and the token stays."""
    monkeypatch.setattr("workflows.policies.NODE_TOKEN_TTL", timedelta(seconds=4))
    monkeypatch.setattr("workflows.policies.NODE_TOKEN_RENEWAL", timedelta(seconds=1))
    environment_id = await stack.started()

    def row() -> NodeTokenRow:
        with reading(stack.engine) as session:
            return session.exec(
                select(NodeTokenRow).where(NodeTokenRow.environment_id == environment_id)
            ).one()

    first = row()
    await eventually(lambda: row().expires_at > first.issued_at + timedelta(seconds=5), "moved twice")
    last = row()
    assert (last.token_id, last.token_sha256, last.generation) == (first.token_id, first.token_sha256, 1)
    assert last.revoked_at is None
    entries = (await stack.http.get("/audit", params={"environment_id": environment_id})).json()["entries"]
    assert "node_token.extend" in {entry["action"] for entry in entries}
    await stack.http.post(f"/desktop-environments/{environment_id}/stop?wait=30")
    assert row().revoked_at is not None
