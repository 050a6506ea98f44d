"""The takeover proxy under requests that no browser makes: raw bytes on a real socket (protocol section 9.2)."""

import asyncio
import logging
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.takeover import paths
from tests.api.takeover_desk import Desk
from tests.attack.budget import EXAMPLES, SECONDS, attack
from tests.attack.raw import Answer, exchange

pytestmark = pytest.mark.timeout(SECONDS)

PIECES = [
    *(
        "vnc.html",
        "vnc_lite.html",
        "app",
        "core",
        "ui.js",
        "rfb.js",
        "websockify",
        "vendor",
        "images",
        "package.json",
    ),
    *("..", ".", "%2e%2e", "%2E%2e", "..;", "%2e", "%252e%252e", "%c0%ae%c0%ae", "%ef%bc%8e%ef%bc%8e"),
    *(
        "/",
        "//",
        "\\",
        "%2f",
        "%5c",
        "%2F..%2F",
        "%00",
        "%0d%0aX-Evil:%201",
        "%0a",
        "%ff",
        "%",
        "%zz",
        "%u002e",
    ),
    *(
        "?",
        "#",
        ";",
        "&",
        "@evil.example",
        ":80",
        "http:",
        "https://evil.example",
        "javascript:alert(1)",
        "\x7f",
        "é",
    ),
    *(
        "desktop-environments",
        "healthz",
        "desktop-takeover",
        "s",
        "etc",
        "passwd",
        "?path=//evil.example",
        "?a=%0d%0a",
    ),
]
SOUND = [
    "vnc.html",
    "vnc.html?resize=scale",
    "vnc_lite.html",
    "core/rfb.js",
    "app/images/a%20b.svg",
    "websockify",
]
pieces = st.lists(st.sampled_from(PIECES), max_size=5)
rests = (
    pieces.map("".join)
    | pieces.map("/".join)
    # Into a folder that is allowed, and out of it again.
    | pieces.map(lambda inside: "core/" + "/".join(inside))
    | pieces.map(lambda inside: "app/x" + "".join(inside))
    | st.tuples(st.sampled_from(SOUND), pieces.map("".join)).map("".join)
    | st.sampled_from(SOUND)
)
raw_rests = rests.map(str.encode) | st.binary(max_size=80).map(lambda raw: raw.translate(None, b"\r\n \x00"))

NAMES = [
    *(
        "Host",
        "Origin",
        "Referer",
        "Connection",
        "Upgrade",
        "Cookie",
        "Authorization",
        "Content-Length",
        "Range",
    ),
    *(
        "Transfer-Encoding",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "Forwarded",
        "Expect",
        "TE",
        "Accept-Encoding",
    ),
    *("X-Original-URL", "X-Rewrite-URL", "If-None-Match", "Content-Type", "X-HTTP-Method-Override"),
]
VALUES = [
    *(
        b"evil.example",
        b"evil.example:80",
        b"127.0.0.1",
        b"",
        b"\xff\xfe",
        b"close, authorization",
        b"websocket",
    ),
    *(
        b"chunked",
        b"chunked, identity",
        b"0",
        b"5",
        b"-1",
        b"9" * 30,
        b"100-continue",
        b"bytes=0-0,1-1,2-",
        b"a" * 3000,
    ),
    *(b"http://evil.example/", b"Bearer x", b"a=b; tyrum_admin_token=x", b"../..", b"h2c", b"@evil", b"[::1"),
]
Headers = list[tuple[str, bytes]]
headers: st.SearchStrategy[Headers] = st.builds(list) | st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=4
)
methods = st.sampled_from(
    ["GET", "GET", "GET", "HEAD", "POST", "PUT", "OPTIONS", "TRACE", "CONNECT", "get", "QUERY"]
)
prefixes = st.sampled_from(
    [
        *(
            "{prefix}",
            "{prefix}",
            "{prefix}",
            "{prefix}",
            "/desktop-takeover/s/",
            "/desktop-takeover//s/{token}/",
        ),
        *(
            "http://evil.example{prefix}",
            "//evil.example{prefix}",
            "/x/..{prefix}",
            "/desktop-takeover/s/{token}",
        ),
        *(
            "/desktop-takeover%2fs%2f{token}/",
            "/%64esktop-takeover/s/{token}/",
            "{prefix}../{token}/",
            "/DESKTOP-takeover/s/",
        ),
    ]
)


@pytest.fixture(autouse=True)
def nothing_unexpected(caplog: pytest.LogCaptureFixture) -> Any:
    """No test here may leave an error, and so no traceback, in any log."""
    with caplog.at_level(logging.WARNING):
        yield
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR or r.exc_info]


