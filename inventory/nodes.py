"""Nodes: who has proven a key, and whether it is connected (design decision 14)."""

from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session, col, select

from models.capabilities import Descriptor
from models.tables import EnvironmentRow, NodeRow, NodeTokenRow, PairingRow
from models.wire import Device


@dataclass(frozen=True)
class ProvenNode:
    """What a finished handshake established.

    Attributes:
        node_id: the device id. capabilities: normalised.
        environment_id, generation: of the managed token it came with; None for any other token.
    """

    node_id: str
    device: Device
    capabilities: tuple[Descriptor, ...]
    connection_id: str
    remote_ip: str | None
    environment_id: str | None = None
    generation: int | None = None


@dataclass(frozen=True)
class Left:
    """A node that is away. `environment_id`, `generation`: of its last managed connection."""

    was_connected: bool
    environment_id: str | None
    generation: int | None


@dataclass(frozen=True)
class NodeFacts:
    """A node with its pairing and, for a managed one, its environment's status."""

    node: NodeRow
    pairing: PairingRow | None
    environment_status: str | None


def record_connection(session: Session, proven: ProvenNode, now: datetime) -> bool:
    """Write the node as connected.

    Returns:
        Whether the row said it was away, after having been there, in this same generation.
    """
    row = session.get(NodeRow, proven.node_id, with_for_update=True)
    if row is None:
        row = NodeRow(
            node_id=proven.node_id, public_key=proven.device.pubkey, created_at=now, last_seen_at=now
        )
        back = False
    else:
        same = row.environment_id == proven.environment_id and row.generation == proven.generation
        back = same and not row.connected
    device = proven.device
    row.public_key = device.pubkey
    row.label, row.platform, row.version, row.mode = (
        device.label,
        device.platform,
        device.version,
        device.mode,
    )
    row.device = device.model_dump(
        include={"device_type", "device_platform", "device_model"}, exclude_none=True
    )
    row.capabilities = [descriptor.model_dump() for descriptor in proven.capabilities]
    row.connected, row.connection_id, row.remote_ip = True, proven.connection_id, proven.remote_ip
    if proven.environment_id is not None:
        row.environment_id, row.generation = proven.environment_id, proven.generation
    row.last_seen_at = now
    session.add(row)
    session.flush()
    return back


def record_disconnection(session: Session, node_id: str, now: datetime) -> Left | None:
    """Write the node as away; None where it is unknown."""
    row = session.get(NodeRow, node_id, with_for_update=True)
    if row is None:
        return None
    was_connected = row.connected
    if was_connected:
        row.connected, row.last_seen_at = False, now
        session.add(row)
    return Left(was_connected, row.environment_id, row.generation)


def expected(session: Session) -> list[str]:
    """Ids of the nodes that should be connected: recorded so, or holding a managed token that is not revoked."""
    token = (col(NodeTokenRow.environment_id) == NodeRow.environment_id) & (
        col(NodeTokenRow.generation) == NodeRow.generation
    )
    statement = (
        select(NodeRow.node_id)
        .join(NodeTokenRow, token & col(NodeTokenRow.revoked_at).is_(None), isouter=True)
        .where(col(NodeRow.connected).is_(True) | col(NodeTokenRow.token_id).is_not(None))
        .distinct()
    )
    return list(session.exec(statement))


def facts(session: Session, node_id: str) -> NodeFacts | None:
    """What decides about this node, or None where it is unknown."""
    found = _facts(session, node_id)
    return found[0] if found else None


def every(session: Session, limit: int = 1000) -> list[NodeFacts]:
    """All nodes with their pairings, last seen first."""
    return _facts(session, None, limit)


def _facts(session: Session, node_id: str | None, limit: int = 1) -> list[NodeFacts]:
    statement = (
        select(NodeRow, PairingRow, EnvironmentRow.status, EnvironmentRow.deleted_at)
        .join(PairingRow, col(PairingRow.node_id) == NodeRow.node_id, isouter=True)
        .join(EnvironmentRow, col(EnvironmentRow.environment_id) == PairingRow.environment_id, isouter=True)
        .order_by(col(NodeRow.last_seen_at).desc(), col(NodeRow.node_id))
        .limit(limit)
    )
    if node_id is not None:
        statement = statement.where(NodeRow.node_id == node_id)
    return [
        NodeFacts(node=node, pairing=pairing, environment_status="deleted" if deleted else status)
        for node, pairing, status, deleted in session.exec(statement)
    ]
