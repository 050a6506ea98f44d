"""A view-only session under what no viewer sends: an independent reader of RFB finds no input in what gets through.

`tests/takeover/test_view_only.py` has the filter's own rules; here its output is read as an RFB server reads it.
"""

import asyncio
import hashlib
import logging
import struct
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from api.rfb.view_only import ViewOnlyFilter
from inventory import takeover
from inventory.engine import writing
from tests.api.takeover_desk import Desk
from tests.attack.budget import EXAMPLES, SECONDS, attack
from tests.takeover.test_view_only import ALLOWED, DROPPED

pytestmark = pytest.mark.timeout(SECONDS)

VIEWING = {
    "SetPixelFormat",
    "SetEncodings",
    "FramebufferUpdateRequest",
    "EnableContinuousUpdates",
    "ClientFence",
}
TOKEN = "V" * 42 + "A"


def as_the_server_reads(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The client's messages after ClientInit, by RFC 6143 section 7.5. Raises ValueError where it would be lost."""
    at = 0
    while at < len(data):
        kind = data[at]
        if kind == 0:
            name, length = "SetPixelFormat", 20
        elif kind == 2:
            name, length = "SetEncodings", 4 + 4 * struct.unpack_from(">H", data, at + 2)[0]
        elif kind == 3:
            name, length = "FramebufferUpdateRequest", 10
        elif kind == 150:
            name, length = "EnableContinuousUpdates", 10
        elif kind == 248:
            name, length = "ClientFence", 9 + data[at + 8]
        else:
            name, length = f"message {kind}", 1
        if at + length > len(data):
            raise ValueError(f"half of {name} at {at}")
        yield name, data[at : at + length]
        at += length


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Messages one after another, then bytes of them changed, removed, doubled and put in."""
    messages = draw(st.lists(ALLOWED | DROPPED | st.binary(max_size=12), max_size=12))
    data = bytearray(draw(st.binary(min_size=1, max_size=1)) + b"".join(messages))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["change", "remove", "insert", "double", "cut"])):
            case "change" if data:
                data[at] = draw(st.integers(0, 255))
            case "remove":
                del data[at : at + draw(st.integers(1, 9))]
            case "insert":
                data[at:at] = draw(
                    st.binary(max_size=8) | st.sampled_from([b"\x04\x01\0\0\0\0\0a", b"\x05\x01\0\1\0\1"])
                )
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 20))]
            case "cut":
                del data[at:]
    return bytes(data)


@st.composite
def chunks(draw: st.DrawFn) -> list[bytes]:
    """Such a stream in pieces."""
    data = draw(streams())
    pieces = []
    while data:
        size = draw(st.integers(1, 40))
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def judge(passed: bytes) -> None:
    """Nothing but whole messages of a viewer, after a ClientInit that shares."""
    if not passed:
        return
    assert passed[:1] == b"\x01"
    for name, message in as_the_server_reads(passed[1:]):
        assert name in VIEWING, name
        if name == "SetEncodings":
            encodings = struct.unpack(f">{(len(message) - 4) // 4}i", message[4:])
            assert -316 not in encodings, "a longer PointerEvent would be agreed upon"


@attack(EXAMPLES * 40)
@given(chunks())
def test_the_filter_lets_no_input_through(pieces: list[bytes]) -> None:
    judged = ViewOnlyFilter()
    judge(b"".join(judged.feed(piece) for piece in pieces))


@pytest.fixture
def view_only(desk: Desk) -> str:
    """The token of a view-only session of the desk."""
    with writing(desk.engine) as session:
        takeover.create(
            session,
            environment_id=desk.environment_id,
            generation=1,
            token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(),
            created_by="test",
            now=datetime.now(UTC),
            ttl_seconds=3600,
            view_only=True,
        )
    return TOKEN


@attack(EXAMPLES * 2)
@given(pieces=chunks(), text=st.text(max_size=20), as_text=st.booleans())
async def test_the_proxy_lets_no_input_through(
    desk: Desk,
    view_only: str,
    pieces: list[bytes],
    text: str,
    as_text: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    desk.upstream.heard.clear()
    mine = Desk(desk.url, desk.http, desk.engine, desk.environment_id, "", view_only, desk.upstream)
    with caplog.at_level(logging.WARNING):
        async with mine.socket() as websocket:
            try:
                for piece in pieces:
                    await websocket.send(piece)
                if as_text:
                    await websocket.send(text)
                # The stand-in says what it has heard: wait until it has nothing more to say.
                while True:
                    await asyncio.wait_for(websocket.recv(), 0.05)
            except (ConnectionClosed, TimeoutError):
                judge(bytes(desk.upstream.heard))
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR or r.exc_info]


@attack(EXAMPLES * 4)
@given(
    said=st.lists(
        st.binary(max_size=20) | st.sampled_from([b"RFB 003.003\n", b"RFB 003.008\n", b"\x01"]), max_size=4
    )
)
async def test_a_viewer_that_does_not_shake_hands_is_closed(
    desk: Desk, said: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    # Let in it may be, and then it hears nothing more, where a part of what it says is a sound handshake.
    may_be_let_in = any(piece.startswith(b"RFB 003.0") for piece in said)
    with caplog.at_level(logging.WARNING):
        async with desk.socket(entered=False) as websocket:
            try:
                for piece in said:
                    await websocket.send(piece)
                await websocket.send(b"RFB junk\nRFB junk\nRFB junk\n")
                while True:
                    await asyncio.wait_for(websocket.recv(), 0.1 if may_be_let_in else 10)
            except ConnectionClosed:
                assert websocket.close_code in (1003, 1011)
            except TimeoutError:
                assert may_be_let_in
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR or r.exc_info]
    async with desk.socket() as websocket:
        await websocket.send(b"\x01")
        assert await websocket.recv() == b"\x01"
