"""What holds for every route: authentication, strict input, the error shape, a truthful OpenAPI document."""

import asyncio
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest
from starlette.routing import BaseRoute, Mount, Route

from api.guard import MAX_BODY_BYTES, PUBLIC_PATHS
from inventory import admin_tokens
from inventory.engine import writing
from models.tables import HostRow
from tests.api.stack import ADMIN_TOKEN, Stack, client, record_host
from tests.support.waiting import eventually


def operations(stack: Stack) -> list[tuple[str, str]]:
    """Every method and path of the OpenAPI document, with ids filled in."""
    return [
        (method.upper(), re.sub(r"\{[^}]+\}", str(uuid4()), path))
        for path, methods in stack.app.openapi()["paths"].items()
        for method in methods
        if not path.startswith("/desktop-takeover/")
    ]


def leaves(routes: list[BaseRoute]) -> Iterator[BaseRoute]:
    """Every route an application really has, those of included routers too."""
    for route in routes:
        inner = getattr(getattr(route, "original_router", None), "routes", None)
        if isinstance(route, Mount) or inner is None:
            yield route
        else:
            yield from leaves(inner)


async def test_every_route_asks_for_a_token(stack: Stack) -> None:
    wrong: list[Any] = [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer not-the-token-at-all"},
        {"Authorization": f"Basic {ADMIN_TOKEN}"},
        {"Authorization": f"Bearer {ADMIN_TOKEN}x"},
        {"Authorization": "Bearer " + "x" * 5000},
        {"Authorization": b"Bearer \xff\xfe"},
        {"Authorization": "Bearer tyrum-token.v1.4f36b3dc-364a-4123-89b9-bd992405479e." + "A" * 43},
        {"Cookie": f"tyrum_admin_token={ADMIN_TOKEN}"},
    ]
    async with client(stack.url, stack.app) as http:
        checked = 0
        for method, path in operations(stack):
            if path in PUBLIC_PATHS:
                continue
            for headers in wrong:
                answer = await http.request(method, path, headers=headers, content=b"{not json")
                assert answer.status_code == 401, (method, path, headers)
                assert answer.json()["error"] == "unauthorized"
                assert answer.headers["www-authenticate"] == "Bearer"
                checked += 1
        assert checked >= 130
        assert (await http.get("/no-such-route")).status_code == 401


async def test_no_route_is_missing_from_the_document(stack: Stack) -> None:
    documented = set(stack.app.openapi()["paths"])
    found = 0
    for route in leaves(stack.app.routes):
        if isinstance(route, Route) and getattr(route, "include_in_schema", True):
            found += 1
            assert any(path.endswith(route.path) for path in documented), route.path
    assert found >= 10


async def test_public_paths_need_no_token_and_use_nothing_from_elsewhere(stack: Stack) -> None:
    async with client(stack.url, stack.app) as http:
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        ready = await http.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["parts"] == {
            name: {"ok": True, "message": None} for name in ("inventory", "temporal")
        }
        page = await http.get("/docs")
        assert page.status_code == 200 and "/openapi.json" in page.text
        assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page.text)
        document = (await http.get("/openapi.json")).json()
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


async def test_document_is_complete(stack: Stack) -> None:
    document = stack.app.openapi()
    ids = [
        operation["operationId"] for methods in document["paths"].values() for operation in methods.values()
    ]
    assert len(ids) == len(set(ids))
    assert {"create_environment", "list_environments", "start_environment", "get_defaults"} <= set(ids)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"] and operation["tags"], (method, path)
            assert "422" not in operation["responses"]
            if path not in PUBLIC_PATHS and not path.startswith("/desktop-takeover/"):
                assert operation["security"] == [{"HTTPBearer": []}], (method, path)
                assert {"401", "503"} <= set(operation["responses"]), (method, path)
    assert "HTTPValidationError" not in json.dumps(document)


