"""docker-compose.yml's own services, run by Compose from the project's own image: a desktop comes up and goes.

PostgreSQL and Temporal cannot be pulled everywhere, so their places are taken by SQLite and the dev server; everything
else is as the file says.
"""

import asyncio
import json
import os
import socket
import subprocess
import uuid
from pathlib import Path

import httpx
import pytest

from scripts import leftovers
from scripts.machine import ROOT
from tests.e2e.stack import IMAGE
from tests.setup.test_compose import COMPOSE, compose
from tests.setup.test_service_image import image
from tests.support.temporal import start_dev_server
from tests.support.waiting import eventually

__all__ = ["compose", "image"]

pytestmark = [
    pytest.mark.docker,
    pytest.mark.e2e,
    pytest.mark.xdist_group("service-image"),
    pytest.mark.timeout(600),
]

OURS = ("api", "control-worker", "host-worker")
TOKEN = "a-token-for-the-compose-test"


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The host worker's state directory, at the same path inside and outside."""
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path


def override(path: Path, temporal: str) -> Path:
    """What takes PostgreSQL's and Temporal's places."""
    inventory = path / "inventory"
    inventory.mkdir()
    # The services' user is nobody this machine knows.
    inventory.chmod(0o777)
    common = {
        "network_mode": "host",
        "volumes": [f"{inventory}:/inventory"],
        "environment": {
            "DESKTOP_DATABASE_URL": "sqlite:////inventory/inventory.db",
            "TEMPORAL_ADDRESS": temporal,
        },
    }
    services: dict[str, object] = dict.fromkeys(("migrations", "api", "control-worker"), common)
    services["host-worker"] = {"environment": {"TEMPORAL_ADDRESS": temporal}}
    file = path / "override.yml"
    file.write_text(json.dumps({"services": services}))
    return file


async def test_a_desktop_comes_up_and_goes(
    compose: list[str], image: str, folder: Path, tmp_path: Path
) -> None:
    project = f"desktop-test-{uuid.uuid4().hex[:8]}"
    host_id = f"desktop-host-{uuid.uuid4()}"
    admin_port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "POSTGRES_PASSWORD": uuid.uuid4().hex,
        "DESKTOP_ADMIN_TOKEN": TOKEN,
        "DESKTOP_SERVICE_IMAGE": image,
        "DESKTOP_STATE_DIR": str(folder),
        "DESKTOP_HOST_ID": host_id,
        "DESKTOP_ADMIN_PORT": str(admin_port),
        "DESKTOP_NODE_PORT": str(free_port()),
        "DESKTOP_DEFAULT_IMAGE": IMAGE,
    }
    async with await start_dev_server() as server:
        files = [str(COMPOSE), str(override(tmp_path, server.client.service_client.config.target_host))]

        async def run(*arguments: str) -> str:
            command = [
                *compose,
                "-p",
                project,
                *(part for file in files for part in ("-f", file)),
                *arguments,
            ]
            done = await asyncio.to_thread(
                subprocess.run,
                command,
                env=environment,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        try:
            await run("run", "--rm", "--no-deps", "migrations")
            await run("up", "-d", "--no-deps", *OURS)
            headers = {"Authorization": f"Bearer {TOKEN}"}
            url = f"http://127.0.0.1:{admin_port}"
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=90, trust_env=False) as http:

                async def healthy() -> bool:
                    try:
                        hosts = (await http.get("/desktop-environment-hosts")).json()["hosts"]
                    except (httpx.HTTPError, KeyError):
                        return False
                    return any(host["host_id"] == host_id and host["healthy"] for host in hosts)

                await eventually(healthy, "the host is recorded healthy", 60)
                made = await http.post(
                    "/desktop-environments", json={"host_id": host_id, "desired_running": True}
                )
                environment_id = made.json()["environment"]["environment_id"]
                path = f"/desktop-environments/{environment_id}"
                running = (await http.post(f"{path}/start", params={"wait": 60})).json()["environment"]
                assert running["status"] == "running", running
                deleted = await http.delete(path, params={"wait": 60})
                assert deleted.status_code == 200, deleted.text
                assert leftovers.containers(environment_id) == []
        except AssertionError:
            print(await run("logs", "--tail", "40"))
            raise
        finally:
            await run("down", "--volumes", "--remove-orphans", "--timeout", "10")
            leftovers.remove_installation(folder, host_id)
