"""Takeover over real sockets: sessions, the proxy's rules, and how sockets end."""

import asyncio
import hashlib
import logging
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from sqlmodel import select
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api.server import RedactingFilter
from inventory import takeover
from inventory.engine import reading, writing
from models import messages as m
from models.lifecycle import Status
from models.tables import TakeoverSessionRow
from tests.api.stack import (
    BEARER,
    Stack,
)
from tests.api.takeover_desk import Desk, new_session
from tests.api.upstream import upstream_serving
from tests.support.waiting import eventually


async def test_session_over_the_api(stack: Stack, desk: Desk) -> None:
    environment_id = await stack.started()
    path = f"/desktop-environments/{environment_id}"
    answer = await stack.http.post(f"{path}/takeover-token")
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"status", "session_id", "entry_url", "expires_at"}
    token = urlsplit(body["entry_url"]).path.split("/")[3]
    left = datetime.fromisoformat(body["expires_at"]) - datetime.now(UTC)
    assert 1700 < left.total_seconds() <= 1800
    with reading(stack.engine) as session:
        row = session.exec(
            select(TakeoverSessionRow).where(TakeoverSessionRow.session_id == body["session_id"])
        ).one()
    assert row.token_sha256 == hashlib.sha256(token.encode()).hexdigest() and token not in repr(row)
    assert row.created_by == "admin" and row.generation == 1
    redirect = await stack.http.get(f"{path}/takeover")
    assert redirect.status_code == 307
    shown = (await stack.http.get(path)).json()["environment"]
    assert shown["takeover_available"] is True
    location = urlsplit(redirect.headers["location"])
    assert location.hostname == "127.0.0.1" and location.path == "/vnc.html"

    await stack.http.post(f"{path}/stop?wait=30")
    for method, route in (("POST", "/takeover-token"), ("GET", "/takeover")):
        refused = await stack.http.request(method, path + route)
        assert refused.status_code == 409 and refused.json()["error"] == "conflict"

    async def ended() -> bool:
        with reading(stack.engine) as session:
            return takeover.find_live(session, row.token_sha256, datetime.now(UTC)) is None

    await eventually(ended, "stop ends the session")


async def test_page_is_canonical_in_one_redirect(desk: Desk) -> None:
    first = await desk.http.get(f"{desk.prefix}vnc.html?resize=scale")
    assert first.status_code == 307 and first.headers["location"].startswith(desk.prefix)
    second = await desk.http.get(first.headers["location"])
    assert second.status_code == 200 and "resize=scale" in second.text
    assert second.headers["cache-control"] == "no-store"
    assert second.headers["x-content-type-options"] == "nosniff"
    assert second.headers["referrer-policy"] == "no-referrer"


async def test_headers_in_and_out(desk: Desk) -> None:
    answer = await desk.http.get(
        f"{desk.prefix}app/ui.js?v=1",
        headers={
            **BEARER,
            "Cookie": "a=b",
            "Referer": "http://x/",
            "Origin": "http://x",
            "X-Forwarded-For": "1.2.3.4",
            "X-Forwarded-Host": "x",
            "Forwarded": "for=x",
            "TE": "trailers",
            "X-Kept": "yes",
            "X-Named": "no",
            "Connection": "x-named",
        },
    )
    assert answer.status_code == 200 and answer.text == "/app/ui.js?v=1"
    gone = {"set-cookie", "clear-site-data", "service-worker-allowed", "x-hop"}
    assert answer.headers["x-kept"] == "1" and not gone & set(answer.headers)
    assert answer.headers["cache-control"] == "max-age=60"
    (seen,) = desk.upstream.requests
    dropped = {
        *("authorization", "cookie", "referer", "origin", "x-forwarded-for", "x-forwarded-host", "forwarded"),
        *("te", "x-named"),
    }
    assert seen.headers["x-kept"] == "yes" and not dropped & set(seen.headers)
    assert seen.headers["host"] == f"127.0.0.1:{desk.upstream.port}"


async def test_head_streaming_not_modified_and_upstream_redirects(desk: Desk) -> None:
    head = await desk.http.head(f"{desk.prefix}app/ui.js")
    assert head.status_code in (200, 405) and head.content == b""
    large = await desk.http.get(f"{desk.prefix}core/large")
    assert len(large.content) == 64 * 65536
    assert (await desk.http.get(f"{desk.prefix}core/fresh")).status_code == 304
    redirect = await desk.http.get(f"{desk.prefix}core/redirect")
    assert redirect.status_code == 502 and redirect.headers["content-type"].startswith("text/plain")
    assert "evil" not in redirect.text and "location" not in redirect.headers


async def test_checks_come_in_order(desk: Desk) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = await desk.http.request(method, f"{desk.prefix}vnc.html")
        assert answer.status_code == 405 and answer.headers["allow"] == "GET, HEAD"
        assert (await desk.http.request(method, desk.prefix)).status_code == 404
    beside = [f"{'x' * 43}/vnc.html", "x/vnc.html", "%2e%2e/vnc.html", f"{desk.token}x/vnc.html"]
    denied = ["", "etc/passwd", "app/%2e%2e/x", "index.html"]
    for path in [f"/desktop-takeover/s/{rest}" for rest in beside] + [desk.prefix + rest for rest in denied]:
        answer = await desk.http.get(path)
        assert answer.status_code == 404 and answer.headers["content-type"].startswith("text/plain"), path
    assert desk.upstream.requests == []


