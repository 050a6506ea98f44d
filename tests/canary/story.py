"""One environment's whole life on a real stack, with every secret of it written down on the way."""

import asyncio
import json
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from models import tokens
from models.codec_address import codec_capability
from models.identifiers import environment_workflow_id
from models.tokens import WS_SUBPROTOCOL, encode_subprotocol
from scripts.rfb import handshake
from tests.canary import needles, places
from tests.canary.needles import Place, Secret
from tests.e2e.stack import Stack
from tests.gateway.harness import DESKTOP, Identity, Node
from tests.support.waiting import eventually

LABEL = "label of the canary"
TYPED = "the quick canary typed 4711 secret words"


@dataclass
class Story:
    """A stack, the secrets it has had so far, and what was seen on the way that is gone later."""

    stack: Stack
    secrets: list[Secret] = field(default_factory=list)
    seen: list[Place] = field(default_factory=list)
    environment_id: str = ""

    @property
    def home(self) -> Path:
        """The environment's directory on the host."""
        return self.stack.state_dir / "desktop-environments" / self.environment_id

    @property
    def path(self) -> str:
        """The environment's route."""
        return f"/desktop-environments/{self.environment_id}"

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> httpx.Response:
        """One request; its answer is one more place to look at."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        answer = self.stack.http.request(method, path, json=body, headers=headers)
        told = f"{answer.status_code} {answer.headers}\n{answer.text}"
        self.seen.append((f"answer to {method} {path.split('?', maxsplit=1)[0]}", told.encode()))
        return answer

    def keep(self, *secrets: Secret) -> None:
        """Write secrets down."""
        self.secrets += secrets

    def tell(self) -> None:
        """Start, pairing, takeover, dispatch, stop, start, reset; tokens made and ended."""
        stack = self.stack
        configured = (stack.state_dir / "admin-token").read_text().strip()
        self.keep(
            needles.bearer_token("admin-token configured", configured),
            needles.secret("codec-capability", codec_capability(configured)),
        )
        # Answered once, to whoever made it; so this one answer is not looked at.
        made = stack.call("POST", "/tokens", {"name": "canary", "expires_in_seconds": 3600}).json()
        admin = made["bearer_token"]
        self.keep(needles.bearer_token("admin-token made", admin))
        environment = stack.create(label=LABEL)
        self.environment_id = environment["environment_id"]
        first = self.generation()
        self.takeover(environment["node_id"])
        self.dispatch(environment["node_id"])
        asyncio.run(self.ordinary_node(admin))
        stack.settled(self.environment_id, "stop")
        asyncio.run(self.refused_node(first))
        stack.settled(self.environment_id, "start")
        self.generation()
        answer = self.ask("POST", f"{self.path}/reset?wait=90", {"rotate_identity": True})
        assert answer.status_code == 200, answer.text
        self.generation()
        self.refusals(admin, first)
        self.reads()
        revoked = self.ask("POST", f"/tokens/{made['token']['token_id']}/revoke", token=admin)
        assert revoked.status_code == 200, revoked.text
        asyncio.run(eventually(lambda: self.ask("GET", "/nodes", token=admin).status_code == 401, "revoked"))

    def generation(self) -> str:
        """Write down the secrets of the generation that runs, and look at its container; its node token."""
        token = (self.home / "secrets" / "gateway-token").read_text().strip()
        identity = json.loads((self.home / "identity/desktop-node/device-identity.json").read_text())
        number = self.stack.call("GET", self.path).json()["environment"]["generation"]
        self.keep(
            needles.bearer_token(f"node-token of generation {number}", token),
            needles.private_key(f"private-key of generation {number}", identity["privateKey"]),
            needles.vnc_password(f"vnc-password of generation {number}", token),
        )
        with closing(docker.from_env()) as engine:
            container = engine.containers.get(self.stack.containers(self.environment_id)[0])
            self.seen += places.container(container.attrs, container.logs())
            roots = {"the stack": self.stack.process.pid, "the container": container.attrs["State"]["Pid"]}
            self.seen += places.processes(roots)
            mounts = {mount["Destination"]: mount for mount in container.attrs["Mounts"]}
        writable = sorted(place for place, mount in mounts.items() if mount["RW"])
        assert len(mounts) == 4 and len(writable) == 1, mounts
        assert mounts[writable[0]]["Source"] == str(self.home / "runtime-home")
        return token

    def takeover(self, node_id: str) -> None:
        """Look at the desktop by link and by redirect; end the link."""
        answers = [
            self.stack.call("POST", f"{self.path}/takeover-token", body) for body in ({}, {"view_only": True})
        ]
        for number, answer in enumerate(answers):
            link = answer.json()["entry_url"].split("?")[0].removesuffix("/vnc.html")
            token = link.rsplit("/", 1)[1]
            self.keep(needles.secret(f"takeover-token {number}", token, tokens.b64url_strict(token) or b""))
            page = httpx.get(f"{link}/vnc.html", follow_redirects=True, trust_env=False)
            assert page.status_code == 200
            assert handshake(link.replace("http", "ws", 1) + "/websockify", timeout=20).width == 1280
            session = f"{self.path}/takeover-sessions/{answer.json()['session_id']}"
            assert self.ask("POST", f"{session}/extend", {"ttl_seconds": 900}).status_code == 200
            self.ask("GET", f"{self.path}/takeover-sessions")
            assert self.ask("POST", f"{session}/revoke").status_code == 200
            gone = httpx.get(f"{link}/vnc.html", trust_env=False)
            assert gone.status_code == 404
            self.seen.append(("answer to an ended link", f"{gone.headers}{gone.text}".encode()))
        # The password is told here, in the fragment, to whoever may have it: the searcher must know it.
        location = self.stack.call("GET", f"{self.path}/takeover").headers["location"]
        known = next(one for one in self.secrets if one.name.startswith("vnc-password"))
        assert any(form in location.encode() for form in known.forms), (
            "the password is not the one looked for"
        )

    def dispatch(self, node_id: str) -> None:
        """Type something, well and badly; what was typed is answered to whoever asked and kept nowhere."""
        self.keep(needles.secret("typed-text", TYPED))
        for args in ({"action": "type", "text": TYPED}, {"action": "no such thing", "text": TYPED}):
            body = {"capability": "tyrum.desktop.keyboard", "args": args}
            answer = self.stack.call("POST", f"/nodes/{node_id}/dispatch", body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["ok"] == (args["action"] == "type")

    async def ordinary_node(self, admin: str) -> None:
        """A node of somebody's own is paired, and comes back with its scoped pairing token."""
        async with self.socket(admin) as socket:
            node = Node(socket, Identity())
            await node.handshake()

            def asked() -> Any:
                known = self.ask("GET", "/pairings").json()["pairings"]
                return next((p for p in known if p["node"]["node_id"] == node.identity.device_id), None)

            pairing = await eventually(asked, "the pairing")
            body = {"trust_level": "remote", "capability_allowlist": DESKTOP[:1]}
            self.ask("POST", f"/pairings/{pairing['pairing_id']}/approve", body, token=admin)
            told = await node.receive_type("pairing.updated")
            scoped = told["payload"]["scoped_token"]
            self.keep(needles.secret("pairing-token", scoped, scoped.rsplit(".", 1)[-1]))
        async with self.socket(scoped) as socket:
            again = Node(socket, node.identity)
            await again.handshake()
            await again.receive_type("pairing.updated")
            self.ask("POST", f"/pairings/{pairing['pairing_id']}/revoke", {"reason": "canary"})
            code, reason = await again.closed()
            assert code == 4001
            self.seen.append(("close of a revoked node", reason.encode()))

    async def refused_node(self, token: str) -> None:
        """The token of a generation that is over opens nothing, and is not repeated by whoever refuses it."""
        async with self.socket(token) as socket:
            try:
                async with asyncio.timeout(10):
                    await socket.recv()
            except ConnectionClosed as closed:
                self.seen.append(("close of a refused node", str(closed).encode()))
        assert socket.close_code == 4001

    def socket(self, token: str) -> connect:
        """An upgrade at the node listener."""
        protocols = [Subprotocol(WS_SUBPROTOCOL), Subprotocol(encode_subprotocol(token))]
        url = self.node_url.replace("http", "ws", 1) + "/ws"
        return connect(url, subprotocols=protocols, proxy=None, close_timeout=1)

    @property
    def node_url(self) -> str:
        """Origin of the node listener."""
        endpoints = json.loads((self.stack.state_dir / "endpoints.json").read_text())
        return f"http://{endpoints['node_host']}:{endpoints['node_port']}"

    def refusals(self, admin: str, node_token: str) -> None:
        """Every kind of refusal, asked for with secrets in the places where they belong."""
        live = (self.home / "secrets" / "gateway-token").read_text().strip()
        for token in (node_token, live, f"{admin}x"):
            assert self.ask("GET", "/nodes", token=token).status_code == 401
        for token in (node_token, admin):
            answer = httpx.get(
                f"{self.node_url}/nodes/self", headers={"Authorization": f"Bearer {token}"}, trust_env=False
            )
            assert answer.status_code == 401
            self.seen.append(("answer to /nodes/self", answer.content))
        assert self.ask("POST", "/tokens", {"name": "x", "bearer_token": admin}).status_code == 400
        assert self.ask("PATCH", self.path, {"label": 7, "token": live}).status_code == 400
        assert self.ask("POST", f"{self.path}/takeover-token", {"token": live}).status_code == 400
        capability = codec_capability((self.stack.state_dir / "admin-token").read_text().strip())
        for path in (f"/codec/{capability}/decode", f"/codec/{capability}/decode/", f"/codec/{capability}"):
            # As the Web UI asks, which has no token but this.
            answer = httpx.post(f"{self.stack.up['api_url']}{path}", content=b"{]", trust_env=False)
            assert answer.status_code in (400, 401, 404), answer.text
            self.seen.append(("answer of the codec endpoint", answer.content))

    def reads(self) -> None:
        """Everything that can be read of it."""
        for path in ("", "/timeline?limit=1000", "/logs", "/logs?refresh=true", "/takeover-sessions"):
            assert self.ask("GET", f"{self.path}{path}").status_code == 200
        for path in ("/audit?limit=1000", "/tokens", "/nodes", "/pairings", "/desktop-environment-hosts"):
            assert self.ask("GET", path).status_code == 200

    def places(self) -> Iterator[Place]:
        """Everything to look at, the databases first."""
        yield from self.seen
        yield from places.sqlite(self.stack.state_dir / "temporal.db")
        if "DESKTOP_DATABASE_URL" in self.stack.more:
            yield from places.postgresql(self.stack.more["DESKTOP_DATABASE_URL"])
        else:
            yield from places.sqlite(self.stack.state_dir / "inventory.db")
        yield from places.files(self.stack.state_dir)
        yield from self.histories()

    def histories(self) -> Iterator[Place]:
        """What the Web UI shows: histories and queries, decoded where they are encrypted."""
        workflow = ("--workflow-id", environment_workflow_id(self.environment_id))
        history = self.temporal("show", *workflow, "--output", "json")
        assert self.environment_id in history
        yield from places.payloads(history)
        for query in ("status", "timeline", "__temporal_workflow_metadata"):
            yield f"query {query}", self.temporal("query", *workflow, "--type", query).encode()

    def temporal(self, *arguments: str) -> str:
        """The `temporal workflow` command as an operator uses it: the token for the codec is in no argument."""
        configured = (self.stack.state_dir / "admin-token").read_text().strip()
        codec = {
            "TEMPORAL_CODEC_ENDPOINT": f"{self.stack.up['api_url']}/codec",
            "TEMPORAL_CODEC_AUTH": f"Bearer {configured}",
        }
        more = codec if "DESKTOP_CODEC_KEYS_FILE" in self.stack.more else {}
        done = subprocess.run(
            ["temporal", "workflow", *arguments],
            env=self.stack.environment | more,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def open_files(root: Path) -> list[str]:
    """Files others may read or write and directories they may enter, of what is not given to the sandbox."""
    found = []
    for path in [root, *root.rglob("*")]:
        if path.is_symlink() or "runtime-home" in path.parts:
            continue
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            found.append(f"{path.relative_to(root)} {oct(path.stat().st_mode)}")
    return found
