"""The audit: who did what, from where, when, with what outcome (design decision 1 leaves it to the gateway).

Rows are only ever added: triggers refuse every UPDATE and DELETE. Their ids are in the order in which they became
visible, so that a reader who goes on after the last id he has seen misses none.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, func, or_
from sqlalchemy.orm import Mapped
from sqlmodel import Session, col, select

from inventory.engine import storable
from models.tables import AuditRow, EnvironmentRow

MAX_PAGE = 1000
MAX_ID = 2**63 - 1
_DETAIL_CHARS = 4000
_TEXT_CHARS = 1000
_LOCK_KEY = 0x6175646974
TOKEN_REFUSED = "node_token.refused"  # noqa: S105 - the name of an action


class Outcome(StrEnum):
    """`accepted`: about to be done, or done. `refused`: nothing was done. `failed`: accepted, and then not done."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    FAILED = "failed"


class ActorKind(StrEnum):
    """What kind of party acted; `unknown` could not prove to be anybody."""

    OPERATOR = "operator"
    NODE = "node"
    SYSTEM = "system"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Fact:
    """One thing to record; never holds a secret or typed text.

    Attributes:
        action: stable dotted name, such as `environment.start`.
        actor: operator's name, node id or part of the system. source: remote IP address.
        code: why refused or failed.
        target: what it was done to, where that is no environment: session, node, token, path.
        detail: small JSON values only.
    """

    action: str
    outcome: Outcome
    actor_kind: ActorKind
    actor: str
    source: str | None = None
    code: str | None = None
    environment_id: str | None = None
    generation: int | None = None
    target: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Filters:
    """What to list. `since` is included, `until` is not; `action` also matches everything below it."""

    environment_id: str | None = None
    actor: str | None = None
    action: str | None = None
    outcome: Outcome | None = None
    since: datetime | None = None
    until: datetime | None = None


def append(session: Session, fact: Fact, now: datetime) -> int:
    """Record a fact in the caller's transaction, as its last statement; returns the row's id.

    A generation that is not given is the one the environment has now.
    """
    generation = fact.generation
    if generation is None and fact.environment_id is not None:
        known = select(EnvironmentRow.generation).where(
            EnvironmentRow.environment_id == storable(fact.environment_id)
        )
        generation = session.exec(known).first()
    if session.get_bind().dialect.name == "postgresql":
        # Numbered in the order of commits: a sequence alone shows 6 before 5 where 5 commits later.
        session.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
    row = AuditRow(
        at=now,
        actor_kind=fact.actor_kind.value,
        actor=storable(fact.actor, 120),
        source=_short(fact.source, 64),
        action=storable(fact.action, 60),
        outcome=fact.outcome.value,
        code=_short(fact.code, 60),
        environment_id=_short(fact.environment_id, 36),
        generation=generation,
        target=_short(fact.target, 200),
        detail=_detail(fact.detail),
    )
    session.add(row)
    session.flush()
    if row.audit_id is None:
        raise RuntimeError("the database gave a row of the audit no id")
    return row.audit_id


def page(
    session: Session, filters: Filters, cursor: int | None, limit: int, *, oldest_first: bool = False
) -> list[AuditRow]:
    """Rows that match, newest first unless asked otherwise.

    Args:
        cursor: id of the last row already read.
        limit: at most this many, 1 to `MAX_PAGE`.
    """
    audit_id = col(AuditRow.audit_id)
    statement = select(AuditRow).where(*_conditions(filters))
    if cursor is not None:
        bounded = min(cursor, MAX_ID)
        statement = statement.where(audit_id > bounded if oldest_first else audit_id < bounded)
    order = audit_id if oldest_first else audit_id.desc()
    return list(session.exec(statement.order_by(order).limit(max(1, min(limit, MAX_PAGE)))))


def of_environment(session: Session, environment_id: str, after: int, limit: int) -> list[AuditRow]:
    """What the audit adds to an environment's timeline, oldest first: takeovers, pairing, dispatch, alarms."""
    action = col(AuditRow.action)
    statement = (
        select(AuditRow)
        .where(
            col(AuditRow.environment_id) == storable(environment_id),
            col(AuditRow.audit_id) > min(after, MAX_ID),
            or_(*(_at_or_below(action, name) for name in ("takeover", "pairing", "dispatch", TOKEN_REFUSED))),
        )
        .order_by(col(AuditRow.audit_id))
        .limit(max(1, min(limit, MAX_PAGE)))
    )
    return list(session.exec(statement))


def _conditions(filters: Filters) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if filters.environment_id is not None:
        found.append(col(AuditRow.environment_id) == storable(filters.environment_id))
    if filters.actor is not None:
        found.append(col(AuditRow.actor) == storable(filters.actor))
    if filters.action is not None:
        found.append(_at_or_below(col(AuditRow.action), storable(filters.action)))
    if filters.outcome is not None:
        found.append(col(AuditRow.outcome) == filters.outcome.value)
    if filters.since is not None:
        found.append(col(AuditRow.at) >= filters.since)
    if filters.until is not None:
        found.append(col(AuditRow.at) < filters.until)
    return found


def _at_or_below(action: Mapped[str], name: str) -> ColumnElement[bool]:
    return or_(action == name, action.startswith(f"{name}.", autoescape=True))


def _short(text: str | None, limit: int) -> str | None:
    return None if text is None else storable(text, limit)


def _detail(detail: Mapping[str, Any]) -> dict[str, Any]:
    plain = {storable(name, 60): _plain(value) for name, value in detail.items() if value is not None}
    return plain if len(json.dumps(plain)) <= _DETAIL_CHARS else {"left_out": "too long to keep"}


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {storable(str(name), 60): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return storable(str(value), _TEXT_CHARS)
