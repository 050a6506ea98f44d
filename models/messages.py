"""What workflows and activities pass to each other. Every field has a default where a history may hold an older form.

No message carries a secret: Temporal keeps them all (design decision 6).
"""

from collections.abc import Collection
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.errors import ErrorCode
from models.lifecycle import Recovery, Status

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

LOG_TAIL_LINES = 200
"""Lines of container log kept (protocol section 11.3)."""
LOG_LINE_CHARS = 500
"""Characters kept of one line, so that a tail in history stays below 100 kB."""


class Message(BaseModel):
    """Base of everything passed: unknown fields are ignored, so that older code reads newer messages."""

    model_config = ConfigDict(extra="ignore")


class SecurityProfile(StrEnum):
    """How tightly a container is held (design section 6)."""

    HARDENED = "hardened"
    COMPATIBLE = "compatible"


class Limits(Message):
    """Resource limits of one container.

    Attributes:
        cpus: CPU cores. memory_mb, shm_mb: MiB. pids: processes and threads.
    """

    cpus: float = 2.0
    memory_mb: int = 2048
    pids: int = 512
    shm_mb: int = 256

    def lowered_to(self, most: "Limits") -> "Limits":
        """Each limit, or the one of `most` where that is lower."""
        return Limits.model_validate(
            {name: min(value, getattr(most, name)) for name, value in self.model_dump().items()}
        )

    def with_those(self, names: Collection[str] | None, given: "Limits") -> "Limits":
        """These limits with the named ones of `given`; with all of them where `names` is None."""
        return given if names is None else self.model_copy(update=given.model_dump(include=set(names)))

    def above(self, most: "Limits") -> str | None:
        """The first limit above that of `most`, such as `cpus 8 is above the maximum 4`; None where none is."""
        for name, value in self.model_dump().items():
            maximum = getattr(most, name)
            if value > maximum:
                return f"{name} {value:g} is above the maximum {maximum:g}"
        return None


LEAST_LIMITS = Limits(cpus=0.1, memory_mb=256, pids=64, shm_mb=1)
"""What a desktop cannot do with less of."""


class EnvironmentSpec(Message):
    """What an operator asked for."""

    environment_id: str
    host_id: str
    label: str | None = None
    image_ref: str
    security_profile: SecurityProfile = SecurityProfile.HARDENED
    limits: Limits = Field(default_factory=Limits)


class LastError(Message):
    """The recorded error of an environment (design section 4).

    Attributes:
        lasting: repetition cannot mend it, whatever its code usually means: one attempt, then an operator.
    """

    code: ErrorCode
    message: str
    phase: str = ""
    at: datetime = EPOCH
    generation: int = 0
    exit_code: int | None = None
    oom_killed: bool = False
    log_tail: list[str] = Field(default_factory=list)
    lasting: bool = False


class TimelineEntry(Message):
    """One line of an environment's history for people: when, who, what, why.

    Attributes:
        sequence: rises by one per entry over the whole life of the environment; the key it is stored under.
        kind: `command`, `phase`, `status`, `error`, `event`, `credential` or `note`.
        name: what of that kind, such as `start`, `container_started` or `running`.
        detail: small JSON values only.
    """

    sequence: int
    at: datetime
    kind: str
    name: str
    status: Status
    generation: int = 0
    actor: str | None = None
    reason: str | None = None
    message: str | None = None
    detail: dict[str, Any] = Field(default_factory=dict)


# --- signals -----------------------------------------------------------------------------------------------------


class CommandSignal(Message):
    """The optional argument of `start`, `stop`, `reset` and `delete` (design decision 4)."""

    reason: str | None = None
    actor: str | None = None
    request_id: str | None = None
    rotate_identity: bool = False


class SpecChange(Message):
    """Signal `change_spec`: the operator's PATCH. Absent fields stay as they are.

    Attributes:
        limits_given: names of the `limits` asked for; the others stay as they are when the signal is taken in.
            None for all of them.
    """

    label: str | None = None
    clear_label: bool = False
    image_ref: str | None = None
    limits: Limits | None = None
    limits_given: list[str] | None = None
    security_profile: SecurityProfile | None = None
    actor: str | None = None
    request_id: str | None = None


