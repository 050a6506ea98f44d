"""Takeover sessions over the API: their kinds, their lives, what an operator can do to them; and RFB at the proxy."""

import asyncio
import struct
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from inventory.engine import writing
from models import vnc
from models.tables import TakeoverSessionRow
from tests.api.stack import BEARER, Stack
from tests.api.takeover_desk import Desk, new_session
from tests.api.upstream import CHALLENGE, upstream_serving
from tests.support.waiting import eventually

KEY = struct.pack(">BBxxI", 4, 1, 0xFF0D)
POINTER = struct.pack(">BBHH", 5, 1, 10, 10)
PASTE = struct.pack(">B3xI", 6, 5) + b"paste"
REQUEST = struct.pack(">BBHHHH", 3, 1, 0, 0, 1280, 720)


def sessions_path(environment_id: str) -> str:
    return f"/desktop-environments/{environment_id}/takeover-sessions"


def left(text: str) -> float:
    """Seconds until then."""
    return (datetime.fromisoformat(text) - datetime.now(UTC)).total_seconds()


async def closing(websocket: ClientConnection, seconds: float = 5) -> tuple[int, str]:
    """Wait for the end; close code and reason."""
    async with asyncio.timeout(seconds):
        with suppress(ConnectionClosed):
            while True:
                await websocket.recv()
    assert websocket.close_code is not None
    return websocket.close_code, websocket.close_reason or ""


async def test_sessions_are_opened_listed_extended_and_revoked(stack: Stack) -> None:
    environment_id = await stack.started()
    path, sessions = f"/desktop-environments/{environment_id}/takeover-token", sessions_path(environment_id)
    control = (await stack.http.post(path)).json()
    looking = (await stack.http.post(path, json={"view_only": True, "ttl_seconds": 20})).json()
    assert 10 < left(looking["expires_at"]) <= 20
    query = parse_qs(urlsplit(looking["entry_url"]).query)
    assert query["view_only"] == ["true"] and "view_only" not in control["entry_url"]

    listed = (await stack.http.get(sessions)).json()
    assert listed["status"] == "ok"
    assert [entry["session_id"] for entry in listed["sessions"]] == [
        looking["session_id"],
        control["session_id"],
    ]
    first = listed["sessions"][0]
    assert first.keys() == {
        *("session_id", "environment_id", "generation", "view_only", "created_by"),
        *("created_at", "expires_at", "revoked_at"),
    }
    assert (first["view_only"], first["generation"], first["created_by"]) == (True, 1, "admin")

    extended = await stack.http.post(f"{sessions}/{looking['session_id']}/extend", json={"ttl_seconds": 500})
    assert extended.status_code == 200
    assert 400 < left(extended.json()["session"]["expires_at"]) <= 500
    shorter = await stack.http.post(f"{sessions}/{looking['session_id']}/extend", json={"ttl_seconds": 10})
    assert shorter.json()["session"]["expires_at"] == extended.json()["session"]["expires_at"]

    default = await stack.http.post(f"{sessions}/{control['session_id']}/extend")
    assert 1700 < left(default.json()["session"]["expires_at"]) <= 1800

    revoked = await stack.http.post(f"{sessions}/{looking['session_id']}/revoke")
    assert revoked.status_code == 200 and revoked.json()["session"]["revoked_at"] is not None
    again = await stack.http.post(f"{sessions}/{looking['session_id']}/revoke")
    assert again.status_code == 200 and again.json() == revoked.json()
    late = await stack.http.post(f"{sessions}/{looking['session_id']}/extend", json={"ttl_seconds": 500})
    assert late.status_code == 409 and late.json()["error"] == "conflict"
    remaining = (await stack.http.get(sessions)).json()["sessions"]
    assert [entry["session_id"] for entry in remaining] == [control["session_id"]]


async def test_refusals(stack: Stack) -> None:
    environment_id, other = await stack.started(), await stack.started()
    path, sessions = f"/desktop-environments/{environment_id}/takeover-token", sessions_path(environment_id)
    bodies: list[Any] = [
        {"ttl_seconds": 9},
        {"ttl_seconds": 86401},
        {"ttl_seconds": "60"},
        {"ttl_seconds": 60.5},
        {"ttl_seconds": True},
        {"view_only": "yes"},
        {"view_only": None},
        {"password": "x"},
        [],
    ]
    for body in bodies:
        answer = await stack.http.post(path, json=body)
        assert answer.status_code == 400 and answer.json()["error"] == "invalid_request", body
    session_id = (await stack.http.post(path)).json()["session_id"]
    for body in ({"ttl_seconds": 9}, {"ttl_seconds": "60"}, {"ttl_seconds": 60, "view_only": False}, []):
        answer = await stack.http.post(f"{sessions}/{session_id}/extend", json=body)
        assert answer.status_code == 400, body
    wrong = [
        f"{sessions}/{uuid4()}",
        f"{sessions}/not-an-id",
        f"{sessions}/%00",
        f"{sessions_path(other)}/{session_id}",
        f"{sessions_path(str(uuid4()))}/{session_id}",
    ]
    for place in wrong:
        assert (await stack.http.post(f"{place}/revoke")).status_code == 404, place
        answer = await stack.http.post(f"{place}/extend", json={"ttl_seconds": 60})
        assert answer.status_code == 404, place
    assert (await stack.http.get(sessions_path(str(uuid4())))).status_code == 404
    for method, place in (
        ("GET", sessions),
        ("POST", f"{sessions}/{session_id}/revoke"),
        ("POST", f"{sessions}/{session_id}/extend"),
    ):
        answer = await stack.http.request(method, place, headers={"Authorization": "Bearer nobody"})
        assert answer.status_code == 401


