"""An operator with a stack, Docker and ill will: what the trouble tests and their benchmark do."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from models.identifiers import LABEL_GENERATION, container_name
from models.tokens import encode_subprotocol
from scripts import leftovers
from tests.e2e.stack import IMAGE, Stack, running_stack
from tests.support.waiting import until
from tests.trouble.relay import Relay

PARTS = {"X and VNC server": "Xtigervnc", "noVNC": "novnc", "node": "node"}
"""Processes inside a sandbox without which it is no use, by their names in `/proc`."""

_KILL = 'for p in /proc/[0-9]*; do read -r n < $p/comm && [ "$n" = "%s" ] && kill -9 ${p#/proc/}; done'
_FEED_ON_MEMORY = "head -c 1000m /dev/zero | tail > /dev/null"
_OFFER_EVERYTHING = "for p in /proc/[0-9]*; do echo 1000 > $p/oom_score_adj; done 2> /dev/null; "
_OFFER_OURSELVES = "echo 1000 > /proc/self/oom_score_adj; "


within = until


@dataclass(frozen=True)
class Recovery:
    """One recovery. All in seconds since the trouble was made.

    Attributes:
        noticed: no read says `running` of the old generation any more. usable: `running` again, and proven.
        lies: reads that still said `running` after the container was gone. reads: all of them until noticed.
    """

    noticed: float
    usable: float
    lies: int
    reads: int


class Field:
    """A stack and its engine.

    Args:
        relay: between the host worker and the engine; None where there is none.
    """

    def __init__(self, stack: Stack, engine: docker.DockerClient, relay: Relay | None) -> None:
        self.stack = stack
        self.engine = engine
        self._relay = relay
        self.made: list[str] = []

    @property
    def relay(self) -> Relay:
        """The relay of this field."""
        assert self._relay is not None
        return self._relay

    # --- the operator ------------------------------------------------------------------------------------------

    def create(self, **body: Any) -> str:
        """A new environment, wanted running; its id."""
        answer = self.stack.call(
            "POST", "/desktop-environments", {"desired_running": True, "image_ref": IMAGE} | body
        )
        assert answer.status_code == 201, answer.text
        self.made.append(str(answer.json()["environment"]["environment_id"]))
        return self.made[-1]

    def running(self, **body: Any) -> str:
        """A new environment once it runs; its id."""
        environment_id = self.create(**body)
        settled = self.settle(environment_id, "start")
        assert settled["status"] == "running", settled
        return environment_id

    def many(self, count: int, **body: Any) -> list[str]:
        """So many at once."""
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda number: self.create(label=f"many {number}", **body), range(count)))

    def show(self, environment_id: str) -> dict[str, Any]:
        """The environment in full; empty when it is gone."""
        answer = self.stack.call("GET", f"/desktop-environments/{environment_id}")
        assert answer.status_code in (200, 404), answer.text
        return dict(answer.json()["environment"]) if answer.status_code == 200 else {}

    def command(self, environment_id: str, name: str, **params: Any) -> httpx.Response:
        """Send a command; it must be accepted."""
        path = f"/desktop-environments/{environment_id}"
        answer = (
            self.stack.call("DELETE", path, **params)
            if name == "delete"
            else self.stack.call("POST", f"{path}/{name}", {}, **params)
        )
        assert answer.status_code in (200, 202), f"{name}: {answer.status_code} {answer.text}"
        return answer

    def settle(self, environment_id: str, command: str, seconds: int = 90) -> dict[str, Any]:
        """Send a command and wait for the outcome."""
        return dict(self.command(environment_id, command, wait=seconds).json()["environment"])

    def delete(self, environment_id: str) -> None:
        """Delete it and see that nothing is left."""
        answer = self.stack.call("DELETE", f"/desktop-environments/{environment_id}", wait=60)
        # It may have been deleted before.
        assert answer.status_code in (200, 404), answer.text
        self.check_nothing_left(environment_id)

    def host(self) -> dict[str, Any]:
        """The host as recorded."""
        return dict(self.stack.call("GET", "/desktop-environment-hosts").json()["hosts"][0])

    def timeline(self, environment_id: str) -> list[dict[str, Any]]:
        """All of it."""
        answer = self.stack.call("GET", f"/desktop-environments/{environment_id}/timeline", limit=1000)
        return list(answer.json()["entries"])

    def errors(self, environment_id: str) -> list[dict[str, Any]]:
        """The errors in the timeline."""
        return [entry for entry in self.timeline(environment_id) if entry["kind"] == "error"]

    # --- what is there -----------------------------------------------------------------------------------------

    def container(self, environment_id: str) -> Any:
        """Its container."""
        return self.engine.containers.get(container_name(environment_id))

    def home(self, environment_id: str) -> Path:
        """Its directory on the host."""
        return self.stack.state_dir / "desktop-environments" / environment_id

    def token(self, environment_id: str) -> str:
        """The node's token."""
        return (self.home(environment_id) / "secrets" / "gateway-token").read_text().strip()

    def until(self, environment_id: str, seconds: float = 30, **expected: Any) -> dict[str, Any]:
        """The environment as soon as it has these values."""

        def look() -> dict[str, Any] | None:
            seen = self.show(environment_id)
            return seen if expected.items() <= seen.items() else None

        return within(look, f"{environment_id} {expected}", seconds)

    def until_gone(self, environment_id: str, seconds: float = 30) -> None:
        """Return when operators do not see it any more."""
        within(lambda: self.show(environment_id) == {}, "gone for the operator", seconds)

    def until_no_container(self, environment_id: str, seconds: float = 30) -> None:
        """Return when Docker does not know it any more."""
        within(lambda: self.stack.containers(environment_id) == [], "its container gone", seconds)

    def until_nothing_live(self, environment_id: str, seconds: float = 30) -> None:
        """Return when no token, takeover session, pairing or socket of it is left."""
        database = self.stack.state_dir / "inventory.db"
        within(
            lambda: not any(leftovers.in_inventory(database, environment_id).values()),
            "nothing live",
            seconds,
        )

    def check_agreement(self, environment_id: str, status: str) -> dict[str, Any]:
        """Workflow, Docker, node and tokens say the same, and that is `status`."""
        seen = self.show(environment_id)
        assert seen["status"] == status, seen
        names = self.stack.containers(environment_id)
        database = self.stack.state_dir / "inventory.db"
        live = leftovers.in_inventory(database, environment_id)
        if status == "running":
            assert len(names) == 1 and live["live node tokens"] == 1, (names, live)
            container = self.container(environment_id)
            assert container.status == "running"
            assert container.labels[LABEL_GENERATION] == str(seen["generation"])
            # That a socket is there or gone is written a moment after it is.
            within(lambda: leftovers.in_inventory(database, environment_id)["connected nodes"], "connected")
        else:
            assert names == [] and live["live node tokens"] == 0, (names, live)
        return seen

    def check_nothing_left(self, environment_id: str) -> None:
        """After a delete: container, host directory, live token, pairing, takeover session, socket."""
        assert self.show(environment_id) == {}
        self.until_no_container(environment_id)
        within(lambda: not self.home(environment_id).exists(), "its directory gone")
        self.until_nothing_live(environment_id)

    def refused(self, token: str) -> int:
        """The close code the gateway has for a node with this token."""
        url = self.stack.up["node_url"].replace("http", "ws", 1) + "/ws"
        protocols = [Subprotocol("tyrum-v1"), Subprotocol(encode_subprotocol(token))]
        with connect(url, subprotocols=protocols, proxy=None, open_timeout=10) as socket:
            try:
                socket.recv(timeout=10)
            except ConnectionClosed as closed:
                return closed.rcvd.code if closed.rcvd else 0
        return 0

    # --- ill will ----------------------------------------------------------------------------------------------

    def inside(self, environment_id: str, command: str) -> Callable[[], None]:
        """A shell command in the container, as the container's user; returned ready to be started."""
        container = self.container(environment_id)
        made = self.engine.api.exec_create(container.id, ["/bin/sh", "-c", command], user="1000:1000")

        def run() -> None:
            self.engine.api.exec_start(made["Id"], detach=True)

        return run

    def kill_inside(self, environment_id: str, process: str) -> Callable[[], None]:
        """SIGKILL to a process in the container."""
        return self.inside(environment_id, _KILL % process)

    def out_of_memory(self, environment_id: str, *, whole: bool) -> Callable[[], None]:
        """A program in the container that eats its memory, and whom the kernel shall kill for it: the `whole` sandbox,
        or only the program.
        """
        self.container(environment_id).update(mem_limit="300m", memswap_limit="300m")
        offer = _OFFER_EVERYTHING + "echo 0 > /proc/self/oom_score_adj; " if whole else _OFFER_OURSELVES
        return self.inside(environment_id, offer + _FEED_ON_MEMORY)

    def recover(self, environment_id: str, trouble: Callable[[], None], seconds: float = 60) -> Recovery:
        """Make trouble and watch until the next generation runs, reading as an operator would."""
        generation = self.show(environment_id)["generation"]
        began = time.monotonic()
        trouble()
        noticed, lies, reads = 0.0, 0, 0
        while True:
            seen = self.show(environment_id)
            now = time.monotonic() - began
            old = seen["status"] == "running" and seen["generation"] == generation
            reads += not noticed
            lies += old
            if not old and not noticed:
                noticed = now
            if seen["status"] == "running" and not old:
                assert seen["generation"] == generation + 1, seen
                return Recovery(noticed, now, lies, reads)
            assert now < seconds, seen
            time.sleep(0.005)

    def worker(self, module: str) -> int:
        """Process id of one of the stack's Python processes."""
        children = Path(f"/proc/{self.stack.process.pid}/task/{self.stack.process.pid}/children")
        for child in children.read_text().split():
            if module in Path(f"/proc/{child}/cmdline").read_text().split("\0"):
                return int(child)
        raise AssertionError(f"no {module} among the children of the stack")

    @contextmanager
    def frozen(self, module: str) -> Iterator[None]:
        """One of the stack's processes does nothing for as long as this lasts."""
        process = self.worker(module)
        os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(process, signal.SIGCONT)


@contextmanager
def prepared_field(state_dir: Path, *, relayed: bool) -> Iterator[Field]:
    """A stack of its own, with a relay before its engine where `relayed`; nothing of it is left after."""
    relay = Relay() if relayed else None
    more = {"DOCKER_HOST": relay.url} if relay is not None else {}
    try:
        with closing(docker.from_env(timeout=60)) as engine, running_stack(state_dir, **more) as stack:
            try:
                yield Field(stack, engine, relay)
            finally:
                if relay is not None:
                    relay.hang, relay.delay = False, 0.0
                    if not os.path.exists(relay.path):
                        relay.up()
    finally:
        if relay is not None:
            relay.close()
