"""A running environment in the inventory alone, an open session, and a noVNC stand-in behind the real proxy."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest_asyncio
from sqlalchemy import Engine
from temporalio.client import Client
from websockets.asyncio.client import ClientConnection, connect

from inventory import takeover
from inventory.engine import writing
from tests.api.stack import fresh_inventory, make_services, record_host, record_running, serving
from tests.api.upstream import Upstream, enter, upstream_serving
from workflows.plugin import ControlPlanePlugin


@dataclass
class Desk:
    """An environment that runs, as the inventory says, and an open session."""

    url: str
    http: httpx.AsyncClient
    engine: Engine
    environment_id: str
    session_id: str
    token: str
    upstream: Upstream

    @property
    def prefix(self) -> str:
        """Where the session is."""
        return f"/desktop-takeover/s/{self.token}/"

    def record(self, **fields: Any) -> None:
        """Have the workflow say something newer."""
        known: dict[str, Any] = {"environment_id": self.environment_id, "revision": 2} | fields
        record_running(self.engine, "h1", known.pop("novnc_port", self.upstream.port), **known)

    @asynccontextmanager
    async def socket(
        self, path: str = "websockify", *, entered: bool = True, **options: Any
    ) -> AsyncIterator[ClientConnection]:
        """A WebSocket through the proxy, past RFB's handshake."""
        address = self.url.replace("http", "ws", 1) + self.prefix + path
        async with connect(address, proxy=None, **options) as websocket:
            if entered:
                await enter(websocket)
            yield websocket


def new_session(engine: Engine, environment_id: str, token: str, ttl_seconds: int = 600) -> str:
    """A session for generation 1; its id."""
    with writing(engine) as session:
        row = takeover.create(
            session,
            environment_id=environment_id,
            generation=1,
            token_sha256=hashlib.sha256(token.encode()).hexdigest(),
            created_by="test",
            now=datetime.now(UTC),
            ttl_seconds=ttl_seconds,
        )
        return row.session_id


@pytest_asyncio.fixture(loop_scope="session")
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    engine = fresh_inventory(tmp_path)
    record_host(engine, "h1")
    nowhere = await Client.connect("127.0.0.1:1", lazy=True, plugins=[ControlPlanePlugin()])
    token = "T" * 42 + "A"
    async with upstream_serving() as upstream, serving(make_services(engine, nowhere)) as (url, _app):
        environment_id = record_running(engine, "h1", upstream.port)
        session_id = new_session(engine, environment_id, token)
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
            yield Desk(url, http, engine, environment_id, session_id, token, upstream)
    engine.dispose()