async def test_an_extended_session_keeps_its_sockets_and_a_revoked_one_loses_them(desk: Desk) -> None:
    desk.token = "L" * 42 + "A"
    session_id = new_session(desk.engine, desk.environment_id, desk.token, ttl_seconds=5)
    path = f"{sessions_path(desk.environment_id)}/{session_id}"
    async with desk.socket() as websocket:
        answer = await desk.http.post(f"{path}/extend", json={"ttl_seconds": 60}, headers=BEARER)
        assert answer.status_code == 200
        await asyncio.sleep(5.6)
        await websocket.send(b"still here")
        assert await websocket.recv() == b"still here"
        began = time.monotonic()
        assert (await desk.http.post(f"{path}/revoke", headers=BEARER)).status_code == 200
        assert await closing(websocket) == (1008, "takeover session ended")
        print(f"revoked to closed: {(time.monotonic() - began) * 1000:.0f} ms")


async def test_expiry_ends_open_sockets_even_in_the_middle_of_the_handshake(desk: Desk) -> None:
    async with desk.socket() as websocket, desk.socket(entered=False) as silent:
        assert await silent.recv() == b"RFB 003.008\n"
        with writing(desk.engine) as session:
            row = session.get(TakeoverSessionRow, desk.session_id)
            assert row is not None
            row.expires_at = datetime.now(UTC) - timedelta(seconds=1)
        assert (await closing(websocket))[0] == 1008
        assert (await closing(silent))[0] == 1008


async def test_a_view_only_session_drops_input_at_the_proxy(desk: Desk) -> None:
    _look(desk)
    async with desk.socket() as websocket:
        said = b"\x00" + KEY + REQUEST + POINTER + PASTE + REQUEST
        for start in range(0, len(said), 7):
            await websocket.send(said[start : start + 7])
        expected = b"\x01" + REQUEST + REQUEST
        await eventually(lambda: len(desk.upstream.heard) >= len(expected), "what is allowed arrives")
        assert bytes(desk.upstream.heard) == expected
        await websocket.send(b"\x07")
        assert await closing(websocket) == (
            1003,
            "the viewer sends a message of type 7, which a view-only session cannot judge",
        )
    assert bytes(desk.upstream.heard) == expected
    async with desk.socket() as websocket:
        await websocket.send("text")
        assert (await closing(websocket))[0] == 1003
    page = await desk.http.get(f"{desk.prefix}vnc.html?view_only=false")
    assert page.status_code == 307 and "view_only=true" in page.headers["location"]


async def test_a_control_session_passes_everything(desk: Desk) -> None:
    async with desk.socket() as websocket:
        await websocket.send(b"\x01" + KEY + POINTER + PASTE + b"\x07")
        expected = b"\x01" + KEY + POINTER + PASTE + b"\x07"
        await eventually(lambda: len(desk.upstream.heard) >= len(expected), "it arrives")
        assert bytes(desk.upstream.heard) == expected


async def test_a_desktop_with_a_password_nobody_knows_is_not_opened(desk: Desk) -> None:
    desk.upstream.answer = vnc.challenge_response("s3cret!x", CHALLENGE)
    async with desk.socket(entered=False) as websocket:
        assert await closing(websocket) == (
            1011,
            "the desktop asks for a password, which is known only while its node is connected",
        )
    await eventually(lambda: desk.upstream.closes, "the upstream socket is closed too")


async def test_the_password_is_answered_by_the_proxy(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.upstream.answer = vnc.challenge_response("s3cret!x", CHALLENGE)
    monkeypatch.setattr("api.takeover.proxy.password_of", lambda *_: "s3cret!x")
    async with desk.socket() as websocket:
        await websocket.send(b"inside")
        assert await websocket.recv() == b"inside"
    monkeypatch.setattr("api.takeover.proxy.password_of", lambda *_: "wrong")
    async with desk.socket(entered=False) as websocket:
        assert await closing(websocket) == (1011, "the desktop refuses: wrong")


async def test_a_viewer_that_speaks_something_else_is_told(desk: Desk) -> None:
    async with desk.socket(entered=False) as websocket:
        assert await websocket.recv() == b"RFB 003.008\n"
        await websocket.send(b"HELO example.org\r\n")
        assert await closing(websocket) == (1003, "the viewer does not speak RFB")


async def test_a_desktop_that_says_nothing_is_given_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.takeover.relay.HANDSHAKE_SECONDS", 0.2)
    async with desk.socket(entered=False) as websocket:
        assert await websocket.recv() == b"RFB 003.008\n"
        assert await closing(websocket) == (1003, "the viewer does not finish RFB's handshake")


async def test_pages_are_fenced_in(desk: Desk) -> None:
    answer = await desk.http.get(f"{desk.prefix}app/ui.js")
    policy = answer.headers["content-security-policy"]
    assert (
        "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "base-uri 'none'" in policy
    )
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert "camera=()" in answer.headers["permissions-policy"]


async def test_another_desktop_behind_the_port_is_another_session(desk: Desk) -> None:
    async with upstream_serving() as other:
        desk.record(generation=2, novnc_port=other.port)
        assert (await desk.http.get(f"{desk.prefix}app/ui.js")).status_code == 404
        assert other.requests == []


def _look(desk: Desk) -> None:
    with writing(desk.engine) as session:
        row = session.get(TakeoverSessionRow, desk.session_id)
        assert row is not None
        row.view_only = True
