"""The way to a desktop's noVNC server, and what is asked of it (protocol section 9.2)."""

import asyncio
import logging
from collections.abc import Sequence
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from api.gateway import Gateway
from api.rfb.handshake import asks_for_password
from api.rfb.stream import MessageStream, RfbError
from models.takeover import trusted_origin

CONNECT_SECONDS = 5.0
CLOSE_SECONDS = 1.0
QUESTION_SECONDS = 3.0
MAX_FRAME_BYTES = 16 * 1024 * 1024
"""Largest frame taken; RFB through websockify sends frames of 64 KiB."""

logger = logging.getLogger(__name__)

# A hop's own log of each frame and header would hold the session's token.
_quiet = logging.getLogger("api.takeover.hop")
_quiet.setLevel(logging.WARNING)


class UpstreamUnavailable(Exception):
    """The noVNC server does not take a WebSocket; the message names the kind of failure."""


async def open_upstream(url: str, subprotocols: Sequence[str]) -> ClientConnection:
    """A WebSocket to the noVNC server, with these subprotocols and nothing else of the client's.

    Raises:
        UpstreamUnavailable: there is none to be had.
    """
    try:
        return await connect(
            url,
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
            compression=None,
            user_agent_header=None,
            proxy=None,
            open_timeout=CONNECT_SECONDS,
            close_timeout=CLOSE_SECONDS,
            ping_interval=None,
            max_size=MAX_FRAME_BYTES,
            logger=_quiet,
        )
    except (OSError, EOFError, TimeoutError, ConnectionClosed, InvalidHandshake, InvalidURI) as error:
        raise UpstreamUnavailable(type(error).__name__) from error


def server_stream(upstream: ClientConnection) -> MessageStream:
    """The RFB server's bytes."""

    async def receive() -> bytes:
        data = await upstream.recv()
        if isinstance(data, str):
            raise RfbError("the desktop sends text, where RFB is binary")
        return data

    return MessageStream(receive, upstream.send)


async def desktop_asks_for_password(takeover_origin: str, port: int) -> bool:
    """Whether the RFB server behind a noVNC port wants VncAuth; False where it does not say so in time."""
    origin = urlsplit(trusted_origin(takeover_origin))
    scheme = "wss" if origin.scheme == "https" else "ws"
    try:
        async with asyncio.timeout(QUESTION_SECONDS):
            upstream = await open_upstream(f"{scheme}://{origin.netloc}:{port}/websockify", ["binary"])
            try:
                return await asks_for_password(server_stream(upstream))
            finally:
                upstream.transport.abort()
    except (UpstreamUnavailable, RfbError, ConnectionClosed, TimeoutError) as error:
        logger.info("the desktop at port %d does not say whether it has a password: %s", port, error)
        return False


def password_of(gateway: Gateway, node_id: str | None, environment_id: str, generation: int) -> str | None:
    """The VNC password of this generation's desktop; None while its node is not connected."""
    connection = gateway.connection(node_id) if node_id is not None else None
    if connection is None:
        return None
    claims = connection.claims
    if (claims.environment_id, claims.generation) != (environment_id, generation):
        return None
    return connection.vnc_password
