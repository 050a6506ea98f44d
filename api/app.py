"""The admin application: design section 5, errors in one shape, an OpenAPI document that holds."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse

from api import errors
from api.audit import Audit
from api.codec import CODEC_PREFIX, codec_app
from api.dependencies import Services
from api.docs import DOCS_HEADERS, DOCS_PAGE
from api.feed import Feed
from api.guard import Guard
from api.links import add_links
from api.routers import audit, defaults, environments, events, health, hosts, nodes, tokens
from api.takeover import router as takeover
from api.takeover.proxy import TakeoverProxy
from models import keyring
from models.takeover import TAKEOVER_PREFIX

DESCRIPTION = """Disposable, sandboxed desktops, created here and driven by AI agents as paired nodes.

Every route but health and documentation asks for `Authorization: Bearer <admin token>`. Errors are
`{"error": code, "message": text}`; bodies are strict. Commands are accepted in every state and answered with
202 as soon as they are; `?wait=SECONDS` waits for the outcome and answers 200 once it is known."""


def create_admin_app(services: Services) -> FastAPI:
    """The admin application over the parts of this process; close `app.state.takeover` and `feed` at the end."""
    app = FastAPI(
        title="Desktop environments",
        version="1",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
        middleware=[
            Middleware(Audit, engine=services.engine),
            Middleware(errors.ErrorBoundary),
            Middleware(Guard),
        ],
    )
    app.state.services = services
    app.state.feed = Feed(services.engine)
    app.state.takeover = TakeoverProxy(services.engine, services.gateway)
    errors.install(app)
    for module in (environments, events, takeover, hosts, nodes, defaults, tokens, audit, health):
        app.include_router(module.router)
    app.mount(TAKEOVER_PREFIX.rstrip("/"), app.state.takeover)
    settings = services.settings
    ring = keyring.configured(settings.codec_keys_file)
    app.mount(CODEC_PREFIX, codec_app(ring, settings.admin_token, settings.codec_origins.split(",")))
    app.add_api_route("/docs", _docs, include_in_schema=False)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign] # FastAPI's documented way to change it
    return app


async def _docs() -> HTMLResponse:
    return HTMLResponse(DOCS_PAGE, headers=DOCS_HEADERS)


def _operation_id(route: APIRoute) -> str:
    return route.name


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document without its own 422, which no route answers, and with the takeover prefix."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        document["paths"][f"{TAKEOVER_PREFIX}{{token}}/{{path}}"] = {"get": _TAKEOVER_OPERATION}
        add_links(document)
        app.openapi_schema = document
    return app.openapi_schema


def _text_answer(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}


_TAKEOVER_OPERATION: dict[str, Any] = {
    "operationId": "takeover_session",
    "tags": ["takeover"],
    "summary": "The proxied noVNC session",
    "description": "HTTP (GET, HEAD) and WebSocket; the token in the path is the only credential.",
    "security": [],
    "parameters": [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in ("token", "path")
    ],
    "responses": {
        "200": {"description": "The noVNC server's answer", "content": {"*/*": {}}},
        "307": {"description": "To the page with the session's own parameters"},
        "404": _text_answer("Unknown, ended or expired session, or a path that is not part of noVNC"),
        "502": _text_answer("The desktop does not answer"),
        "503": _text_answer("The session cannot be checked now"),
    },
}
