"""Admin tokens over the API and by `desktopctl`: several, named, ending, replaceable from the host's shell."""

import asyncio
import json
import os
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner, Result

from cli import main
from inventory import admin_tokens
from inventory.engine import reading
from models import tokens
from tests.api.stack import ADMIN_TOKEN, Stack
from tests.support.waiting import eventually


async def made(stack: Stack, **body: Any) -> dict[str, Any]:
    answer = await stack.http.post("/tokens", json={"name": f"op-{uuid4()}"} | body)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    token: dict[str, Any] = answer.json()
    return token


async def opens(stack: Stack, token: str) -> bool:
    answer = await stack.http.get("/tokens", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code in (200, 401)
    return answer.status_code == 200


async def test_created_shown_once_listed_revoked(stack: Stack) -> None:
    one, two = await made(stack, expires_in_seconds=3600), await made(stack)
    assert set(one) == {"status", "token", "bearer_token"}
    created, expires = (datetime.fromisoformat(one["token"][n]) for n in ("created_at", "expires_at"))
    assert expires - created == timedelta(hours=1) and two["token"]["expires_at"] is None
    for token in (one, two):
        assert await opens(stack, token["bearer_token"])
    listing = await stack.http.get("/tokens")
    known = {t["token_id"]: t for t in listing.json()["tokens"]}
    assert known[one["token"]["token_id"]] == one["token"]
    for token in (one, two):
        parsed = tokens.parse(token["bearer_token"])
        assert parsed is not None and parsed.token_id == token["token"]["token_id"]
        assert token["bearer_token"].split(".")[-1] not in listing.text
    # Its own bearer may end it.
    path = f"/tokens/{one['token']['token_id']}/revoke"
    answer = await stack.http.post(path, headers={"Authorization": f"Bearer {one['bearer_token']}"})
    assert answer.status_code == 200 and answer.json()["token"]["live"] is False

    async def shut() -> bool:
        return not await opens(stack, one["bearer_token"])

    await eventually(shut, "refused")
    revoked_at = answer.json()["token"]["revoked_at"]
    assert (await stack.http.post(path)).json()["token"]["revoked_at"] == revoked_at
    assert await opens(stack, two["bearer_token"])


async def test_only_hashes_are_kept(stack: Stack) -> None:
    token = await made(stack)
    with reading(stack.engine) as session:
        row = admin_tokens.get(session, token["token"]["token_id"])
    assert row is not None
    secret = token["bearer_token"].split(".")[-1]
    assert secret not in row.model_dump_json() and len(row.salt) >= 16


async def test_an_expired_token_is_refused(stack: Stack) -> None:
    token = await made(stack, expires_in_seconds=60)
    with stack.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE admin_tokens SET expires_at = '2020-01-01 00:00:00' WHERE token_id = ?",
            (token["token"]["token_id"],),
        )
    assert not await opens(stack, token["bearer_token"])
    listed = (await stack.http.get("/tokens")).json()["tokens"]
    assert next(t for t in listed if t["token_id"] == token["token"]["token_id"])["live"] is False


async def test_names_are_clear(stack: Stack) -> None:
    token = await made(stack)
    name = token["token"]["name"]
    assert (await stack.http.post("/tokens", json={"name": name})).status_code == 409
    assert (await stack.http.post("/tokens", json={"name": "admin"})).status_code == 409
    await stack.http.post(f"/tokens/{token['token']['token_id']}/revoke")
    assert (await made(stack, name=name))["token"]["name"] == name


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "two\nlines"},
        {"name": "x" * 121},
        {"name": "x", "expires_in_seconds": 59},
        {"name": "x", "expires_in_seconds": "60"},
        {"name": "x", "expires_in_seconds": 10**12},
        {"name": "x", "expires_in_seconds": 60.5},
        {"name": "x", "token": "mine"},
    ],
)
async def test_bad_bodies(stack: Stack, body: dict[str, Any]) -> None:
    assert (await stack.http.post("/tokens", json=body)).status_code == 400


async def test_unknown_tokens(stack: Stack) -> None:
    for token_id in (str(uuid4()), "x", "%00", "a" * 3000):
        assert (await stack.http.post(f"/tokens/{token_id}/revoke")).status_code == 404


async def test_guessing_does_not_hold_the_event_loop(stack: Stack) -> None:
    token_id = (await made(stack))["token"]["token_id"]
    guesses = [f"tyrum-token.v1.{token_id}.{tokens.b64url(bytes([n]) * 32)}" for n in range(24)]
    gaps: list[float] = []

    async def beat() -> None:
        loop = asyncio.get_running_loop()
        while True:
            since = loop.time()
            await asyncio.sleep(0.001)
            gaps.append(loop.time() - since)

    beating = asyncio.create_task(beat())
    assert not any(await asyncio.gather(*(opens(stack, guess) for guess in guesses)))
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)
    print(f"longest pause of the event loop while 24 guesses were hashed: {1000 * max(gaps):.0f} ms")
    assert len(gaps) > 20


