"""The node listener: `/ws`, `/nodes/self` and health, and nothing else (design section 2)."""

from typing import Annotated, Any, Literal, Protocol

from fastapi import FastAPI, Query, Request, WebSocket
from pydantic import BaseModel
from sqlalchemy import Engine, text
from sqlmodel import Session
from starlette.middleware import Middleware

from api import database, errors
from api.gateway import Gateway
from models.errors import InvalidRequest, Unauthorized, Unavailable

LONGEST_WAIT_SECONDS = 60


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class NodeServices(Protocol):
    """What the node listener needs of `api.dependencies.Services`; the gateway is run by whoever made it."""

    @property
    def engine(self) -> Engine:
        """The inventory's."""
        ...

    @property
    def gateway(self) -> Gateway:
        """Shared with the admin listener."""
        ...


def create_node_app(services: NodeServices) -> FastAPI:
    """The application of the node listener."""
    gateway, engine = services.gateway, services.engine
    app = FastAPI(
        title="Desktop environments: nodes",
        openapi_url=None,
        redirect_slashes=False,
        middleware=[Middleware(errors.ErrorBoundary)],
    )
    errors.install(app)

    @app.websocket("/ws")
    async def websocket(websocket: WebSocket) -> None:
        await gateway.serve(websocket)

    @app.get(
        "/nodes/self",
        responses=errors.responses(InvalidRequest, Unauthorized, Unavailable),
    )
    async def self_view(
        request: Request, wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT_SECONDS)] = 0
    ) -> dict[str, Any]:
        address = request.client.host if request.client else ""
        view = await gateway.view_self(_bearer(request), wait, address)
        pairing = view.pairing
        return {
            "status": "ok",
            "node": None if pairing is None else pairing.wire()["node"],
            "pairing": None if pairing is None else pairing.wire(),
            "connected": view.connected,
            "approved": view.approved,
        }

    @app.get("/healthz")
    async def healthz() -> Health:
        return Health()

    @app.get("/readyz", responses=errors.responses(Unavailable))
    async def readyz() -> Health:
        await database.read(engine, _probe)
        return Health()

    return app


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("send 'Authorization: Bearer <node token>'")
    return token.strip()


def _probe(session: Session) -> None:
    session.connection().execute(text("SELECT 1 FROM nodes WHERE 1 = 0"))
