"""Every route that changes something leaves a row when it did and when it refused to; nothing secret is in any."""

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from api import audit as requests_audit
from api.audit import ACTIONS, MUTATING
from api.guard import MAX_CODEC_BYTES
from inventory import audit, takeover
from inventory.audit import Filters
from inventory.engine import reading, writing
from models import keyring
from models.codec_address import codec_capability, hide_capability
from models.errors import Unavailable
from models.tables import AuditRow
from models.takeover import TAKEOVER_PREFIX
from models.tokens import sha256_hex
from tests.api.stack import ADMIN_TOKEN, BEARER, Stack, client, make_services, record_running, serving
from tests.api.test_api_contract import leaves

HERE = "127.0.0.1"


def rows(engine: Engine, **filters: Any) -> list[AuditRow]:
    with reading(engine) as session:
        return audit.page(session, Filters(**filters), None, 1000)


def mutating(app: FastAPI) -> dict[str, tuple[str, str]]:
    """Method and path of every route that changes something, by operation id."""
    found = {}
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            if method.upper() in MUTATING:
                found[operation["operationId"]] = (method.upper(), path)
    return found


async def test_every_mutating_route_has_a_name_and_records_refusals(stack: Stack) -> None:
    routes = mutating(stack.app)
    assert set(routes) <= set(ACTIONS), "name them in api.audit.ACTIONS"
    assert len(routes) >= 14
    real = {
        r.name for r in leaves(stack.app.routes) if isinstance(r, Route) and MUTATING & (r.methods or set())
    }
    assert real <= set(routes)
    for name, (method, template) in routes.items():
        environment_id = str(uuid4())
        path = template.replace("{environment_id}", environment_id)
        path = re.sub(r"\{[^}]+\}", lambda _: str(uuid4()), path)
        before = rows(stack.engine, action=ACTIONS[name])
        answer = await stack.http.request(
            method, path, content=b"[", headers={"Content-Type": "application/json"}
        )
        assert answer.status_code in (400, 404), (name, answer.text)
        row = rows(stack.engine, action=ACTIONS[name])[0]
        assert row not in before, name
        assert (row.outcome, row.code) == ("refused", answer.json()["error"])
        assert (row.actor_kind, row.actor, row.source) == ("operator", "admin", HERE)
        assert row.environment_id == (environment_id if "{environment_id}" in template else None)


