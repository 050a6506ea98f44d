"""The reference sandbox image, built from `sandbox/` when its content changed."""

import os
from pathlib import Path

from scripts import engine, images
from scripts.console import say
from scripts.machine import ROOT, content_hash, exclusive

DEFAULT_TAG = "desktop-sandbox:dev"
BASE = f"debian:{images.DEBIAN}-slim"


def tag() -> str:
    """Name of the image: `DESKTOP_SANDBOX_IMAGE`, else `desktop-sandbox:dev`."""
    return os.environ.get("DESKTOP_SANDBOX_IMAGE") or DEFAULT_TAG


def ensure(context: Path = ROOT / "sandbox") -> bool:
    """See to it that the image on the engine is what `context` says; returns whether it was built.

    Raises:
        SetupError: it could not be built.
    """
    name = tag()
    content = content_hash(context)
    with engine.client() as api, exclusive("sandbox image"):
        if images.label(api, name, images.CONTENT_LABEL) == content:
            say(f"up to date ({name}, {content[:12]})")
            return False
        base = images.base_image(api, os.environ.get("DESKTOP_SANDBOX_BASE_IMAGE") or BASE)
        say(f"building {name} on {base}")
        images.build(context, name, arguments={"BASE_IMAGE": base}, labels={images.CONTENT_LABEL: content})
        return True
