"""The installation's defaults, with revisions (protocol section 9)."""

from datetime import UTC, datetime

from fastapi import APIRouter
from sqlmodel import Session

from api import audit, database
from api.bodies import DefaultsPut
from api.dependencies import Admin, ServicesDep
from api.errors import responses
from api.schemas import DefaultsAnswer
from inventory import defaults
from models.errors import InvalidRequest, Unauthorized, Unavailable
from models.tables import DefaultsRow

router = APIRouter(prefix="/config/desktop-environments/defaults", tags=["configuration"])


@router.get("", summary="Show the defaults", responses=responses(Unauthorized, Unavailable))
async def get_defaults(services: ServicesDep, _operator: Admin) -> DefaultsAnswer:
    """What environments that name no image are made from."""
    row = await database.read(services.engine, defaults.current)
    if row is not None:
        return DefaultsAnswer.from_row(row)
    return DefaultsAnswer(
        default_image_ref=services.settings.default_image,
        revision=0,
        created_at=None,
        created_by=None,
        reason=None,
        reverted_from_revision=None,
    )


@router.put("", summary="Set the defaults", responses=responses(InvalidRequest, Unauthorized, Unavailable))
async def put_defaults(body: DefaultsPut, services: ServicesDep, operator: Admin) -> DefaultsAnswer:
    """Make a new revision; existing environments keep their image."""

    def work(session: Session) -> DefaultsRow:
        row = defaults.put(
            session,
            body.default_image_ref,
            created_by=operator.name,
            now=datetime.now(UTC),
            reason=body.reason,
        )
        detail = {"image_ref": row.default_image_ref, "revision": row.revision, "reason": row.reason}
        audit.stage(session, detail=detail)
        return row

    return DefaultsAnswer.from_row(await database.write(services.engine, work))
