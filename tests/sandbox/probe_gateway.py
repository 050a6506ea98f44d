"""A minimal gateway: accepts one node at a time, checks its proof, and sends it what a test wants."""

import asyncio
import base64
import contextlib
import hashlib
import json
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol


def unpadded_decode(text: str) -> bytes:
    """Decode base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@dataclass
class ConnectedNode:
    """A node that has proven its key; `frames` are the ones it sent after that."""

    socket: ServerConnection
    init: dict[str, Any]
    proof: str
    token: str | None
    connected_at: float
    frames: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)

    async def send(self, message: dict[str, Any]) -> None:
        """Send a raw envelope."""
        await self.socket.send(json.dumps(message))

    async def answer(self, seconds: float = 10.0) -> dict[str, Any]:
        """The next frame from the node."""
        return await asyncio.wait_for(self.frames.get(), seconds)

    async def execute(self, request_id: str | None = None, **args: Any) -> dict[str, Any]:
        """Dispatch one Desktop action and return the response envelope."""
        await self.send(task(request_id or f"task-{uuid.uuid4()}", **args))
        return await self.answer(30.0)


def task(request_id: str, **args: Any) -> dict[str, Any]:
    """A ``task.execute`` request for a Desktop action."""
    payload = {"dispatch_id": str(uuid.uuid4()), "action": {"type": "Desktop", "args": args}}
    return {"request_id": request_id, "type": "task.execute", "payload": payload}


class ProbeGateway:
    """Serves ``/ws``; `node()` waits for the next proven node.

    Attributes:
        close_with: when set, every upgrade is closed with this code instead of a handshake.
        connection_id: issued to every node; random when None.
        challenge: likewise.
    """

    def __init__(self) -> None:
        self.close_with: int | None = None
        self.connection_id: str | None = None
        self.challenge: str | None = None
        self.spoil: Callable[[dict[str, Any]], dict[str, Any]] = lambda result: result
        self.upgrades = 0
        self.failures: list[str] = []
        self._nodes: asyncio.Queue[ConnectedNode] = asyncio.Queue()
        self._server: Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen, on the port of the last time if there was one."""
        self._server = await serve(
            self._handle, "0.0.0.0", self.port, subprotocols=[Subprotocol("tyrum-v1")], max_size=2**25
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        """Close every connection with 1001 and stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def node(self, seconds: float = 15.0) -> ConnectedNode:
        """The next node that proves its key."""
        return await asyncio.wait_for(self._nodes.get(), seconds)

    async def _handle(self, socket: ServerConnection) -> None:
        self.upgrades += 1
        if self.close_with is not None:
            await socket.close(self.close_with, "as the test wants")
            return
        with contextlib.suppress(ConnectionClosed):
            try:
                node = await self._shake_hands(socket)
            except (AssertionError, InvalidSignature, KeyError, ValueError) as error:
                self.failures.append(repr(error))
                await socket.close(4003)
                return
            async for frame in socket:
                node.frames.put_nowait(json.loads(frame))

    async def _shake_hands(self, socket: ServerConnection) -> ConnectedNode:
        assert socket.request is not None
        offered = [name.strip() for name in socket.request.headers["Sec-WebSocket-Protocol"].split(",")]
        tokens = [unpadded_decode(name[11:]).decode() for name in offered if name.startswith("tyrum-auth.")]
        init = json.loads(await socket.recv())
        assert set(init) == {"request_id", "type", "payload"}
        assert init["type"] == "connect.init"
        payload = init["payload"]
        assert set(payload) == {"protocol_rev", "role", "device", "capabilities"}
        device_id, key = payload["device"]["device_id"], unpadded_decode(payload["device"]["pubkey"])
        digest = base64.b32encode(hashlib.sha256(key).digest()).decode().rstrip("=").lower()
        assert device_id == f"dev_{digest}"
        connection_id = self.connection_id or str(uuid.uuid4())
        challenge = self.challenge or base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        await _reply(socket, init, self.spoil({"connection_id": connection_id, "challenge": challenge}))
        proof = json.loads(await socket.recv())
        assert proof["type"] == "connect.proof"
        assert proof["payload"]["connection_id"] == connection_id
        text = (
            f"tyrum-connect-proof\nprotocol_rev=2\nrole=node\ndevice_id={device_id}\n"
            f"connection_id={connection_id}\nchallenge={challenge}\n"
        )
        public_key = load_der_public_key(key)
        assert isinstance(public_key, Ed25519PublicKey)
        public_key.verify(unpadded_decode(proof["payload"]["proof"]), text.encode())
        await _reply(socket, proof, {"client_id": connection_id, "device_id": device_id, "role": "node"})
        node = ConnectedNode(
            socket, payload, proof["payload"]["proof"], tokens[0] if tokens else None, time.monotonic()
        )
        self._nodes.put_nowait(node)
        return node


async def _reply(socket: ServerConnection, request: dict[str, Any], result: dict[str, Any]) -> None:
    message = {"request_id": request["request_id"], "type": request["type"], "ok": True, "result": result}
    await socket.send(json.dumps(message))
