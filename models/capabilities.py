"""Capability descriptors: ids, the managed allowlist, legacy names, and the action behind each (protocol section 5)."""

from collections.abc import Iterable
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

VERSION: Final = "1.0.0"
"""The one version dispatch accepts (protocol section 4.3)."""

_SEMVER = (
    r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
    r"(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$"
)

CapabilityId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*(\.[a-z][a-z0-9-]*)+$", min_length=3)]


class Descriptor(BaseModel):
    """A capability: strict on the wire (protocol section 3.1).

    Attributes:
        id: dotted, lower case, without underscores; unknown namespaces are allowed.
        version: semantic version.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: CapabilityId
    version: Annotated[str, Field(pattern=_SEMVER)] = VERSION


DESKTOP: Final = tuple(
    f"tyrum.desktop.{name}"
    for name in ("screenshot", "snapshot", "query", "act", "mouse", "keyboard", "wait-for")
)
FILESYSTEM: Final = tuple(
    f"tyrum.fs.{name}" for name in ("read", "write", "edit", "apply-patch", "bash", "glob", "grep")
)
BROWSER: Final = tuple(
    f"tyrum.browser.{name}"
    for name in (
        "navigate", "navigate-back", "snapshot", "click", "type", "fill-form", "select-option", "hover", "drag",
        "press-key", "screenshot", "evaluate", "wait-for", "tabs", "upload-file", "console-messages",
        "network-requests", "resize", "close", "handle-dialog", "run-code", "launch",
    )
)  # fmt: skip
CLIPBOARD_WRITE: Final = "tyrum.desktop.clipboard-write"
WAIT_FOR: Final = "tyrum.desktop.wait-for"
SCREENSHOT: Final = "tyrum.desktop.screenshot"

MANAGED_ALLOWLIST: Final = frozenset(DESKTOP + FILESYSTEM + BROWSER)
"""What a managed desktop may be asked for: 36 ids (protocol section 5.3)."""

UMBRELLAS: Final = frozenset({"tyrum.desktop", "tyrum.browser", "tyrum.ios", "tyrum.android"})
"""Ids an operator cannot approve (protocol section 5.4)."""

INPUT: Final = frozenset(
    {"tyrum.desktop.act", "tyrum.desktop.mouse", "tyrum.desktop.keyboard", CLIPBOARD_WRITE}
)
"""What moves the one pointer, keyboard or clipboard of a desktop: one at a time (protocol section 12, 19)."""

_LOCATION, _PHOTO, _AUDIO = "tyrum.location.get", "tyrum.camera.capture-photo", "tyrum.audio.record"
_SENSORS = (_LOCATION, _PHOTO, _AUDIO)
_LEGACY: Final[dict[str, tuple[str, ...]]] = {
    "tyrum.desktop": DESKTOP,
    "tyrum.ios": _SENSORS,
    "tyrum.android": _SENSORS,
    "tyrum.browser": _SENSORS,
    "tyrum.playwright": BROWSER,
    "tyrum.ios.location.get-current": (_LOCATION,),
    "tyrum.android.location.get-current": (_LOCATION,),
    "tyrum.browser.geolocation.get": (_LOCATION,),
    "tyrum.ios.camera.capture-photo": (_PHOTO,),
    "tyrum.android.camera.capture-photo": (_PHOTO,),
    "tyrum.browser.camera.capture-photo": (_PHOTO,),
    "tyrum.ios.audio.record-clip": (_AUDIO,),
    "tyrum.android.audio.record-clip": (_AUDIO,),
    "tyrum.browser.microphone.record": (_AUDIO,),
}
_ACTION_TYPES: Final = (("tyrum.desktop.", "Desktop"), ("tyrum.fs.", "Filesystem"), ("tyrum.browser.", "Web"))
_KNOWN: Final = MANAGED_ALLOWLIST | {CLIPBOARD_WRITE}


def normalise(descriptors: Iterable[Descriptor]) -> list[Descriptor]:
    """Legacy names expanded; one entry per id, first place, last version (protocol section 5.4)."""
    versions: dict[str, str] = {}
    for descriptor in descriptors:
        for capability in _LEGACY.get(descriptor.id, (descriptor.id,)):
            versions[capability] = descriptor.version
    return [Descriptor(id=capability, version=version) for capability, version in versions.items()]


def managed_allowlist(advertised: Iterable[Descriptor]) -> list[Descriptor]:
    """The managed allowlist ∩ what the node advertises, at the version dispatch asks for (design decision 12)."""
    return [Descriptor(id=d.id) for d in normalise(advertised) if d.id in MANAGED_ALLOWLIST]


def action_of(capability: str) -> tuple[str, str] | None:
    """`task.execute`'s action type and op for a capability id, or None where none is known (protocol 6.1)."""
    if capability not in _KNOWN:
        return None
    for prefix, kind in _ACTION_TYPES:
        if capability.startswith(prefix):
            return kind, capability.removeprefix(prefix).replace("-", "_")
    return None
