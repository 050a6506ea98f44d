"""The demonstration's own instruments: the picture reader and the RFB client."""

import asyncio
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from scripts import pixels
from scripts.rfb import RfbError, handshake

SERVER_INIT = struct.pack(">HH16xI", 1280, 720, 7) + b"desktop"
NONE_ONLY, WELCOME = b"\x01\x01", b"\x00\x00\x00\x00"


def png(width: int, height: int, *lines: bytes) -> bytes:
    """A PNG of 8-bit RGB with these filtered lines."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"".join(lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_every_filter_is_undone() -> None:
    colours = bytes([10, 20, 30, 40, 50, 60])
    filtered = [
        b"\x00" + colours,
        b"\x01" + bytes([10, 20, 30, 30, 30, 30]),
        b"\x02" + bytes(6),
        b"\x03" + bytes([5, 10, 15, 15, 15, 15]),
        b"\x04" + bytes(6),
    ]
    picture = pixels.decode(png(2, 5, *filtered))
    assert picture.rows[:4] == (colours,) * 4
    assert picture.rows[4] == colours
    assert picture.pixel(1, 2) == bytes([40, 50, 60])


def test_differences_are_counted_and_boxed() -> None:
    blank = bytes(1 + 3 * 4)
    changed = bytes(1 + 3) + b"\xff" * 3 + bytes(6)
    one, other = (
        pixels.decode(png(4, 3, blank, blank, blank)),
        pixels.decode(png(4, 3, blank, changed, changed)),
    )
    assert pixels.difference(one, one) == pixels.Difference(0)
    assert pixels.difference(one, other) == pixels.Difference(2, left=1, top=1, right=1, bottom=2)


@pytest.mark.parametrize(
    "image", [b"", b"GIF89a", png(1, 1, b"\x00"), png(1, 1, b"\x09abc"), png(1, 1, b"\x00abc")[:40]]
)
def test_what_is_no_screenshot_is_told(image: bytes) -> None:
    with pytest.raises(pixels.NotAPicture):
        pixels.decode(image)


@contextmanager
def rfb_server(
    *, greeting: bytes, security: bytes, result: bytes, init: bytes, step: int = 5
) -> Iterator[str]:
    """A WebSocket server that says these things at their turn, cut into pieces; yields its address."""
    ready: list[str] = []
    started, loop = threading.Event(), asyncio.new_event_loop()

    async def session(socket: ServerConnection) -> None:
        for said in (greeting, security, result, init):
            for at in range(0, len(said), step):
                await socket.send(said[at : at + step])
            await socket.recv()

    async def run(stop: asyncio.Event) -> None:
        async with serve(session, "127.0.0.1", 0, subprotocols=[Subprotocol("binary")]) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            ready.append(f"ws://127.0.0.1:{port}/websockify")
            started.set()
            await stop.wait()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(run(stop)), daemon=True)
    thread.start()
    try:
        assert started.wait(20)
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()


def test_the_rfb_handshake_comes_to_server_init() -> None:
    with rfb_server(greeting=b"RFB 003.008\n", security=NONE_ONLY, result=WELCOME, init=SERVER_INIT) as url:
        desktop = handshake(url, timeout=10)
    assert (desktop.version, desktop.security_types) == ("RFB 003.008", (1,))
    assert (desktop.width, desktop.height, desktop.name) == (1280, 720, "desktop")


@pytest.mark.parametrize(
    ("greeting", "security", "told"),
    [
        (b"HTTP/1.1 400 no", NONE_ONLY, "greets with"),
        (b"RFB 003.008\n", b"\x01\x02", "asks for a password"),
        (b"RFB 003.008\n", b"\x00" + struct.pack(">I", 4) + b"busy", "refuses: busy"),
    ],
)
def test_a_server_that_does_not_let_us_in_is_told(greeting: bytes, security: bytes, told: str) -> None:
    server = rfb_server(greeting=greeting, security=security, result=WELCOME, init=SERVER_INIT)
    with server as url, pytest.raises(RfbError, match=told):
        handshake(url, timeout=10)


def test_nobody_there_is_told() -> None:
    with pytest.raises(RfbError, match="no RFB"):
        handshake("ws://127.0.0.1:9/websockify", timeout=5)
