"""The audit for operators: who did what, from where, when, with what outcome."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query

from api import database
from api.dependencies import Admin, ServicesDep
from api.errors import responses
from api.schemas import AuditAnswer, AuditEntryOut
from inventory import audit
from inventory.audit import Filters, Outcome
from models.errors import InvalidRequest, Unauthorized, Unavailable

router = APIRouter(tags=["audit"])


@router.get(
    "/audit", summary="List the audit", responses=responses(InvalidRequest, Unauthorized, Unavailable)
)
async def list_audit(
    services: ServicesDep,
    _operator: Admin,
    environment_id: Annotated[str | None, Query(max_length=36)] = None,
    actor: Annotated[str | None, Query(max_length=120, description="Operator, node or part.")] = None,
    action: Annotated[
        str | None, Query(max_length=60, description="Name, or its beginning such as `pairing`.")
    ] = None,
    outcome: Outcome | None = None,
    since: Annotated[datetime | None, Query(description="From this time on, with its zone.")] = None,
    until: Annotated[datetime | None, Query(description="Before this time, with its zone.")] = None,
    oldest_first: Annotated[bool, Query(description="For those who follow.")] = False,
    limit: Annotated[int, Query(ge=1, le=1000, description="Length of the page.")] = 100,
    cursor: Annotated[
        str | None, Query(pattern=r"^[0-9]{1,18}$", description="`next_cursor` of the page before.")
    ] = None,
) -> AuditAnswer:
    """Newest first; kept after deletion."""
    for name, at in (("since", since), ("until", until)):
        if at is not None and at.tzinfo is None:
            raise InvalidRequest(f"{name}: needs a zone, such as a Z at its end")
    filters = Filters(environment_id, actor, action, outcome, since, until)
    start = None if cursor is None else int(cursor)
    rows = await database.read(
        services.engine,
        lambda session: audit.page(session, filters, start, limit, oldest_first=oldest_first),
    )
    following = str(rows[-1].audit_id) if rows and (oldest_first or len(rows) == limit) else None
    if oldest_first and following is None:
        following = cursor
    return AuditAnswer(entries=[AuditEntryOut.from_row(row) for row in rows], next_cursor=following)
