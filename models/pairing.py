"""A pairing as operators and nodes see it: `NodePairingRequest` (protocol section 4.3).

Optional keys are absent, never null, while a review names every key: so an object is made with the keys it has and
dumped with `exclude_unset`.
"""

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.capabilities import Descriptor

MANAGED_REVIEWER = "managed-pairing-policy"
"""`reviewer_id` of the policy of design decision 12."""


class PairingStatus(StrEnum):
    """Where a pairing stands; `queued` and `reviewing` are for automatic reviewers, of which there are none here."""

    QUEUED = "queued"
    REVIEWING = "reviewing"
    AWAITING_HUMAN = "awaiting_human"
    APPROVED = "approved"
    DENIED = "denied"
    REVOKED = "revoked"


WAITING = frozenset({PairingStatus.QUEUED, PairingStatus.REVIEWING, PairingStatus.AWAITING_HUMAN})
"""An operator can approve or deny."""

REFUSED = frozenset({PairingStatus.DENIED, PairingStatus.REVOKED})

TrustLevel = Literal["local", "remote"]


class ManagedDesktop(BaseModel):
    """The environment a node belongs to."""

    environment_id: str


class ReviewEntry(BaseModel):
    """One decision about a pairing (protocol section 4.3)."""

    model_config = ConfigDict(extra="forbid")

    review_id: str
    target_type: Literal["pairing"] = "pairing"
    target_id: str
    reviewer_kind: Literal["guardian", "human", "system"]
    reviewer_id: str | None
    state: Literal["requested_human", "approved", "denied", "revoked"]
    reason: str | None
    risk_level: Literal["low", "medium", "high", "critical"] | None
    risk_score: int | None
    evidence: Any
    decision_payload: Any
    created_at: str
    started_at: str | None
    completed_at: str | None


class PairingNode(BaseModel):
    """The node of a pairing."""

    node_id: str
    label: str | None = None
    capabilities: list[Descriptor]
    last_seen_at: str
    metadata: dict[str, Any] | None = None
    managed_desktop: ManagedDesktop | None = None


class NodePairing(BaseModel):
    """`NodePairingRequest`: a pairing and its node."""

    pairing_id: int = Field(gt=0)
    status: PairingStatus
    motivation: str
    trust_level: TrustLevel | None = None
    requested_at: str
    node: PairingNode
    capability_allowlist: list[Descriptor]
    latest_review: ReviewEntry | None
    reviews: list[ReviewEntry] | None = None

    def wire(self) -> dict[str, Any]:
        """The JSON object, without the keys that are not there."""
        return self.model_dump(mode="json", exclude_unset=True)
