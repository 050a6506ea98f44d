"""One open socket: frames in, envelopes out, and the tasks its node owes an answer to."""

import asyncio
import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from starlette.websockets import WebSocket, WebSocketDisconnect

from api.gateway.credentials import Claims
from api.gateway.handshake import Proven
from models.capabilities import Descriptor
from models.pairing import NodePairing, PairingStatus
from models.wire import Failure, Success, timestamp

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 2.0


class Disconnected(Exception):
    """The socket is closed or lost."""


class Socket:
    """A WebSocket whose reads can be waited for with a deadline, and whose peer cannot hold a writer for ever.

    Args:
        send_timeout: seconds.
    """

    def __init__(self, websocket: WebSocket, send_timeout: float) -> None:
        self._websocket = websocket
        self._send_timeout = send_timeout
        self._reading: asyncio.Task[Any] | None = None
        self._sending = asyncio.Lock()
        self._closing = False

    def reading(self) -> asyncio.Task[Any]:
        """The read under way; it is kept when a wait for it ends early, so no frame is lost."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._websocket.receive())
        return self._reading

    async def receive(self) -> str | bytes:
        """The next frame.

        Raises:
            Disconnected: there is no more.
        """
        task = self.reading()
        await asyncio.wait({task})
        self._reading = None
        if task.cancelled():
            raise Disconnected
        try:
            message = task.result()
        except (RuntimeError, OSError, WebSocketDisconnect):
            raise Disconnected from None
        if message["type"] != "websocket.receive":
            raise Disconnected
        text: str | None = message.get("text")
        binary: bytes = message.get("bytes") or b""
        return binary if text is None else text

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send one envelope.

        Raises:
            Disconnected: the socket is closed or lost, or the peer takes nothing.
        """
        if self._closing:
            raise Disconnected
        # ASCII only: a lone surrogate in an operator's text must not end the connection.
        text = json.dumps(message, separators=(",", ":"), allow_nan=False)
        try:
            async with asyncio.timeout(self._send_timeout), self._sending:
                await self._websocket.send_text(text)
        except TimeoutError:
            await self.close(1013, "slow consumer")
            raise Disconnected from None
        except (RuntimeError, OSError, WebSocketDisconnect):
            raise Disconnected from None

    async def close(self, code: int, reason: str) -> None:
        """Close; returns when the close frame is written, or the socket given up."""
        if self._closing:
            return
        self._closing = True
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._websocket.close(code, reason)
        except (TimeoutError, RuntimeError, OSError, WebSocketDisconnect):
            logger.debug("close %d: the peer is gone", code)
            self.abandon()

    def abandon(self) -> None:
        """End any read under way."""
        self._closing = True
        if self._reading is not None:
            self._reading.cancel()


class Connection:
    """A peer that has proven its key.

    Attributes:
        advertised: what `connect.init` named. ready: the ids of it that can be used now.
        pairing: as last known here; None until the connection is recorded.
        tasks: answers awaited, by request id.
        leaving: why this side ended it, for the presence report.
    """

    def __init__(self, socket: Socket, claims: Claims, proven: Proven, remote_ip: str | None) -> None:
        self.socket = socket
        self.claims = claims
        self.proven = proven
        self.remote_ip = remote_ip
        self.connection_id = proven.connection_id
        self.node_id = proven.init.device.device_id
        self.role = proven.init.role
        self.advertised: dict[str, Descriptor] = {d.id: d for d in proven.capabilities}
        self.ready: set[str] = set(self.advertised)
        self.pairing: NodePairing | None = None
        self.tasks: dict[str, asyncio.Future[Success | Failure]] = {}
        self.leaving = ""

    @property
    def vnc_password(self) -> str | None:
        """The password of the node's desktop, None for a node without one of its own."""
        return self.claims.vnc_password

    @property
    def approved(self) -> bool:
        """Whether the pairing is approved, as last known here."""
        return self.pairing is not None and self.pairing.status is PairingStatus.APPROVED

    async def send(self, message: Mapping[str, Any]) -> None:
        """As `Socket.send`."""
        await self.socket.send(message)

    async def send_event(self, kind: str, payload: Any, scope: Mapping[str, Any] | None = None) -> None:
        """Send one event.

        Raises:
            Disconnected: the socket is closed or lost.
        """
        event = {
            "event_id": str(uuid4()),
            "type": kind,
            "occurred_at": timestamp(datetime.now(UTC)),
            "payload": payload,
        }
        if scope is not None:
            event["scope"] = scope
        await self.send(event)

    async def close(self, code: int, reason: str) -> None:
        """Close the socket; the task that serves it does the rest."""
        self.leaving = self.leaving or reason
        await self.socket.close(code, reason)

    def reject_tasks(self) -> None:
        """Give up every awaited answer: the connection is gone (protocol section 6.5)."""
        for future in self.tasks.values():
            if not future.done():
                future.set_exception(Disconnected())
        self.tasks.clear()


class Registry:
    """The connected nodes, one connection each, and other peers."""

    def __init__(self) -> None:
        self._nodes: dict[str, Connection] = {}
        self._clients: set[Connection] = set()

    def add(self, connection: Connection) -> Connection | None:
        """Take a connection in; returns the older one of the same node, which is no longer known here."""
        if connection.role != "node":
            self._clients.add(connection)
            return None
        older = self._nodes.get(connection.node_id)
        self._nodes[connection.node_id] = connection
        return older

    def remove(self, connection: Connection) -> None:
        """Forget a connection, unless it has been replaced."""
        self._clients.discard(connection)
        if self._nodes.get(connection.node_id) is connection:
            del self._nodes[connection.node_id]

    def get(self, node_id: str) -> Connection | None:
        """The node's connection."""
        return self._nodes.get(node_id)

    def clients(self) -> list[Connection]:
        """Every peer that is not a node."""
        return list(self._clients)

    def everyone(self) -> list[Connection]:
        """Every peer."""
        return [*self._nodes.values(), *self._clients]
