"""A small noVNC stand-in: real HTTP and WebSocket, and a record of what reached it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from api.server import bind, make_listener


@dataclass
class Upstream:
    """The stand-in. `closes`: close code and reason of each socket a client closed."""

    port: int
    requests: list[Request] = field(default_factory=list)
    sockets: list[WebSocket] = field(default_factory=list)
    closes: list[tuple[int, str]] = field(default_factory=list)


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
                        await websocket.send_bytes(data)
                    else:
                        await websocket.send_text(text or "")
            except WebSocketDisconnect:
                return

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
