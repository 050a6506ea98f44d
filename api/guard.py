"""What every request to the admin listener passes before any route is looked at."""

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dependencies import authenticate
from models.codec_address import CODEC_PREFIX
from models.errors import InvalidRequest
from models.takeover import TAKEOVER_PREFIX

PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})
"""Open without a token: health, and documentation that tells nothing about this installation."""

MAX_BODY_BYTES = 1024 * 1024
MAX_CODEC_BYTES = 4 * 1024 * 1024
"""Temporal's largest payload is 2 MiB, and comes in base64."""


class Guard:
    """Authentication before routing, so that no route can be forgotten, and a bound on bodies.

    The takeover prefix is open here: the token in its path is checked there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        if not is_public(scope["path"]):
            connection.state.operator = await authenticate(connection)
        await self._app(scope, _bounded(connection, receive), send)


def is_public(path: str) -> bool:
    """Whether a path is served without an admin token."""
    parts = path.removeprefix(CODEC_PREFIX).split("/") if path.startswith(f"{CODEC_PREFIX}/") else []
    # With a capability in its path: checked there.
    by_capability = len(parts) == 3
    return path in PUBLIC_PATHS or path.startswith(TAKEOVER_PREFIX) or by_capability


def _bounded(connection: HTTPConnection, receive: Receive) -> Receive:
    most = MAX_CODEC_BYTES if connection.scope["path"].startswith(f"{CODEC_PREFIX}/") else MAX_BODY_BYTES
    too_large = InvalidRequest(f"the body is larger than {most} bytes")
    length = connection.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise too_large
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most:
            raise too_large
        return message

    return bounded
