"""noVNC's pages and its WebSocket-to-RFB bridge, in one asyncio process.

websockify does the same but needs 150 ms to import and forks a process for every request for a file; this
needs only the `websockets` library, which the node has imported already.
"""

import asyncio
import contextlib
import http
import mimetypes
import os
import signal
import socket
import urllib.parse

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.legacy.server import HTTPResponse, WebSocketServerProtocol, serve
from websockets.typing import Subprotocol

from sandbox.log import log

WEB_ROOT = "/usr/share/novnc"
_WEBSOCKET_PATH = "/websockify"
# The container has its own network, and only what Docker publishes reaches this.
_EVERY_ADDRESS = "0.0.0.0"  # noqa: S104
_CHUNK = 256 * 1024
_LARGEST_MESSAGE = 16 * 1024 * 1024
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}


def file_response(path: str, root: str = WEB_ROOT) -> HTTPResponse:
    """Answer a GET of `path` (percent-encoded, no query): a file below `root`, 302 for ``/``, or 404."""
    if path == "/":
        return http.HTTPStatus.FOUND, Headers({"Location": "vnc.html"}), b""
    base = os.path.realpath(root)
    file = os.path.realpath(os.path.join(base, urllib.parse.unquote(path).lstrip("/").replace("\0", "")))
    if not file.startswith(base + os.sep) or not os.path.isfile(file):
        return http.HTTPStatus.NOT_FOUND, Headers({"Content-Type": "text/plain"}), b"not found\n"
    suffix = os.path.splitext(file)[1]
    kind = _TYPES.get(suffix) or mimetypes.types_map.get(suffix, "application/octet-stream")
    with open(file, "rb") as stream:
        body = stream.read()
    return http.HTTPStatus.OK, Headers({"Content-Type": kind, "Cache-Control": "no-cache"}), body


async def _process_request(target: str, _headers: Headers) -> HTTPResponse | None:
    path = target.partition("?")[0]
    return None if path == _WEBSOCKET_PATH else file_response(path)


async def _bridge(websocket: WebSocketServerProtocol, vnc_port: int) -> None:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", vnc_port)
    except OSError:
        await websocket.close(1011, "the VNC server does not answer")
        return
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def to_server() -> None:
        async for message in websocket:
            writer.write(message if isinstance(message, bytes) else message.encode())
            await writer.drain()

    async def to_viewer() -> None:
        while data := await reader.read(_CHUNK):
            await websocket.send(data)

    directions = [asyncio.create_task(to_server()), asyncio.create_task(to_viewer())]
    try:
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
    finally:
        writer.close()
        for task in directions:
            task.cancel()
        for task in directions:
            with contextlib.suppress(asyncio.CancelledError, ConnectionClosed, OSError):
                await task
        await websocket.close()


async def _serve(port: int, vnc_port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    async def handle(websocket: WebSocketServerProtocol) -> None:
        await _bridge(websocket, vnc_port)

    async with serve(
        handle, host=_EVERY_ADDRESS, port=port, process_request=_process_request,
        subprotocols=[Subprotocol("binary")], compression=None, max_size=_LARGEST_MESSAGE,
        ping_interval=None, close_timeout=0.2, server_header=None,
    ):  # fmt: skip
        log("novnc", f"up, port {port}")
        await stop.wait()


def main(port: int, vnc_port: int) -> int:
    """Serve until SIGTERM; bridges ``/websockify`` to the RFB server on this container's `vnc_port`."""
    asyncio.run(_serve(port, vnc_port))
    return 0
