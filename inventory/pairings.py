"""Pairings: the managed-pairing policy, operators' decisions, and their record (protocol sections 4.3 and 10).

A managed node, one that came with the live token of its environment and generation, is approved at once by the
policy (design decision 12). An operator's decision about it stands until an operator makes another: revoked
stays revoked and a narrowed allowlist stays narrow, whatever reconnects. An ordinary node that was denied or
revoked asks again when it reconnects, as section 4.3 has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlmodel import Session, col, select

from inventory.nodes import ProvenNode
from models import tokens
from models.capabilities import Descriptor, managed_allowlist
from models.pairing import (
    MANAGED_REVIEWER,
    REFUSED,
    WAITING,
    ManagedDesktop,
    NodePairing,
    PairingNode,
    PairingStatus,
    ReviewEntry,
    TrustLevel,
)
from models.tables import NodeRow, PairingRow
from models.wire import timestamp

_REVIEWS_KEPT = 50


@dataclass(frozen=True)
class Decided:
    """What became of a pairing.

    Attributes:
        changed: the status is another than before.
        scoped_token: minted just now, for the node alone; nothing keeps its text.
    """

    pairing: NodePairing
    changed: bool
    scoped_token: str | None = None

    @property
    def approved(self) -> bool:
        """Whether the node may be given tasks."""
        return self.pairing.status is PairingStatus.APPROVED


@dataclass(frozen=True)
class Approval:
    """An operator's approval."""

    trust_level: TrustLevel
    capability_allowlist: Sequence[Descriptor]


def record_connection(session: Session, proven: ProvenNode, now: datetime) -> Decided:
    """Make or refresh the pairing of a node that has just connected; its row in `nodes` is written already."""
    row = _of_node(session, proven.node_id)
    if row is None:
        row = _new(session, proven, now)
        before = None
    else:
        before = row.status
    if proven.environment_id is not None:
        row.environment_id = proven.environment_id
    row.updated_at = now
    if row.environment_id is None:
        _ask_again(row, now)
    elif proven.environment_id is not None:
        _apply_policy(row, proven, now)
    scoped = _mint_scoped(row) if before is not None else None
    session.add(row)
    session.flush()
    return Decided(_view(session, row), changed=row.status != before, scoped_token=scoped)


def approve(
    session: Session,
    pairing_id: int,
    approval: Approval,
    *,
    operator: str,
    reason: str | None,
    connected: bool,
    now: datetime,
) -> Decided | None:
    """Approve a waiting pairing, or a refused one of a managed node; in other states nothing changes.

    Args:
        connected: the node can be handed a scoped token; otherwise it gets one when it connects.

    Returns:
        None where there is no such pairing.
    """
    row = session.get(PairingRow, pairing_id, with_for_update=True)
    if row is None:
        return None
    allowed = WAITING if row.environment_id is None else WAITING | REFUSED
    if row.status not in allowed:
        return Decided(_view(session, row), changed=False)
    row.status = PairingStatus.APPROVED
    row.trust_level = approval.trust_level
    row.capability_allowlist = _dump(approval.capability_allowlist)
    _review(row, now, state="approved", kind="human", reviewer=operator, reason=reason)
    scoped = _mint_scoped(row) if connected else None
    session.add(row)
    return Decided(_view(session, row), changed=True, scoped_token=scoped)


def deny(
    session: Session, pairing_id: int, *, operator: str, reason: str | None, now: datetime
) -> Decided | None:
    """Deny a waiting pairing; in other states nothing changes. None where there is no such pairing."""
    row = session.get(PairingRow, pairing_id, with_for_update=True)
    if row is None:
        return None
    return _refuse(session, row, PairingStatus.DENIED, WAITING, operator, reason, now)