class Command:
    """`desktopctl` against the stack, in a thread."""

    def __init__(self, stack: Stack, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._stack = stack
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("DESKTOP_STATE_DIR", str(state_dir))
        monkeypatch.setenv("DESKTOP_ADMIN_TOKEN", ADMIN_TOKEN)
        monkeypatch.setenv("COLUMNS", "250")

    async def __call__(self, *arguments: str) -> Result:
        self._monkeypatch.setattr("sys.argv", ["desktopctl", *arguments])
        run = ["--api-url", self._stack.url, *arguments]
        result = await asyncio.to_thread(lambda: CliRunner().invoke(main.app, run))
        assert "Traceback" not in result.output and ADMIN_TOKEN not in result.output
        return result


@pytest.fixture
def desktopctl(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(stack, tmp_path, monkeypatch)


async def test_desktopctl_tokens(stack: Stack, desktopctl: Command) -> None:
    name = f"cli-{uuid4()}"
    created = await desktopctl("tokens", "create", name, "--expires-in", "30d")
    assert created.exit_code == 0, created.output
    text = created.stdout.strip()
    assert await opens(stack, text)
    listed = await desktopctl("tokens", "list")
    assert name in listed.stdout and "in 30 d" in listed.stdout and text.split(".")[-1] not in listed.stdout
    items = json.loads((await desktopctl("tokens", "list", "--json")).stdout)
    assert name in {item["name"] for item in items}
    again = await desktopctl("tokens", "create", name, "--json")
    assert again.exit_code == 4 and json.loads(again.stderr)["error"] == "conflict"
    revoked = await desktopctl("tokens", "revoke", name)
    assert revoked.exit_code == 0 and "revoked" in revoked.stdout

    async def shut() -> bool:
        return not await opens(stack, text)

    await eventually(shut, "refused")
    assert (await desktopctl("tokens", "revoke", "no-such-token")).exit_code == 3
    for span in ("soon", "0d", "-1h", "1y"):
        assert (await desktopctl("tokens", "create", "x", "--expires-in", span)).exit_code == 2


async def test_a_lost_token_is_replaced_from_the_shell(
    stack: Stack, desktopctl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DESKTOP_ADMIN_TOKEN")
    name = f"rescue-{uuid4()}"
    nowhere = await desktopctl("tokens", "create", name, "--local")
    assert nowhere.exit_code == 3 and "no inventory" in nowhere.stderr
    assert not (tmp_path / "inventory.db").exists()
    monkeypatch.setenv("DESKTOP_DATABASE_URL", stack.engine.url.render_as_string(hide_password=False))
    created = await desktopctl("tokens", "create", name, "--local", "--expires-in", "1h", "--json")
    assert created.exit_code == 0, created.output
    token = json.loads(created.stdout)
    assert set(token["token"]) == {"token_id", "name", "created_at", "expires_at", "revoked_at", "live"}
    assert await opens(stack, token["bearer_token"])
    rows = (await stack.http.get("/audit", params={"action": "token.create", "limit": 1})).json()["entries"]
    assert rows[0]["target"] == token["token"]["token_id"] and rows[0]["actor"].startswith("shell:")
    assert (await desktopctl("tokens", "create", name, "--local")).exit_code == 4
    assert (await desktopctl("tokens", "create", "two\nlines", "--local")).exit_code == 2


async def test_desktopctl_audit(stack: Stack, desktopctl: Command) -> None:
    environment_id = await stack.create()
    await stack.http.post(f"/desktop-environments/{environment_id}/stop")
    shown = await desktopctl("audit", "--environment", environment_id, "--actor", "admin")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.index("environment.create") < shown.stdout.index("environment.stop")
    items = json.loads(
        (await desktopctl("audit", "--action", "environment", "--limit", "2", "--json")).stdout
    )
    assert len(items) == 2 and items[-1]["action"] == "environment.stop"
    nothing = await desktopctl("audit", "--outcome", "failed", "--since", "2h", "--until", "1h")
    assert nothing.exit_code == 0 and "nothing" in nothing.stdout
    assert (await desktopctl("audit", "--since", "yesterday")).exit_code == 2
    timeline = await desktopctl("timeline", environment_id)
    assert timeline.exit_code == 0 and "command" in timeline.stdout


async def test_desktopctl_follows_the_audit(stack: Stack, tmp_path: Path) -> None:
    environment_id = await stack.create()
    command = ["--api-url", stack.url, "audit", "--environment", environment_id, "--follow", "--json"]
    environment = {
        "DESKTOP_ADMIN_TOKEN": ADMIN_TOKEN,
        "DESKTOP_STATE_DIR": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", *command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | environment,
    )
    try:
        assert process.stdout is not None

        async def line() -> dict[str, Any]:
            assert process.stdout is not None
            found: dict[str, Any] = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
            return found

        first = await line()
        assert first["action"] == "environment.create"
        await stack.http.post(f"/desktop-environments/{environment_id}/stop")
        following = await line()
        assert following["action"] == "environment.stop" and following["audit_id"] > first["audit_id"]
    finally:
        process.kill()
        await process.wait()
