"""Nodes and pairings for operators, and dispatch (protocol section 10)."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine

from api import database
from api.dependencies import Admin, get_engine, get_gateway
from api.errors import responses
from api.gateway import Gateway, Task
from api.gateway.views import NodeEntry, node_entry
from inventory import nodes, pairings
from inventory.pairings import Approval
from models.capabilities import UMBRELLAS, CapabilityId, Descriptor
from models.errors import Conflict, InvalidRequest, NotFound, Unauthorized, Unavailable
from models.pairing import NodePairing, PairingStatus, TrustLevel
from models.wire import timestamp

router = APIRouter(tags=["nodes"])

GatewayDep = Annotated[Gateway, Depends(get_gateway)]
EngineDep = Annotated[Engine, Depends(get_engine)]
Reason = Annotated[str | None, Field(max_length=1000, pattern=r"^[^\x00]*$")]

_MAX_PAIRING_ID = 2**31 - 1


class Strict(BaseModel):
    """A request body: an unknown field is refused (design section 5)."""

    model_config = ConfigDict(extra="forbid")


class ApproveBody(Strict):
    """An approval; the umbrella ids of protocol section 5.4 cannot be approved."""

    trust_level: TrustLevel
    capability_allowlist: Annotated[list[Descriptor], Field(max_length=500)]
    reason: Reason = None


class ReasonBody(Strict):
    """Why."""

    reason: Reason = None


class DispatchBody(Strict):
    """One capability call.

    Attributes:
        args: of the action; `op` is put in from the capability.
        timeout_seconds: for the node's answer, and as much again for the queue of input.
    """

    capability: Annotated[CapabilityId, Field(max_length=200)]
    args: dict[str, Any] = Field(default_factory=dict)
    timeout_seconds: Annotated[float | None, Field(ge=1, le=300)] = None


class NodesAnswer(BaseModel):
    """Every node, last seen first."""

    status: Literal["ok"] = "ok"
    generated_at: str
    nodes: list[NodeEntry]


class PairingsAnswer(BaseModel):
    """Pairings, newest request first."""

    status: Literal["ok"] = "ok"
    pairings: list[NodePairing]


class PairingAnswer(BaseModel):
    """One pairing; it never holds the scoped token."""

    status: Literal["ok"] = "ok"
    pairing: NodePairing


class DispatchError(BaseModel):
    """Why the task failed: a code of protocol section 6.5."""

    code: str
    message: str
    retryable: bool


class DispatchAnswer(BaseModel):
    """What became of a task that was sent to the node, or timed out there."""

    status: Literal["ok"] = "ok"
    task_id: str
    dispatch_id: str
    node_id: str
    capability: str
    ok: bool
    result: Any
    evidence: Any
    error: DispatchError | None


def pairing_id_of(
    pairing_id: Annotated[str, Path(json_schema_extra={"type": "integer", "minimum": 1})],
) -> int:
    """The path's pairing id.

    Raises:
        InvalidRequest: not a positive whole number.
        NotFound: larger than any id.
    """
    if not pairing_id.isascii() or not pairing_id.isdigit() or not pairing_id.strip("0"):
        raise InvalidRequest("pairing_id: must be a positive whole number")
    if len(pairing_id) > 10 or int(pairing_id) > _MAX_PAIRING_ID:
        raise NotFound("there is no pairing of that id")
    return int(pairing_id)


PairingId = Annotated[int, Depends(pairing_id_of)]


@router.get(
    "/nodes",
    response_model_exclude_unset=True,
    responses=responses(InvalidRequest, Unauthorized, Unavailable),
)
async def list_nodes(
    _operator: Admin,
    engine: EngineDep,
    gateway: GatewayDep,
    capability: Annotated[CapabilityId | None, Query(max_length=200)] = None,
    dispatchable_only: bool = False,
) -> NodesAnswer:
    """The nodes that have proven a key, with what could be dispatched to each now."""
    if capability in UMBRELLAS:
        raise InvalidRequest(f"capability: {capability} stands for several; name one")
    entries = []
    for facts in await database.read(engine, nodes.every):
        entry = node_entry(facts, gateway.connection(facts.node.node_id))
        named = [c for c in entry.capabilities if capability in (None, c.capability)]
        if capability is not None and not named:
            continue
        if dispatchable_only and not any(c.dispatchable for c in named):
            continue
        entries.append(entry)
    return NodesAnswer(status="ok", generated_at=timestamp(datetime.now(UTC)), nodes=entries)


@router.get(
    "/pairings",
    response_model_exclude_unset=True,
    responses=responses(InvalidRequest, Unauthorized, Unavailable),
)
async def list_pairings(
    _operator: Admin, engine: EngineDep, status: PairingStatus | None = None
) -> PairingsAnswer:
    """At most 100 pairings."""
    found = await database.read(engine, lambda session: pairings.listing(session, status))
    return PairingsAnswer(status="ok", pairings=found)


_ON_ONE = responses(InvalidRequest, Unauthorized, NotFound, Unavailable)


@router.get("/pairings/{pairing_id}", response_model_exclude_unset=True, responses=_ON_ONE)
async def get_pairing(_operator: Admin, engine: EngineDep, pairing_id: PairingId) -> PairingAnswer:
    """One pairing, with its reviews."""
    found = await database.read(engine, lambda session: pairings.get(session, pairing_id))
    if found is None:
        raise NotFound(f"there is no pairing {pairing_id}")
    return PairingAnswer(status="ok", pairing=found)


@router.post("/pairings/{pairing_id}/approve", response_model_exclude_unset=True, responses=_ON_ONE)
async def approve_pairing(
    operator: Admin, gateway: GatewayDep, pairing_id: PairingId, body: ApproveBody
) -> PairingAnswer:
    """Approve a waiting pairing, or a refused one of a managed node; read `pairing.status` for the outcome."""
    umbrellas = sorted({d.id for d in body.capability_allowlist} & UMBRELLAS)
    if umbrellas:
        raise InvalidRequest(f"capability_allowlist: {', '.join(umbrellas)} stand for several; name each")
    approval = Approval(body.trust_level, body.capability_allowlist)
    pairing = await gateway.decisions.approve(
        pairing_id, approval, operator=operator.name, reason=body.reason
    )
    return PairingAnswer(status="ok", pairing=pairing)


@router.post("/pairings/{pairing_id}/deny", response_model_exclude_unset=True, responses=_ON_ONE)
async def deny_pairing(
    operator: Admin, gateway: GatewayDep, pairing_id: PairingId, body: ReasonBody | None = None
) -> PairingAnswer:
    """Deny a waiting pairing; read `pairing.status` for the outcome."""
    reason = body.reason if body else None
    pairing = await gateway.decisions.deny(pairing_id, operator=operator.name, reason=reason)
    return PairingAnswer(status="ok", pairing=pairing)


@router.post("/pairings/{pairing_id}/revoke", response_model_exclude_unset=True, responses=_ON_ONE)
async def revoke_pairing(
    operator: Admin, gateway: GatewayDep, pairing_id: PairingId, body: ReasonBody | None = None
) -> PairingAnswer:
    """Revoke an approved pairing and close its socket; for a managed node until an operator approves again."""
    reason = body.reason if body else None
    pairing = await gateway.decisions.revoke(pairing_id, operator=operator.name, reason=reason)
    return PairingAnswer(status="ok", pairing=pairing)


@router.post(
    "/nodes/{node_id}/dispatch",
    responses=responses(InvalidRequest, Unauthorized, NotFound, Conflict, Unavailable),
)
async def dispatch(_operator: Admin, gateway: GatewayDep, node_id: str, body: DispatchBody) -> DispatchAnswer:
    """One capability call to a paired, allowlisted, connected node; what fails there is an answer, not an error."""
    outcome = await gateway.dispatch(node_id, Task(body.capability, body.args, body.timeout_seconds))
    error = outcome.error
    return DispatchAnswer(
        task_id=outcome.task_id,
        dispatch_id=outcome.dispatch_id,
        node_id=node_id,
        capability=body.capability,
        ok=error is None,
        result=outcome.result,
        evidence=outcome.evidence,
        error=None if error is None else DispatchError(**vars(error)),
    )
