"""One takeover WebSocket (protocol section 9.2): the proxy logs in for the browser, then joins the two.

The browser is offered RFB's security type None, whatever the desktop asks for. After that frames go both ways as
they are and close codes are translated. In a view-only session what goes to the desktop passes a filter. Each
direction waits for its receiver before it reads on, so nothing piles up.
"""

import asyncio
import logging
import re
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close

from api.rfb import handshake
from api.rfb.stream import MessageStream, RfbError
from api.rfb.view_only import ViewOnlyFilter
from api.takeover.live import LiveSockets
from api.takeover.targets import Target
from api.takeover.upstream import CLOSE_SECONDS, UpstreamUnavailable, open_upstream, server_stream

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
"""For each of the two RFB handshakes."""

UPSTREAM_ERROR = 1011
SESSION_ENDED = 1008
NOT_UNDERSTOOD = 1003

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_MAX_SUBPROTOCOLS = 8
_MAX_REASON_BYTES = 123


class _NotUnderstood(Exception):
    """What the viewer sends is not what it may send here; the message says what."""


def forwardable(code: int | None) -> bool:
    """Whether a close code may be sent on to the other side (protocol section 9.2)."""
    if code is None or code in (1004, 1005, 1006):
        return False
    return 1000 <= code <= 1014 or 3000 <= code <= 4999


async def relay(
    websocket: WebSocket, target: Target, path: str, query: str, password: str | None, sockets: LiveSockets
) -> None:
    """Join the client's socket with the noVNC server's until either ends or the session does.

    Args:
        password: the desktop's, None where none is known.
    """
    requested = [name for name in websocket.scope["subprotocols"] if _TOKEN.fullmatch(name)]
    requested = requested[:_MAX_SUBPROTOCOLS]
    try:
        upstream = await open_upstream(target.url("ws", path, query), requested)
    except UpstreamUnavailable as error:
        logger.info("takeover of %s: no WebSocket upstream: %s", target.environment_id, error)
        await websocket.accept(subprotocol=requested[0] if requested else None)
        await _close_client(websocket, UPSTREAM_ERROR, "upstream unavailable")
        return
    try:
        await websocket.accept(subprotocol=upstream.subprotocol)
        async with sockets.watched(target) as ended:
            joint = _Joint(websocket, upstream, target, ended)
            if await joint.run(joint.shake_hands(password)):
                await joint.run(joint.from_client(), joint.from_upstream())
    except WebSocketDisconnect:
        logger.debug("takeover of %s: the client was gone before it was answered", target.environment_id)
    finally:
        if upstream.state.name != "CLOSED":
            upstream.transport.abort()


class _Joint:
    """Two sockets and what joins them, until one of them or the session ends."""

    def __init__(
        self, websocket: WebSocket, upstream: ClientConnection, target: Target, ended: asyncio.Event
    ) -> None:
        self._websocket = websocket
        self._upstream = upstream
        self._target = target
        self._ended = ended
        self._client = MessageStream(self._receive, self._send)
        self._server = server_stream(upstream)
        self._filter = ViewOnlyFilter() if target.view_only else None

    async def run(self, *parts: Coroutine[Any, Any, None]) -> bool:
        """Run the parts until the first has ended, or the session has; False where the sockets are closed."""
        tasks = [asyncio.create_task(part) for part in parts]
        revoked = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait([*tasks, revoked], return_when=asyncio.FIRST_COMPLETED)
            if not revoked.done() and not any(task.done() and task.exception() for task in tasks):
                # A pump that could not send ends in silence: the other one has the close code.
                await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
            failures = [error for task in tasks if task.done() and (error := task.exception())]
        finally:
            for task in (*tasks, revoked):
                task.cancel()
            await asyncio.gather(*tasks, revoked, return_exceptions=True)
        if self._ended.is_set():
            await self._close_both(SESSION_ENDED, "takeover session ended")
            return False
        if failures:
            await self._conclude(failures[0])
        return not failures

    async def _conclude(self, failure: BaseException) -> None:
        match failure:
            case RfbError() | _NotUnderstood():
                logger.info("takeover of %s: %s", self._target.environment_id, failure)
                code = UPSTREAM_ERROR if isinstance(failure, RfbError) else NOT_UNDERSTOOD
                await self._close_both(code, str(failure))
            case ConnectionClosed(rcvd=None):
                await _close_client(self._websocket, UPSTREAM_ERROR, "upstream failed")
            case ConnectionClosed(rcvd=Close(code=code, reason=reason)) if forwardable(code):
                await _close_client(self._websocket, code, reason)
            case WebSocketDisconnect(code=code, reason=reason) if forwardable(code):
                await self._upstream.close(code, reason)
            case ConnectionClosed() | WebSocketDisconnect():
                pass
            case _:
                raise failure

    async def shake_hands(self, password: str | None) -> None:
        """Log in to the desktop, then let the viewer in."""
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await handshake.log_in(self._server, password)
        except TimeoutError:
            raise RfbError("the desktop does not finish RFB's handshake") from None
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await handshake.let_in(self._client)
        except TimeoutError:
            raise _NotUnderstood("the viewer does not finish RFB's handshake") from None
        except RfbError as error:
            raise _NotUnderstood(str(error)) from None

    async def from_client(self) -> None:
        """Pump until the client closes."""
        if rest := self._client.take_rest():
            await self._to_desktop(rest)
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code") or 1005, message.get("reason"))
            data = message.get("bytes")
            await self._to_desktop(data if data is not None else message["text"])

    async def from_upstream(self) -> None:
        """Pump until the desktop closes, or the client takes no more."""
        with suppress(WebSocketDisconnect, RuntimeError):
            if rest := self._server.take_rest():
                await self._websocket.send_bytes(rest)
            while True:
                data = await self._upstream.recv()
                if isinstance(data, str):
                    await self._websocket.send_text(data)
                else:
                    await self._websocket.send_bytes(data)

    async def _to_desktop(self, data: bytes | str) -> None:
        refused = None
        if self._filter is not None:
            if isinstance(data, str):
                raise _NotUnderstood("the viewer sends text, where RFB is binary")
            data = self._filter.feed(data)
            refused = self._filter.refused
        if data or self._filter is None:
            with suppress(ConnectionClosed):
                # A closed upstream is the other pump's to report, which has its close code.
                await self._upstream.send(data)
        if refused is not None:
            raise _NotUnderstood(refused)

    async def _receive(self) -> bytes:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1005, message.get("reason"))
        data = message.get("bytes")
        if data is None:
            raise RfbError("the viewer sends text, where RFB is binary")
        return bytes(data)

    async def _send(self, data: bytes) -> None:
        try:
            await self._websocket.send_bytes(data)
        except RuntimeError:
            raise WebSocketDisconnect(1006) from None

    async def _close_both(self, code: int, reason: str) -> None:
        await _close_client(self._websocket, code, reason)
        await self._upstream.close(1001)


async def _close_client(websocket: WebSocket, code: int, reason: str) -> None:
    short = reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
    # Starlette raises when the client is gone already, which is what was wanted; one that takes nothing gets no word.
    with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await websocket.close(code, short)