async def test_tokens_of_the_inventory_open_and_a_revoked_one_does_not(stack: Stack) -> None:
    now = datetime.now(UTC)

    def make() -> tuple[str, str]:
        with writing(stack.engine) as session:
            row, token = admin_tokens.create(session, "alice", now)
            return row.token_id, token.text

    token_id, text = await asyncio.to_thread(make)
    headers = {"Authorization": f"Bearer {text}"}
    answer = await stack.http.post("/desktop-environments", json={"label": "hers"}, headers=headers)
    assert answer.status_code == 201
    path = f"/desktop-environments/{answer.json()['environment']['environment_id']}/timeline"

    async def actors() -> bool:
        return any(e["actor"] == "alice" for e in (await stack.http.get(path)).json()["entries"])

    await eventually(actors, "the timeline names her")
    with writing(stack.engine) as session:
        assert admin_tokens.revoke(session, token_id, now)

    async def refused() -> bool:
        return (await stack.http.get("/desktop-environments", headers=headers)).status_code == 401

    await eventually(refused, "revoked token refused")


CREATE = ("POST", "/desktop-environments")
DEFAULTS = ("PUT", "/config/desktop-environments/defaults")
START = ("POST", "/desktop-environments/{id}/start")
PATCH = ("PATCH", "/desktop-environments/{id}")
RESET = ("POST", "/desktop-environments/{id}/reset")


@pytest.mark.parametrize(
    ("route", "body", "named"),
    [
        (CREATE, {"colour": "red"}, "colour"),
        (CREATE, {"host_id": "unknown"}, "host_id"),
        (CREATE, {"host_id": 5}, "host_id"),
        (CREATE, {"host_id": "\x00../etc"}, "host_id"),
        (CREATE, {"label": ""}, "label"),
        (CREATE, {"label": "  "}, "label"),
        (CREATE, {"label": "x" * 121}, "label"),
        (CREATE, {"label": "two\nlines"}, "label"),
        (CREATE, {"label": "nul\x00"}, "label"),
        (CREATE, {"label": "\ud800"}, "label"),
        (CREATE, {"label": 7}, "label"),
        (CREATE, {"image_ref": ""}, "image_ref"),
        (CREATE, {"image_ref": "Upper/Case"}, "image_ref"),
        (CREATE, {"image_ref": "a b"}, "image_ref"),
        (CREATE, {"image_ref": "--privileged"}, "image_ref"),
        (CREATE, {"image_ref": "a:" + "t" * 129}, "image_ref"),
        (CREATE, {"image_ref": "a" * 256}, "image_ref"),
        (CREATE, {"image_ref": "a@sha256:12"}, "image_ref"),
        (CREATE, {"desired_running": "yes"}, "desired_running"),
        (CREATE, {"desired_running": None}, "desired_running"),
        (CREATE, {"security_profile": "none"}, "security_profile"),
        (CREATE, [], "body"),
        (CREATE, "text", "body"),
        (CREATE, None, "body"),
        (CREATE, b"{not json", "JSON"),
        (CREATE, b"\xff\xfe\x00", "JSON"),
        (CREATE, b'{"label": ' + b"[" * 100_000, "JSON"),
        (CREATE, b"", "body"),
        (DEFAULTS, {}, "default_image_ref"),
        (DEFAULTS, {"default_image_ref": None}, "default_image_ref"),
        (DEFAULTS, {"default_image_ref": "a", "revision": 1}, "revision"),
        (DEFAULTS, {"default_image_ref": "a", "reason": "x" * 501}, "reason"),
        (START, {"rotate_identity": True}, "rotate_identity"),
        (START, {"reason": 1}, "reason"),
        (START, b"[", "JSON"),
        (RESET, {"rotate_identity": "yes"}, "rotate_identity"),
        (PATCH, {"image_ref": None}, "image_ref"),
        (PATCH, {"desired_running": None}, "desired_running"),
        (PATCH, {"status": "running"}, "status"),
        (PATCH, {"label": "\u2028"}, "label"),
    ],
)
async def test_bad_bodies_name_what_is_wrong(
    stack: Stack, route: tuple[str, str], body: Any, named: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    path = route[1].replace("{id}", str(uuid4()))
    answer = await stack.http.request(
        route[0], path, content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"] == "invalid_request"
    assert named in answer.json()["message"]


async def test_body_of_another_type_and_oversized_ones(stack: Stack) -> None:
    answer = await stack.http.post("/desktop-environments", content=b"label=x")
    assert answer.status_code == 400 and "Content-Type" in answer.json()["message"]
    large = json.dumps({"label": "x" * MAX_BODY_BYTES}).encode()

    async def chunks() -> Any:
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    for content in (large, chunks()):
        try:
            answer = await stack.http.post(
                "/desktop-environments", content=content, headers={"Content-Type": "application/json"}
            )
        except (httpx.WriteError, httpx.ReadError):
            continue  # refused before all of it was read
        assert answer.status_code == 400 and "larger" in answer.json()["message"]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "x"},
        {"limit": "9" * 30},
        {"status": "asleep"},
        {"cursor": "x"},
        {"cursor": "é"},
        {"cursor": "e30"},
        {"cursor": "x" * 301},
        {"host_id": "h" * 101},
    ],
)
async def test_bad_queries(stack: Stack, query: dict[str, str]) -> None:
    answer = await stack.http.get("/desktop-environments", params=query)
    assert answer.status_code == 400 and answer.json()["error"] == "invalid_request"