async def test_every_mutating_route_records_success(stack: Stack) -> None:
    recorded: dict[str, AuditRow] = {}

    async def accepted(name: str, method: str, path: str, body: Any = None, status: int | None = None) -> Any:
        answer = await stack.http.request(method, path, json=body)
        assert answer.status_code == status if status else answer.is_success, answer.text
        row = rows(stack.engine, action=ACTIONS[name])[0]
        assert (row.outcome, row.actor, row.source) == ("accepted", "admin", HERE), name
        recorded[name] = row
        return answer.json()

    body = {"host_id": stack.host_id, "label": "audited"}
    made = await accepted("create_environment", "POST", "/desktop-environments", body)
    environment_id = made["environment"]["environment_id"]
    path = f"/desktop-environments/{environment_id}"
    await accepted("start_environment", "POST", f"{path}/start?wait=30", {"reason": "for the test"}, 200)
    await accepted("patch_environment", "PATCH", path, {"label": "renamed"})
    session = await accepted("create_takeover_session", "POST", f"{path}/takeover-token")
    known = set(mutating(stack.app))
    if "extend_takeover_session" in known:
        sessions = f"{path}/takeover-sessions/{session['session_id']}"
        await accepted("extend_takeover_session", "POST", f"{sessions}/extend", {"ttl_seconds": 600})
        await accepted("revoke_takeover_session", "POST", f"{sessions}/revoke")
    await stack.http.get(f"{path}/takeover")
    assert (
        rows(stack.engine, action="takeover.redirect", environment_id=environment_id)[0].outcome == "accepted"
    )
    await accepted("reset_environment", "POST", f"{path}/reset?wait=30")
    await accepted("stop_environment", "POST", f"{path}/stop?wait=30")
    await accepted("delete_environment", "DELETE", f"{path}?wait=30")
    put = {"default_image_ref": "desktop-sandbox:dev"}
    await accepted("put_defaults", "PUT", "/config/desktop-environments/defaults", put)
    token = await accepted("create_token", "POST", "/tokens", {"name": f"t-{uuid4()}"})
    await accepted("revoke_token", "POST", f"/tokens/{token['token']['token_id']}/revoke")
    of_nodes = {name for name in known if ACTIONS[name].split(".")[0] in ("pairing", "dispatch")}
    assert known - of_nodes == set(recorded)
    # Those of nodes: `test_audit_gateway`. A name that no route has would be a promise that nothing keeps.
    assert set(ACTIONS) == known | {"redirect_to_desktop"}
    assert recorded["create_environment"].environment_id == environment_id
    assert recorded["start_environment"].detail["reason"] == "for the test"
    assert recorded["patch_environment"].detail == {"label": "renamed"}
    assert recorded["stop_environment"].generation == 2
    assert recorded["create_takeover_session"].target == session["session_id"]
    mine = rows(stack.engine, environment_id=environment_id)
    system = {row.action for row in mine if row.actor_kind == "system"}
    assert {"node_token.register", "node_token.revoke"} <= system
    kept = json.dumps([row.model_dump(mode="json") for row in rows(stack.engine)])
    link = session["entry_url"].split("/desktop-takeover/s/")[1].split("/")[0]
    for secret in (ADMIN_TOKEN, token["bearer_token"].split(".")[-1], link):
        assert secret not in kept
    listed = await stack.http.get("/audit", params={"environment_id": environment_id, "limit": 1000})
    assert [e["audit_id"] for e in listed.json()["entries"]] == [row.audit_id for row in mine]


async def test_a_command_to_nothing_is_a_refusal(stack: Stack) -> None:
    environment_id = str(uuid4())
    for method, path in (("POST", "/start"), ("DELETE", ""), ("PATCH", "")):
        address = f"/desktop-environments/{environment_id}{path}"
        answer = await stack.http.request(method, address, json={"label": "x"} if method == "PATCH" else None)
        assert answer.status_code == 404
    found = rows(stack.engine, environment_id=environment_id)
    assert [(row.outcome, row.code) for row in found] == [("refused", "not_found")] * 3


async def test_each_command_has_one_row_and_reads_have_none(stack: Stack) -> None:
    environment_id = await stack.create()
    path = f"/desktop-environments/{environment_id}"
    await stack.http.post(f"{path}/stop?wait=10")
    for suffix in ("", "/logs", "/timeline"):
        await stack.http.get(path + suffix)
    await stack.http.get(f"/desktop-environments/{uuid4()}")
    by_operators = [row.action for row in rows(stack.engine, environment_id=environment_id) if row.source]
    assert by_operators == ["environment.stop", "environment.create"]


async def test_strangers_are_one_row_a_minute(stack: Stack) -> None:
    before = len(rows(stack.engine, action="auth.refused"))
    async with client(stack.url, stack.app) as http:
        for number in range(30):
            answer = await http.post(
                f"/tokens?{number}", headers={"Authorization": f"Bearer guess-{number}-guess"}
            )
            assert answer.status_code == 401
    found = rows(stack.engine, action="auth.refused")
    assert len(found) >= 1 and len(found) - before <= 1
    assert (found[0].actor_kind, found[0].source, found[0].code) == ("unknown", HERE, "unauthorized")


