"""One whole control plane whose processes a test kills: real parts, a state directory and a network of its own."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

import docker
from docker.errors import APIError, NotFound
from sqlalchemy import Engine

from activities.bridge import bridge_address
from cli import ports, stack
from cli.state import Endpoints, new_admin_token
from inventory.engine import make_engine
from scripts import leftovers
from tests.chaos.engine_watch import EngineWatch
from tests.chaos.operator import Operator
from tests.chaos.processes import Processes
from tests.chaos.workflow_view import WorkflowView
from tests.e2e.stack import IMAGE, stack_environment

API, CONTROL, HOST, TEMPORAL = "api", "control-worker", "host-worker", "temporal"
COMPONENTS = (API, CONTROL, HOST, TEMPORAL)

UP_SECONDS = 120


class Plane:
    """A running control plane.

    Attributes:
        engine: the inventory, for looking at. watch: Docker's side. workflows: Temporal's side.
    """

    def __init__(
        self,
        state_dir: Path,
        endpoints: Endpoints,
        host_id: str,
        processes: Processes,
        operator: Operator,
        watch: EngineWatch,
        engine: Engine,
        workflows: WorkflowView,
    ) -> None:
        self.state_dir = state_dir
        self.endpoints = endpoints
        self.host_id = host_id
        self.processes = processes
        self.operator = operator
        self.watch = watch
        self.engine = engine
        self.workflows = workflows

    def up(self) -> None:
        """Start everything; returns when this machine is a healthy host."""
        self.processes.start(TEMPORAL)
        self.processes.complete("inventory")
        self.until(self.workflows.server_answers, "Temporal serves", UP_SECONDS)
        for name in (API, CONTROL, HOST):
            self.processes.start(name)
        self.until(self.host_is_healthy, "the host is healthy", UP_SECONDS)

    def host_is_healthy(self) -> bool:
        """Whether the host is recorded healthy, as the API shows it."""
        answer = self.operator.get("/desktop-environment-hosts")
        hosts = answer["hosts"] if answer else []
        return [host["healthy"] and host["docker_available"] for host in hosts] == [True]

    def serves(self, name: str, since: datetime) -> bool:
        """Whether a part that was restarted does its work again.

        Args:
            since: when it was killed: what its forerunner did does not count.
        """
        match name:
            case "api":
                return self.operator.get("/readyz") is not None
            case "control-worker":
                return self.workflows.host_answers(self.host_id)
            case "host-worker":
                return self.workflows.monitored_since(self.host_id, since)
            case _:
                return self.workflows.server_answers()

    def until(self, probe: Callable[[], bool], what: str, seconds: float) -> float:
        """Wait for `probe`; returns the seconds it took.

        Raises:
            AssertionError: not in time, or a part ended by itself.
        """
        began = time.monotonic()
        while not probe():
            assert time.monotonic() - began < seconds, f"not within {seconds:g} s: {what}"
            assert not self.processes.dead(), f"ended by themselves: {self.processes.dead()}"
            time.sleep(0.03)
        return time.monotonic() - began


@contextmanager
def control_plane(database_url: str = "") -> Iterator[Plane]:
    """A control plane for as long as the context lasts; nothing of it is left after.

    Args:
        database_url: SQLAlchemy URL of the inventory; SQLite in the state directory when empty.
    """
    # Not below pytest's own folder: bind mounts and Unix sockets want short paths.
    state_dir = Path(tempfile.mkdtemp(prefix="desktop-chaos-"))
    host_id = f"chaos-{uuid4().hex[:12]}"
    with ExitStack() as cleaning:
        cleaning.callback(shutil.rmtree, state_dir, ignore_errors=True)
        cleaning.callback(_remove_network, host_id)
        cleaning.callback(leftovers.remove_installation, state_dir, host_id)
        (state_dir / "logs").mkdir()
        endpoints, token = _endpoints(), new_admin_token()
        settings = stack_environment(state_dir) | {"DESKTOP_NETWORK": host_id}
        # An installation has its byte code; without it most of a restart would be the compiler's time.
        if settings.pop("PYTHONDONTWRITEBYTECODE", None):
            settings["PYTHONPYCACHEPREFIX"] = str(state_dir / "byte-code")
        if database_url:
            settings["DESKTOP_DATABASE_URL"] = database_url
        with patch.dict(os.environ, settings, clear=True):
            specs = stack.specs(state_dir, endpoints, token, host_id, datetime.now(UTC))
        processes = Processes({spec.name: spec for spec in specs}, state_dir / "logs")
        cleaning.callback(processes.close)
        watch = cleaning.enter_context(closing(EngineWatch(host_id)))
        operator = cleaning.enter_context(closing(Operator(endpoints.api_url, token, IMAGE)))
        workflows = cleaning.enter_context(closing(WorkflowView(endpoints.temporal_address)))
        engine = make_engine(database_url or f"sqlite:///{state_dir / 'inventory.db'}")
        cleaning.callback(engine.dispose)
        plane = Plane(state_dir, endpoints, host_id, processes, operator, watch, engine, workflows)
        plane.up()
        yield plane


def _endpoints() -> Endpoints:
    loopback, taken = "127.0.0.1", set[int]()
    bridge = bridge_address()
    assert bridge is not None, "Docker's bridge is not there"

    def free(host: str) -> int:
        return ports.choose(host, [], taken)

    return Endpoints(
        temporal_port=free(loopback),
        temporal_ui_port=free(loopback),
        temporal_http_port=free(loopback),
        admin_host=loopback,
        admin_port=free(loopback),
        node_host=bridge,
        node_port=free(bridge),
    )


def _remove_network(name: str) -> None:
    with closing(docker.from_env(timeout=60)) as engine, suppress(NotFound, APIError):
        engine.networks.get(name).remove()
