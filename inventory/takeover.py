"""Takeover sessions: only their tokens' hashes are kept (protocol section 9.1, design decision 7)."""

from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import uuid4

from sqlalchemy import ColumnElement, delete, update
from sqlmodel import Session, col, select

from inventory.engine import affected, storable
from models.lifecycle import Status
from models.tables import EnvironmentRow, HostRow, TakeoverSessionRow


class LiveTakeover(NamedTuple):
    """An open session and where it leads: a port at the origin of the environment's host."""

    session_id: str
    environment_id: str
    generation: int
    expires_at: datetime
    takeover_origin: str
    novnc_port: int
    node_id: str | None = None
    view_only: bool = False


def create(
    session: Session,
    *,
    environment_id: str,
    generation: int,
    token_sha256: str,
    created_by: str,
    now: datetime,
    ttl_seconds: int,
    view_only: bool = False,
) -> TakeoverSessionRow:
    """Open a session; expired ones of anybody are dropped on the way, as the protocol does.

    Args:
        view_only: input from its viewers is dropped.
        token_sha256: SHA-256 of the token's text, lower-case hex; the token itself is never stored.
    """
    purge_expired(session, now)
    row = TakeoverSessionRow(
        session_id=str(uuid4()),
        token_sha256=token_sha256,
        environment_id=environment_id,
        generation=generation,
        created_by=storable(created_by),
        created_at=now,
        expires_at=now + timedelta(seconds=ttl_seconds),
        view_only=view_only,
    )
    session.add(row)
    session.flush()
    return row


def find_live(session: Session, token_sha256: str, now: datetime) -> LiveTakeover | None:
    """What the token opens now: the session is neither expired nor revoked, and its generation runs."""
    statement = (
        select(TakeoverSessionRow, EnvironmentRow, HostRow.takeover_origin)
        .join(EnvironmentRow, col(EnvironmentRow.environment_id) == TakeoverSessionRow.environment_id)
        .join(HostRow, col(HostRow.host_id) == EnvironmentRow.host_id)
        .where(
            TakeoverSessionRow.token_sha256 == storable(token_sha256),
            col(TakeoverSessionRow.revoked_at).is_(None),
            col(TakeoverSessionRow.expires_at) > now,
            EnvironmentRow.generation == TakeoverSessionRow.generation,
            EnvironmentRow.status == Status.RUNNING.value,
            col(EnvironmentRow.deleted_at).is_(None),
        )
    )
    found = session.exec(statement).one_or_none()
    if found is None:
        return None
    row, environment, origin = found
    if environment.novnc_port is None:
        return None
    return LiveTakeover(
        session_id=row.session_id,
        environment_id=row.environment_id,
        generation=row.generation,
        expires_at=row.expires_at,
        takeover_origin=origin,
        novnc_port=environment.novnc_port,
        node_id=environment.node_id,
        view_only=row.view_only,
    )


def list_open(session: Session, environment_id: str, now: datetime) -> list[TakeoverSessionRow]:
    """Sessions of an environment that are neither expired nor revoked, newest first."""
    statement = (
        select(TakeoverSessionRow)
        .where(
            TakeoverSessionRow.environment_id == environment_id,
            col(TakeoverSessionRow.revoked_at).is_(None),
            col(TakeoverSessionRow.expires_at) > now,
        )
        .order_by(col(TakeoverSessionRow.created_at).desc())
    )
    return list(session.exec(statement))


def find(session: Session, environment_id: str, session_id: str) -> TakeoverSessionRow | None:
    """A session of this environment, whether it is open or not; expired ones are forgotten sooner or later."""
    statement = select(TakeoverSessionRow).where(
        TakeoverSessionRow.session_id == storable(session_id),
        TakeoverSessionRow.environment_id == storable(environment_id),
    )
    return session.exec(statement).one_or_none()


def extend(row: TakeoverSessionRow, now: datetime, ttl_seconds: int) -> bool:
    """Have a session live for `ttl_seconds` from now, never shorter than it does; False where it has ended."""
    if row.revoked_at is not None or row.expires_at <= now:
        return False
    row.expires_at = max(row.expires_at, now + timedelta(seconds=ttl_seconds))
    return True


def revoke(session: Session, session_id: str, now: datetime) -> bool:
    """End one session; returns whether it was open."""
    return (
        _revoke(
            session,
            now,
            col(TakeoverSessionRow.session_id) == storable(session_id),
            col(TakeoverSessionRow.expires_at) > now,
        )
        == 1
    )


def revoke_up_to(session: Session, environment_id: str, generation: int, now: datetime) -> int:
    """End every session of the environment up to this generation; returns how many were open."""
    return _revoke(
        session,
        now,
        col(TakeoverSessionRow.environment_id) == environment_id,
        col(TakeoverSessionRow.generation) <= generation,
    )


def purge_expired(session: Session, now: datetime) -> int:
    """Drop the rows of expired sessions; returns how many."""
    statement = delete(TakeoverSessionRow).where(col(TakeoverSessionRow.expires_at) <= now)
    return affected(session, statement)


def _revoke(session: Session, now: datetime, *conditions: ColumnElement[bool]) -> int:
    statement = (
        update(TakeoverSessionRow)
        .where(col(TakeoverSessionRow.revoked_at).is_(None), *conditions)
        .values(revoked_at=now)
    )
    return affected(session, statement)