async def test_nothing_is_changed_that_cannot_be_recorded(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment_id = await stack.create()
    path = f"/desktop-environments/{environment_id}"

    async def environments() -> list[tuple[str, ...]]:
        listed = (await stack.http.get("/desktop-environments", params={"limit": 200})).json()["environments"]
        return sorted((e["environment_id"], str(e["label"]), str(e["desired_running"])) for e in listed)

    before = await environments()
    tokens = (await stack.http.get("/tokens")).json()["tokens"]
    defaults = (await stack.http.get("/config/desktop-environments/defaults")).json()

    async def away(*_arguments: Any) -> int:
        raise Unavailable("away")

    def refuse(*_arguments: Any) -> int:
        raise Unavailable("away")

    monkeypatch.setattr(requests_audit, "write", away)
    monkeypatch.setattr(audit, "append", refuse)
    for method, address, body in [
        ("POST", "/desktop-environments", {"host_id": stack.host_id}),
        ("POST", f"{path}/start", None),
        ("PATCH", path, {"label": "x"}),
        ("DELETE", path, None),
        ("POST", "/tokens", {"name": "nobody"}),
        ("PUT", "/config/desktop-environments/defaults", {"default_image_ref": "other:1"}),
    ]:
        answer = await stack.http.request(method, address, json=body)
        assert answer.status_code == 503, (method, address, answer.text)
        assert answer.headers["retry-after"] == "1"
    # A refusal is one whether or not it can be recorded.
    assert (await stack.http.post(f"/desktop-environments/{uuid4()}/start")).status_code == 404
    monkeypatch.undo()
    assert await environments() == before
    assert (await stack.http.get("/tokens")).json()["tokens"] == tokens
    assert (await stack.http.get("/config/desktop-environments/defaults")).json() == defaults


async def test_what_was_begun_and_went_wrong_has_a_second_row(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment_id = await stack.create()

    async def away(*_arguments: Any) -> None:
        raise Unavailable("Temporal does not answer")

    monkeypatch.setattr(stack.services.workflows, "signal", away)
    answer = await stack.http.post(f"/desktop-environments/{environment_id}/start")
    assert answer.status_code == 503
    found = rows(stack.engine, environment_id=environment_id, action="environment.start")
    assert [(row.outcome, row.code) for row in found] == [("failed", "unavailable"), ("accepted", None)]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "1001"},
        {"cursor": "x"},
        {"cursor": "9" * 19},
        {"outcome": "good"},
        {"since": "yesterday"},
        {"since": "2026-11-23T12:00:00"},
        {"until": "2026-11-23"},
    ],
)
async def test_bad_queries(stack: Stack, query: dict[str, str]) -> None:
    answer = await stack.http.get("/audit", params=query)
    assert answer.status_code == 400, answer.text


async def test_pages_in_both_directions(stack: Stack) -> None:
    await stack.create()
    whole = (await stack.http.get("/audit", params={"limit": 1000})).json()["entries"]
    for oldest_first in (False, True):
        collected: list[Any] = []
        params: dict[str, Any] = {"limit": 7, "oldest_first": oldest_first, "until": "2999-01-01T00:00:00Z"}
        while True:
            page = (await stack.http.get("/audit", params=params)).json()
            collected += page["entries"]
            if not page["entries"] or page["next_cursor"] is None:
                break
            params["cursor"] = page["next_cursor"]
        ids = [entry["audit_id"] for entry in collected]
        assert ids == sorted(ids, reverse=not oldest_first)
        assert {entry["audit_id"] for entry in whole} <= set(ids)
        assert all(entry["at"].endswith("Z") for entry in collected)


