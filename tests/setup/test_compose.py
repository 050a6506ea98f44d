"""`docker-compose.yml`: valid, closed to the outside, and no secret has a default."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence

import pytest

from scripts.machine import ROOT, apt_install, can_install_packages, exclusive

COMPOSE = ROOT / "docker-compose.yml"
SECRETS = {"POSTGRES_PASSWORD": "not-a-real-password", "DESKTOP_ADMIN_TOKEN": "not-a-real-admin-token"}

pytestmark = pytest.mark.xdist_group("compose")


def _installed() -> list[str] | None:
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if shutil.which("docker"):
        answer = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if answer.returncode == 0:
            return ["docker", "compose"]
    return None


@pytest.fixture(scope="session")
def compose() -> list[str]:
    """The command of whichever Compose this machine has, or can have."""
    command = _installed()
    if command is None and can_install_packages():
        with exclusive("docker-compose"):
            apt_install(["docker-compose"])
        command = _installed()
    if command is None:
        pytest.skip("there is no Docker Compose, and it cannot be installed here")
    return command


def config(compose: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment}
    # An operator's own .env beside the file must not decide a test.
    with tempfile.NamedTemporaryFile() as empty:
        command = [*compose, "--env-file", empty.name, "-f", str(COMPOSE), "config"]
        return subprocess.run(command, env=clean, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.timeout(600)
def test_it_is_valid(compose: list[str]) -> None:
    answer = config(compose, SECRETS)
    assert answer.returncode == 0, answer.stderr
    services = re.findall(r"^  ([a-z-]+):$", answer.stdout, re.MULTILINE)
    assert {
        "postgresql",
        "temporal",
        "temporal-ui",
        "migrations",
        "api",
        "control-worker",
        "host-worker",
    } <= set(services)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("missing", SECRETS)
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_secret_stops_it_with_a_message(
    compose: list[str], missing: str, value: str | None
) -> None:
    given = {name: text for name, text in SECRETS.items() if name != missing}
    answer = config(compose, given if value is None else given | {missing: value})
    assert answer.returncode != 0
    assert f"set {missing} to" in answer.stderr


def test_nothing_is_published_beyond_loopback() -> None:
    published = re.findall(r"^    ports:\n((?:      - .*\n)+)", COMPOSE.read_text(), re.MULTILINE)
    ports = [line.strip() for block in published for line in block.splitlines()]
    assert ports
    assert [line for line in ports if not line.startswith("- 127.0.0.1:")] == []


def test_images_are_pinned() -> None:
    images = re.findall(r"^\s+image: (\S+)$", COMPOSE.read_text(), re.MULTILINE)
    others = [image for image in images if not image.startswith("${DESKTOP_SERVICE_IMAGE")]
    assert others
    assert [image for image in others if not re.search(r":\d+\.\d+(\.\d+)?(-\w+)?$", image)] == []


def test_the_host_worker_gets_no_secret() -> None:
    host_worker = COMPOSE.read_text().split("\n  host-worker:")[1].split("\nvolumes:")[0]
    assert not re.search("PASSWORD|DATABASE|ADMIN_TOKEN|\\*inventory", host_worker)
