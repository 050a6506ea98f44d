"""The image of the project's own services: `python -m scripts.service_image`.

The packages are fetched here, hash-checked, and copied in: a container may reach no package index, and what was
tested is what runs.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from docker.errors import DockerException
from requests import RequestException

from scripts import engine, images
from scripts.console import SetupError, say
from scripts.machine import ROOT, VAR, exclusive

DEFAULT_TAG = "desktop-environments:dev"
BASE = f"python:3.11-slim-{images.DEBIAN}"
WHEELS = VAR / "wheels"
REQUIREMENTS = ROOT / "requirements" / "runtime.txt"

_PYTHON = "3.11"
_GLIBC = (
    "manylinux2014",
    "manylinux_2_17",
    "manylinux_2_28",
    "manylinux_2_34",
    "manylinux_2_35",
    "manylinux_2_36",
)
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def tag() -> str:
    """Name of the image: `DESKTOP_SERVICE_IMAGE`, else `desktop-environments:dev`."""
    return os.environ.get("DESKTOP_SERVICE_IMAGE") or DEFAULT_TAG


def ensure_wheels(architecture: str) -> None:
    """Fetch the wheels for Debian 12's Python on the engine's architecture, into `var/wheels`.

    Raises:
        SetupError: a package cannot be fetched, or is not what its hash says.
    """
    machine = _MACHINES.get(architecture, architecture)
    stamp = hashlib.sha256(REQUIREMENTS.read_bytes() + machine.encode()).hexdigest()
    stamp_file = VAR / "wheels.stamp"
    if stamp_file.exists() and stamp_file.read_text(encoding="ascii") == stamp and any(WHEELS.glob("*.whl")):
        say("the wheels are up to date")
        return
    say("downloading the wheels, hash-checked")
    for old in WHEELS.glob("*.whl"):
        old.unlink()
    command = [str(VAR / "uv" / "bin" / "python"), "-m", "pip", "download", "-qq", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--require-hashes"]
    command += ["-r", str(REQUIREMENTS), "--dest", str(WHEELS), "--python-version", _PYTHON]
    for glibc in _GLIBC:
        command += ["--platform", f"{glibc}_{machine}"]
    if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode != 0:
        raise SetupError("the wheels could not be downloaded; what pip says is above")
    stamp_file.write_text(stamp, encoding="ascii")


def ensure() -> bool:
    """Build the image unless the engine has it with this content; returns whether it was built.

    Raises:
        SetupError: it could not be built.
    """
    name = tag()
    content = _content()
    with engine.client() as api, exclusive("service image"):
        if images.label(api, name, images.CONTENT_LABEL) == content:
            say(f"up to date ({name}, {content[:12]})")
            return False
        ensure_wheels(str(api.version()["Arch"]))
        base = images.base_image(api, os.environ.get("DESKTOP_SERVICE_BASE_IMAGE") or BASE)
        say(f"building {name} on {base}")
        images.build(ROOT, name, arguments={"BASE_IMAGE": base}, labels={images.CONTENT_LABEL: content})
        return True


def _content() -> str:
    """Hash of everything the Dockerfile copies."""
    digest = hashlib.sha256()
    for path in [ROOT / "Dockerfile", ROOT / ".dockerignore", *context()]:
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def context() -> list[Path]:
    """The files that `.dockerignore` lets through, so that they are listed in one place; without the wheels."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [ROOT / line[1:] for line in lines if line.startswith("!") and line != f"!var/{WHEELS.name}"]
    files = [path for entry in kept for path in (entry.rglob("*") if entry.is_dir() else [entry])]
    return sorted(path for path in files if path.is_file() and path.suffix != ".pyc")


def main() -> int:
    """Build it; returns the exit code."""
    try:
        engine.ensure()
        ensure()
    except (SetupError, DockerException, RequestException, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
