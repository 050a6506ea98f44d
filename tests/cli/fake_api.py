"""A small API of the documented surface (design section 5), really served; its environments only pretend."""

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import uvicorn
from fastapi import Body, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from cli import ports

TOKEN = "tyrum-token.v1.0b4f7c1e-1111-4111-8111-000000000000.c2VjcmV0"
PNG = b"\x89PNG\r\n\x1a\n not much of a picture"
HOST = {
    "host_id": "desktop-host-1",
    "label": "desktop-runtime:here",
    "version": "20.10",
    "docker_available": True,
    "healthy": True,
    "takeover_origin": "http://127.0.0.1",
    "last_error": None,
    "last_seen_at": "2026-11-23T12:00:00.000Z",
}


def now() -> str:
    """A time as on the wire."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass
class Fake:
    """What the fake knows and was asked.

    Attributes:
        takes: seconds each operation takes. fails_with: error code every start ends with.
        answers: canned answers by path: status and body.
    """

    url: str = ""
    environments: dict[str, dict[str, Any]] = field(default_factory=dict)
    settles_at: dict[str, float] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    takes: float = 0.2
    fails_with: str | None = None
    hosts: list[dict[str, Any]] = field(default_factory=lambda: [HOST])
    logs: list[str] = field(default_factory=lambda: ["first line", "\x1b[31mcoloured\x1b[0m"])
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    takeover_sessions: list[dict[str, Any]] = field(default_factory=list)

    def add(self, environment_id: str | None = None, **fields: Any) -> dict[str, Any]:
        """Have an environment."""
        environment_id = environment_id or str(uuid4())
        environment: dict[str, Any] = {
            "environment_id": environment_id,
            "host_id": HOST["host_id"],
            "label": None,
            "image_ref": "desktop-sandbox:dev",
            "managed_kind": "docker",
            "status": "stopped",
            "desired_running": False,
            "generation": 1,
            "node_id": "dev_abc",
            "takeover_available": False,
            "last_error": None,
            "restarts": 0,
            "next_retry_at": None,
            "created_at": now(),
            "updated_at": now(),
            "last_seen_at": now(),
            "phases": {},
            "source": "workflow",
            "settled": True,
            "operation": None,
            "phase": None,
        } | fields
        self.environments[environment_id] = environment
        return environment

    def begin(self, environment: dict[str, Any], status: str) -> None:
        """Let an operation begin."""
        environment |= {"status": status, "settled": False, "phases": {}, "last_error": None}
        self.settles_at[environment["environment_id"]] = time.monotonic() + self.takes

    def look(self, environment_id: str) -> dict[str, Any] | None:
        """The environment as it is by now."""
        environment = self.environments.get(environment_id)
        due = self.settles_at.get(environment_id)
        if environment is None or due is None:
            return environment
        if time.monotonic() >= due - self.takes / 2:
            environment["phases"] = {"container_started": 180.4}
        if time.monotonic() >= due:
            del self.settles_at[environment_id]
            environment |= {"settled": True, "phases": {"container_started": 180.4, "paired": 912.0}}
            status = "running" if environment["desired_running"] else "stopped"
            if environment["desired_running"] and self.fails_with:
                status = "error"
                error = {"code": self.fails_with, "message": "no such image", "phase": "image", "at": now()}
                environment["last_error"] = error
            environment["status"] = status
        return environment


def refusal(status: int, code: str, message: str) -> JSONResponse:
    """An error in the API's shape."""
    return JSONResponse({"error": code, "message": message}, status)