async def test_using_a_takeover_link_is_recorded_once_a_minute(stack: Stack) -> None:
    environment_id = record_running(stack.engine, stack.host_id, 1)
    with writing(stack.engine) as session:
        opened = takeover.create(
            session,
            environment_id=environment_id,
            generation=1,
            token_sha256=sha256_hex("a-link"),
            created_by="admin",
            now=datetime.now(UTC),
            ttl_seconds=60,
        )
    sent: list[Message] = []

    async def desktop(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    audited = requests_audit.Audit(desktop, stack.engine)
    for token in ("a-link", "a-link", "no-link", "%\udc80"):
        scope = {
            "type": "websocket",
            "path": f"{TAKEOVER_PREFIX}{token}/websockify",
            "client": ("192.0.2.4", 7),
        }
        await audited(scope, receive, send)
    assert len(sent) == 4
    found = rows(stack.engine, action="takeover.connect")
    assert [(row.target, row.source) for row in found] == [(opened.session_id, "192.0.2.4")]
    assert (found[0].environment_id, found[0].generation) == (environment_id, 1)


async def test_reading_histories_is_recorded_once_a_minute(stack: Stack, tmp_path: Path) -> None:
    keyring.add_key(tmp_path / "keys.json", "one")
    services = make_services(stack.engine, stack.client, codec_keys_file=str(tmp_path / "keys.json"))
    before = {row.audit_id for row in rows(stack.engine)}
    capability = codec_capability(ADMIN_TOKEN)
    async with serving(services) as (url, app), client(url, app) as http:
        for _ in range(3):
            for place in ("/codec", f"/codec/{capability}"):
                answer = await http.post(f"{place}/encode", content=b"{}", headers=BEARER)
                assert answer.status_code == 200, answer.text
                assert (await http.post(f"{place}/decode", content=b"{}", headers=BEARER)).is_success
            assert (await http.post("/codec/guessed/decode", content=b"{}")).status_code == 404
            assert (await http.post(f"/codec/{capability}/x", content=b"{}")).status_code == 404
            assert (await http.post(f"/codec/{capability}/decode/", content=b"{}")).status_code == 401
    found = [row for row in rows(stack.engine) if row.audit_id not in before]
    assert sorted((row.action, row.outcome, row.actor_kind, row.actor) for row in found) == [
        ("auth.refused", "refused", "unknown", "unknown"),
        ("codec.decode", "accepted", "operator", "admin"),
        ("codec.decode", "accepted", "unknown", "holder of the codec address"),
        ("codec.decode", "refused", "unknown", "unknown"),
        ("codec.encode", "accepted", "operator", "admin"),
        ("codec.encode", "accepted", "unknown", "holder of the codec address"),
    ]
    assert capability not in json.dumps([row.model_dump(mode="json") for row in found])


async def test_strangers_hide_nobody_who_was_let_in(stack: Stack, tmp_path: Path) -> None:
    """What may be recorded of strangers is bounded; who reads histories meanwhile is recorded all the same."""
    keyring.add_key(tmp_path / "keys.json", "one")
    services = make_services(stack.engine, stack.client, codec_keys_file=str(tmp_path / "keys.json"))
    async with serving(services) as (url, app), client(url, app) as http:
        for number in range(70):
            transport = httpx.AsyncHTTPTransport(local_address=f"127.0.2.{number + 1}")
            async with httpx.AsyncClient(base_url=url, transport=transport) as stranger:
                assert (await stranger.get("/tokens")).status_code == 401
        before = {row.audit_id for row in rows(stack.engine)}
        assert (await http.post("/codec/decode", content=b"{}", headers=BEARER)).is_success
    found = [row for row in rows(stack.engine) if row.audit_id not in before]
    assert [row.action for row in found] == ["codec.decode"]


async def test_the_codec_endpoint_takes_no_endless_body(stack: Stack, tmp_path: Path) -> None:
    keyring.add_key(tmp_path / "keys.json", "one")
    services = make_services(stack.engine, stack.client, codec_keys_file=str(tmp_path / "keys.json"))
    path = f"/codec/{codec_capability(ADMIN_TOKEN)}/decode"
    part, parts = b" " * 65536, MAX_CODEC_BYTES // 65536 + 1

    async def streamed() -> AsyncIterator[bytes]:
        for _ in range(parts):
            yield part

    async with serving(services) as (url, app), client(url, app) as http:
        for content in (part * parts, streamed()):
            answer = await http.post(path, content=content)
            assert answer.status_code == 400 and "larger than" in answer.json()["message"], answer.text


def test_the_capability_is_hidden_wherever_a_path_is_shown() -> None:
    capability = codec_capability(ADMIN_TOKEN)
    for rest in ("/decode", "/encode", "/decode/", "", "?x=1", "/decode HTTP/1.1"):
        shown = hide_capability(f'"POST /codec/{capability}{rest}"')
        assert capability not in shown and shown == f'"POST /codec/…{rest}"'
    assert hide_capability(f"/codec//{capability}/decode") == "/codec//…/decode"
    for plain in ('"POST /codec/decode HTTP/1.1" 200', "POST /codec/encode", "/codec/decode/"):
        assert hide_capability(plain) == plain
