"""The image of the project's own services: it builds here, and runs what docker-compose.yml says, unprivileged."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest

from scripts import engine, service_image
from scripts.machine import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.xdist_group("service-image"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def image() -> str:
    """Built as an operator would; the second time there is nothing to do."""
    for expected in ("", "up to date"):
        answer = subprocess.run(
            [sys.executable, "-m", "scripts.service_image"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        assert expected in answer.stdout
    return service_image.tag()


def run(image: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a command as docker-compose.yml would: read-only, without capabilities, and without a network."""
    with engine.client() as api:
        container = api.create_container(
            image,
            list(command),
            environment=dict(environment or {}),
            network_disabled=True,
            host_config=api.create_host_config(
                read_only=True, tmpfs={"/tmp": ""}, cap_drop=["ALL"], network_mode="none"
            ),
        )
        try:
            api.start(container)
            status = api.wait(container, timeout=60)["StatusCode"]
            return int(status), api.logs(container).decode()
        finally:
            api.remove_container(container, force=True)


def test_it_runs_unprivileged_and_cannot_change_itself(image: str) -> None:
    program = "import os; print(os.getuid()); open('/app/api/x', 'w')"
    status, output = run(image, ["python", "-c", program])
    assert status != 0
    # The engine keeps no order between the two streams.
    assert "10001" in output.splitlines()


def test_it_holds_what_the_services_need_and_nothing_else(image: str) -> None:
    status, output = run(image, ["python", "-c", "import temporalio, fastapi, docker, sqlmodel, psycopg"])
    assert (status, output) == (0, "")
    unwanted = ("pytest", "mypy", "pip", "tests")
    program = f"from importlib.util import find_spec; print([name for name in {unwanted} if find_spec(name)])"
    assert run(image, ["python", "-c", program]) == (0, "[]\n")


def test_the_migrations_run_in_it(image: str) -> None:
    status, output = run(image, ["python", "-m", "inventory.migrate"], {"DESKTOP_STATE_DIR": "/tmp/state"})
    assert status == 0, output


@pytest.mark.parametrize("module", ["workers.control", "scripts.worker_health", "inventory.migrate"])
def test_the_modules_of_the_services_load(image: str, module: str) -> None:
    status, output = run(image, ["python", "-c", f"import {module}"])
    assert status == 0, output


def test_a_queue_that_nobody_can_ask_about_is_unhealthy_in_one_line(image: str) -> None:
    status, output = run(image, ["python", "-m", "scripts.worker_health", "control"])
    assert status == 1
    assert output.splitlines()[0].startswith("unhealthy: ")


def test_a_context_without_packages_says_what_to_run() -> None:
    assert "make service-image" in (ROOT / "Dockerfile").read_text()
    assert os.access(ROOT / "scripts" / "bootstrap.sh", os.X_OK)
