"""Operators' tokens: created, listed, revoked; a token's text is answered once (protocol section 7.1)."""

from datetime import UTC, datetime, timedelta

from anyio import to_thread
from fastapi import APIRouter, Response
from sqlmodel import Session

from api import audit, database
from api.bodies import TokenCreate
from api.dependencies import Admin, ServicesDep
from api.errors import responses
from api.schemas import TokenAnswer, TokenCreatedAnswer, TokenOut, TokensAnswer
from inventory import admin_tokens
from inventory.admin_tokens import CONFIGURED_OPERATOR, NameTaken
from models.errors import Conflict, InvalidRequest, NotFound, Unauthorized, Unavailable
from models.tables import AdminTokenRow

router = APIRouter(prefix="/tokens", tags=["tokens"])


@router.get("", summary="List admin tokens", responses=responses(Unauthorized, Unavailable))
async def list_tokens(services: ServicesDep, _operator: Admin) -> TokensAnswer:
    """Every token of the inventory, ended ones too, oldest first; `DESKTOP_ADMIN_TOKEN` is none of them."""
    rows = await database.read(services.engine, admin_tokens.list_all)
    now = datetime.now(UTC)
    return TokensAnswer(tokens=[TokenOut.from_row(row, now) for row in rows])


@router.post(
    "",
    summary="Create an admin token",
    status_code=201,
    responses=responses(InvalidRequest, Unauthorized, Conflict, Unavailable),
)
async def create_token(
    body: TokenCreate, services: ServicesDep, _operator: Admin, response: Response
) -> TokenCreatedAnswer:
    """Make a token; `bearer_token` is shown here and never again."""
    now = datetime.now(UTC)
    if body.name == CONFIGURED_OPERATOR:
        raise Conflict(f"{CONFIGURED_OPERATOR!r} is the name of whoever uses DESKTOP_ADMIN_TOKEN")
    expires_at = None if body.expires_in_seconds is None else now + timedelta(seconds=body.expires_in_seconds)
    # Before the transaction: the hash takes tens of milliseconds, and SQLite's writers wait for each other.
    row, token = await to_thread.run_sync(admin_tokens.prepare, body.name, now, expires_at)

    def work(session: Session) -> None:
        try:
            admin_tokens.insert(session, row, now)
        except NameTaken:
            message = f"there is a live token named {row.name!r}; revoke it, or choose another name"
            raise Conflict(message) from None
        audit.stage(session, target=row.token_id, detail={"name": row.name, "expires_at": row.expires_at})

    await database.write(services.engine, work)
    response.headers["Cache-Control"] = "no-store"
    return TokenCreatedAnswer(token=TokenOut.from_row(row, now), bearer_token=token.text)


@router.post(
    "/{token_id}/revoke",
    summary="Revoke an admin token",
    responses=responses(InvalidRequest, Unauthorized, NotFound, Unavailable),
)
async def revoke_token(token_id: str, services: ServicesDep, _operator: Admin) -> TokenAnswer:
    """End a token, the caller's own too, within a second; again changes nothing."""
    now = datetime.now(UTC)

    def work(session: Session) -> AdminTokenRow:
        changed = admin_tokens.revoke(session, token_id, now)
        row = admin_tokens.get(session, token_id)
        if row is None:
            raise NotFound("there is no token of that id")
        audit.stage(session, target=row.token_id, detail={"name": row.name, "changed": changed})
        return row

    return TokenAnswer(token=TokenOut.from_row(await database.write(services.engine, work), now))
