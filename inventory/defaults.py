"""The installation's defaults, one row per revision (protocol section 9)."""

from datetime import datetime

from sqlmodel import Session, col, select

from inventory.engine import storable
from models.tables import DefaultsRow


def current(session: Session) -> DefaultsRow | None:
    """The revision in force, or None where nobody has set one."""
    return session.exec(select(DefaultsRow).order_by(col(DefaultsRow.revision).desc()).limit(1)).first()


def get(session: Session, revision: int) -> DefaultsRow | None:
    """One revision, or None."""
    return session.get(DefaultsRow, revision)


def history(session: Session, limit: int = 100) -> list[DefaultsRow]:
    """The newest revisions, newest first."""
    return list(session.exec(select(DefaultsRow).order_by(col(DefaultsRow.revision).desc()).limit(limit)))


def put(
    session: Session,
    default_image_ref: str,
    *,
    created_by: str,
    now: datetime,
    reason: str | None = None,
    reverted_from: int | None = None,
) -> DefaultsRow:
    """Add a revision, which is in force from now on; `reverted_from` names the revision it undoes."""
    row = DefaultsRow(
        default_image_ref=storable(default_image_ref),
        created_at=now,
        created_by=storable(created_by),
        reason=None if reason is None else storable(reason),
        reverted_from_revision=reverted_from,
    )
    session.add(row)
    session.flush()
    return row
