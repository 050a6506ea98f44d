"""What a viewer without hands may say: a filter over the bytes from client to server.

Only whole messages that are known and allowed leave it, so whatever the client sends and however it is cut, the
server reads exactly the messages that were judged. Layouts: RFC 6143, section 7.5, and the community's rfbproto
document for the extensions.
"""

from collections.abc import Callable

from api.rfb.stream import RfbError

_SET_ENCODINGS = 2
_MOST_ENCODINGS = 1024
"""noVNC names about thirty."""
_LONGEST_FENCE = 64

_HEADERS = {
    0: 20,  # SetPixelFormat
    _SET_ENCODINGS: 4,
    3: 10,  # FramebufferUpdateRequest
    4: 8,  # KeyEvent
    5: 6,  # PointerEvent
    6: 8,  # ClientCutText
    150: 10,  # EnableContinuousUpdates
    248: 9,  # ClientFence
    250: 4,  # xvp: shut down, reboot, reset
    251: 8,  # SetDesktopSize
    255: 4,  # QEMU's own: key events, audio
}
"""Bytes of each message type that tell how long the whole is."""
_ALLOWED = frozenset({0, _SET_ENCODINGS, 3, 150, 248})

_EXTENDED_MOUSE_BUTTONS = (-316).to_bytes(4, signed=True)
"""With this extension a PointerEvent may have seven bytes. It is not passed on, so that they always have six."""


class ViewOnlyFilter:
    """Give it what the client sends; it gives back what the server may see.

    Holds less than one allowed message, at most 4 KiB; what is dropped is not held.

    Attributes:
        refused: why nothing passes any more: a message came whose length cannot be told. None until then.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._initialised = False
        self._to_drop = 0
        self.refused: str | None = None

    def feed(self, data: bytes) -> bytes:
        """The allowed messages that `data` completes, in order."""
        passed = bytearray()
        if self.refused is None:
            try:
                self._take(data, passed)
            except RfbError as error:
                self.refused = str(error)
        return bytes(passed)

    def _take(self, data: bytes, passed: bytearray) -> None:
        position = 0
        if not self._initialised and data:
            # ClientInit: shared, or the server may throw out everybody else.
            passed += b"\x01"
            self._initialised = True
            position = 1
        while position < len(data):
            if self._to_drop:
                dropped = min(self._to_drop, len(data) - position)
                self._to_drop -= dropped
                position += dropped
                continue
            wanted = self._wanted()
            taken = data[position : position + wanted - len(self._held)]
            self._held += taken
            position += len(taken)
            if len(self._held) == self._wanted():
                passed += self._complete()

    def _wanted(self) -> int:
        """How many bytes must be held before something can be decided."""
        if not self._held:
            return 1
        kind = self._held[0]
        header = _HEADERS.get(kind)
        if header is None:
            raise RfbError(
                f"the viewer sends a message of type {kind}, which a view-only session cannot judge"
            )
        if kind not in _ALLOWED or len(self._held) < header:
            return header
        return header + _BODIES.get(kind, _none)(self._held)

    def _complete(self) -> bytes:
        kind = self._held[0]
        whole = bytes(self._held)
        self._held.clear()
        if kind not in _ALLOWED:
            self._to_drop = _BODIES.get(kind, _none)(whole)
            return b""
        return _without_extended_mouse(whole) if kind == _SET_ENCODINGS else whole


def _none(_message: bytes | bytearray) -> int:
    return 0


def _encodings(message: bytes | bytearray) -> int:
    count = int.from_bytes(message[2:4])
    if count > _MOST_ENCODINGS:
        raise RfbError(f"the viewer names {count} encodings")
    return 4 * count


def _fence(message: bytes | bytearray) -> int:
    if message[8] > _LONGEST_FENCE:
        raise RfbError("the viewer sends a fence with too much in it")
    return message[8]


def _cut_text(message: bytes | bytearray) -> int:
    # Negative for the extended clipboard, which has the length of its own messages there.
    return abs(int.from_bytes(message[4:8], signed=True))


def _screens(message: bytes | bytearray) -> int:
    return 16 * message[6]


def _qemu(message: bytes | bytearray) -> int:
    kind, operation = message[1], int.from_bytes(message[2:4])
    if kind == 0:
        return 8
    if kind == 1 and operation in (0, 1):
        return 0
    if kind == 1 and operation == 2:
        return 6
    raise RfbError("the viewer sends a message of QEMU's that a view-only session cannot judge")


_BODIES: dict[int, Callable[[bytes | bytearray], int]] = {
    _SET_ENCODINGS: _encodings,
    6: _cut_text,
    248: _fence,
    251: _screens,
    255: _qemu,
}
"""Bytes after the header."""


def _without_extended_mouse(message: bytes) -> bytes:
    named = [message[start : start + 4] for start in range(4, len(message), 4)]
    kept = [encoding for encoding in named if encoding != _EXTENDED_MOUSE_BUTTONS]
    return message[:2] + len(kept).to_bytes(2) + b"".join(kept)
