"""The node protocol's messages: envelopes, handshake and what nodes send later (protocol sections 2, 3 and 4).

Every object is strict: unknown keys, null for an optional key and values of another type are refused.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

import pydantic_core
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from models.capabilities import Descriptor

PROTOCOL_REV = 2


def timestamp(moment: datetime) -> str:
    """ISO 8601 with milliseconds and `Z`: a message with any other spelling vanishes on the node (section 2.1)."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _without_nul(text: str) -> str:
    # PostgreSQL's text cannot hold it.
    if "\x00" in text:
        raise ValueError("a NUL character is not allowed")
    return text


NonEmpty = Annotated[str, Field(min_length=1)]
Trimmed = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4096), AfterValidator(_without_nul)
]


class WireModel(BaseModel):
    """A strict object. `nullable`: the keys for which null is a value; elsewhere null is not absence."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)
    nullable: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _no_nulls(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key, value in data.items():
                if value is None and key not in cls.nullable:
                    raise ValueError(f"{str(key)[:64]!r} is null")
        return data


# --- envelopes ---


class WireError(WireModel):
    """The error of a response."""

    nullable = frozenset({"details"})

    code: NonEmpty
    message: NonEmpty
    details: Any = None


class Request(WireModel):
    """A request envelope."""

    nullable = frozenset({"payload", "trace"})

    request_id: NonEmpty
    type: NonEmpty
    payload: Any
    trace: Any = None


class Success(WireModel):
    """A response envelope, `ok` true."""

    nullable = frozenset({"result"})

    request_id: NonEmpty
    type: NonEmpty
    ok: Literal[True]
    result: Any = None


class Failure(WireModel):
    """A response envelope, `ok` false."""

    request_id: NonEmpty
    type: NonEmpty
    ok: Literal[False]
    error: WireError


class Event(WireModel):
    """An event envelope; a peer of the gateway has none to send, so its insides are not looked at."""

    nullable = frozenset({"payload"})

    event_id: NonEmpty
    type: NonEmpty
    occurred_at: NonEmpty
    payload: Any
    scope: dict[str, Any] = Field(default_factory=dict)


Envelope = Request | Success | Failure | Event


class InvalidJson(Exception):
    """A frame that is not JSON."""


class InvalidMessage(Exception):
    """A frame that is JSON and no envelope."""


def parse_envelope(frame: str) -> Envelope:
    """One frame.

    Raises:
        InvalidJson: not JSON, nested too deep, or with lone surrogates.
        InvalidMessage: not one of the four envelopes.
    """
    try:
        data = pydantic_core.from_json(frame, allow_inf_nan=False)
    except (ValueError, TypeError):
        # TypeError: a text that is no UTF-8, which no WebSocket delivers.
        raise InvalidJson from None
    if not isinstance(data, dict):
        raise InvalidMessage
    try:
        return _kind(data).model_validate(data)
    except ValidationError:
        raise InvalidMessage from None


def _kind(data: dict[str, Any]) -> type[Envelope]:
    if "ok" in data:
        return Success if data["ok"] is True else Failure
    return Event if "event_id" in data else Request


# --- handshake ---


class Device(WireModel):
    """The device of `connect.init`."""

    device_id: Trimmed
    pubkey: Trimmed
    label: Trimmed | None = None
    platform: Trimmed | None = None
    version: Trimmed | None = None
    mode: Trimmed | None = None
    device_type: Literal["phone", "tablet", "desktop", "browser"] | None = None
    device_platform: Literal["ios", "android", "macos", "windows", "linux", "web"] | None = None
    device_model: Trimmed | None = None


class ConnectInit(WireModel):
    """Payload of `connect.init`."""

    protocol_rev: Annotated[int, Field(ge=1)]
    role: Literal["client", "node"]
    device: Device
    capabilities: list[Descriptor] = Field(default_factory=list)


class ConnectProof(WireModel):
    """Payload of `connect.proof`."""

    connection_id: Trimmed
    proof: Trimmed


def proof_transcript(*, role: str, device_id: str, connection_id: str, challenge: str) -> bytes:
    """The bytes a node signs, six lines each ended by LF (protocol section 3.3)."""
    lines = (
        "tyrum-connect-proof",
        f"protocol_rev={PROTOCOL_REV}",
        f"role={role}",
        f"device_id={device_id}",
        f"connection_id={connection_id}",
        f"challenge={challenge}",
    )
    return "".join(f"{line}\n" for line in lines).encode()


# --- after the handshake ---


class ActionState(WireModel):
    """One action of a capability, as `capability.ready` reports it."""

    name: NonEmpty
    enabled: bool
    availability_status: Literal["unknown", "available", "unavailable"]
    unavailable_reason: NonEmpty | None = None


class CapabilityState(WireModel):
    """The actions of one capability."""

    capability: Descriptor
    actions: list[ActionState]


class CapabilityReady(WireModel):
    """Payload of `capability.ready` (protocol section 4.2)."""

    capabilities: list[Descriptor] = Field(default_factory=list)
    capability_states: list[CapabilityState] = Field(default_factory=list)


class PresenceBeacon(WireModel):
    """Payload of `presence.beacon`: what a `PresenceEntry` lets a peer say of itself (protocol section 4.4)."""

    instance_id: Trimmed | None = None
    host: Trimmed | None = None
    ip: Trimmed | None = None
    version: Trimmed | None = None
    mode: (
        Literal["ui", "web", "cli", "node", "backend", "probe", "test", "desktop", "browser-node"] | None
    ) = None
    last_input_seconds: Annotated[int, Field(ge=0)] | None = None
    reason: Literal["self", "connect", "periodic", "node-connected", "prune"] | None = None
    metadata: dict[str, Any] | None = None


class TaskResult(WireModel):
    """Result of a successful `task.execute` (protocol section 6.3)."""

    nullable = frozenset({"result", "evidence"})

    result: Any = None
    evidence: Any = None
