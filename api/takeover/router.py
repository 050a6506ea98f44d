"""Ways to a desktop for an operator: a takeover session, or the noVNC page itself (protocol section 9.1)."""

import hashlib
import secrets
from datetime import UTC, datetime

from fastapi import APIRouter
from starlette.responses import RedirectResponse

from api import database, service
from api.dependencies import Admin, EnvironmentId, Services, ServicesDep
from api.errors import responses
from api.schemas import TakeoverAnswer
from inventory import hosts, takeover
from models.errors import Conflict, NotFound, Unauthorized, Unavailable
from models.lifecycle import Status
from models.messages import EnvironmentView
from models.takeover import entry_url, novnc_url

router = APIRouter(prefix="/desktop-environments", tags=["takeover"])

TOKEN_BYTES = 32
_REFUSALS = responses(Unauthorized, NotFound, Conflict, Unavailable)


@router.post(
    "/{environment_id}/takeover-token",
    summary="Open a takeover session",
    status_code=200,
    responses=_REFUSALS,
)
async def create_takeover_session(
    environment_id: EnvironmentId, services: ServicesDep, operator: Admin
) -> TakeoverAnswer:
    """A link to the running desktop. The link is the credential; it ends with the generation."""
    view, _ = await _running(services, environment_id)
    token = secrets.token_urlsafe(TOKEN_BYTES)
    row = await database.write(
        services.engine,
        lambda session: takeover.create(
            session,
            environment_id=environment_id,
            generation=view.generation,
            token_sha256=hashlib.sha256(token.encode()).hexdigest(),
            created_by=operator.name,
            now=datetime.now(UTC),
            ttl_seconds=services.settings.takeover_ttl_seconds,
        ),
    )
    return TakeoverAnswer(
        session_id=row.session_id,
        entry_url=entry_url(services.settings.admin_url, token),
        expires_at=row.expires_at,
    )


@router.get(
    "/{environment_id}/takeover",
    summary="Go to the noVNC page",
    status_code=307,
    response_class=RedirectResponse,
    responses=_REFUSALS
    | {
        307: {
            "description": "The running desktop's noVNC page",
            "headers": {"Location": {"description": "The page.", "schema": {"type": "string"}}},
        }
    },
)
async def redirect_to_desktop(
    environment_id: EnvironmentId, services: ServicesDep, _operator: Admin
) -> RedirectResponse:
    """Straight to the host's published port, for operators on that machine."""
    view, port = await _running(services, environment_id)
    host = await database.read(services.engine, lambda session: hosts.get(session, view.spec.host_id))
    if host is None:
        raise Conflict("takeover unavailable: the runtime host is not known")
    return RedirectResponse(novnc_url(host.takeover_origin, port), 307, headers={"Cache-Control": "no-store"})


async def _running(services: Services, environment_id: str) -> tuple[EnvironmentView, int]:
    """The environment and its noVNC port. Raises `Conflict` unless there is a desktop to take over."""
    _, view = await service.detail(services, environment_id)
    if view.status is not Status.RUNNING or not view.takeover_available or view.novnc_port is None:
        raise Conflict(f"takeover unavailable: the environment is {view.status}")
    return view, view.novnc_port
