"""One takeover WebSocket, both ways (protocol section 9.2): frames as they are, close codes translated."""

import asyncio
import logging
import re
from contextlib import suppress

from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from api.takeover.live import LiveSockets
from api.takeover.targets import Target

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
CLOSE_SECONDS = 1.0
MAX_FRAME_BYTES = 16 * 1024 * 1024
"""Largest frame taken from either side; RFB through websockify sends frames of 64 KiB."""

UPSTREAM_ERROR = 1011
SESSION_ENDED = 1008

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_MAX_SUBPROTOCOLS = 8

# A hop's own log of each frame and header would hold the session's token.
_quiet = logging.getLogger("api.takeover.upstream")
_quiet.setLevel(logging.WARNING)


def forwardable(code: int | None) -> bool:
    """Whether a close code may be sent on to the other side (protocol section 9.2)."""
    if code is None or code in (1004, 1005, 1006):
        return False
    return 1000 <= code <= 1014 or 3000 <= code <= 4999


async def relay(websocket: WebSocket, target: Target, path: str, query: str, sockets: LiveSockets) -> None:
    """Join the client's socket with the noVNC server's until either ends or the session does."""
    requested = [name for name in websocket.scope["subprotocols"] if _TOKEN.fullmatch(name)][
        :_MAX_SUBPROTOCOLS
    ]
    try:
        upstream = await connect(
            target.url("ws", path, query),
            subprotocols=[Subprotocol(name) for name in requested] or None,
            compression=None,
            user_agent_header=None,
            proxy=None,
            open_timeout=CONNECT_SECONDS,
            close_timeout=CLOSE_SECONDS,
            ping_interval=None,
            max_size=MAX_FRAME_BYTES,
            logger=_quiet,
        )
    except (OSError, EOFError, TimeoutError, InvalidHandshake, InvalidURI) as error:
        logger.info("takeover of %s: no WebSocket upstream: %s", target.environment_id, type(error).__name__)
        await websocket.accept(subprotocol=requested[0] if requested else None)
        await websocket.close(UPSTREAM_ERROR, "upstream unavailable")
        return
    try:
        await websocket.accept(subprotocol=upstream.subprotocol)
        async with sockets.watched(target) as ended:
            await _join(websocket, upstream, ended)
    except WebSocketDisconnect:
        logger.debug("takeover of %s: the client was gone before it was answered", target.environment_id)
    finally:
        if upstream.state.name != "CLOSED":
            upstream.transport.abort()


async def _join(websocket: WebSocket, upstream: ClientConnection, ended: asyncio.Event) -> None:
    to_upstream = asyncio.create_task(_from_client(websocket, upstream))
    to_client = asyncio.create_task(_from_upstream(websocket, upstream))
    revoked = asyncio.create_task(ended.wait())
    tasks: set[asyncio.Task[object]] = {to_upstream, to_client, revoked}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if revoked.done():
            await _close_client(websocket, SESSION_ENDED, "takeover session ended")
            await upstream.close(1001)
        elif to_client.done() and to_client.result() is not None:
            code, reason = to_client.result() or (None, "")
            if forwardable(code):
                await _close_client(websocket, code or 1000, reason)
        else:
            await asyncio.wait({to_upstream}, timeout=CLOSE_SECONDS)
            code, reason = to_upstream.result() if to_upstream.done() else (None, "")
            if forwardable(code):
                await upstream.close(code or 1000, reason)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _from_client(websocket: WebSocket, upstream: ClientConnection) -> tuple[int | None, str]:
    """Pump until the client closes; returns its close code and reason."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return message.get("code"), message.get("reason") or ""
        data = message.get("bytes")
        with suppress(ConnectionClosed):
            # A closed upstream is the other pump's to report, which has its close code.
            await upstream.send(data if data is not None else message["text"])


async def _from_upstream(websocket: WebSocket, upstream: ClientConnection) -> tuple[int, str] | None:
    """Pump until the upstream closes; returns its close code and reason, None when the client went first."""
    try:
        while True:
            data = await upstream.recv()
            if isinstance(data, str):
                await websocket.send_text(data)
            else:
                await websocket.send_bytes(data)
    except ConnectionClosed as closed:
        if closed.rcvd is None:
            return UPSTREAM_ERROR, "upstream failed"
        return closed.rcvd.code, closed.rcvd.reason
    except (WebSocketDisconnect, RuntimeError):
        return None


async def _close_client(websocket: WebSocket, code: int, reason: str) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):
        # Starlette raises either when the client is gone already, which is what was wanted.
        await websocket.close(code, reason)
