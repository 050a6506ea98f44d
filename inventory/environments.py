"""Environments as the inventory knows them: the projection of their workflows (design decision 1)."""

import base64
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import and_, case, func, null, or_
from sqlmodel import Session, SQLModel, col, select

from inventory import events, hosts
from inventory.engine import affected, insert_into, storable
from models import lifecycle
from models.errors import InvalidRequest
from models.lifecycle import Recovery, Status
from models.messages import (
    EPOCH,
    EnvironmentRecord,
    EnvironmentSpec,
    EnvironmentView,
    LastError,
    Limits,
    Recorded,
    SecurityProfile,
)
from models.tables import EnvironmentRow

PENDING_REVISION = -1
"""Revision of a row no workflow has written yet: every record of a workflow replaces it."""
LABEL_CHARS = 500
MAX_PAGE = 1000


class EnvironmentSummary(NamedTuple):
    """One environment in a list: the fields of `EnvironmentRow` that a list shows, under their names."""

    environment_id: str
    host_id: str
    label: str | None
    image_ref: str
    managed_kind: str
    status: str
    desired_running: bool
    generation: int
    node_id: str | None
    novnc_port: int | None
    last_error: dict[str, Any] | None
    recovery: str
    restarts: int
    next_retry_at: datetime | None
    created_at: datetime
    updated_at: datetime
    last_seen_at: datetime | None

    @property
    def takeover_available(self) -> bool:
        """Whether a takeover session can be opened now."""
        return takeover_available(self.status, self.novnc_port)


class EnvironmentPage(NamedTuple):
    """One page of a list. `next_cursor`: what to ask for the next one with; None on the last."""

    environments: list[EnvironmentSummary]
    next_cursor: str | None


# The bare table: a thousand objects of the mapper cost as much again as the query.
_COLUMNS = SQLModel.metadata.tables[str(EnvironmentRow.__tablename__)].columns
_SUMMARY = sqlalchemy.select(*[_COLUMNS[name] for name in EnvironmentSummary._fields])


def insert_pending(session: Session, spec: EnvironmentSpec, desired_running: bool, now: datetime) -> bool:
    """Make the row of an environment whose workflow was just started, unless the workflow was faster.

    Returns:
        Whether the row was made.
    """
    hosts.ensure_known(session, spec.host_id, now)
    values = _spec_values(spec) | {
        "environment_id": spec.environment_id,
        "status": Status.PENDING.value,
        "desired_running": desired_running,
        "revision": PENDING_REVISION,
        "created_at": now,
        "updated_at": now,
    }
    statement = insert_into(session, EnvironmentRow).values(_defaults() | values).on_conflict_do_nothing()
    return affected(session, statement) == 1


def record(session: Session, record: EnvironmentRecord, now: datetime) -> bool:
    """Write the projection unless that revision or a newer one is there, and the missing timeline entries.

    A tombstone stays one, a generation never falls, and logs stay where the record carries none.

    Returns:
        Whether the projection was written.
    """
    hosts.ensure_known(session, record.spec.host_id, now)
    at = now if record.at == EPOCH else record.at
    error = record.last_error
    fresh = _spec_values(record.spec) | {
        "status": record.status.value,
        "desired_running": record.desired_running,
        "generation": record.generation,
        "revision": record.revision,
        "node_id": record.node_id,
        "rfb_port": record.rfb_port,
        "novnc_port": record.novnc_port,
        "last_error": error.model_dump(mode="json", exclude={"log_tail"}) if error else null(),
        "error_logs": error.log_tail if error else [],
        "recovery": record.recovery.value,
        "restarts": record.restarts,
        "next_retry_at": record.next_retry_at,
        "phases": record.phases,
        "updated_at": at,
    }
    if record.logs is not None:
        fresh["logs"] = record.logs
    if record.status is Status.RUNNING:
        fresh["last_seen_at"] = at
    if record.deleted:
        fresh["deleted_at"] = at
    values = _defaults() | fresh | {"environment_id": record.spec.environment_id, "created_at": at}
    insert = insert_into(session, EnvironmentRow).values(values)
    changes: dict[str, Any] = {name: insert.excluded[name] for name in fresh}
    # A token's registration raises the generation ahead of the projection, and what it fenced stays fenced.
    changes["generation"] = case(
        (col(EnvironmentRow.generation) > insert.excluded["generation"], EnvironmentRow.generation),
        else_=insert.excluded["generation"],
    )
    if record.deleted:
        changes["deleted_at"] = func.coalesce(EnvironmentRow.deleted_at, insert.excluded["deleted_at"])
    upsert = insert.on_conflict_do_update(
        index_elements=["environment_id"],
        set_=changes,
        where=col(EnvironmentRow.revision) < insert.excluded["revision"],
    )
    written = affected(session, upsert) == 1
    events.append(session, record.spec.environment_id, record.entries, newest=written)
    return written