async def ends(desk: Desk) -> None:
    """Every way in is shut."""
    assert (await desk.http.get(f"{desk.prefix}app/ui.js")).status_code == 404
    with pytest.raises(InvalidStatus) as refused:
        async with desk.socket():
            pass
    assert refused.value.response.status_code == 404


@pytest.mark.parametrize(
    "change",
    [
        {"status": Status.STOPPED},
        {"status": Status.STARTING},
        {"status": Status.ERROR},
        {"generation": 2},
        {"novnc_port": None},
        {"status": Status.DELETING, "deleted": True},
    ],
    ids=str,
)
async def test_what_ends_a_session_ends_requests_and_open_sockets(desk: Desk, change: dict[str, Any]) -> None:
    async with desk.socket() as websocket:
        await websocket.send("hello")
        assert await websocket.recv() == "hello"
        desk.record(**change)
        await ends(desk)
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(websocket.recv(), 30)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
    await eventually(lambda: desk.upstream.closes, "the upstream socket is closed too")


async def test_revocation_ends_a_session(desk: Desk) -> None:
    async with desk.socket() as websocket:
        with writing(desk.engine) as session:
            assert takeover.revoke(session, desk.session_id, datetime.now(UTC))
        await ends(desk)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(websocket.recv(), 30)


async def test_expiry_ends_a_session(desk: Desk) -> None:
    desk.token = "E" * 42 + "A"
    new_session(desk.engine, desk.environment_id, desk.token, ttl_seconds=1)

    async def shut() -> bool:
        return (await desk.http.get(f"{desk.prefix}app/ui.js")).status_code == 404

    await eventually(shut, "an expired session is shut")


async def test_another_port_of_the_same_generation_ends_open_sockets(desk: Desk) -> None:
    async with desk.socket() as websocket, upstream_serving() as other:
        desk.record(novnc_port=other.port)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(websocket.recv(), 30)
        answer = await desk.http.get(f"{desk.prefix}app/ui.js")
        assert answer.status_code == 200 and len(other.requests) == 1 and desk.upstream.requests == []


async def test_frames_keep_their_kind(desk: Desk) -> None:
    async with desk.socket(subprotocols=["binary", "base64"], max_size=None) as websocket:
        assert websocket.subprotocol == "binary"
        for payload in ("text é", b"\x00\xff RFB", b"", "", b"z" * 3_000_000):
            await websocket.send(payload)
            assert await websocket.recv() == payload
    assert desk.upstream.sockets[0].scope["subprotocols"] == ["binary", "base64"]
    assert "authorization" not in desk.upstream.sockets[0].headers
    async with desk.socket() as websocket:
        assert websocket.subprotocol is None


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 3000, 4001, 4999])
async def test_close_codes_pass_both_ways(desk: Desk, code: int) -> None:
    async with desk.socket() as websocket:
        await websocket.send(f"close {code}")
        with pytest.raises(ConnectionClosed) as closed:
            await websocket.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, "as asked")
    async with desk.socket() as websocket:
        await websocket.close(code, "bye")
    await eventually(lambda: (code, "bye") in desk.upstream.closes, "the close reached the upstream")


async def test_an_upstream_that_vanishes_and_one_that_is_not_there(desk: Desk) -> None:
    async with desk.socket() as websocket:
        await websocket.send("vanish")
        with pytest.raises(ConnectionClosed) as closed:
            await websocket.recv()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011
    with_nobody = await _free_port()
    desk.record(novnc_port=with_nobody)
    answer = await desk.http.get(f"{desk.prefix}app/ui.js")
    assert answer.status_code == 502 and answer.headers["content-type"].startswith("text/plain")
    async with desk.socket(subprotocols=["binary"], entered=False) as websocket:
        with pytest.raises(ConnectionClosed) as closed:
            await websocket.recv()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011


async def test_a_client_that_takes_nothing_stops_the_upstream(desk: Desk) -> None:
    async with desk.socket(max_queue=1) as websocket:
        block = b"y" * 1_000_000
        sent = 0
        try:
            async with asyncio.timeout(3):
                for _ in range(400):
                    await websocket.send(block)
                    sent += 1
        except TimeoutError:
            pass
        assert sent < 200, "frames pile up somewhere"
        websocket.transport.abort()


async def test_no_token_in_any_log(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.handler.addFilter(RedactingFilter())
    try:
        for name in ("httpx", "httpcore", "websockets"):
            logging.getLogger(name).setLevel(logging.WARNING)
        await desk.http.get(f"{desk.prefix}vnc.html", follow_redirects=True)
        async with desk.socket() as websocket:
            await websocket.send("x")
            await websocket.recv()
        assert "desktop-takeover" in caplog.text and desk.token not in caplog.text
    finally:
        for name in ("httpx", "httpcore", "websockets"):
            logging.getLogger(name).setLevel(logging.NOTSET)


async def test_view_without_a_port_is_a_conflict(desk: Desk) -> None:
    desk.record(novnc_port=None)
    answer = await desk.http.post(
        f"/desktop-environments/{desk.environment_id}/takeover-token", headers=BEARER
    )
    assert answer.status_code == 409
    unknown = await desk.http.get(f"/desktop-environments/{uuid4()}/takeover", headers=BEARER)
    assert unknown.status_code == 503, "with Temporal away nobody knows whether it exists"
    assert m.EPOCH.tzinfo is UTC


async def _free_port() -> int:
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port
