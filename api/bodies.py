"""Bodies that the admin API accepts, strictly (design section 5)."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool

from models.messages import (
    LEAST_LIMITS,
    Limits,
    SecurityProfile,
)

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


class TokenCreate(Body):
    """A new admin token."""

    name: Label = Field(description="Whose it is: the actor of everything done with it.")
    expires_in_seconds: Annotated[int, Field(strict=True, ge=60, le=10 * 365 * 86400)] | None = Field(
        default=None, description="Absent or null: it does not expire."
    )