def recorded(session: Session, environment_id: str) -> Recorded:
    """How far the inventory is with an environment; zeros for one it does not know."""
    row = select(EnvironmentRow.generation, EnvironmentRow.deleted_at).where(
        EnvironmentRow.environment_id == environment_id
    )
    generation, deleted_at = session.exec(row).one_or_none() or (0, None)
    return Recorded(
        generation=generation,
        sequence=events.last_sequence(session, environment_id),
        deleted=deleted_at is not None,
    )


def get(session: Session, environment_id: str, include_deleted: bool = False) -> EnvironmentRow | None:
    """The environment, or None; a tombstone only when asked for."""
    statement = select(EnvironmentRow).where(EnvironmentRow.environment_id == storable(environment_id))
    row = session.exec(statement).one_or_none()
    return row if row is None or row.deleted_at is None or include_deleted else None


def list_page(
    session: Session,
    *,
    host_id: str | None = None,
    status: str | None = None,
    label: str | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> EnvironmentPage:
    """Environments that are not deleted, newest change first; one that changes meanwhile moves to the front.

    Args:
        host_id, status, label: only those that match exactly.
        cursor: `next_cursor` of the page before.
        limit: length of the page, 1 to `MAX_PAGE`.

    Raises:
        InvalidRequest: the cursor is not one of these.
    """
    limit = max(1, min(limit, MAX_PAGE))
    statement = _SUMMARY.where(_COLUMNS.deleted_at.is_(None))
    wanted = {"host_id": host_id, "status": status, "label": label}
    for name, value in wanted.items():
        if value is not None:
            statement = statement.where(_COLUMNS[name] == storable(value))
    updated_at, environment_id = _COLUMNS.updated_at, _COLUMNS.environment_id
    if cursor is not None:
        last_at, last_id = _read_cursor(cursor)
        later = and_(updated_at == last_at, environment_id > last_id)
        statement = statement.where(or_(updated_at < last_at, later))
    statement = statement.order_by(updated_at.desc(), environment_id).limit(limit + 1)
    found = [EnvironmentSummary._make(row) for row in session.execute(statement).all()]
    page = found[:limit]
    return EnvironmentPage(page, _cursor(page[-1]) if len(found) > limit else None)


def live_ids(session: Session, host_id: str) -> list[str]:
    """Ids of the environments on a host that are not deleted."""
    statement = select(EnvironmentRow.environment_id).where(
        EnvironmentRow.host_id == host_id, col(EnvironmentRow.deleted_at).is_(None)
    )
    return sorted(session.exec(statement))


def view(row: EnvironmentRow) -> EnvironmentView:
    """The row as the workflow's query `status` would put it, for when no worker answers (decision 1)."""
    status, recovery = Status(row.status), Recovery(row.recovery)
    situation = lifecycle.Situation(status, row.desired_running, recovery=recovery)
    return EnvironmentView(
        spec=EnvironmentSpec(
            environment_id=row.environment_id,
            host_id=row.host_id,
            label=row.label,
            image_ref=row.image_ref,
            security_profile=SecurityProfile(row.security_profile),
            limits=Limits.model_validate(row.limits),
        ),
        status=status,
        desired_running=row.desired_running,
        generation=row.generation,
        node_id=row.node_id,
        takeover_available=row.deleted_at is None and takeover_available(row.status, row.novnc_port),
        rfb_port=row.rfb_port,
        novnc_port=row.novnc_port,
        last_error=LastError.model_validate(row.last_error | {"log_tail": row.error_logs})
        if row.last_error
        else None,
        settled=row.deleted_at is not None or lifecycle.is_settled(situation),
        recovery=recovery,
        restarts=row.restarts,
        next_retry_at=row.next_retry_at,
        phases=row.phases,
        created_at=row.created_at,
        updated_at=row.updated_at,
        deleted=row.deleted_at is not None,
    )


def takeover_available(status: str, novnc_port: int | None) -> bool:
    """Whether a takeover session can be opened: the desktop runs, and its noVNC port is known."""
    return status == Status.RUNNING.value and novnc_port is not None


def _spec_values(spec: EnvironmentSpec) -> dict[str, Any]:
    return {
        "host_id": spec.host_id,
        "label": None if spec.label is None else storable(spec.label, LABEL_CHARS),
        "image_ref": storable(spec.image_ref),
        "security_profile": spec.security_profile.value,
        "limits": spec.limits.model_dump(mode="json"),
    }


def _defaults() -> dict[str, Any]:
    return {
        "managed_kind": "docker",
        "generation": 0,
        "recovery": Recovery.NONE.value,
        "restarts": 0,
        "phases": {},
        "logs": [],
        "error_logs": [],
    }


def _cursor(last: EnvironmentSummary) -> str:
    text = f"{last.updated_at.isoformat()} {last.environment_id}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
        at, environment_id = text.split(" ")
        return datetime.fromisoformat(at).astimezone(UTC), storable(environment_id)
    except (ValueError, OverflowError):
        raise InvalidRequest("cursor is not one that a list answered with") from None
