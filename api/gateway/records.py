"""What the gateway writes when a node comes or goes, each in one transaction."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlmodel import Session

from api.gateway.connection import Connection
from inventory import audit, node_tokens, nodes, pairings
from inventory.audit import ActorKind, Fact, Outcome
from inventory.nodes import ProvenNode
from inventory.pairings import Decided
from models.pairing import MANAGED_REVIEWER


@dataclass(frozen=True)
class Arrival:
    """A recorded connection. `back`: its row said it was away, in this same generation."""

    decided: Decided
    back: bool


@dataclass(frozen=True)
class Departure:
    """The managed node that is away although its generation's token is good."""

    environment_id: str
    generation: int


def arrive(session: Session, connection: Connection) -> Arrival | None:
    """Write node and pairing; None, and nothing written, where the token has ended since it was looked up."""
    claims = connection.claims
    if claims.token_id is not None and node_tokens.ended_among(session, {claims.token_id}):
        return None
    proven = ProvenNode(
        node_id=connection.node_id,
        device=connection.proven.init.device,
        capabilities=connection.proven.capabilities,
        connection_id=connection.connection_id,
        remote_ip=connection.remote_ip,
        environment_id=claims.environment_id,
        generation=claims.generation,
    )
    now = datetime.now(UTC)
    back = nodes.record_connection(session, proven, now)
    decided = pairings.record_connection(session, proven, now)
    if decided.changed:
        audit.append(session, _pairing(proven, decided), now)
    return Arrival(decided, back)


def _pairing(proven: ProvenNode, decided: Decided) -> Fact:
    """The managed-pairing policy's decision, or a node's own request."""
    approved = decided.approved
    return Fact(
        action="pairing.approve" if approved else "pairing.request",
        outcome=Outcome.ACCEPTED,
        actor_kind=ActorKind.SYSTEM if approved else ActorKind.NODE,
        actor=MANAGED_REVIEWER if approved else proven.node_id,
        source=proven.remote_ip,
        environment_id=proven.environment_id,
        generation=proven.generation,
        target=proven.node_id,
        detail={"pairing_id": decided.pairing.pairing_id, "status": decided.pairing.status},
    )


def depart(session: Session, node_id: str, *, again: bool) -> Departure | None:
    """Write the node as away; returns what its environment's workflow has to know, if anything.

    Args:
        again: tell even when the row said so before: a former process may have died before it was told.
    """
    node = nodes.record_disconnection(session, node_id, datetime.now(UTC))
    if node is None or node.environment_id is None or node.generation is None:
        return None
    if not (node.was_connected or again):
        return None
    if not node_tokens.is_current(session, node.environment_id, node.generation):
        return None
    return Departure(node.environment_id, node.generation)
