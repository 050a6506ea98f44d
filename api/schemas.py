"""What the admin API answers (design section 5)."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainSerializer, WithJsonSchema

from inventory.admin_tokens import is_live
from inventory.audit import TOKEN_REFUSED, ActorKind, Outcome
from inventory.environments import EnvironmentSummary
from inventory.timeline import Item
from models.errors import ErrorCode
from models.lifecycle import Recovery, Status
from models.messages import (
    EnvironmentView,
    LastError,
    Limits,
    SecurityProfile,
    TimelineEntry,
)
from models.pairing import NodePairing, PairingStatus
from models.tables import AdminTokenRow, AuditRow, DefaultsRow, HostRow


def to_wire(at: datetime) -> str:
    """ISO 8601 in UTC with milliseconds and `Z` (protocol section 2.1)."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp = Annotated[
    datetime,
    PlainSerializer(to_wire, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-11-23T12:00:00.000Z"]}),
]
Source = Literal["workflow", "inventory", "expected"]
"""Where the state of an environment in an answer comes from."""


class LastErrorOut(BaseModel):
    """The recorded error of an environment."""

    code: ErrorCode
    message: str
    phase: str
    at: Timestamp


class Environment(BaseModel):
    """An environment as lists show it."""

    environment_id: str
    host_id: str
    label: str | None
    image_ref: str
    managed_kind: Literal["docker"]
    status: Status
    desired_running: bool
    generation: int = Field(description="Rises with each new container.")
    node_id: str | None
    takeover_available: bool
    last_error: LastErrorOut | None
    restarts: int = Field(description="Containers made by recovery in the present window.")
    next_retry_at: Timestamp | None = Field(description="When recovery tries next.")
    created_at: Timestamp
    updated_at: Timestamp
    last_seen_at: Timestamp | None

    @classmethod
    def from_summary(cls, row: EnvironmentSummary) -> "Environment":
        """From the inventory."""
        values = row._asdict() | {"takeover_available": row.takeover_available}
        if row.last_error is not None:
            values["last_error"] = _error(LastError.model_validate(row.last_error))
        return cls.model_validate(values)


class EnvironmentDetail(Environment):
    """One environment in full."""

    phases: dict[str, float] = Field(description="Milliseconds of each phase of the latest start.")
    source: Source = Field(
        description="`inventory` when no worker answered: the state as last recorded. `expected` in the answer to a "
        "command that is not waited for: what it makes of that."
    )
    settled: bool = Field(description="Nothing is under way and no retry is scheduled.")
    recovery: Recovery = Field(description="How an error ends.")
    operation: str | None = Field(description="What is under way.")
    phase: str | None = Field(description="How far it is.")
    security_profile: SecurityProfile
    limits: Limits

    @classmethod
    def from_view(
        cls,
        view: EnvironmentView,
        source: Source,
        last_seen_at: datetime | None,
    ) -> "EnvironmentDetail":
        """From the workflow's answer, or the inventory's in its place."""
        return cls(
            **view.model_dump(
                include={
                    *("status", "desired_running", "generation", "node_id", "takeover_available", "restarts"),
                    *("next_retry_at", "created_at", "updated_at", "phases", "settled", "recovery"),
                    *("operation", "phase"),
                }
            ),
            environment_id=view.spec.environment_id,
            host_id=view.spec.host_id,
            label=view.spec.label,
            image_ref=view.spec.image_ref,
            managed_kind="docker",
            security_profile=view.spec.security_profile,
            limits=view.spec.limits,
            last_error=None if view.last_error is None else _error(view.last_error),
            # The record lags behind the workflow by a moment.
            last_seen_at=last_seen_at or (view.updated_at if view.status is Status.RUNNING else None),
            source=source,
        )


class PairingShown(BaseModel):
    """What stands about the pairing of an environment's node; an agent can use the desktop while it is `approved`."""

    pairing_id: int
    status: PairingStatus
    decided_by: str | None = Field(description="Operator, or `managed-pairing-policy`.")
    reason: str | None
    at: str | None = Field(description="When that was decided.")

    @classmethod
    def from_pairing(cls, pairing: NodePairing) -> "PairingShown":
        """From the inventory."""
        review = pairing.latest_review
        return cls(
            pairing_id=pairing.pairing_id,
            status=pairing.status,
            decided_by=review.reviewer_id if review else None,
            reason=review.reason if review else None,
            at=review.created_at if review else None,
        )


class EnvironmentShown(EnvironmentDetail):
    """One environment in full, with its node's pairing, which is the gateway's and not the workflow's."""

    pairing: PairingShown | None = Field(description="null where no node of it has ever connected.")


class Host(BaseModel):
    """A runtime host and its health as recorded."""

    host_id: str
    label: str
    version: str | None
    docker_available: bool
    healthy: bool
    takeover_origin: str
    last_error: str | None
    last_seen_at: Timestamp | None = Field(description="Its last heartbeat.")
    max_limits: Limits | None = Field(
        description="The most one environment may have; null where the host has not said."
    )

    @classmethod
    def from_row(cls, row: HostRow, last_seen_at: datetime | None) -> "Host":
        """From the inventory and the host's heartbeat."""
        return cls.model_validate(row.model_dump() | {"last_seen_at": last_seen_at})