class ContainerEvent(Message):
    """Signal `container_event`: what the host saw of this environment's container.

    Attributes:
        event: `exited`, `removed`, `paused`, `absent` (the sweep found none), `newer` (the sweep found one of a
            generation that the workflow has not come to), or `out_of_memory`: the kernel ended a program in it, and the
            container runs on.
    """

    generation: int
    event: Literal["exited", "removed", "paused", "absent", "newer", "out_of_memory"]
    container_id: str | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    at: datetime = EPOCH
    log_tail: list[str] = Field(default_factory=list)


class HostEvent(Message):
    """Signal `host_event`: what became of the environment's host."""

    event: Literal["lost", "restored"]
    code: ErrorCode = ErrorCode.HOST_UNREACHABLE
    message: str = ""
    at: datetime = EPOCH


class NodePresence(Message):
    """Signal `node_presence`: the gateway saw the node come or go (design decision 14)."""

    generation: int
    connected: bool
    node_id: str = ""
    reason: str = ""
    at: datetime = EPOCH


# --- activities --------------------------------------------------------------------------------------------------


class EnsureImage(Message):
    """Ask for the image on the host, pulled when missing."""

    environment_id: str
    generation: int
    image_ref: str


class ImageReady(Message):
    """The image is on the host.

    Attributes:
        user: the image's configured user, empty for root.
        pulled: whether a pull was needed. pull_ms: how long it took, milliseconds.
    """

    image_id: str
    user: str = ""
    pulled: bool = False
    pull_ms: float = 0


class PrepareIdentity(Message):
    """Ask for the device identity, made when absent (protocol section 8.1), and for what else a start needs at once.

    Attributes:
        ttl_seconds: of the node token to mint as well; 0 for none.
        image_ref: the image to look for as well; None for none.
    """

    environment_id: str
    generation: int
    rotate: bool = False
    ttl_seconds: int = 0
    image_ref: str | None = None


class Identity(Message):
    """The public half of the device identity."""

    device_id: str
    public_key: str
    created: bool = False


class MintNodeToken(Message):
    """Ask for a fresh node token in the token file; a repetition for the same generation returns the same token."""

    environment_id: str
    generation: int
    ttl_seconds: int


class NodeToken(Message):
    """What may be known of a node token; the token itself never leaves the host (design decision 6)."""

    token_id: str
    token_sha256: str
    issued_at: datetime
    expires_at: datetime


class Prepared(Identity):
    """The identity, and what else was asked for.

    Attributes:
        token: as `mint_node_token` reports it; None where it was not asked for, or by a host of an older version.
        image: ready to be used as it is; None where `ensure_image` has to see to it.
    """

    token: NodeToken | None = None
    image: ImageReady | None = None


class StartContainer(Message):
    """Ask for the container of this generation; a repetition finds it.

    Attributes:
        adopt_only: take over the container of this generation if it still runs; otherwise fail, make nothing.
    """

    spec: EnvironmentSpec
    generation: int
    adopt_only: bool = False


class ContainerStarted(Message):
    """The container of this generation runs.

    Attributes:
        rfb_port, novnc_port: published ports on the host's loopback.
        adopted: it was there already.
        notes: what the security profile could not hold for this image.
    """

    container_id: str
    name: str
    rfb_port: int
    novnc_port: int
    adopted: bool = False
    notes: list[str] = Field(default_factory=list)


class AwaitNodePairing(Message):
    """Ask for the proof that the desktop is ready (design decision 8 and 13)."""

    environment_id: str
    generation: int
    container_id: str
    rfb_port: int
    novnc_port: int


class NodePaired(Message):
    """The desktop is proven ready. `phases`: milliseconds from the container's start to each proof."""

    node_id: str
    pairing_id: int
    phases: dict[str, float] = Field(default_factory=dict)


class CaptureLogs(Message):
    """Ask for the container's log tail now."""

    environment_id: str
    generation: int = 0


class CapturedLogs(Message):
    """The log tail; `found` is false when there is no container."""

    lines: list[str] = Field(default_factory=list)
    found: bool = True


class RemoveContainer(Message):
    """Ask that no container of this generation or an older one is left.

    Attributes:
        grace_seconds: time between SIGTERM and SIGKILL.
    """

    environment_id: str
    generation: int
    grace_seconds: int = 2


class ContainerRemoved(Message):
    """No container is left. `lines`: the log tail taken before it went."""

    removed: bool = False
    exit_code: int | None = None
    oom_killed: bool = False
    lines: list[str] = Field(default_factory=list)


