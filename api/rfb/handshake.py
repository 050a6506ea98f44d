"""RFB's handshake, on either side of the proxy (RFC 6143, sections 7.1 and 7.2; 3.3 and 3.7 as in its appendix A)."""

import re

from api.rfb.stream import MessageStream, RfbError
from models.vnc import CHALLENGE_BYTES, challenge_response

NONE, VNC_AUTH = 1, 2
"""Security types."""

_VERSION = re.compile(rb"RFB (\d{3})\.(\d{3})\n")
_LATEST = (3, 8)
_OLDEST = (3, 3)
_LONGEST_REASON = 1024
_REASON_SHOWN = 80


async def log_in(server: MessageStream, password: str | None) -> None:
    """Be the client of an RFB server until it has let us in; ClientInit comes next.

    Args:
        password: for VncAuth; None where none is known. A server that offers security type None is not sent any.

    Raises:
        RfbError: it is no RFB server, or does not let us in.
    """
    version, offered = await _offered(server)
    if NONE in offered:
        chosen = NONE
    elif VNC_AUTH in offered and password is not None:
        chosen = VNC_AUTH
    elif VNC_AUTH in offered:
        raise RfbError("the desktop asks for a password, which is known only while its node is connected")
    else:
        raise RfbError("the desktop offers no security type that the proxy knows")
    if version > _OLDEST:
        await server.write(bytes([chosen]))
    if chosen == VNC_AUTH and password is not None:
        await server.write(challenge_response(password, await server.read(CHALLENGE_BYTES)))
    if (chosen == VNC_AUTH or version >= _LATEST) and await server.read_number() != 0:
        why = await _reason(server) if version >= _LATEST else "the password is not the right one"
        raise RfbError(f"the desktop refuses: {why}")


async def asks_for_password(server: MessageStream) -> bool:
    """Whether an RFB server lets nobody in without VncAuth; it is of no use after this question.

    Raises:
        RfbError: it is no RFB server, or refuses everybody.
    """
    _, offered = await _offered(server)
    return VNC_AUTH in offered and NONE not in offered


async def let_in(client: MessageStream) -> None:
    """Be the server of an RFB client until it is let in, with security type None; ClientInit comes next.

    Raises:
        RfbError: it is no RFB client, or insists on something else.
    """
    await client.write(_greeting(_LATEST))
    version = _version(await client.read(12), "the viewer")
    if version == _OLDEST:
        await client.write(NONE.to_bytes(4))
        return
    await client.write(bytes([1, NONE]))
    chosen = (await client.read(1))[0]
    if chosen != NONE:
        raise RfbError(f"the viewer chooses security type {chosen}, which was not offered")
    if version == _LATEST:
        await client.write(bytes(4))


async def _offered(server: MessageStream) -> tuple[tuple[int, int], bytes]:
    version = _version(await server.read(12), "the desktop")
    await server.write(_greeting(version))
    if version == _OLDEST:
        decided = await server.read_number()
        if decided > 255:
            raise RfbError("the desktop names a security type that there is not")
        offered = bytes([decided]) if decided else b""
    else:
        offered = await server.read((await server.read(1))[0])
    if not offered:
        raise RfbError(f"the desktop refuses: {await _reason(server)}")
    return version, offered


def _greeting(version: tuple[int, int]) -> bytes:
    return b"RFB %03d.%03d\n" % version


def _version(greeting: bytes, who: str) -> tuple[int, int]:
    """The version to speak: what is newer than 3.8 counts as 3.8, anything odd as 3.3 (RFC 6143, section 7.1.1)."""
    match = _VERSION.fullmatch(greeting)
    if match is None:
        raise RfbError(f"{who} does not speak RFB")
    spoken = (int(match[1]), int(match[2]))
    if spoken >= _LATEST:
        return _LATEST
    return spoken if spoken == (3, 7) else _OLDEST


async def _reason(server: MessageStream) -> str:
    length = await server.read_number()
    if length > _LONGEST_REASON:
        return "and gives too long a reason"
    text = (await server.read(length)).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in text).strip()[:_REASON_SHOWN] or "without a reason"