@pytest.mark.parametrize("wait", ["-1", "301", "x", ""])
async def test_bad_waits(stack: Stack, wait: str) -> None:
    answer = await stack.http.post(f"/desktop-environments/{uuid4()}/start", params={"wait": wait})
    assert answer.status_code == 400 and "wait" in answer.json()["message"]


@pytest.mark.parametrize(
    "bad", ["x", "%00", "..", "A" * 300, "4F36B3DC-364A-4123-89B9-BD992405479E", "{id}", "é"]
)
async def test_ids_that_cannot_be_are_404(stack: Stack, bad: str) -> None:
    for method, path in [
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/start"),
        ("GET", "/logs"),
        ("GET", "/timeline"),
        ("POST", "/takeover-token"),
        ("GET", "/takeover"),
    ]:
        address = f"/desktop-environments/{bad}{path}"
        answer = await stack.http.request(method, address, json={} if method == "PATCH" else None)
        assert answer.status_code in (404, 405), (method, address, answer.text)
    assert (await stack.http.get(f"/desktop-environment-hosts/{bad}")).status_code == 404


async def test_unknown_ids_are_404_everywhere(stack: Stack) -> None:
    for method, path in operations(stack):
        if path.startswith("/desktop-environments/"):
            answer = await stack.http.request(method, path, json={} if method in ("PATCH", "POST") else None)
            assert answer.status_code == 404, (method, path, answer.text)
            assert answer.json()["error"] == "not_found"
    answer = await stack.http.get(f"/desktop-environments/{uuid4()}/logs", params={"refresh": "true"})
    assert answer.status_code == 404


async def test_unknown_routes_and_methods_have_the_shape(stack: Stack) -> None:
    for path in ("/nothing", "/desktop-environments/", "//", "/desktop-takeover/s"):
        assert (await stack.http.get(path)).status_code == 404, path
    answer = await stack.http.put("/desktop-environments", json={})
    assert answer.status_code == 405 and "GET" in answer.headers["allow"]


async def test_host_that_cannot_take_one_is_a_conflict(stack: Stack) -> None:
    record_host(stack.engine, "sick-host", docker_available=False, healthy=False, last_error="Docker is down")
    try:
        answer = await stack.http.post("/desktop-environments", json={"host_id": "sick-host"})
        assert answer.status_code == 409 and "Docker is down" in answer.json()["message"]
        answer = await stack.http.post("/desktop-environments", json={})
        assert answer.status_code == 400 and "more than one" in answer.json()["message"]
    finally:
        with writing(stack.engine) as session:
            session.delete(session.get(HostRow, "sick-host"))
