"""Bodies of the admin API: what is accepted, strictly, and what is answered (design section 5)."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, StrictBool, WithJsonSchema

from inventory.admin_tokens import is_live
from inventory.audit import TOKEN_REFUSED, ActorKind, Outcome
from inventory.environments import EnvironmentSummary
from inventory.timeline import Item
from models.errors import ErrorCode
from models.lifecycle import Recovery, Status
from models.messages import (
    LEAST_LIMITS,
    EnvironmentView,
    LastError,
    Limits,
    SecurityProfile,
    TimelineEntry,
)
from models.pairing import NodePairing, PairingStatus
from models.tables import AdminTokenRow, AuditRow, DefaultsRow, HostRow

LABEL_CHARS = 120
IMAGE_REF_CHARS = 255
REASON_CHARS = 500
MOST_LIMITS = Limits(cpus=1024, memory_mb=16 * 1024**2, pids=4 * 1024**2, shm_mb=16 * 1024**2)
"""Above this a number is a mistake on any host; each host's own maxima are lower."""
PLACE = r"^(-1|[0-9]{1,10})(\.[0-9]{1,19})?$"
"""A place in a timeline as `inventory.timeline` writes it."""

_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_PATH_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_TAG = r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_IMAGE_REF = re.compile(rf"(?:{_DOMAIN}/)?{_PATH_PART}(?:/{_PATH_PART})*(?::{_TAG})?(?:@{_DIGEST})?")
"""Docker's reference grammar (distribution/reference)."""


def to_wire(at: datetime) -> str:
    """ISO 8601 in UTC with milliseconds and `Z` (protocol section 2.1)."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _printable(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    if not text.isprintable():
        raise ValueError("must hold printable characters only, on one line")
    return text


def _image_ref(text: str) -> str:
    if _IMAGE_REF.fullmatch(text) is None:
        raise ValueError(
            "is not an image reference such as 'desktop-sandbox:dev' or 'registry/name@sha256:…'"
        )
    return text


Timestamp = Annotated[
    datetime,
    PlainSerializer(to_wire, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-11-23T12:00:00.000Z"]}),
]
Label = Annotated[str, Field(max_length=LABEL_CHARS, examples=["build agent"]), AfterValidator(_printable)]
ImageRef = Annotated[
    str, Field(max_length=IMAGE_REF_CHARS, examples=["desktop-sandbox:dev"]), AfterValidator(_image_ref)
]
Reason = Annotated[
    str, Field(max_length=REASON_CHARS, examples=["nightly clean-up"]), AfterValidator(_printable)
]


class Body(BaseModel):
    """Base of everything accepted: an unknown field is refused."""

    model_config = ConfigDict(extra="forbid")


def _optional(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


Source = Literal["workflow", "inventory", "expected"]
"""Where the state of an environment in an answer comes from."""


class LimitsChange(Body):
    """Resource limits; absent ones stay as they are, and begin with the host's defaults."""

    cpus: Annotated[
        float, Field(strict=True, ge=LEAST_LIMITS.cpus, le=MOST_LIMITS.cpus, allow_inf_nan=False)
    ] = Field(default=Limits().cpus, json_schema_extra=_optional, description="CPU cores.")
    memory_mb: Annotated[int, Field(strict=True, ge=LEAST_LIMITS.memory_mb, le=MOST_LIMITS.memory_mb)] = (
        Field(default=Limits().memory_mb, json_schema_extra=_optional, description="Memory, MiB.")
    )
    pids: Annotated[int, Field(strict=True, ge=LEAST_LIMITS.pids, le=MOST_LIMITS.pids)] = Field(
        default=Limits().pids, json_schema_extra=_optional, description="Processes and threads."
    )
    shm_mb: Annotated[int, Field(strict=True, ge=LEAST_LIMITS.shm_mb, le=MOST_LIMITS.shm_mb)] = Field(
        default=Limits().shm_mb,
        json_schema_extra=_optional,
        description="Shared memory, MiB; counts towards memory.",
    )

    def over(self, base: Limits) -> Limits:
        """`base` with what was given."""
        return base.model_copy(update=self.model_dump(include=self.model_fields_set))


class EnvironmentCreate(Body):
    """A new environment."""

    host_id: str | None = Field(
        default=None, max_length=100, description="Runtime host; may be left out where there is only one."
    )
    label: Label | None = Field(default=None, description="Name for people.")
    image_ref: ImageRef | None = Field(
        default=None, description="Image; the installation's default when absent."
    )
    desired_running: StrictBool = Field(default=False, description="Start it at once.")
    security_profile: SecurityProfile = Field(
        default=SecurityProfile.HARDENED, description="`compatible` for images that need more, such as root."
    )
    limits: LimitsChange = Field(
        default_factory=LimitsChange,
        json_schema_extra=_optional,
        description="At most the host's `max_limits`.",
    )


class EnvironmentPatch(Body):
    """A change; absent fields stay as they are."""

    label: Label | None = Field(default=None, description="null clears it.")
    image_ref: ImageRef = Field(
        default="", json_schema_extra=_optional, description="A running desktop is made anew from it."
    )
    security_profile: SecurityProfile = Field(
        default=SecurityProfile.HARDENED,
        json_schema_extra=_optional,
        description="A running desktop is made anew under it.",
    )
    limits: LimitsChange = Field(
        default_factory=LimitsChange,
        json_schema_extra=_optional,
        description="At most the host's `max_limits`; a running desktop is made anew with them.",
    )
    desired_running: StrictBool = Field(
        default=False, json_schema_extra=_optional, description="As `start` and `stop`."
    )


class CommandBody(Body):
    """Why; kept in the timeline."""

    reason: Reason | None = None


class ResetBody(CommandBody):
    """Why, and how thoroughly."""

    rotate_identity: StrictBool = Field(
        default=False, description="Replace the device identity too: the node becomes another peer."
    )


class DefaultsPut(Body):
    """A new revision of the defaults."""

    default_image_ref: ImageRef
    reason: Reason | None = None


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


class TokenCreate(Body):
    """A new admin token."""

    name: Label = Field(description="Whose it is: the actor of everything done with it.")
    expires_in_seconds: Annotated[int, Field(strict=True, ge=60, le=10 * 365 * 86400)] | None = Field(
        default=None, description="Absent or null: it does not expire."
    )


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
