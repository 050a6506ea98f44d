"""Trying things inside a running container as its own user, and saying what came of them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import docker
from docker.models.containers import Container

from models.identifiers import container_name

_CONNECT = """
import json, socket, sys
answers = {}
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 3).close()
        answers[target] = "open"
    except TimeoutError:
        answers[target] = "silent"
    except OSError as error:
        answers[target] = error.strerror
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Inside:
    """A running sandbox, seen from inside as its user (`docker exec` without another user or privileges)."""

    container: Container
    environment: dict[str, Any]

    def run(self, *command: str) -> tuple[int, str]:
        """Exit code and output of a command in it."""
        code, output = self.container.exec_run(list(command))
        assert code is not None and isinstance(output, bytes)
        return code, output.decode(errors="replace")

    def sh(self, script: str) -> tuple[int, str]:
        """The same of a shell script."""
        return self.run("/bin/sh", "-c", script)

    def python(self, script: str, *args: str) -> Any:
        """What a Python script prints, as JSON."""
        code, output = self.run("/usr/bin/python3", "-c", script, *args)
        assert code == 0, output
        return json.loads(output)

    def connect(self, *targets: str) -> dict[str, str]:
        """What becomes of a TCP connection to each `host:port`: `open`, `silent` or the error's text."""
        answers: dict[str, str] = self.python(_CONNECT, *targets)
        return answers

    @property
    def address(self) -> str:
        """Its address on the sandboxes' network."""
        networks = self.container.attrs["NetworkSettings"]["Networks"]
        return str(next(iter(networks.values()))["IPAddress"])

    @property
    def gateway(self) -> str:
        """The host's address on the sandboxes' network."""
        networks = self.container.attrs["NetworkSettings"]["Networks"]
        return str(next(iter(networks.values()))["Gateway"])

    @property
    def published(self) -> dict[str, list[tuple[str, int]]]:
        """Addresses and ports on the host, by the container's port."""
        ports = self.container.attrs["NetworkSettings"]["Ports"]
        return {
            name: [(bound["HostIp"], int(bound["HostPort"])) for bound in bindings or []]
            for name, bindings in ports.items()
        }


@contextmanager
def inside(environment: dict[str, Any]) -> Iterator[Inside]:
    """The environment's container."""
    engine = docker.from_env(timeout=60)
    try:
        yield Inside(engine.containers.get(container_name(environment["environment_id"])), environment)
    finally:
        engine.close()
