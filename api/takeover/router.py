"""Ways to a desktop for an operator: a takeover session, or the noVNC page itself (protocol section 9.1)."""

import hashlib
import secrets
from datetime import UTC, datetime

from fastapi import APIRouter
from sqlmodel import Session
from starlette.responses import RedirectResponse

from api import audit, database, service
from api.dependencies import Admin, EnvironmentId, Services, ServicesDep
from api.errors import responses
from api.schemas import TakeoverAnswer
from api.takeover.schemas import (
    TakeoverCreate,
    TakeoverExtend,
    TakeoverSessionAnswer,
    TakeoverSessionOut,
    TakeoverSessionsAnswer,
)
from api.takeover.upstream import desktop_asks_for_password, password_of
from inventory import hosts, takeover
from models.errors import Conflict, InvalidRequest, NotFound, Unauthorized, Unavailable
from models.lifecycle import Status
from models.messages import EnvironmentView
from models.tables import TakeoverSessionRow
from models.takeover import entry_url, novnc_url

router = APIRouter(prefix="/desktop-environments", tags=["takeover"])

TOKEN_BYTES = 32
_REFUSALS = responses(Unauthorized, NotFound, Conflict, Unavailable)
_CHANGES = responses(InvalidRequest, Unauthorized, NotFound, Conflict, Unavailable)
_READS = responses(Unauthorized, NotFound, Unavailable)


@router.post(
    "/{environment_id}/takeover-token",
    summary="Open a takeover session",
    status_code=200,
    responses=_CHANGES,
)
async def create_takeover_session(
    environment_id: EnvironmentId,
    services: ServicesDep,
    operator: Admin,
    body: TakeoverCreate | None = None,
) -> TakeoverAnswer:
    """A link to the running desktop. The link is the credential; it ends with the generation."""
    wanted = body or TakeoverCreate()
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
            ttl_seconds=wanted.ttl_seconds or services.settings.takeover_ttl_seconds,
            view_only=wanted.view_only,
        ),
    )
    audit.note(generation=row.generation, target=row.session_id, detail={"view_only": row.view_only})
    return TakeoverAnswer(
        session_id=row.session_id,
        entry_url=entry_url(services.settings.admin_url, token, view_only=wanted.view_only),
        expires_at=row.expires_at,
    )


@router.get(
    "/{environment_id}/takeover-sessions",
    summary="List takeover sessions",
    responses=_READS,
)
async def list_takeover_sessions(
    environment_id: EnvironmentId, services: ServicesDep, _operator: Admin
) -> TakeoverSessionsAnswer:
    """Those that are open."""
    await service.detail(services, environment_id)
    rows = await database.read(
        services.engine, lambda session: takeover.list_open(session, environment_id, datetime.now(UTC))
    )
    return TakeoverSessionsAnswer(sessions=[TakeoverSessionOut.from_row(row) for row in rows])


@router.post(
    "/{environment_id}/takeover-sessions/{session_id}/revoke",
    summary="End a takeover session",
    responses=_READS,
)
async def revoke_takeover_session(
    environment_id: EnvironmentId, session_id: str, services: ServicesDep, _operator: Admin
) -> TakeoverSessionAnswer:
    """Its link is dead at once, and its open viewers are disconnected within a second; again changes nothing."""

    def revoke(session: Session) -> TakeoverSessionOut:
        row = _known(session, environment_id, session_id)
        row.revoked_at = row.revoked_at or datetime.now(UTC)
        return TakeoverSessionOut.from_row(row)

    return TakeoverSessionAnswer(session=await database.write(services.engine, revoke))


@router.post(
    "/{environment_id}/takeover-sessions/{session_id}/extend",
    summary="Have a takeover session live longer",
    responses=_CHANGES,
)
async def extend_takeover_session(
    environment_id: EnvironmentId,
    session_id: str,
    services: ServicesDep,
    _operator: Admin,
    body: TakeoverExtend | None = None,
) -> TakeoverSessionAnswer:
    """Open viewers stay connected."""
    ttl_seconds = (body or TakeoverExtend()).ttl_seconds or services.settings.takeover_ttl_seconds

    def extend(session: Session) -> TakeoverSessionOut:
        row = _known(session, environment_id, session_id)
        if not takeover.extend(row, datetime.now(UTC), ttl_seconds):
            raise Conflict("the takeover session has ended; open another")
        return TakeoverSessionOut.from_row(row)

    return TakeoverSessionAnswer(session=await database.write(services.engine, extend))


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
    """Straight to the host's published port, for operators on that machine.

    The desktop's password, where it asks for one, is in the fragment, which noVNC reads and no server sees.
    """
    view, port = await _running(services, environment_id)
    host = await database.read(services.engine, lambda session: hosts.get(session, view.spec.host_id))
    if host is None:
        raise Conflict("takeover unavailable: the runtime host is not known")
    password = password_of(services.gateway, view.node_id, environment_id, view.generation)
    if password is not None and not await desktop_asks_for_password(host.takeover_origin, port):
        password = None
    return RedirectResponse(
        novnc_url(host.takeover_origin, port, password),
        307,
        headers={"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"},
    )


def _known(session: Session, environment_id: str, session_id: str) -> TakeoverSessionRow:
    """The session. Raises `NotFound` where this environment has none of that id."""
    row = takeover.find(session, environment_id, session_id)
    if row is None:
        raise NotFound("this environment has no takeover session of that id, or it expired long ago")
    return row


async def _running(services: Services, environment_id: str) -> tuple[EnvironmentView, int]:
    """The environment and its noVNC port. Raises `Conflict` unless there is a desktop to take over."""
    _, view = await service.detail(services, environment_id)
    if view.status is not Status.RUNNING or not view.takeover_available or view.novnc_port is None:
        raise Conflict(f"takeover unavailable: the environment is {view.status}")
    return view, view.novnc_port