class TimelineEntryOut(BaseModel):
    """One line of the timeline: the workflow's own, or what the audit adds."""

    id: str = Field(description="The place after this line; `after` and `Last-Event-ID` go on from it.")
    sequence: int | None = Field(description="Of the workflow's own lines.")
    at: Timestamp
    kind: str = Field(
        examples=["command", "phase", "status", "error", "credential", "takeover", "pairing", "dispatch"]
    )
    name: str
    status: Status | None = Field(description="The environment's, on the workflow's own lines.")
    generation: int | None
    actor: str | None
    reason: str | None
    message: str | None
    detail: dict[str, Any]

    @classmethod
    def from_item(cls, item: Item) -> "TimelineEntryOut":
        """From either half."""
        if isinstance(item.line, TimelineEntry):
            return cls(id=str(item.place), **item.line.model_dump())
        row = item.line
        kind, _, name = row.action.partition(".")
        if row.action == TOKEN_REFUSED:
            kind, name = "credential", "token_refused"
        facts = {"outcome": row.outcome, "source": row.source, "target": row.target}
        return cls(
            id=str(item.place),
            sequence=None,
            at=row.at,
            kind=kind,
            name=name or str(row.detail.get("capability", kind)),
            status=None,
            generation=row.generation,
            actor=row.actor,
            reason=row.code,
            message=None,
            detail={name: value for name, value in facts.items() if value is not None} | row.detail,
        )


class AuditEntryOut(BaseModel):
    """One line of the audit."""

    audit_id: int
    at: Timestamp
    actor_kind: ActorKind
    actor: str
    source: str | None = Field(description="Remote IP address.")
    action: str = Field(examples=["environment.start", "pairing.approve", "token.revoke", "auth.refused"])
    outcome: Outcome
    code: str | None = Field(description="Why refused or failed.")
    environment_id: str | None
    generation: int | None
    target: str | None
    detail: dict[str, Any]

    @classmethod
    def from_row(cls, row: AuditRow) -> "AuditEntryOut":
        """From the inventory."""
        return cls.model_validate(row.model_dump())


class TokenOut(BaseModel):
    """An admin token, without its text."""

    token_id: str
    name: str
    created_at: Timestamp
    expires_at: Timestamp | None
    revoked_at: Timestamp | None
    live: bool

    @classmethod
    def from_row(cls, row: AdminTokenRow, now: datetime) -> "TokenOut":
        """From the inventory."""
        return cls(
            token_id=row.token_id,
            name=row.name,
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            live=is_live(row, now),
        )


class Answer(BaseModel):
    """Base of everything answered with success."""

    status: Literal["ok"] = "ok"


class EnvironmentAnswer(Answer):
    """One environment."""

    environment: EnvironmentDetail


class EnvironmentShownAnswer(Answer):
    """One environment, with its node's pairing."""

    environment: EnvironmentShown


class DeleteAnswer(EnvironmentAnswer):
    """An environment on its way out. `deleted`: it is gone."""

    deleted: bool


class EnvironmentsAnswer(Answer):
    """One page of environments, newest change first."""

    environments: list[Environment]
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last.")


class HostAnswer(Answer):
    """One runtime host."""

    host: Host


class HostsAnswer(Answer):
    """Every runtime host."""

    hosts: list[Host]


class LogsAnswer(Answer):
    """The log tail, oldest line first."""

    environment_id: str
    logs: list[str]
    refreshed: bool = Field(description="Read from the container now, rather than as last retained.")


class TimelineAnswer(Answer):
    """One page of the timeline, oldest entry first."""

    environment_id: str
    entries: list[TimelineEntryOut]
    next_after: str | None = Field(description="`after` of the next page; null at the end.")


class AuditAnswer(Answer):
    """One page of the audit."""

    entries: list[AuditEntryOut]
    next_cursor: str | None = Field(
        description="`cursor` of the next page; null on the last, never with `oldest_first` once there are rows."
    )


class TokensAnswer(Answer):
    """Every admin token."""

    tokens: list[TokenOut]


class TokenAnswer(Answer):
    """One admin token."""

    token: TokenOut


class TokenCreatedAnswer(TokenAnswer):
    """A new admin token. `bearer_token` is shown here and never again."""

    bearer_token: str


class TakeoverAnswer(Answer):
    """A takeover session. Whoever has `entry_url` controls the desktop until `expires_at`."""

    session_id: str
    entry_url: str
    expires_at: Timestamp


class DefaultsAnswer(Answer):
    """The defaults in force."""

    default_image_ref: str
    revision: int = Field(description="0 until somebody has set them.")
    created_at: Timestamp | None
    created_by: str | None
    reason: str | None
    reverted_from_revision: int | None

    @classmethod
    def from_row(cls, row: DefaultsRow) -> "DefaultsAnswer":
        """From the inventory."""
        return cls.model_validate(row.model_dump())


class Part(BaseModel):
    """One part this process needs."""

    ok: bool
    message: str | None = None


class Readiness(BaseModel):
    """Whether this process can serve, part by part."""

    status: Literal["ok", "unavailable"]
    parts: dict[str, Part]


class Liveness(BaseModel):
    """The process runs."""

    status: Literal["ok"] = "ok"


def _error(error: LastError) -> LastErrorOut:
    return LastErrorOut(code=error.code, message=error.message, phase=error.phase, at=error.at)
