"""With Temporal, the control worker or the inventory away: 503 in the error shape; what can be shown is."""

import asyncio
import shutil
from pathlib import Path

import httpx
import pytest
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from inventory.engine import make_engine
from tests.api.stack import (
    BEARER,
    client,
    fresh_inventory,
    make_services,
    record_host,
    record_running,
    serving,
)
from tests.support.temporal import start_dev_server
from workflows.plugin import ControlPlanePlugin


async def nowhere() -> Client:
    """A client of a Temporal that is not there."""
    return await Client.connect("127.0.0.1:1", lazy=True, plugins=[ControlPlanePlugin()])


async def test_temporal_away(tmp_path: Path) -> None:
    engine = fresh_inventory(tmp_path)
    record_host(engine, "h1")
    environment_id = record_running(engine, "h1", 32001)
    async with (
        serving(make_services(engine, await nowhere())) as (url, app),
        client(url, app, headers=BEARER) as http,
    ):
        path = f"/desktop-environments/{environment_id}"
        shown = await http.get(path)
        assert shown.status_code == 200 and shown.json()["environment"]["source"] == "inventory"
        assert (await http.get("/desktop-environments")).status_code == 200
        assert (await http.get("/desktop-environment-hosts")).status_code == 200
        assert (await http.get(f"{path}/timeline")).status_code == 200
        refused = [
            await http.post("/desktop-environments", json={}),
            await http.post(f"{path}/start"),
            await http.patch(path, json={"label": "x"}),
            await http.delete(path),
            await http.get(f"{path}/logs", params={"refresh": "true"}),
        ]
        assert [answer.status_code for answer in refused] == [503] * 5
        assert {answer.json()["error"] for answer in refused} == {"unavailable"}
        ready = await http.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["parts"]["inventory"]["ok"] and not ready.json()["parts"]["temporal"]["ok"]
        assert (await http.get("/healthz")).status_code == 200
    engine.dispose()


async def test_temporal_that_takes_connections_and_answers_nothing(tmp_path: Path) -> None:
    engine = fresh_inventory(tmp_path)
    record_host(engine, "h1")
    environment_id = record_running(engine, "h1", 32001)
    release = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    mute = await Client.connect(address, lazy=True, plugins=[ControlPlanePlugin()])
    try:
        async with (
            serving(make_services(engine, mute)) as (url, app),
            client(url, app, headers=BEARER) as http,
        ):
            answer = await http.post(f"/desktop-environments/{environment_id}/stop")
            assert answer.status_code == 503
    finally:
        release.set()
        server.close()
    engine.dispose()


async def test_no_control_worker_accepts_and_shows_the_record(tmp_path: Path) -> None:
    engine = fresh_inventory(tmp_path)
    record_host(engine, "h1")
    async with (
        await start_dev_server() as server,
        serving(make_services(engine, server.client)) as (url, app),
        client(url, app, headers=BEARER) as http,
    ):
        made = await http.post("/desktop-environments", json={"desired_running": True})
        assert made.status_code == 201
        path = made.headers["location"]
        assert made.json()["environment"]["status"] == "pending"
        answer = await http.post(f"{path}/stop")
        assert answer.json()["environment"]["desired_running"] is False, "shown as it will be, not as it was"
        for name in ("start", "stop", "reset"):
            answer = await http.post(f"{path}/{name}")
            assert answer.status_code == 202, answer.text
            assert answer.json()["environment"]["source"] == "expected"
        waited = await http.post(f"{path}/start?wait=1")
        assert waited.status_code == 202
        shown = await http.get(path)
        assert shown.status_code == 200 and shown.json()["environment"]["source"] == "inventory"
        assert (await http.delete(path)).status_code == 202
    engine.dispose()


async def test_inventory_away(tmp_path: Path, temporal: WorkflowEnvironment) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'never-migrated' / 'inventory.db'}")
    async with (
        serving(make_services(engine, temporal.client)) as (url, app),
        client(url, app, headers=BEARER) as http,
    ):
        for method, path in [
            ("GET", "/desktop-environments"),
            ("POST", "/desktop-environments"),
            ("GET", "/desktop-environment-hosts"),
            ("GET", "/config/desktop-environments/defaults"),
            ("GET", "/desktop-environments/4f36b3dc-364a-4123-89b9-bd992405479e"),
            ("POST", "/desktop-environments/4f36b3dc-364a-4123-89b9-bd992405479e/start"),
        ]:
            answer = await http.request(method, path, json={} if method == "POST" else None)
            assert answer.status_code == 503, (method, path, answer.text)
            assert answer.json()["error"] == "unavailable" and "SELECT" not in answer.text
        token = "tyrum-token.v1.4f36b3dc-364a-4123-89b9-bd992405479e." + "A" * 43
        answer = await http.get("/desktop-environments", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 503
        ready = await http.get("/readyz")
        assert ready.status_code == 503 and not ready.json()["parts"]["inventory"]["ok"]
        gone = await http.get("/desktop-takeover/s/" + "a" * 43 + "/app/ui.js")
        assert gone.status_code == 503 and gone.headers["content-type"].startswith("text/plain")
    engine.dispose()
    shutil.rmtree(tmp_path / "never-migrated")


async def test_a_defect_is_logged_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = fresh_inventory(tmp_path)
    services = make_services(engine, await nowhere())

    def broken(*_arguments: object) -> None:
        raise KeyError("inner secret")

    monkeypatch.setattr("api.routers.hosts.hosts.list_all", broken)
    async with serving(services) as (url, _), httpx.AsyncClient(base_url=url, headers=BEARER) as http:
        answer = await http.get("/desktop-environment-hosts")
    assert answer.status_code == 500
    assert answer.json()["error"] == "internal" and "secret" not in answer.text
    incident = answer.json()["message"].split()[-1]
    assert any(incident in record.getMessage() and record.exc_info for record in caplog.records)
    engine.dispose()
