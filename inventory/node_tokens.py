"""Managed node tokens: by hash, one live per environment, fenced by generation (design decisions 6 and 7)."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Update, update
from sqlmodel import Session, col, select

from models.lifecycle import Status
from models.messages import ExtendNodeToken, RegisterNodeToken
from models.tables import EnvironmentRow, NodeTokenRow


class Ended(NamedTuple):
    """A token that opens nothing; `reason` is None where that is nothing to wonder about."""

    token_id: str
    environment_id: str
    generation: int
    reason: str | None


def register(session: Session, request: RegisterNodeToken, now: datetime) -> bool:
    """Make this token the environment's only live one; a repetition changes nothing, and is told by False.

    The environment's row is raised to the token's generation, so that the node is known however late the
    projection is. A token of a generation the environment has left is recorded as revoked.

    Raises:
        LookupError: the inventory has no such environment.
    """
    token, environment_id = request.token, request.environment_id
    environment = session.get(EnvironmentRow, environment_id, with_for_update=True)
    if environment is None:
        raise LookupError(f"environment {environment_id} is not in the inventory")
    if session.get(NodeTokenRow, token.token_id) is not None:
        return False
    stale = environment.deleted_at is not None or request.generation < environment.generation
    row = NodeTokenRow(
        token_id=token.token_id,
        environment_id=environment_id,
        generation=request.generation,
        device_id=request.device_id,
        token_sha256=token.token_sha256,
        issued_at=token.issued_at,
        expires_at=token.expires_at,
        revoked_at=now if stale else None,
        revoke_reason="superseded" if stale else None,
    )
    if not stale:
        _revoke(session, environment_id, request.generation, "superseded", now)
        environment.generation = request.generation
    session.add(row)
    session.flush()
    return True


def why_ended(session: Session, token_sha256: str, now: datetime, grace: timedelta) -> Ended | None:
    """Why the token of that hash opens nothing; None where it is live, or there never was one.

    Args:
        grace: for so long after its revocation a token is nothing to wonder about.
    """
    statement = (
        select(NodeTokenRow, EnvironmentRow)
        .join(EnvironmentRow, col(EnvironmentRow.environment_id) == NodeTokenRow.environment_id)
        .where(NodeTokenRow.token_sha256 == token_sha256)
    )
    found = session.exec(statement).first()
    if found is None or live_token(session, token_sha256, now) is not None:
        return None
    row, environment = found
    reason: str | None = "expired"
    if row.generation < environment.generation:
        reason = "older generation"
    elif row.revoked_at is not None and row.revoked_at + grace > now:
        reason = None
    elif environment.deleted_at is not None:
        reason = "environment deleted"
    elif row.revoked_at is not None:
        reason = f"revoked: {row.revoke_reason}" if row.revoke_reason else "revoked"
    return Ended(row.token_id, row.environment_id, row.generation, reason)


def extend(session: Session, request: ExtendNodeToken) -> int:
    """Move the expiry of the generation's live token; returns how many were moved (0 or 1)."""
    statement = (
        update(NodeTokenRow)
        .where(
            col(NodeTokenRow.environment_id) == request.environment_id,
            col(NodeTokenRow.generation) == request.generation,
            col(NodeTokenRow.revoked_at).is_(None),
        )
        .values(expires_at=request.expires_at)
    )
    return _count(session, statement)


def revoke_up_to(session: Session, environment_id: str, generation: int, reason: str, now: datetime) -> int:
    """End every token of the environment up to this generation; returns how many were live."""
    return _revoke(session, environment_id, generation, reason, now)


def live_token(session: Session, token_sha256: str, now: datetime) -> NodeTokenRow | None:
    """The token of that hash if it opens anything: not revoked, not expired, of the present generation."""
    statement = (
        select(NodeTokenRow)
        .join(EnvironmentRow, col(EnvironmentRow.environment_id) == NodeTokenRow.environment_id)
        .where(
            NodeTokenRow.token_sha256 == token_sha256,
            col(NodeTokenRow.revoked_at).is_(None),
            col(NodeTokenRow.expires_at) > now,
            col(EnvironmentRow.generation) == NodeTokenRow.generation,
            col(EnvironmentRow.deleted_at).is_(None),
        )
    )
    return session.exec(statement).first()


def ended_among(session: Session, token_ids: Collection[str]) -> set[str]:
    """Which of these tokens are revoked, replaced by a later generation, or unknown; expiry does not count.

    Live sockets survive expiry (protocol section 7.1).
    """
    statement = (
        select(NodeTokenRow.token_id)
        .join(EnvironmentRow, col(EnvironmentRow.environment_id) == NodeTokenRow.environment_id)
        .where(
            col(NodeTokenRow.token_id).in_(token_ids),
            col(NodeTokenRow.revoked_at).is_(None),
            col(EnvironmentRow.generation) == NodeTokenRow.generation,
            col(EnvironmentRow.deleted_at).is_(None),
        )
    )
    return set(token_ids).difference(session.exec(statement).all())


def is_current(session: Session, environment_id: str, generation: int) -> bool:
    """Whether this generation's token is not revoked and its environment means to keep the node."""
    statement = (
        select(NodeTokenRow.token_id)
        .join(EnvironmentRow, col(EnvironmentRow.environment_id) == NodeTokenRow.environment_id)
        .where(
            NodeTokenRow.environment_id == environment_id,
            NodeTokenRow.generation == generation,
            col(NodeTokenRow.revoked_at).is_(None),
            col(EnvironmentRow.generation) == generation,
            col(EnvironmentRow.status).not_in((Status.STOPPING, Status.DELETING)),
            col(EnvironmentRow.deleted_at).is_(None),
        )
    )
    return session.exec(statement).first() is not None


def _revoke(session: Session, environment_id: str, generation: int, reason: str, now: datetime) -> int:
    statement = (
        update(NodeTokenRow)
        .where(
            col(NodeTokenRow.environment_id) == environment_id,
            col(NodeTokenRow.generation) <= generation,
            col(NodeTokenRow.revoked_at).is_(None),
        )
        .values(revoked_at=now, revoke_reason=reason)
    )
    return _count(session, statement)


def _count(session: Session, statement: Update) -> int:
    return session.exec(statement).rowcount
