"""Runtime hosts as the inventory knows them: the projection of their workflows (design decision 5)."""

from datetime import datetime
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, col, select

from inventory.engine import affected, insert_into, storable
from models.messages import HostRecord
from models.tables import HostRow

_UNREPORTED_REVISION = -1


def ensure_known(session: Session, host_id: str, now: datetime) -> None:
    """Have a row for the host, so that what lives on it can be recorded before the host reported itself."""
    statement = insert_into(session, HostRow).values(
        host_id=host_id,
        label=host_id,
        docker_available=False,
        healthy=False,
        takeover_origin="http://127.0.0.1",
        revision=_UNREPORTED_REVISION,
        created_at=now,
        updated_at=now,
    )
    session.execute(statement.on_conflict_do_nothing())


def record(session: Session, record: HostRecord, now: datetime) -> bool:
    """Write what is known of a host unless the same or a newer revision is there.

    Returns:
        Whether it was written.
    """
    fresh = {
        "label": storable(record.label) or record.host_id,
        "version": None if record.version is None else storable(record.version),
        "docker_available": record.docker_available,
        "healthy": record.healthy,
        "takeover_origin": storable(record.takeover_origin),
        "last_error": None if record.last_error is None else storable(record.last_error),
        "last_seen_at": record.last_seen_at,
        "max_limits": None if record.max_limits is None else record.max_limits.model_dump(mode="json"),
        "revision": record.revision,
        "updated_at": now,
    }
    insert = insert_into(session, HostRow).values(fresh | {"host_id": record.host_id, "created_at": now})
    changes: dict[str, Any] = {name: insert.excluded[name] for name in fresh}
    changes["last_seen_at"] = func.coalesce(insert.excluded["last_seen_at"], HostRow.last_seen_at)
    upsert = insert.on_conflict_do_update(
        index_elements=["host_id"],
        set_=changes,
        where=col(HostRow.revision) < insert.excluded["revision"],
    )
    return affected(session, upsert) == 1


def get(session: Session, host_id: str) -> HostRow | None:
    """The host, or None."""
    return session.exec(select(HostRow).where(HostRow.host_id == storable(host_id))).one_or_none()


def list_all(session: Session) -> list[HostRow]:
    """Every host, by label, then id (protocol section 9)."""
    return list(session.exec(select(HostRow).order_by(HostRow.label, HostRow.host_id)))
