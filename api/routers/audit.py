"""The audit for operators: who did what, from where, when, with what outcome."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BeforeValidator

from api import database
from api.dependencies import Admin, ServicesDep
from api.errors import responses
from api.schemas import AuditAnswer, AuditEntryOut
from inventory import audit
from inventory.audit import Filters, Outcome
from models.errors import InvalidRequest, Unauthorized, Unavailable

router = APIRouter(tags=["audit"])


def _spelled_out(text: Any) -> Any:
    # A bare number would be taken for seconds since 1970, or for milliseconds, by its size.
    if isinstance(text, str) and re.match(r"[0-9]{4}-", text) is None:
        raise ValueError("must be a time such as 2026-11-23T12:00:00Z")
    return text


Instant = Annotated[datetime, BeforeValidator(_spelled_out)]


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
    since: Annotated[Instant | None, Query(description="From this time on, with its zone.")] = None,
    until: Annotated[Instant | None, Query(description="Before this time, with its zone.")] = None,
    oldest_first: Annotated[bool, Query(description="For those who follow.")] = False,
    limit: Annotated[int, Query(ge=1, le=1000, description="Length of the page.")] = 100,
    cursor: Annotated[
        str | None, Query(pattern=r"^[0-9]{1,18}$", description="`next_cursor` of the page before.")
    ] = None,
) -> AuditAnswer:
    """Newest first; kept after deletion."""
    filters = Filters(environment_id, actor, action, outcome, _utc("since", since), _utc("until", until))
    start = None if cursor is None else int(cursor)
    rows = await database.read(
        services.engine,
        lambda session: audit.page(session, filters, start, limit, oldest_first=oldest_first),
    )
    following = str(rows[-1].audit_id) if rows and (oldest_first or len(rows) == limit) else None
    if oldest_first and following is None:
        following = cursor
    return AuditAnswer(entries=[AuditEntryOut.from_row(row) for row in rows], next_cursor=following)


def _utc(name: str, at: datetime | None) -> datetime | None:
    """The same time in UTC. Raises `InvalidRequest` where it has no zone, or UTC has no such year."""
    if at is None:
        return None
    if at.tzinfo is None:
        raise InvalidRequest(f"{name}: needs a zone, such as a Z at its end")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise InvalidRequest(f"{name}: is outside the years 1 to 9999 in UTC") from None
