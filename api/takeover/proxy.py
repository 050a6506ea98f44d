"""The takeover proxy: everything below `/desktop-takeover/s/`, HTTP and WebSocket (protocol section 9.2)."""

import hashlib
import logging
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy

import anyio
import httpx
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from api import database
from api.gateway import Gateway
from api.takeover import paths, relay, targets
from api.takeover.live import LiveSockets
from api.takeover.targets import Target
from api.takeover.upstream import password_of
from models.errors import ApiError
from models.takeover import TAKEOVER_PREFIX, is_takeover_token

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "trailer", "transfer-encoding", "upgrade"})
_REQUEST_DROPPED = _HOP_BY_HOP | {
    *("authorization", "cookie", "forwarded", "host", "origin", "proxy-authorization", "proxy-connection"),
    *("referer", "te", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"),
    # A GET's body is not sent on, so neither is what describes it.
    *("content-length", "content-type", "expect"),
}
_RESPONSE_DROPPED = _HOP_BY_HOP | {
    *("proxy-authenticate", "set-cookie"),
    # What a hostile page could otherwise do to the whole origin it is shown under.
    *("alt-svc", "clear-site-data", "refresh", "service-worker-allowed", "strict-transport-security"),
    # Ours is said below; the server's name is uvicorn's to say.
    *("content-security-policy", "content-security-policy-report-only", "cross-origin-opener-policy"),
    *("cross-origin-resource-policy", "permissions-policy", "x-frame-options"),
    *("date", "referrer-policy", "server", "x-content-type-options"),
    # Where to send what happens here, or what else to fetch.
    *("link", "nel", "report-to", "reporting-endpoints", "sourcemap", "x-sourcemap"),
}
_CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        # noVNC's pages have inline scripts since 1.5, and styles in attributes.
        "script-src 'self' 'unsafe-inline'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_RESPONSE_ADDED = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", _CONTENT_SECURITY_POLICY.encode()),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"permissions-policy",
        b"camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    ),
]
_NO_STORE = (b"cache-control", b"no-store")


class TakeoverProxy:
    """ASGI application for the takeover prefix; the token in the path is the only credential."""

    def __init__(self, engine: Engine, gateway: Gateway) -> None:
        self._engine = engine
        self._gateway = gateway
        self._sockets = LiveSockets(engine)
        self._client: httpx.AsyncClient | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "websocket":
            await self._websocket(WebSocket(scope, receive, send))
            return
        response = await self._http(Request(scope, receive))
        await response(scope, receive, send)

    async def aclose(self) -> None:
        """End every open socket and upstream connection."""
        await self._sockets.aclose()
        if self._client is not None:
            await self._client.aclose()

    async def _http(self, request: Request) -> Response:
        path = paths.parse(request.scope["raw_path"])
        if path is None:
            return _not_found()
        if request.method not in ("GET", "HEAD"):
            return _text("method not allowed", 405, {"Allow": "GET, HEAD"})
        try:
            target = await self._target(path.token)
        except ApiError as error:
            return _text(error.message, error.status_code)
        if target is None:
            return _not_found()
        query = request.scope["query_string"]
        canonical = (
            paths.canonical_query(path.token, query, view_only=target.view_only) if path.is_viewer else None
        )
        if canonical is not None:
            location = f"{TAKEOVER_PREFIX}{path.token}/{paths.VIEWER_PAGE}?{canonical}"
            return RedirectResponse(
                location, 307, headers={"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
            )
        if not path.allowed:
            return _not_found()
        return await self._fetch(request, target, path, paths.safe_query(query))

    async def _fetch(
        self, request: Request, target: Target, path: paths.TakeoverPath, query: str
    ) -> Response:
        try:
            outgoing = self._upstream_client().build_request(
                request.method,
                target.url("http", path.upstream, query),
                headers=_kept(request.headers.raw, _REQUEST_DROPPED),
            )
            upstream = await self._upstream_client().send(outgoing, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            logger.info("takeover of %s: upstream failed: %s", target.environment_id, type(error).__name__)
            return _text("the desktop does not answer", 502)
        if 300 <= upstream.status_code < 400 and upstream.status_code != 304:
            await upstream.aclose()
            return _text("the desktop answered with a redirect", 502)
        response = StreamingResponse(_body(upstream), upstream.status_code)
        kept = [pair for pair in _kept(upstream.headers.raw, _RESPONSE_DROPPED) if not _replaced(pair, path)]
        added = [_NO_STORE] if _is_page(path) else []
        response.raw_headers = [*((name.lower(), value) for name, value in kept), *_RESPONSE_ADDED, *added]
        return response

    async def _websocket(self, websocket: WebSocket) -> None:
        path = paths.parse(websocket.scope["raw_path"])
        if path is None or not path.allowed:
            await websocket.send_denial_response(_not_found())
            return
        try:
            target = await self._target(path.token)
        except ApiError:
            await websocket.send_denial_response(_text("the takeover session cannot be checked now", 502))
            return
        if target is None:
            await websocket.send_denial_response(_not_found())
            return
        query = paths.safe_query(websocket.scope["query_string"])
        password = password_of(self._gateway, target.node_id, target.environment_id, target.generation)
        await relay.relay(websocket, target, path.upstream, query, password, self._sockets)

    async def _target(self, token: str) -> Target | None:
        if not is_takeover_token(token):
            return None
        digest = hashlib.sha256(token.encode()).hexdigest()
        return await database.read(
            self._engine, lambda session: targets.find(session, digest, datetime.now(UTC))
        )

    def _upstream_client(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                # One client serves every desktop, and cookies know no ports: what one desktop sets, another would get.
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                follow_redirects=False,
                trust_env=False,
                timeout=httpx.Timeout(CONNECT_SECONDS, read=READ_SECONDS),
                # A kept connection could outlive the container behind the port.
                limits=httpx.Limits(max_connections=256, max_keepalive_connections=0),
            )
            self._client.headers.clear()
        return self._client


async def _body(upstream: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in upstream.aiter_raw():
            yield chunk
    except httpx.HTTPError as error:
        logger.info("takeover: upstream ended in the middle of a body: %s", type(error).__name__)
    finally:
        with anyio.CancelScope(shield=True):
            await upstream.aclose()


def _kept(headers: Iterable[tuple[bytes, bytes]], dropped: frozenset[str]) -> list[tuple[bytes, bytes]]:
    pairs = list(headers)
    named = b",".join(value for name, value in pairs if name.lower() == b"connection")
    also = {name.strip().lower() for name in named.decode("latin-1").split(",")}
    return [(name, value) for name, value in pairs if name.decode("latin-1").lower() not in dropped | also]


def _is_page(path: paths.TakeoverPath) -> bool:
    return path.segments is not None and path.segments[0] in paths.PAGES


def _replaced(pair: tuple[bytes, bytes], path: paths.TakeoverPath) -> bool:
    return _is_page(path) and pair[0].lower() == _NO_STORE[0]


def _text(message: str, status_code: int, headers: dict[str, str] | None = None) -> PlainTextResponse:
    return PlainTextResponse(
        f"{message}\n", status_code, headers={"Cache-Control": "no-store", **(headers or {})}
    )


def _not_found() -> PlainTextResponse:
    return _text("not found", 404)
