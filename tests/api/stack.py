"""The admin API under test: real HTTP, SQLite, Temporal and workflows; the host is a fake runtime."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
from fastapi import FastAPI
from sqlalchemy import Engine
from temporalio.client import Client

from api.app import create_admin_app
from api.dependencies import Services
from api.server import bind, make_listener
from api.server import make_services as build_services
from api.temporal import Workflows
from inventory import environments, hosts
from inventory.engine import make_engine, writing
from inventory.migrate import upgrade
from models import messages as m
from models.identifiers import new_environment_id
from models.lifecycle import Status
from models.settings import ApiSettings
from models.takeover import TAKEOVER_PREFIX
from tests.fakes.runtime import FakeRuntime

ADMIN_TOKEN = "test-admin-token-0123456789"
BEARER = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


@dataclass
class Stack:
    """One admin application and the parts behind it."""

    url: str
    http: httpx.AsyncClient
    app: FastAPI
    services: Services
    host_id: str
    runtime: FakeRuntime
    client: Client

    @property
    def engine(self) -> Engine:
        """The inventory."""
        return self.services.engine

    async def create(self, **body: Any) -> str:
        """Create an environment over HTTP; its id."""
        answer = await self.http.post("/desktop-environments", json={"host_id": self.host_id, **body})
        assert answer.status_code == 201, answer.text
        return cast(str, answer.json()["environment"]["environment_id"])

    async def started(self, **body: Any) -> str:
        """Create an environment and wait until it runs; its id."""
        environment_id = await self.create(**body)
        answer = await self.http.post(f"/desktop-environments/{environment_id}/start?wait=30")
        assert answer.status_code == 200, answer.text
        assert answer.json()["environment"]["status"] == "running", answer.text
        return environment_id


def fresh_inventory(path: Path) -> Engine:
    """A migrated SQLite inventory."""
    engine = make_engine(f"sqlite:///{path / 'inventory.db'}")
    upgrade(engine, lambda line: None)
    return engine


def record_host(engine: Engine, host_id: str, **fields: Any) -> None:
    """A healthy host, or as `fields` say."""
    known = {"healthy": True, "docker_available": True, "revision": 1}
    with writing(engine) as session:
        hosts.record(session, m.HostRecord(host_id=host_id, **(known | fields)), datetime.now(UTC))


def record_running(engine: Engine, host_id: str, novnc_port: int, **fields: Any) -> str:
    """A running environment that only the inventory knows; its id."""
    environment_id = fields.pop("environment_id", None) or new_environment_id()
    record = m.EnvironmentRecord(
        spec=m.EnvironmentSpec(environment_id=environment_id, host_id=host_id, image_ref="image:1"),
        **{
            "status": Status.RUNNING,
            "desired_running": True,
            "generation": 1,
            "revision": 1,
            "novnc_port": novnc_port,
            "at": datetime.now(UTC),
        }
        | fields,
    )
    with writing(engine) as session:
        assert environments.record(session, record, record.at)
    return environment_id


def make_services(engine: Engine, client: Client, **settings: Any) -> Services:
    """The parts of an api process."""
    return build_services(ApiSettings(**({"admin_token": ADMIN_TOKEN} | settings)), engine, Workflows(client))


def contract_check(app: FastAPI) -> Callable[[httpx.Response], Awaitable[None]]:
    """A hook for an HTTP client: every answer is declared in the OpenAPI document, every refusal in shape."""
    paths = app.openapi()["paths"]
    templates = [(re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path)), path) for path in paths]

    async def check(response: httpx.Response) -> None:
        await response.aread()
        path, method = response.request.url.path, response.request.method.lower()
        if path.startswith(TAKEOVER_PREFIX):
            return
        if response.status_code >= 400 and path != "/readyz":
            assert set(response.json()) == {"error", "message"}, response.text
        declared = [paths[name] for pattern, name in templates if pattern.fullmatch(path)]
        if declared and method in declared[0]:
            codes = declared[0][method]["responses"]
            assert str(response.status_code) in codes, f"{method} {path}: {response.status_code} undeclared"

    return check


def client(url: str, app: FastAPI, **options: Any) -> httpx.AsyncClient:
    """An HTTP client that checks every answer against the OpenAPI document."""
    hooks: dict[str, list[Callable[..., Any]]] = {"response": [contract_check(app)]}
    return httpx.AsyncClient(base_url=url, timeout=60, trust_env=False, event_hooks=hooks, **options)


@asynccontextmanager
async def serving(services: Services) -> AsyncIterator[tuple[str, FastAPI]]:
    """The admin application on a real socket; yields its origin."""
    app = create_admin_app(services)
    listener = make_listener(app)
    with bind("ADMIN", "127.0.0.1", 0) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        running = asyncio.create_task(listener.serve([sock]))
        try:
            yield url, app
        finally:
            await app.state.takeover.aclose()
            listener.should_exit = True
            await running
