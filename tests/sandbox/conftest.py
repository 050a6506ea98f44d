"""Containers of the sandbox image, with the restrictions the control plane gives them."""

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest
from docker.models.containers import Container

from tests.sandbox.probe_gateway import ProbeGateway

IMAGE = os.environ.get("DESKTOP_SANDBOX_IMAGE", "desktop-sandbox:dev")
LABEL = "desktop-environments.test-run"
RUN_ID = uuid.uuid4().hex
TOKEN = "tyrum-token.v1.test.bm90LWEtc2VjcmV0"

HARDENING: dict[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "pids_limit": 256,
    "mem_limit": "1g",
    "tmpfs": {"/tmp": "rw,nosuid,nodev,size=256m,mode=1777", "/run": "rw,nosuid,nodev,noexec,size=16m"},
}


@dataclass
class Sandbox:
    """A started container."""

    container: Container
    home: Path

    def port(self, inner: int) -> int:
        """The loopback port that `inner` is published on."""
        self.container.reload()
        return int(self.container.attrs["NetworkSettings"]["Ports"][f"{inner}/tcp"][0]["HostPort"])

    def logs(self) -> str:
        """Everything the container wrote."""
        return bytes(self.container.logs()).decode()

    def run(self, script: str) -> str:
        """The output of a shell script inside, run as the container's user."""
        output = self.container.exec_run(["sh", "-c", script]).output
        assert isinstance(output, bytes)
        return output.decode()

    def kill(self, pattern: str) -> None:
        """Kill the processes inside whose command line starts with `pattern`."""
        self.run(f'for p in /proc/[0-9]*; do case "$(tr "\\0" " " < $p/cmdline)" in '
                 f'"{pattern}"*) kill -9 ${{p#/proc/}};; esac; done')  # fmt: skip

    async def exit_code(self, seconds: float = 5.0) -> int:
        """Wait for the container to end."""
        result = await asyncio.to_thread(self.container.wait, timeout=seconds)
        return int(result["StatusCode"])


class Sandboxes:
    """Starts containers and removes every one of them."""

    def __init__(self, folder: Path, gateway_port: int) -> None:
        self._client = docker.from_env()
        self._folder = folder
        self._gateway_port = gateway_port
        # The containers' user must reach the mounted files through pytest's private folders.
        for parent in (folder, *folder.parents[:2]):
            with contextlib.suppress(PermissionError):
                parent.chmod(0o755)

    async def start(
        self, *, uid: int = 1000, hardened: bool = True, identity: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> Sandbox:  # fmt: skip
        """Run the image as the control plane does; `identity` is mounted read-only when given."""
        folder = self._folder / uuid.uuid4().hex
        home = folder / "home"
        (home / "desktop-node").mkdir(parents=True, mode=0o700)
        token = folder / "gateway-token"
        token.write_text(TOKEN + "\n")
        volumes = {
            str(home): {"bind": "/var/lib/tyrum-node", "mode": "rw"},
            str(token): {"bind": "/run/tyrum/gateway-token", "mode": "ro"},
        }
        if identity is not None:
            file = folder / "device-identity.json"
            file.write_text(identity)
            inner = "/var/lib/tyrum-node/desktop-node/device-identity.json"
            volumes[str(file)] = {"bind": inner, "mode": "ro"}
        for path in (folder, *folder.rglob("*")):
            os.chown(path, uid, uid)
            path.chmod(0o700 if path.is_dir() else 0o600)
        settings = {
            "TYRUM_GATEWAY_WS_URL": f"ws://host.containers.internal:{self._gateway_port}/ws",
            "TYRUM_NODE_LABEL": "a test",
            "TYRUM_NODE_MODE": "desktop-sandbox",
            "TYRUM_GATEWAY_TOKEN_PATH": "/run/tyrum/gateway-token",
            **(environment or {}),
        }
        container = self._client.containers.create(
            IMAGE, user=f"{uid}:{uid}", labels={LABEL: RUN_ID}, environment=settings, volumes=volumes,
            ports={"5900/tcp": ("127.0.0.1", 0), "6080/tcp": ("127.0.0.1", 0)},
            extra_hosts={"host.containers.internal": "host-gateway"}, **(HARDENING if hardened else {}),
        )  # fmt: skip
        await asyncio.to_thread(container.start)
        return Sandbox(container, home)

    def remove_all(self) -> None:
        """Remove this test run's containers and no others."""
        for container in self._client.containers.list(all=True, filters={"label": f"{LABEL}={RUN_ID}"}):
            with contextlib.suppress(docker.errors.NotFound):
                container.remove(force=True)

    def close(self) -> None:
        """Let the Docker client go."""
        self._client.close()


@pytest.fixture
async def gateway() -> AsyncIterator[ProbeGateway]:
    """A running probe gateway."""
    probe = ProbeGateway()
    await probe.start()
    yield probe
    await probe.stop()


@pytest.fixture
def sandboxes(tmp_path: Path, gateway: ProbeGateway) -> Iterator[Sandboxes]:
    """Starts sandboxes that connect to `gateway`; they are removed whatever happens."""
    starter = Sandboxes(tmp_path, gateway.port)
    try:
        yield starter
    finally:
        starter.remove_all()
        starter.close()


async def eventually(condition: Any, seconds: float = 30.0) -> None:
    """Poll until `condition` is true.

    Raises:
        AssertionError: it stayed false.
    """
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "the condition stayed false"
        await asyncio.sleep(0.02)
