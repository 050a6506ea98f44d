"""An RFB client's first steps over a noVNC WebSocket (RFC 6143, sections 7.1 to 7.3)."""

import struct
from dataclasses import dataclass

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

_SECURITY_NONE = 1
_SHARED = b"\x01"


class RfbError(Exception):
    """The server does not speak RFB, or does not let us in; the message says where it stopped."""


@dataclass(frozen=True)
class Desktop:
    """What ServerInit tells.

    Attributes:
        version: the server's protocol version. security_types: those it offers.
        width, height: of the framebuffer, pixels. name: of the desktop.
    """

    version: str
    security_types: tuple[int, ...]
    width: int
    height: int
    name: str


def handshake(url: str, timeout: float) -> Desktop:
    """Connect to a `websockify` address, shake hands and hang up.

    Args:
        url: `ws://…/websockify`. timeout: seconds for each step.

    Raises:
        RfbError: it did not come to ServerInit.
    """
    try:
        with connect(url, subprotocols=[Subprotocol("binary")], open_timeout=timeout, proxy=None) as socket:
            return _Stream(socket, timeout).handshake()
    except (WebSocketException, OSError, TimeoutError) as error:
        raise RfbError(f"no RFB through the takeover session: {type(error).__name__}: {error}") from None


class _Stream:
    """RFB's byte stream over WebSocket messages, which cut it anywhere."""

    def __init__(self, socket: ClientConnection, timeout: float) -> None:
        self._socket = socket
        self._timeout = timeout
        self._buffer = b""

    def handshake(self) -> Desktop:
        version = self._read(12)
        if not version.startswith(b"RFB 003."):
            raise RfbError(f"the server greets with {version!r} and not with an RFB version")
        self._socket.send(b"RFB 003.008\n")
        offered = tuple(self._read(self._read(1)[0]))
        if not offered:
            raise RfbError(f"the server refuses: {self._text()}")
        if _SECURITY_NONE not in offered:
            raise RfbError(f"the server asks for a password: security types {offered}")
        self._socket.send(bytes([_SECURITY_NONE]))
        if self._number() != 0:
            raise RfbError(f"the server refuses: {self._text()}")
        self._socket.send(_SHARED)
        width, height = struct.unpack(">HH", self._read(4))
        self._read(16)
        return Desktop(version.decode().strip(), offered, width, height, self._text())

    def _text(self) -> str:
        return self._read(self._number()).decode(errors="replace")

    def _number(self) -> int:
        (number,) = struct.unpack(">I", self._read(4))
        return int(number)

    def _read(self, count: int) -> bytes:
        while len(self._buffer) < count:
            message = self._socket.recv(self._timeout)
            if isinstance(message, str):
                raise RfbError("the server sent text, where RFB is binary")
            self._buffer += message
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken
