"""From the upgrade to a proven key: the order of checks of protocol sections 1.1 and 3."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import PlainTextResponse, Response
from starlette.websockets import WebSocket

from api.gateway.alarms import Alarms
from api.gateway.connection import Connection, Disconnected, Socket
from api.gateway.credentials import Claims, Credentials
from api.gateway.handshake import Handshake, HandshakeRefused, Issue, Proven
from api.gateway.limits import Limits
from api.gateway.upgrade import FailureLimit, token_of
from models.errors import Unavailable
from models.tokens import WS_SUBPROTOCOL

logger = logging.getLogger(__name__)

_FOREIGN_CODES = frozenset({4001, 4002, 4003, 4005, 4006, 4007, 4008})
"""Refusals that count against an address."""
_OTHER_DEVICE_CODES = frozenset({4001, 4006, 4007})
"""Refusals that say, where the token itself is live, that its bearer is not the device it is bound to."""


@dataclass(frozen=True)
class Admitted:
    """A peer that has proven its key and does not know it yet.

    Attributes:
        reply: the answer to its proof, to be sent once it is registered (section 3.4).
        ahead: frames it sent before that answer.
    """

    connection: Connection
    reply: dict[str, Any]
    ahead: Sequence[str | bytes]


class Door:
    """Lets peers in."""

    def __init__(self, credentials: Credentials, limits: Limits, issue: Issue, alarms: Alarms) -> None:
        self._credentials = credentials
        self._alarms = alarms
        self._limits = limits
        self._issue = issue
        self._failures = FailureLimit(limits.failures_per_window, limits.failure_window)
        self._unfinished: Counter[str] = Counter()
        self.closing = False

    async def admit(self, websocket: WebSocket) -> Admitted | None:
        """Lead one peer through the handshake; None where it was refused or left."""
        address = websocket.client.host if websocket.client else ""
        offered = websocket.scope.get("subprotocols", [])
        refusal = await self._before_upgrade(websocket, address, offered)
        if refusal is not None:
            await websocket.send_denial_response(refusal)
            # Until the transport is gone uvicorn takes a denial for a handshake forgotten, and logs an error.
            await asyncio.sleep(0)
            return None
        await websocket.accept(subprotocol=WS_SUBPROTOCOL)
        socket = Socket(websocket, self._limits.send_timeout)
        token, claims = token_of(websocket, offered), None
        try:
            claims, early = await self._authenticate(socket, token)
            proven, reply = await self._handshake(socket, claims, early)
        except HandshakeRefused as refused:
            if refused.code in _FOREIGN_CODES:
                self._failures.failed(address)
                stolen = claims if refused.code in _OTHER_DEVICE_CODES else None
                self._alarms.refused(token, stolen, address, f"{refused.code} {refused.reason}")
            logger.info("node socket from %s refused: %d %s", address, refused.code, refused.reason)
            await socket.close(refused.code, refused.reason)
            socket.abandon()
            return None
        except Disconnected:
            return None
        return Admitted(Connection(socket, claims, proven, address or None), reply, early)

    async def _before_upgrade(
        self, websocket: WebSocket, address: str, offered: list[str]
    ) -> Response | None:
        if self.closing:
            return PlainTextResponse("the gateway is shutting down", 503, {"Retry-After": "1"})
        retry_after = self._failures.retry_after(address)
        if retry_after is not None and not await self._shows_node_token(token_of(websocket, offered)):
            headers = {"Retry-After": str(retry_after), "Content-Length": "0"}
            return Response(status_code=429, headers=headers)
        if WS_SUBPROTOCOL not in offered:
            self._failures.failed(address)
            return PlainTextResponse(f"missing WebSocket subprotocol {WS_SUBPROTOCOL}", 400)
        return None

    async def _shows_node_token(self, token: str | None) -> bool:
        try:
            return token is not None and await self._credentials.resolve_node(token) is not None
        except Unavailable:
            return False

    async def _authenticate(self, socket: Socket, token: str | None) -> tuple[Claims, deque[str | bytes]]:
        """The claims, and what the peer said while they were looked up: it does not wait (section 1.1)."""
        if token is None:
            raise HandshakeRefused(4001, "unauthorized")
        early: deque[str | bytes] = deque()
        size = 0
        lookup = asyncio.create_task(self._credentials.resolve(token))
        try:
            while not lookup.done():
                await asyncio.wait({lookup, socket.reading()}, return_when=asyncio.FIRST_COMPLETED)
                if lookup.done():
                    break
                frame = await socket.receive()
                early.append(frame)
                size += _size(frame)
                if len(early) > self._limits.early_frames or size > self._limits.early_bytes:
                    raise HandshakeRefused(4003, "too much before the handshake")
            claims = lookup.result()
        except Unavailable:
            # Not 4001: that would end a node whose token is good (section 12, 1).
            raise HandshakeRefused(1013, "try again later") from None
        finally:
            if not lookup.cancel() and not lookup.cancelled():
                lookup.exception()
        if claims is None:
            raise HandshakeRefused(4001, "unauthorized")
        return claims, early

    async def _handshake(
        self, socket: Socket, claims: Claims, early: deque[str | bytes]
    ) -> tuple[Proven, dict[str, Any]]:
        if self._unfinished[claims.key] >= self._limits.pending_per_credential:
            raise HandshakeRefused(1013, "too many unfinished handshakes")
        self._unfinished[claims.key] += 1
        try:
            async with asyncio.timeout(self._limits.handshake_timeout):
                return await self._converse(socket, Handshake(claims, self._issue), early)
        except TimeoutError:
            raise HandshakeRefused(4002, "handshake timeout") from None
        finally:
            self._unfinished[claims.key] -= 1
            if not self._unfinished[claims.key]:
                del self._unfinished[claims.key]

    async def _converse(
        self, socket: Socket, handshake: Handshake, early: deque[str | bytes]
    ) -> tuple[Proven, dict[str, Any]]:
        while True:
            frame = early.popleft() if early else await socket.receive()
            if isinstance(frame, bytes) or _size(frame) > self._limits.handshake_bytes:
                raise HandshakeRefused(4003, "expected connect.init/connect.proof")
            step = handshake.take(frame)
            if step.proven is not None:
                return step.proven, step.reply
            await socket.send(step.reply)


def _size(frame: str | bytes) -> int:
    return len(frame) if isinstance(frame, bytes) else len(frame.encode())