def make_app(fake: Fake) -> FastAPI:
    """The routes."""
    app = FastAPI()

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return refusal(401, "unauthorized", "this admin token is unknown, expired or revoked")
        if request.url.path in fake.answers:
            status, body = fake.answers[request.url.path]
            return Response(body) if isinstance(body, str) else JSONResponse(body, status)
        answer: Response = await call_next(request)
        return answer

    @app.get("/desktop-environment-hosts")
    def hosts() -> Any:
        return {"status": "ok", "hosts": fake.hosts}

    @app.get("/nodes")
    def nodes() -> Any:
        node = {
            "node_id": "dev_abc",
            "connected": True,
            "paired_status": "approved",
            "capabilities": [{}, {}],
        }
        return {"status": "ok", "nodes": [node]}

    @app.get("/desktop-environments")
    def listing(
        label: str = "", status: str = "", host_id: str = "", limit: int = 50, cursor: int = 0
    ) -> Any:
        wanted = {"label": label, "status": status, "host_id": host_id}
        found = [
            environment
            for environment in map(fake.look, list(fake.environments))
            if environment and all(environment[name] == value for name, value in wanted.items() if value)
        ]
        following = str(cursor + limit) if cursor + limit < len(found) else None
        return {"status": "ok", "environments": found[cursor : cursor + limit], "next_cursor": following}

    @app.post("/desktop-environments", status_code=201)
    def create(body: dict[str, Any] = Body()) -> Any:  # noqa: B008 - FastAPI's way to name a body
        fake.requests.append(("POST", "create", body))
        environment = fake.add(**body)
        fake.begin(environment, "starting" if body.get("desired_running") else "pending")
        return {"status": "ok", "environment": environment | {"source": "inventory"}}

    @app.get("/desktop-environments/{environment_id}")
    def detail(environment_id: str) -> Any:
        environment = fake.look(environment_id)
        if environment is None:
            return refusal(404, "not_found", "there is no such environment, or no longer")
        return {"status": "ok", "environment": environment}

    @app.delete("/desktop-environments/{environment_id}")
    def delete(environment_id: str, wait: int = 0) -> Any:
        environment = fake.environments.pop(environment_id, None)
        if environment is None:
            return refusal(404, "not_found", "there is no such environment, or no longer")
        return {"status": "ok", "environment": environment | {"status": "deleting"}, "deleted": wait > 0}

    @app.post("/desktop-environments/{environment_id}/takeover-token")
    def takeover(environment_id: str, body: dict[str, Any] | None = None) -> Any:
        fake.requests.append(("POST", "takeover-token", body or {}))
        if fake.environments[environment_id]["status"] != "running":
            return refusal(409, "conflict", "takeover unavailable: the environment is stopped")
        entry = f"{fake.url}/desktop-takeover/s/x/vnc.html"
        return {"status": "ok", "session_id": "s", "entry_url": entry, "expires_at": now()}

    @app.get("/desktop-environments/{environment_id}/takeover-sessions")
    def takeover_sessions(environment_id: str) -> Any:
        return {"status": "ok", "sessions": fake.takeover_sessions}

    @app.post("/desktop-environments/{environment_id}/takeover-sessions/{session_id}/{action}")
    def change_takeover_session(
        environment_id: str, session_id: str, action: str, body: dict[str, Any] | None = None
    ) -> Any:
        fake.requests.append(("POST", action, body or {}))
        for session in fake.takeover_sessions:
            if session["session_id"] == session_id:
                return {"status": "ok", "session": session}
        return refusal(404, "not_found", "this environment has no takeover session of that id")

    @app.get("/desktop-environments/{environment_id}/logs")
    def logs(environment_id: str, refresh: bool = False) -> Any:
        fake.requests.append(("GET", "logs", {"refresh": refresh}))
        return {"status": "ok", "environment_id": environment_id, "logs": fake.logs, "refreshed": refresh}

    @app.get("/desktop-environments/{environment_id}/timeline")
    def timeline(environment_id: str, after: int = -1, limit: int = 2) -> Any:
        entry = {"at": now(), "kind": "command", "status": "starting", "generation": 1, "actor": "admin"}
        entries = [entry | {"sequence": number, "name": f"entry{number}"} for number in range(after + 1, 5)][
            :limit
        ]
        following = entries[-1]["sequence"] if len(entries) == limit else None
        return {"status": "ok", "environment_id": environment_id, "entries": entries, "next_after": following}

    @app.post("/desktop-environments/{environment_id}/{name}", status_code=202)
    def command(environment_id: str, name: str, wait: int = 0, body: dict[str, Any] | None = None) -> Any:
        fake.requests.append(("POST", name, body or {}))
        environment = fake.look(environment_id)
        if environment is None:
            return refusal(404, "not_found", "there is no such environment, or no longer")
        if name != "reset":
            environment["desired_running"] = name == "start"
        fake.begin(environment, "stopping" if name == "stop" else "starting")
        deadline = time.monotonic() + wait
        while not environment["settled"] and time.monotonic() < deadline:
            time.sleep(0.02)
            fake.look(environment_id)
        return {"status": "ok", "environment": environment}

    @app.post("/nodes/{node_id}/dispatch")
    def dispatch(node_id: str, body: dict[str, Any] = Body()) -> Any:  # noqa: B008 - FastAPI's way to name a body
        fake.requests.append(("POST", "dispatch", body))
        image = base64.b64encode(PNG).decode()
        evidence = {"type": "screenshot", "mime": "image/png", "width": 8, "height": 6, "bytesBase64": image}
        return {"status": "ok", "task_id": "task-1", "result": None, "evidence": evidence, "error": None}

    return app


@contextmanager
def serving() -> Iterator[Fake]:
    """The fake, on a free port, until the block is left."""
    fake = Fake()
    port = ports.choose("127.0.0.1", [], set())
    fake.url = f"http://127.0.0.1:{port}"
    config = uvicorn.Config(make_app(fake), host="127.0.0.1", port=port, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.started, "the fake API did not start"
        yield fake
    finally:
        server.should_exit = True
        thread.join(20)
