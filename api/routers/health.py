"""Whether this process lives, and whether it can serve."""

import asyncio
from collections.abc import Awaitable

from fastapi import APIRouter, Response
from sqlalchemy import text
from sqlmodel import Session

from api import database
from api.dependencies import ServicesDep
from api.schemas import Liveness, Part, Readiness
from models.errors import ApiError

router = APIRouter(tags=["health"])

CHECK_SECONDS = 3.0


@router.get("/healthz", summary="Liveness")
async def healthz() -> Liveness:
    """The process answers."""
    return Liveness()


@router.get(
    "/readyz", summary="Readiness", responses={503: {"model": Readiness, "description": "A part is away"}}
)
async def readyz(services: ServicesDep, response: Response) -> Readiness:
    """Inventory and Temporal answer."""
    inventory, temporal = await asyncio.gather(
        _part(database.read(services.engine, _inventory_answers, CHECK_SECONDS)),
        _part(services.workflows.check()),
    )
    ready = inventory.ok and temporal.ok
    if not ready:
        response.status_code = 503
    return Readiness(
        status="ok" if ready else "unavailable", parts={"inventory": inventory, "temporal": temporal}
    )


def _inventory_answers(session: Session) -> None:
    session.connection().execute(text("SELECT 1 FROM desktop_environments LIMIT 1"))


async def _part(check: Awaitable[None]) -> Part:
    try:
        await check
    except ApiError as error:
        return Part(ok=False, message=error.message)
    return Part(ok=True)
