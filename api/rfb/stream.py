"""RFB's byte stream over WebSocket messages, which cut it anywhere."""

from collections.abc import Awaitable, Callable


class RfbError(Exception):
    """The peer does not speak RFB, refuses, or says what cannot be understood; the message says where."""


class MessageStream:
    """Exact reads from messages of any size. Holds one message more than what is asked for, at most.

    Args:
        receive: the next message; raises what its socket raises when there is no more.
        send: takes one message, and returns when the peer has room for the next.
    """

    def __init__(
        self, receive: Callable[[], Awaitable[bytes]], send: Callable[[bytes], Awaitable[None]]
    ) -> None:
        self._receive = receive
        self._send = send
        self._ahead = bytearray()

    async def read(self, count: int) -> bytes:
        """The next `count` bytes; raises what `receive` raises."""
        while len(self._ahead) < count:
            self._ahead += await self._receive()
        taken = bytes(self._ahead[:count])
        del self._ahead[:count]
        return taken

    async def read_number(self) -> int:
        """The next four bytes as a number."""
        return int.from_bytes(await self.read(4))

    async def write(self, data: bytes) -> None:
        """Send."""
        await self._send(data)

    def take_rest(self) -> bytes:
        """What has been received and not been read."""
        rest = bytes(self._ahead)
        self._ahead.clear()
        return rest
