"""The floor under a start: the very container of an environment, made and run with nothing but Docker's API."""

import asyncio
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from activities.probes import prove_novnc, prove_rfb
from activities.steps import Step
from tests.sandbox.probe_gateway import ProbeGateway

_GATEWAY = "TYRUM_GATEWAY_WS_URL="


@dataclass(frozen=True)
class ByHand:
    """Runs copies of one environment's container.

    Attributes:
        engine: a `docker.DockerClient`. config, host_config: as `docker inspect` has them. origin: the environment's
            directory on the host.
    """

    engine: Any
    config: dict[str, Any]
    host_config: dict[str, Any]
    origin: Path

    @classmethod
    def of(cls, container: Any, origin: Path, folder: Path) -> "ByHand":
        """A template taken from a running container; its files are copied below `folder`."""
        kept = folder / "origin"
        shutil.copytree(origin, kept)
        _give(origin, kept)
        attrs = container.attrs
        host_config = dict(attrs["HostConfig"])
        for key in ("Binds", "Mounts"):
            host_config[key] = _moved(host_config.get(key), str(origin), str(kept))
        # Without the labels, or the host's sweep would take it for its own.
        config = {**attrs["Config"], "Labels": {"desktop-environments.benchmark": "by hand"}, "Hostname": ""}
        return cls(container.client, config, host_config, kept)

    def seconds(self) -> float:
        """From `docker create` until RFB and noVNC answer and the node has proven its key."""
        return asyncio.run(self._seconds())

    async def _seconds(self) -> float:
        gateway = ProbeGateway()
        await gateway.start()
        try:
            url = f"{_GATEWAY}ws://host.containers.internal:{gateway.port}/ws"
            variables = [url if name.startswith(_GATEWAY) else name for name in self.config["Env"]]
            began = time.monotonic()
            with self._container(variables) as (rfb_port, novnc_port):
                await asyncio.gather(
                    asyncio.to_thread(prove_rfb, rfb_port, Step()),
                    asyncio.to_thread(prove_novnc, novnc_port, Step()),
                    gateway.node(),
                )
                return time.monotonic() - began
        finally:
            await gateway.stop()

    @contextmanager
    def _container(self, variables: list[str]) -> Iterator[tuple[int, int]]:
        api = self.engine.api
        config = {**self.config, "Env": variables, "HostConfig": self.host_config}
        made = api.create_container_from_config(config, name=f"bench-by-hand-{uuid4().hex[:8]}")["Id"]
        try:
            api.start(made)
            ports = api.inspect_container(made)["NetworkSettings"]["Ports"]
            yield int(ports["5900/tcp"][0]["HostPort"]), int(ports["6080/tcp"][0]["HostPort"])
        finally:
            api.remove_container(made, force=True, v=True)


def _moved(value: Any, origin: str, kept: str) -> Any:
    """The same with paths below `origin` moved to `kept`."""
    if isinstance(value, str):
        return value.replace(origin, kept)
    if isinstance(value, list):
        return [_moved(item, origin, kept) for item in value]
    if isinstance(value, dict):
        return {key: _moved(item, origin, kept) for key, item in value.items()}
    return value


def _give(origin: Path, kept: Path) -> None:
    """Owners as they were, which `copytree` leaves behind."""
    for path in (origin, *origin.rglob("*")):
        status, copy = path.lstat(), kept / path.relative_to(origin)
        shutil.chown(copy, status.st_uid, status.st_gid)
