"""RFB's handshake on both sides of the proxy, against peers that are played byte by byte."""

from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.rfb import handshake
from api.rfb.stream import MessageStream, RfbError
from models import tokens, vnc

CHALLENGE = bytes(range(16))
RIGHT = vnc.challenge_response("s3cret!x", CHALLENGE)
OK, FAILED = bytes(4), b"\0\0\0\1"
REASON = b"\0\0\0\7go\x1baway"


class Gone(Exception):
    """The peer has nothing more to say."""


class Peer:
    """Says what it is told to, in pieces, whatever it hears."""

    def __init__(self, said: bytes, piece: int = 1 << 20) -> None:
        self._pieces = [said[at : at + piece] for at in range(0, len(said), piece)]
        self.heard = b""

    @property
    def stream(self) -> MessageStream:
        return MessageStream(self._receive, self._send)

    async def _receive(self) -> bytes:
        if not self._pieces:
            raise Gone
        return self._pieces.pop(0)

    async def _send(self, data: bytes) -> None:
        self.heard += data


@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (b"RFB 003.003\n" + b"\0\0\0\1", b"RFB 003.003\n"),
        (b"RFB 003.005\n" + b"\0\0\0\1", b"RFB 003.003\n"),
        (b"RFB 003.003\n" + b"\0\0\0\2" + CHALLENGE + OK, b"RFB 003.003\n" + RIGHT),
        (b"RFB 003.007\n" + b"\1\1", b"RFB 003.007\n\1"),
        (b"RFB 003.007\n" + b"\1\2" + CHALLENGE + OK, b"RFB 003.007\n\2" + RIGHT),
        (b"RFB 003.008\n" + b"\1\1" + OK, b"RFB 003.008\n\1"),
        (b"RFB 003.008\n" + b"\3\x13\2\1" + OK, b"RFB 003.008\n\1"),
        (b"RFB 003.008\n" + b"\2\x13\2" + CHALLENGE + OK, b"RFB 003.008\n\2" + RIGHT),
        (b"RFB 003.889\n" + b"\1\2" + CHALLENGE + OK, b"RFB 003.008\n\2" + RIGHT),
        (b"RFB 004.001\n" + b"\1\1" + OK, b"RFB 003.008\n\1"),
    ],
)
async def test_the_proxy_logs_in(said: bytes, heard: bytes, piece: int) -> None:
    peer = Peer(said + b"rest", piece)
    stream = peer.stream
    await handshake.log_in(stream, "s3cret!x")
    assert peer.heard == heard
    assert await stream.read(4) == b"rest"


@pytest.mark.parametrize(
    ("said", "password", "message"),
    [
        (b"HTTP/1.1 400\n\n", "x", "does not speak RFB"),
        (b"RFB 003.008\n" + b"\0" + b"\0\0\0\2go", "x", "refuses: go"),
        (b"RFB 003.003\n" + b"\0\0\0\0" + b"\0\0\0\2go", "x", "refuses: go"),
        (b"RFB 003.008\n" + b"\0" + b"\xff\xff\xff\xff", "x", "too long a reason"),
        (b"RFB 003.003\n" + b"\0\1\0\0", "x", "security type that there is not"),
        (b"RFB 003.008\n" + b"\1\x13", "x", "no security type that the proxy knows"),
        (b"RFB 003.008\n" + b"\1\2", None, "known only while its node is connected"),
        (b"RFB 003.008\n" + b"\1\2" + CHALLENGE + FAILED + REASON, "x", "refuses: go away"),
        (b"RFB 003.007\n" + b"\1\2" + CHALLENGE + FAILED, "x", "not the right one"),
        (b"RFB 003.008\n" + b"\1\1" + FAILED + b"\0\0\0\0", "x", "without a reason"),
    ],
)
async def test_the_proxy_is_not_let_in(said: bytes, password: str | None, message: str) -> None:
    with pytest.raises(RfbError, match=message):
        await handshake.log_in(Peer(said).stream, password)


@pytest.mark.parametrize("piece", [1, 1 << 20])
@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (b"RFB 003.003\n", b"\0\0\0\1"),
        (b"RFB 003.007\n\1", b"\1\1"),
        (b"RFB 003.008\n\1", b"\1\1" + OK),
    ],
)
async def test_a_viewer_is_let_in_without_a_password(said: bytes, heard: bytes, piece: int) -> None:
    peer = Peer(said, piece)
    await handshake.let_in(peer.stream)
    assert peer.heard == b"RFB 003.008\n" + heard


@pytest.mark.parametrize("said", [b"GET / HTTP/1.", b"RFB 003.008\n\2"])
async def test_what_is_no_viewer_is_not_let_in(said: bytes) -> None:
    with pytest.raises(RfbError):
        await handshake.let_in(Peer(said).stream)


async def test_whether_a_desktop_asks_for_a_password() -> None:
    asks: list[tuple[bytes, bool]] = [
        (b"\1\1", False),
        (b"\1\2", True),
        (b"\2\1\2", False),
        (b"\1\x13", False),
    ]
    for offered, expected in asks:
        assert await handshake.asks_for_password(Peer(b"RFB 003.008\n" + offered).stream) is expected


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"", b"RFB 003.003\n", b"RFB 003.007\n", b"RFB 003.008\n"]), st.binary(max_size=80))
async def test_any_peer_gets_in_fails_or_goes(greeting: bytes, rest: bytes) -> None:
    steps: list[Callable[[MessageStream], Awaitable[object]]] = [
        handshake.let_in,
        handshake.asks_for_password,
        lambda stream: handshake.log_in(stream, "s3cret!x"),
    ]
    for step in steps:
        outcomes = set()
        for piece in (1, 7, 1 << 20):
            peer = Peer(greeting + rest, piece)
            try:
                await step(peer.stream)
                outcomes.add(("in", peer.heard))
            except (RfbError, Gone) as error:
                outcomes.add((str(error), peer.heard))
        assert len(outcomes) == 1, outcomes


def test_vnc_passwords() -> None:
    # What `vncpasswd -f` writes for it.
    assert vnc.password_file("password").hex() == "dbd83cfd727a1458"
    assert vnc.password_file("password, and more") == vnc.password_file("password")
    assert vnc.challenge_response("x", CHALLENGE) != vnc.challenge_response("y", CHALLENGE)
    with pytest.raises(ValueError, match="16 bytes"):
        vnc.challenge_response("x", b"short")
    token = tokens.mint()
    password = tokens.vnc_password(token.text)
    assert len(password) == 8 and password not in token.text
    assert password == tokens.vnc_password(token.text) != tokens.vnc_password(tokens.mint().text)
    # So that another host, or another language, derives the same.
    assert tokens.vnc_password("tyrum-token.v1.a.b") == "n-HPljgG"