@attack(EXAMPLES * 20)
@given(method=methods, prefix=prefixes, rest=raw_rests, head=headers)
async def test_no_request_escapes(
    desk: Desk, method: str, prefix: str, rest: bytes, head: list[tuple[str, bytes]]
) -> None:
    target = prefix.format(prefix=desk.prefix, token=desk.token).encode() + rest
    before = len(desk.upstream.requests)
    answer = await exchange(desk.url, method, target, head)
    if answer is not None:
        _judge(answer, desk)
    for request in desk.upstream.requests[before:]:
        _judge_upstream(request)
    assert (await desk.http.get("/healthz")).status_code == 200
    assert (await desk.http.get(f"{desk.prefix}core/rfb.js")).status_code == 200


@attack(EXAMPLES * 20)
@given(method=st.sampled_from(["GET", "HEAD"]), rest=raw_rests)
async def test_no_path_escapes(desk: Desk, method: str, rest: bytes) -> None:
    desk.upstream.requests.clear()
    answer = await exchange(desk.url, method, desk.prefix.encode() + rest, [])
    if answer is not None:
        _judge(answer, desk)
    for request in desk.upstream.requests:
        _judge_upstream(request)


def _judge(answer: Answer, desk: Desk) -> None:
    assert answer.status < 500 or answer.status == 502, answer
    assert b"x-evil" not in answer.headers
    location = answer.headers.get(b"location")
    if location is not None:
        parts = urlsplit(location.decode("ascii"))
        assert (parts.scheme, parts.netloc) == ("", ""), location
        assert parts.path == f"{desk.prefix}{paths.VIEWER_PAGE}", location
    assert b"set-cookie" not in answer.headers


def _judge_upstream(request: Any) -> None:
    raw: bytes = request.scope["raw_path"]
    segments = raw.decode("ascii").split("/")[1:]
    assert segments[0] in paths.PAGES | {"favicon.ico", "manifest.json", "websockify"} or (
        segments[0] in {"app", "core", "images", "include", "locale", "locales", "vendor"}
        and len(segments) > 1
    ), raw
    lowered = raw.lower()
    assert not any(piece in lowered for piece in (b"/../", b"/./", b"//", b"%2f", b"%5c", b"\\", b"%00")), raw
    assert not lowered.endswith((b"/..", b"/."))
    assert request.method in ("GET", "HEAD")
    for name in (
        "cookie",
        "authorization",
        "x-forwarded-host",
        "forwarded",
        "referer",
        "origin",
        "content-length",
    ):
        assert name not in request.headers, name
    assert request.headers["host"].startswith("127.0.0.1:")


async def test_a_desktops_cookie_reaches_no_desktop(desk: Desk) -> None:
    """Found here: the proxy's HTTP client kept cookies, for all desktops together."""
    for _ in range(2):
        answer = await desk.http.get(f"{desk.prefix}core/rfb.js")
        assert answer.status_code == 200 and "set-cookie" not in answer.headers
    assert len(desk.upstream.requests) == 2
    assert [request.headers.get("cookie") for request in desk.upstream.requests] == [None, None]


@attack(EXAMPLES * 4)
@given(
    token=st.text(st.characters(exclude_characters="/?#"), max_size=60)
    | st.sampled_from(["T" * 43, "T" * 42 + "%41"]),
    rest=raw_rests,
)
async def test_no_other_token_opens(desk: Desk, token: str, rest: bytes) -> None:
    before = len(desk.upstream.requests)
    target = (
        b"/desktop-takeover/s/"
        + token.encode("utf-8", "surrogatepass").translate(None, b"\r\n \x00")
        + b"/"
        + rest
    )
    answer = await exchange(desk.url, "GET", target, [])
    assert answer is None or answer.status in (400, 404), answer
    assert len(desk.upstream.requests) == before


@attack(EXAMPLES * 4)
@given(rest=raw_rests, head=headers, payload=st.binary(max_size=100))
async def test_odd_upgrades(desk: Desk, rest: bytes, head: list[tuple[str, bytes]], payload: bytes) -> None:
    upgrade = [
        ("Upgrade", b"websocket"),
        ("Connection", b"Upgrade"),
        ("Sec-WebSocket-Version", b"13"),
        ("Sec-WebSocket-Key", b"AAAAAAAAAAAAAAAAAAAAAA=="),
        *head,
    ]
    answer = await exchange(desk.url, "GET", desk.prefix.encode() + rest, upgrade, payload)
    assert answer is None or answer.status < 500 or answer.status == 502, answer
    async with desk.socket() as websocket:
        await websocket.send(b"\x01")
        assert await asyncio.wait_for(websocket.recv(), 30) == b"\x01"