def revoke(
    session: Session, pairing_id: int, *, operator: str, reason: str | None, now: datetime
) -> Decided | None:
    """Revoke an approved pairing; in other states nothing changes. None where there is no such pairing."""
    row = session.get(PairingRow, pairing_id, with_for_update=True)
    if row is None:
        return None
    approved = frozenset({PairingStatus.APPROVED})
    return _refuse(session, row, PairingStatus.REVOKED, approved, operator, reason, now)


def revoke_of_environment(session: Session, environment_id: str, reason: str, now: datetime) -> int:
    """Revoke every pairing of an environment, as the system: a later generation is approved again.

    Returns:
        How many pairings were waiting or approved.
    """
    statement = select(PairingRow).where(
        PairingRow.environment_id == environment_id,
        col(PairingRow.status).in_(WAITING | {PairingStatus.APPROVED}),
    )
    rows = session.exec(statement.with_for_update()).all()
    for row in rows:
        row.status = PairingStatus.REVOKED
        _review(row, now, state="revoked", kind="system", reviewer=MANAGED_REVIEWER, reason=reason)
        session.add(row)
    return len(rows)


def get(session: Session, pairing_id: int) -> NodePairing | None:
    """One pairing, with its reviews."""
    row = session.get(PairingRow, pairing_id)
    return None if row is None else _view(session, row, reviews=True)


def of_node(session: Session, node_id: str) -> NodePairing | None:
    """The pairing of one node."""
    row = session.exec(select(PairingRow).where(PairingRow.node_id == node_id)).first()
    return None if row is None else _view(session, row)


def listing(session: Session, status: PairingStatus | None, limit: int = 100) -> list[NodePairing]:
    """Pairings, newest request first."""
    statement = (
        select(PairingRow, NodeRow)
        .join(NodeRow, col(NodeRow.node_id) == PairingRow.node_id)
        .order_by(col(PairingRow.requested_at).desc(), col(PairingRow.pairing_id).desc())
        .limit(limit)
    )
    if status is not None:
        statement = statement.where(PairingRow.status == status)
    return [_object(row, node) for row, node in session.exec(statement)]


def scoped_node(session: Session, token_sha256: str) -> str | None:
    """The node an approved scoped pairing token belongs to (protocol section 7.3)."""
    statement = select(PairingRow.node_id).where(
        PairingRow.scoped_token_sha256 == token_sha256, PairingRow.status == PairingStatus.APPROVED
    )
    return session.exec(statement).first()


def allowlist(row: PairingRow) -> list[Descriptor]:
    """The row's allowlist."""
    return [Descriptor.model_validate(entry) for entry in row.capability_allowlist]


def _of_node(session: Session, node_id: str) -> PairingRow | None:
    return session.exec(select(PairingRow).where(PairingRow.node_id == node_id).with_for_update()).first()


def _new(session: Session, proven: ProvenNode, now: datetime) -> PairingRow:
    managed = proven.environment_id is not None
    row = PairingRow(
        node_id=proven.node_id,
        status=PairingStatus.AWAITING_HUMAN,
        motivation="managed desktop environment" if managed else "the node asks to be paired",
        environment_id=proven.environment_id,
        requested_at=now,
        updated_at=now,
    )
    session.add(row)
    session.flush()
    if not managed:
        _review(row, now, state="requested_human", kind="system", reviewer=None, reason=None)
    return row


def _ask_again(row: PairingRow, now: datetime) -> None:
    if row.status not in REFUSED:
        return
    row.status = PairingStatus.AWAITING_HUMAN
    row.requested_at = now
    row.trust_level = "remote"
    row.capability_allowlist = []
    row.scoped_token_sha256 = None


def _apply_policy(row: PairingRow, proven: ProvenNode, now: datetime) -> None:
    by_operator = bool(row.reviews) and row.reviews[-1]["reviewer_kind"] == "human"
    if by_operator and row.status not in WAITING:
        return
    wanted = _dump(managed_allowlist(proven.capabilities))
    newly = row.status != PairingStatus.APPROVED
    if newly:
        row.status = PairingStatus.APPROVED
        reason = f"live managed token of generation {proven.generation}"
        _review(row, now, state="approved", kind="system", reviewer=MANAGED_REVIEWER, reason=reason)
    row.trust_level = "local"
    row.capability_allowlist = wanted
    # A device that belonged to nobody before may hold one; a managed node has no use for it.
    row.scoped_token_sha256 = None


