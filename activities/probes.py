"""The three proofs of readiness, each a loop in a thread of its own (design decisions 8 and 13)."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from activities.steps import Step
from models.pairing import REFUSED

LOOPBACK = "127.0.0.1"
ANSWER_SECONDS = 2.0
"""How long one attempt may take; Docker's proxy accepts before the sandbox listens."""
ANSWER_BYTES = 1_000_000
LONG_POLL_SECONDS = 2
"""How long the gateway may hold `GET /nodes/self`; it also bounds how long an abandoned request lives."""


@dataclass(frozen=True)
class Paired:
    """What the gateway says of the node, once it is connected and approved."""

    node_id: str
    pairing_id: int


class TokenRefused(Exception):
    """The gateway does not know the node's token."""


def pauses() -> Iterator[float]:
    """Seconds between attempts: as short as readiness is worth at first, sparing the machine when it takes
    long.
    """
    began = time.monotonic()
    while True:
        passed = time.monotonic() - began
        yield 0.008 if passed < 2 else 0.03 if passed < 8 else 0.1


def prove_rfb(port: int, step: Step) -> datetime:
    """Wait until a server greets with an RFB version (RFC 6143 section 7.1.1); when it did. Raises
    `Stopped`.
    """
    for pause in pauses():
        if _greets(port):
            return datetime.now(UTC)
        step.wait(pause)
    raise AssertionError("pauses() is endless")


def prove_novnc(port: int, step: Step) -> datetime:
    """Wait until noVNC's page is served; when it was. Raises `Stopped`."""
    for pause in pauses():
        if _serves_page(port):
            return datetime.now(UTC)
        step.wait(pause)
    raise AssertionError("pauses() is endless")


class PairingRefused(Exception):
    """An operator has denied or revoked the node's pairing: it is connected, and stays unpaired until an operator
    approves it.
    """

    def __init__(self, pairing_id: int, status: str) -> None:
        super().__init__(f"pairing {pairing_id} is {status}")
        self.pairing_id = pairing_id
        self.status = status


class NodeProof:
    """Waits, as the node itself, until the gateway has it connected and approved.

    Attributes:
        connected_at: when the gateway first said the node was connected.
        state: for people, what was heard last.
    """

    def __init__(self, gateway_url: str, token: str) -> None:
        self.connected_at: datetime | None = None
        self.state = "the gateway was not reached"
        self._origin = urlsplit(gateway_url)
        self._headers = {"Authorization": f"Bearer {token}"}

    def wait(self, step: Step, refused_seconds: float) -> Paired:
        """Wait for the pairing.

        Raises:
            TokenRefused: the gateway answered 401 for `refused_seconds` on end.
            PairingRefused: an operator has refused this node, which no waiting mends.
            Stopped: nobody waits any more.
        """
        refused_since: float | None = None
        for pause in pauses():
            asked = time.monotonic()
            answer = self._ask()
            if isinstance(answer, Paired):
                return answer
            if answer != 401:
                refused_since = None
            elif refused_since is None:
                refused_since = asked
            elif time.monotonic() - refused_since > refused_seconds:
                raise TokenRefused
            # An answer that was not held back is asked for again without haste.
            quick = time.monotonic() - asked < 0.05
            step.wait(max(pause, 0.05) if quick else 0)
        raise AssertionError("pauses() is endless")

    def _ask(self) -> Paired | int | None:
        # The standard library's client: building an httpx one costs tens of milliseconds of CPU at each
        # start.
        connect = (
            http.client.HTTPSConnection if self._origin.scheme == "https" else http.client.HTTPConnection
        )
        connection = connect(str(self._origin.hostname), self._origin.port, timeout=LONG_POLL_SECONDS + 5)
        try:
            connection.request("GET", f"/nodes/self?wait={LONG_POLL_SECONDS}", headers=self._headers)
            response = connection.getresponse()
            status, body = response.status, response.read(ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            self.state = f"the gateway was not reached ({type(error).__name__})"
            return None
        finally:
            connection.close()
        if status != 200:
            said = "refuses the node's token (401)" if status == 401 else f"answered {status}"
            self.state = f"the gateway {said}"
            return status
        try:
            return self._read(json.loads(body))
        except (ValueError, KeyError, TypeError, AttributeError):
            self.state = "the gateway's answer was not understood"
            return None

    def _read(self, body: dict[str, object]) -> Paired | None:
        if not body.get("connected"):
            self.state = "the node has not connected"
            return None
        if self.connected_at is None:
            self.connected_at = datetime.now(UTC)
        node, pairing = body.get("node"), body.get("pairing")
        status = pairing.get("status") if isinstance(pairing, dict) else "absent"
        if not body.get("approved"):
            self.state = f"the node is connected, its pairing is {status}"
            if isinstance(pairing, dict) and status in REFUSED:
                raise PairingRefused(int(pairing["pairing_id"]), str(status))
            return None
        if not isinstance(node, dict) or not isinstance(pairing, dict):
            raise ValueError("approved without node and pairing")
        return Paired(node_id=str(node["node_id"]), pairing_id=int(pairing["pairing_id"]))


def gateway_origin(ws_url: str, host_address: str) -> str:
    """The node listener's origin as the host reaches it, from the URL containers use.

    Args:
        host_address: what the containers' name for the host stands for.
    """
    parts = urlsplit(ws_url)
    scheme = "https" if parts.scheme == "wss" else "http"
    name = host_address if parts.hostname == "host.containers.internal" else str(parts.hostname)
    address = f"[{name}]" if ":" in name else name
    return f"{scheme}://{address}:{parts.port}" if parts.port else f"{scheme}://{address}"


def _greets(port: int) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=ANSWER_SECONDS) as connection:
            greeting = b""
            while len(greeting) < 12:
                part = connection.recv(12 - len(greeting))
                if not part:
                    return False
                greeting += part
            return greeting.startswith(b"RFB 003.")
    except OSError:
        return False


def _serves_page(port: int) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/vnc.html")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
