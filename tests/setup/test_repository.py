"""What no committed file may hold."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.machine import ROOT

# Written in pieces, so that this file does not hold them either.
HOSTS = [
    "pypi" + ".org",
    "pythonhosted" + ".org",
    "deb.debian" + ".org",
    "security.debian" + ".org",
    "snapshot.debian" + ".org",
    "npmjs" + ".org",
    "docker.io" + "/",
    "registry-1" + ".docker",
    "ghcr" + ".io",
    "quay" + ".io",
    "gcr" + ".io",
]
FORBIDDEN = re.compile(
    "|".join(
        [*map(re.escape, HOSTS), r"--(extra-)?index-url", r"(?<![\w.-])/(root|work|opt/pypi|opt/wheels)/"]
    )
)


def committed() -> Iterator[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            yield ROOT / name


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    here = [str(path) for path in (ROOT, Path.home()) if len(path.parts) > 2]
    found = []
    for path in committed():
        content = path.read_bytes()
        if b"\0" in content:
            continue
        text = content.decode(errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            if FORBIDDEN.search(line) or any(own in line for own in here):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert found == []


def test_every_requirement_is_pinned_with_its_hash() -> None:
    for name in ("uv", "dev", "runtime"):
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        entries = re.split(r"\n(?=[a-z0-9])", text)[1:]
        assert entries
        assert [
            entry for entry in entries if not re.match(r"[\w.\[\],-]+==\S+ \\\n\s+--hash=sha256:", entry)
        ] == []