def _refuse(
    session: Session,
    row: PairingRow,
    status: PairingStatus,
    allowed: frozenset[PairingStatus],
    operator: str,
    reason: str | None,
    now: datetime,
) -> Decided:
    if row.status not in allowed:
        return Decided(_view(session, row), changed=False)
    row.status = status
    state = "denied" if status is PairingStatus.DENIED else "revoked"
    _review(row, now, state=state, kind="human", reviewer=operator, reason=reason)
    session.add(row)
    return Decided(_view(session, row), changed=True)


def _mint_scoped(row: PairingRow) -> str | None:
    if row.environment_id is not None or row.status != PairingStatus.APPROVED or row.scoped_token_sha256:
        return None
    token = tokens.mint_scoped()
    row.scoped_token_sha256 = tokens.sha256_hex(token)
    return token


def _review(
    row: PairingRow, now: datetime, *, state: str, kind: str, reviewer: str | None, reason: str | None
) -> None:
    at = timestamp(now)
    entry: dict[str, Any] = {
        "review_id": str(uuid4()),
        "target_type": "pairing",
        "target_id": str(row.pairing_id),
        "reviewer_kind": kind,
        "reviewer_id": reviewer,
        "state": state,
        "reason": reason,
        "risk_level": None,
        "risk_score": None,
        "evidence": None,
        "decision_payload": None,
        "created_at": at,
        "started_at": at,
        "completed_at": None if state == "requested_human" else at,
    }
    row.reviews = [*row.reviews, entry][-_REVIEWS_KEPT:]
    row.updated_at = now


def _view(session: Session, row: PairingRow, *, reviews: bool = False) -> NodePairing:
    node = session.exec(select(NodeRow).where(NodeRow.node_id == row.node_id)).one()
    return _object(row, node, reviews=reviews)


def _object(row: PairingRow, node: NodeRow, *, reviews: bool = False) -> NodePairing:
    if row.pairing_id is None:
        raise ValueError("the pairing has no row yet")
    requested = timestamp(row.requested_at)
    # A renewed request has no review yet: those before it decided about an earlier one.
    latest = next((entry for entry in reversed(row.reviews) if entry["created_at"] >= requested), None)
    optional: dict[str, Any] = {}
    if reviews:
        optional["reviews"] = [ReviewEntry.model_validate(entry) for entry in row.reviews]
    return NodePairing(
        pairing_id=row.pairing_id,
        status=PairingStatus(row.status),
        motivation=row.motivation,
        trust_level="local" if row.trust_level == "local" else "remote",
        requested_at=requested,
        node=_node(row, node),
        capability_allowlist=allowlist(row),
        latest_review=None if latest is None else ReviewEntry.model_validate(latest),
        **optional,
    )


def _node(row: PairingRow, node: NodeRow) -> PairingNode:
    known = {"ip": node.remote_ip, "platform": node.platform, "version": node.version, "mode": node.mode}
    optional: dict[str, Any] = {
        "metadata": {key: value for key, value in known.items() if value is not None} | node.device
    }
    if node.label is not None:
        optional["label"] = node.label
    if row.environment_id is not None:
        optional["managed_desktop"] = ManagedDesktop(environment_id=row.environment_id)
    return PairingNode(
        node_id=node.node_id,
        capabilities=[Descriptor.model_validate(entry) for entry in node.capabilities],
        last_seen_at=timestamp(node.last_seen_at),
        **optional,
    )


def _dump(descriptors: Sequence[Descriptor]) -> list[dict[str, str]]:
    return [descriptor.model_dump() for descriptor in descriptors]
