"""Nodes as operators see them (protocol section 10)."""

from typing import Any

from pydantic import BaseModel

from api.gateway.connection import Connection
from inventory import pairings
from inventory.nodes import NodeFacts
from models.capabilities import VERSION, action_of
from models.lifecycle import Status
from models.pairing import ManagedDesktop, PairingStatus
from models.wire import timestamp


class NodeCapability(BaseModel):
    """One advertised capability and whether it could be dispatched now."""

    capability: str
    capability_version: str
    connected: bool
    ready: bool
    paired: bool
    dispatchable: bool


class NodeEntry(BaseModel):
    """A node; keys of what is unknown are absent."""

    node_id: str
    label: str | None = None
    mode: str | None = None
    version: str | None = None
    platform: str | None = None
    connected: bool
    paired_status: PairingStatus | None
    last_seen_at: str
    capabilities: list[NodeCapability]
    device: dict[str, Any]
    managed_desktop: ManagedDesktop | None = None


def node_entry(facts: NodeFacts, connection: Connection | None) -> NodeEntry:
    """One node, from its rows and its connection if it has one."""
    node, pairing = facts.node, facts.pairing
    known = {"label": node.label, "mode": node.mode, "version": node.version, "platform": node.platform}
    optional: dict[str, Any] = {key: value for key, value in known.items() if value is not None}
    if pairing is not None and pairing.environment_id is not None:
        optional["managed_desktop"] = ManagedDesktop(environment_id=pairing.environment_id)
    return NodeEntry(
        node_id=node.node_id,
        connected=connection is not None,
        paired_status=None if pairing is None else PairingStatus(pairing.status),
        last_seen_at=timestamp(node.last_seen_at),
        capabilities=_capabilities(facts, connection),
        device=node.device,
        **optional,
    )


def _capabilities(facts: NodeFacts, connection: Connection | None) -> list[NodeCapability]:
    pairing = facts.pairing
    allowed: set[str] = set()
    if pairing is not None and pairing.status == PairingStatus.APPROVED:
        allowed = {d.id for d in pairings.allowlist(pairing) if d.version == VERSION}
    running = pairing is None or pairing.environment_id is None or facts.environment_status == Status.RUNNING
    entries = []
    for stored in facts.node.capabilities:
        capability = stored["id"]
        ready = connection is not None and capability in connection.ready
        paired = capability in allowed
        entries.append(
            NodeCapability(
                capability=capability,
                capability_version=stored["version"],
                connected=connection is not None,
                ready=ready,
                paired=paired,
                dispatchable=ready and paired and running and action_of(capability) is not None,
            )
        )
    return entries
