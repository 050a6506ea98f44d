"""A real gateway on real ports, an operator and nodes to drive it."""

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import httpx
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import FastAPI
from sqlalchemy import Engine
from sqlmodel import Session, SQLModel
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from api import errors
from api.credentials import AdminCredentials
from api.dependencies import Services
from api.gateway import UVICORN_SETTINGS, Gateway, Limits
from api.gateway.handshake import Issue, device_id_of, random_issue
from api.node_app import create_node_app
from api.routers import nodes as nodes_router
from api.temporal import Workflows
from inventory import node_tokens
from inventory.engine import make_engine, writing
from models import capabilities, tokens
from models.messages import NodePresence, NodeToken, RegisterNodeToken
from models.settings import ApiSettings
from models.tables import EnvironmentRow, HostRow
from models.wire import proof_transcript

ADMIN_TOKEN = "an-admin-token-of-the-tests"
DESKTOP = [{"id": capability, "version": "1.0.0"} for capability in capabilities.DESKTOP]
HOST_ID = "desktop-host-test"


class Clock:
    """Deadlines for tests: generous, since machines are shared."""

    LIMIT = 30.0


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition` holds, at most `Clock.LIMIT` seconds."""
    deadline = asyncio.get_running_loop().time() + Clock.LIMIT
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {Clock.LIMIT} s: {what}"
        await asyncio.sleep(0.005)


@dataclass
class Identity:
    """A device key."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def pubkey(self) -> str:
        return tokens.b64url(self._der)

    @property
    def device_id(self) -> str:
        return device_id_of(self._der)

    @property
    def _der(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def init(self, **device: str) -> dict[str, Any]:
        described = {
            "device_id": self.device_id,
            "pubkey": self.pubkey,
            "label": "a node",
            "platform": "linux",
        }
        return {
            "protocol_rev": 2,
            "role": "node",
            "device": described | {"version": "0.1.0", "mode": "desktop-sandbox"} | device,
            "capabilities": DESKTOP,
        }

    def proof(self, issued: dict[str, str], role: str = "node") -> dict[str, str]:
        transcript = proof_transcript(role=role, device_id=self.device_id, **issued)
        return {
            "connection_id": issued["connection_id"],
            "proof": tokens.b64url(self.key.sign(transcript)),
        }


class Node:
    """A node's end of one socket."""

    def __init__(self, socket: ClientConnection, identity: Identity) -> None:
        self.socket = socket
        self.identity = identity
        self.events: list[dict[str, Any]] = []

    async def send(self, message: dict[str, Any]) -> None:
        await self.socket.send(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        """The next frame."""
        async with asyncio.timeout(Clock.LIMIT):
            message: dict[str, Any] = json.loads(await self.socket.recv())
            return message

    async def receive_type(self, kind: str) -> dict[str, Any]:
        """The next frame of that type; other events are kept in `events`."""
        while (message := await self.receive())["type"] != kind:
            self.events.append(message)
        return message

    async def request(self, kind: str, payload: Any) -> dict[str, Any]:
        """Send a request and return its response."""
        request_id = str(uuid4())
        await self.send({"request_id": request_id, "type": kind, "payload": payload})
        while (message := await self.receive()).get("request_id") != request_id:
            self.events.append(message)
        return message

    async def handshake(self, init: dict[str, Any] | None = None) -> dict[str, Any]:
        """Prove the key; returns the proof's result."""
        payload = init or self.identity.init()
        issued = await self.request("connect.init", payload)
        answer = await self.request("connect.proof", self.identity.proof(issued["result"], payload["role"]))
        result: dict[str, Any] = answer["result"]
        return result

    async def closed(self) -> tuple[int | None, str]:
        """Wait for the end of the socket; its code and reason."""
        async with asyncio.timeout(Clock.LIMIT):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    self.events.append(json.loads(await self.socket.recv()))
        return self.socket.close_code, self.socket.close_reason or ""

    async def answer(self, respond: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Answer every task until the socket ends; `respond` gives the branch of the response."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = json.loads(await self.socket.recv())
                if message["type"] == "task.execute" and "payload" in message:
                    head = {"request_id": message["request_id"], "type": "task.execute"}
                    await self.send(head | respond(message["payload"]))


@dataclass
class Stack:
    """One gateway, served."""

    gateway: Gateway
    engine: Engine
    node_url: str
    admin: httpx.AsyncClient
    told: list[tuple[str, NodePresence]]

    @property
    def ws_url(self) -> str:
        return self.node_url.replace("http", "ws") + "/ws"

    @contextlib.asynccontextmanager
    async def socket(
        self, token: str | None = ADMIN_TOKEN, *, subprotocols: list[str] | None = None, **options: Any
    ) -> AsyncIterator[ClientConnection]:
        """An upgraded socket, as the real node upgrades."""
        offered = ["tyrum-v1"] if subprotocols is None else subprotocols
        if token is not None:
            offered = [*offered, tokens.encode_subprotocol(token)]
        typed = [Subprotocol(entry) for entry in offered]
        async with connect(
            self.ws_url, subprotocols=typed or None, max_size=None, proxy=None, close_timeout=1, **options
        ) as socket:
            yield socket

    @contextlib.asynccontextmanager
    async def node(
        self, token: str = ADMIN_TOKEN, identity: Identity | None = None, init: dict[str, Any] | None = None
    ) -> AsyncIterator[Node]:
        """A node past its handshake."""
        async with self.socket(token) as socket:
            node = Node(socket, identity or Identity())
            await node.handshake(init)
            yield node

    async def pairing(self, node_id: str) -> dict[str, Any]:
        """The pairing of a node, once it is there."""
        deadline = asyncio.get_running_loop().time() + Clock.LIMIT
        while True:
            answer = await self.admin.get("/pairings")
            for pairing in answer.json()["pairings"]:
                if pairing["node"]["node_id"] == node_id:
                    return cast("dict[str, Any]", pairing)
            assert asyncio.get_running_loop().time() < deadline, "no pairing"
            await asyncio.sleep(0.005)

    async def connected(self, node_id: str) -> None:
        """Wait until a node's connection is recorded."""
        await eventually(lambda: self.gateway.connection(node_id) is not None, "the node is connected")

    async def disconnected(self, node_id: str) -> None:
        """Wait until a node's connection is gone."""
        await eventually(lambda: self.gateway.connection(node_id) is None, "the node is gone")

    def environment(self, status: str = "running") -> str:
        """An environment's row."""
        environment_id = str(uuid4())
        now = datetime.now(UTC)
        with writing(self.engine) as session:
            if session.get(HostRow, HOST_ID) is None:
                session.add(HostRow(host_id=HOST_ID, label="test", created_at=now, updated_at=now))
                session.flush()
            session.add(
                EnvironmentRow(
                    environment_id=environment_id,
                    host_id=HOST_ID,
                    image_ref="image",
                    status=status,
                    created_at=now,
                    updated_at=now,
                )
            )
        return environment_id

    def token(
        self, environment_id: str, identity: Identity, generation: int = 1, ttl_seconds: float = 3600
    ) -> str:
        """A registered managed token."""
        token = tokens.mint()
        now = datetime.now(UTC)
        registration = RegisterNodeToken(
            environment_id=environment_id,
            generation=generation,
            device_id=identity.device_id,
            token=NodeToken(
                token_id=token.token_id,
                token_sha256=tokens.sha256_hex(token.text),
                issued_at=now,
                expires_at=now + timedelta(seconds=ttl_seconds),
            ),
        )
        self.change(lambda session: node_tokens.register(session, registration, now))
        return token.text

    def change(self, work: Callable[[Session], Any]) -> Any:
        """What `work` returns, in one transaction, as another process would do it."""
        with writing(self.engine) as session:
            return work(session)


def new_engine(folder: Path) -> Engine:
    """An inventory with all tables and nothing in them."""
    engine = make_engine(f"sqlite:///{folder / 'inventory.db'}")
    SQLModel.metadata.create_all(engine)
    return engine


@contextlib.asynccontextmanager
async def serving(
    engine: Engine, *, limits: Limits | None = None, issue: Issue = random_issue, start: bool = True
) -> AsyncIterator[Stack]:
    """A gateway over `engine`, with both its listeners' routes."""
    told: list[tuple[str, NodePresence]] = []

    async def listener(environment_id: str, presence: NodePresence) -> None:
        told.append((environment_id, presence))

    admin_credentials = AdminCredentials(ADMIN_TOKEN, engine)
    gateway = Gateway(
        engine, listener, verify_admin=admin_credentials.operator_name, limits=limits, issue=issue
    )
    settings = ApiSettings(admin_token=ADMIN_TOKEN)
    services = Services(settings, engine, admin_credentials, cast(Workflows, None), gateway)
    admin_app = FastAPI()
    admin_app.state.services = services
    errors.install(admin_app)
    admin_app.include_router(nodes_router.router)
    if start:
        await gateway.start()
    async with served(create_node_app(services), gateway) as url:
        transport = httpx.ASGITransport(admin_app)
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://admin", headers=headers, timeout=60
        ) as admin:
            yield Stack(gateway, engine, url, admin, told)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def] # pytest keeps its own
        yield


@contextlib.asynccontextmanager
async def served(app: FastAPI, gateway: Gateway) -> AsyncIterator[str]:
    """An application on a free port of the loopback, stopped as the api process stops it."""
    listener = socket.create_server(("127.0.0.1", 0))
    # asyncio sets this itself only on sockets made with IPPROTO_TCP; without it small frames wait 40 ms for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(app, log_config=None, lifespan="off", access_log=False, **UVICORN_SETTINGS)
    server = _Server(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        await eventually(lambda: server.started, "uvicorn listens")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        await gateway.close()
        server.should_exit = True
        await task


def standard_base64(data: bytes) -> str:
    """base64 of the other alphabet, padded."""
    return base64.b64encode(data).decode()
