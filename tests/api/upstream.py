"""A small noVNC stand-in: real HTTP and WebSocket, RFB's handshake, then an echo; a record of what reached it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection

from api.server import bind, make_listener

CHALLENGE = bytes(range(16))


@dataclass
class Upstream:
    """The stand-in.

    Attributes:
        closes: close code and reason of each socket a client closed.
        answer: to `CHALLENGE`, None to ask for no password. heard: bytes after the handshake, sent back.
    """

    port: int
    requests: list[Request] = field(default_factory=list)
    sockets: list[WebSocket] = field(default_factory=list)
    closes: list[tuple[int, str]] = field(default_factory=list)
    answer: bytes | None = None
    heard: bytearray = field(default_factory=bytearray)


async def enter(websocket: ClientConnection) -> None:
    """Be a viewer until ClientInit, which is not sent: RFB 3.8, security type None."""
    assert await websocket.recv() == b"RFB 003.008\n"
    await websocket.send(b"RFB 003.008\n")
    assert await websocket.recv() == b"\x01\x01"
    await websocket.send(b"\x01")
    assert await websocket.recv() == bytes(4)


async def let_in(websocket: WebSocket, answer: bytes | None) -> None:
    """Be an RFB server until ClientInit: security type None, or VncAuth which wants this answer to `CHALLENGE`."""
    await websocket.send_bytes(b"RFB 003.008\n")
    assert await websocket.receive_bytes() == b"RFB 003.008\n"
    if answer is None:
        await websocket.send_bytes(b"\x01\x01")
        assert await websocket.receive_bytes() == b"\x01"
    else:
        await websocket.send_bytes(b"\x01\x02")
        assert await websocket.receive_bytes() == b"\x02"
        await websocket.send_bytes(CHALLENGE)
        if await websocket.receive_bytes() != answer:
            await websocket.send_bytes(b"\0\0\0\x01" + b"\0\0\0\x05wrong")
            return
    await websocket.send_bytes(bytes(4))


@asynccontextmanager
async def upstream_serving() -> AsyncIterator[Upstream]:
    """Serve until left."""
    with bind("NODE", "127.0.0.1", 0) as sock:
        upstream = Upstream(port=sock.getsockname()[1])

        async def page(request: Request) -> Response:
            upstream.requests.append(request)
            path = request.url.path
            if path == "/core/redirect":
                return RedirectResponse("http://evil.example/")
            if path == "/core/fresh":
                return Response(status_code=304)
            if path == "/core/large":

                async def chunks() -> AsyncIterator[bytes]:
                    for _ in range(64):
                        yield b"x" * 65536

                return StreamingResponse(chunks(), media_type="application/octet-stream")
            headers = {
                "Set-Cookie": "a=b",
                "Clear-Site-Data": '"*"',
                "Service-Worker-Allowed": "/",
                "X-Kept": "1",
                "Connection": "x-hop",
                "X-Hop": "1",
                "Cache-Control": "max-age=60",
            }
            return PlainTextResponse(f"{path}?{request.url.query}", headers=headers)

        async def socket(websocket: WebSocket) -> None:
            upstream.sockets.append(websocket)
            offered = websocket.scope["subprotocols"]
            await websocket.accept(subprotocol="binary" if "binary" in offered else None)
            try:
                await let_in(websocket, upstream.answer)
                while True:
                    message = await websocket.receive()
                    if message["type"] == "websocket.disconnect":
                        upstream.closes.append((message["code"], message.get("reason") or ""))
                        return
                    text, data = message.get("text"), message.get("bytes")
                    if text is not None and text.startswith("close "):
                        await websocket.close(int(text.split()[1]), "as asked")
                        return
                    if text == "vanish":
                        return
                    if data is not None:
                        upstream.heard += data
                        await websocket.send_bytes(data)
                    else:
                        await websocket.send_text(text or "")
            except WebSocketDisconnect as gone:
                upstream.closes.append((gone.code, gone.reason or ""))

        app = Starlette(
            routes=[WebSocketRoute("/websockify", socket), Route("/{path:path}", page, methods=["GET"])]
        )
        listener = make_listener(app)
        running = asyncio.create_task(listener.serve([sock]))
        try:
            yield upstream
        finally:
            listener.should_exit = True
            await running