class WipeRuntime(Message):
    """Ask for a clean runtime home (`everything` false), or for the environment's whole host directory to go."""

    environment_id: str
    generation: int
    everything: bool = False


class MonitorHost(Message):
    """Ask the host to watch itself until the worker ends (design decision 5)."""

    host_id: str


class RegisterNodeToken(Message):
    """Make the token of this generation the environment's only live one."""

    environment_id: str
    generation: int
    device_id: str
    public_key: str = ""
    token: NodeToken


class ExtendNodeToken(Message):
    """Move the expiry of the live token of this generation."""

    environment_id: str
    generation: int
    expires_at: datetime


class RevokeCredentials(Message):
    """End every token and takeover session up to this generation, and the pairing too when `pairing` is set."""

    environment_id: str
    generation: int
    reason: str
    pairing: bool = False


class EnvironmentRecord(Message):
    """The projection of a workflow into the inventory; written only over an older `revision`.

    Attributes:
        registers, revokes: credentials to register or to end in the same transaction, each fenced by its generation
            and not by `revision`.
    """

    spec: EnvironmentSpec
    status: Status
    desired_running: bool
    generation: int
    revision: int
    node_id: str | None = None
    rfb_port: int | None = None
    novnc_port: int | None = None
    last_error: LastError | None = None
    recovery: Recovery = Recovery.NONE
    restarts: int = 0
    next_retry_at: datetime | None = None
    phases: dict[str, float] = Field(default_factory=dict)
    logs: list[str] | None = None
    at: datetime = EPOCH
    deleted: bool = False
    entries: list[TimelineEntry] = Field(default_factory=list)
    registers: RegisterNodeToken | None = None
    revokes: RevokeCredentials | None = None


class Recorded(Message):
    """What the inventory has of an environment after a record; more than a workflow that was reset by hand knows.

    Attributes:
        generation: of the row. sequence: of the newest timeline entry. deleted: the row is a tombstone.
        credentials: what the record said of credentials was done; a worker of an older version does not know of it.
    """

    generation: int = 0
    sequence: int = 0
    deleted: bool = False
    credentials: bool = False


class HostRecord(Message):
    """What is recorded of a runtime host; also the host's own report (signal `docker_health`) and query `status`.

    Attributes:
        max_limits: the most one environment on it may have; None where the host has not said.
    """

    host_id: str
    label: str = ""
    version: str | None = None
    docker_available: bool = False
    healthy: bool = False
    takeover_origin: str = "http://127.0.0.1"
    last_error: str | None = None
    last_seen_at: datetime | None = None
    revision: int = 0
    max_limits: Limits | None = None


class NotifyEnvironments(Message):
    """Tell every live environment on the host what became of it."""

    host_id: str
    event: HostEvent


# --- workflow inputs, queries and updates ------------------------------------------------------------------------


class EnvironmentView(Message):
    """Query `status` of the environment workflow: the object of design section 5 and what the detail adds."""

    spec: EnvironmentSpec
    status: Status
    desired_running: bool
    generation: int
    node_id: str | None = None
    takeover_available: bool = False
    rfb_port: int | None = None
    novnc_port: int | None = None
    last_error: LastError | None = None
    settled: bool = False
    recovery: Recovery = Recovery.NONE
    restarts: int = 0
    next_retry_at: datetime | None = None
    operation: str | None = None
    phase: str | None = None
    phases: dict[str, float] = Field(default_factory=dict)
    created_at: datetime = EPOCH
    updated_at: datetime = EPOCH
    deleted: bool = False


class AwaitSettled(Message):
    """Update `await_settled`.

    Attributes:
        after_request_id: wait until the command with this request id has been taken in, then until it settled.
        timeout_seconds: answer with the present view at the latest after this many seconds.
    """

    after_request_id: str | None = None
    timeout_seconds: float = 60


class EnvironmentInput(Message):
    """First input of workflow `DesktopEnvironment`; continue-as-new carries `state` as well.

    Attributes:
        generation, sequence: the last ones recorded, where the workflow takes the place of one that was terminated.
    """

    spec: EnvironmentSpec
    desired_running: bool = False
    actor: str | None = None
    generation: int = 0
    sequence: int = 0
    state: dict[str, Any] | None = None


class HostInput(Message):
    """Input of workflow `DesktopHost`."""

    record: HostRecord
