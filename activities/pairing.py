"""Waiting until a desktop is proven ready, or its container ends (design decisions 8 and 13)."""

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from activities.container_spec import NOVNC_PORT, RFB_PORT, HostConfig
from activities.credentials import read_token
from activities.engine import DOCKER_ERRORS, Engine, EventStream, Inspection, docker_failure
from activities.failures import failure
from activities.guards import Guards
from activities.hostfiles import EnvironmentFiles
from activities.inspection import exited, generation_of, parse_docker_time
from activities.logs import log_tail
from activities.probes import (
    NodeProof,
    Paired,
    PairingRefused,
    TokenRefused,
    gateway_origin,
    prove_novnc,
    prove_rfb,
)
from activities.steps import Step, Stopped, background
from models.errors import ErrorCode
from models.messages import AwaitNodePairing, NodePaired

REFUSED_SECONDS = 5
"""How long the gateway may refuse the node's token before that is final."""

UNDECLARED_SECONDS = 20
"""How long an image that declares neither port may take to the first of the three proofs; one that declares a port, or
proves anything, has the whole time. The reference image takes three seconds to its first."""

_PHASE = "await_node_pairing"
_NAMES = {"rfb": "the VNC server (RFB)", "novnc": "noVNC", "paired": "the node's pairing"}


@dataclass(frozen=True)
class News:
    """What one of the threads has to say: a proof's name and time, or that something ended."""

    about: str
    at: datetime | None = None
    paired: Paired | None = None
    error: Exception | None = None


class NodePairing:
    """One wait for one container."""

    def __init__(
        self,
        engine: Engine,
        config: HostConfig,
        guards: Guards,
        files: EnvironmentFiles,
        request: AwaitNodePairing,
    ) -> None:
        self._engine = engine
        self._config = config
        self._guards = guards
        self._files = files
        self._request = request
        self._news: queue.Queue[News] = queue.Queue()
        self._streams: list[EventStream] = []

    def wait(self, step: Step) -> NodePaired:
        """Wait for the three proofs.

        Raises:
            ApplicationError: `sandbox_exited` as soon as the container ends, `sandbox_unhealthy` when it is
                paused, `pairing_timeout`, at once where an operator has refused the pairing,
                `docker_unavailable`, or `internal` where the token is not on the host.
        """
        request = self._request
        threads = Step()
        try:
            with self._guards.watching(request.container_id):
                started_at, proof = self._begin(threads)
                result = self._collect(started_at, proof, step)
            # A container that ended just before the watch did is nobody else's to report.
            self._running_or_raise()
            return result
        except DOCKER_ERRORS as error:
            raise docker_failure(error, _PHASE, request.generation) from error
        finally:
            threads.stop.set()
            for stream in self._streams:
                stream.stop()

    def _begin(self, threads: Step) -> tuple[datetime, NodeProof]:
        request = self._request
        token = read_token(self._files)
        if token is None:
            message = f"the node's token is not on the host ({self._files.token})"
            raise failure(ErrorCode.INTERNAL, message, phase=_PHASE, generation=request.generation)
        proof = NodeProof(self._gateway_url(), token)
        self._start("watch", lambda: self._watch(threads))
        self._start("rfb", lambda: News("rfb", at=prove_rfb(request.rfb_port, threads)))
        self._start("novnc", lambda: News("novnc", at=prove_novnc(request.novnc_port, threads)))
        self._start("paired", lambda: self._pair(proof, threads))
        return _started_at(self._running_or_raise()), proof

    def _collect(self, started_at: datetime, proof: NodeProof, step: Step) -> NodePaired:
        proven: dict[str, datetime] = {}
        paired: Paired | None = None
        began = time.monotonic()
        deadline = began + self._config.pairing_seconds
        doubted = False
        while paired is None or len(proven) < len(_NAMES):
            missing = [name for name in _NAMES if name not in proven]
            step.progress = "waiting for " + ", ".join(_NAMES[name] for name in missing)
            step.check()
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._timed_out(missing, proof)
            if not doubted and not proven and time.monotonic() - began > UNDECLARED_SECONDS:
                doubted = True
                self._refuse_what_is_no_sandbox()
            try:
                news = self._news.get(timeout=min(left, 0.1))
            except queue.Empty:
                continue
            if news.error is not None:
                raise self._told(news.error)
            if news.at is not None:
                proven[news.about] = news.at
                paired = news.paired or paired
        phases = {name: _ms(started_at, at) for name, at in proven.items()}
        phases["node_connected"] = _ms(started_at, proof.connected_at or proven["paired"])
        return NodePaired(node_id=paired.node_id, pairing_id=paired.pairing_id, phases=phases)

    def _start(self, about: str, work: Callable[[], News]) -> None:
        def run() -> None:
            try:
                self._news.put(work())
            except Stopped:
                return
            except Exception as error:  # handed to the step, which raises it
                self._news.put(News(about, error=error))

        background(f"{about}-{self._request.container_id[:12]}", run)

    def _pair(self, proof: NodeProof, threads: Step) -> News:
        paired = proof.wait(threads, REFUSED_SECONDS)
        return News("paired", at=datetime.now(UTC), paired=paired)

    def _watch(self, threads: Step) -> News:
        """Return never, but raise as soon as the container no longer runs."""
        filters: dict[str, str | list[str]] = {
            "container": self._request.container_id,
            "event": ["die", "destroy", "pause"],
        }
        while True:
            threads.check()
            with EventStream(self._engine, filters) as stream:
                self._streams.append(stream)
                # The stream is open before the look, so that no end falls between the two.
                self._running_or_raise()
                threads.check()
                for _ in stream:
                    threads.check()
                    self._running_or_raise()
            threads.wait(0.1)

    def _running_or_raise(self) -> Inspection:
        request = self._request
        container = self._engine.inspect(request.container_id)
        if container is None or not container["State"].get("Running"):
            raise exited(self._engine, container, _PHASE, request.generation)
        if generation_of(container) != request.generation:
            message = f"container {request.container_id[:12]} is of another generation"
            raise failure(
                ErrorCode.INTERNAL, message, phase=_PHASE, generation=request.generation, non_retryable=True
            )
        if container["State"].get("Paused"):
            raise self._failed(ErrorCode.SANDBOX_UNHEALTHY, "the sandbox was paused before it was ready")
        return container

    def _told(self, error: Exception) -> Exception:
        if isinstance(error, PairingRefused):
            message = (
                f"an operator has {error.status} the pairing of this environment's node: approve it "
                f"(POST /pairings/{error.pairing_id}/approve) and start again, or reset with rotate_identity"
            )
            return self._failed(ErrorCode.PAIRING_TIMEOUT, message, lasting=True)
        if not isinstance(error, TokenRefused):
            return error
        message = f"the gateway has refused the node's token for {REFUSED_SECONDS} s: it is not registered, or revoked"
        return self._failed(ErrorCode.PAIRING_TIMEOUT, message)

    def _timed_out(self, missing: list[str], proof: NodeProof) -> Exception:
        what = ", ".join(_NAMES[name] for name in missing)
        message = f"not ready {self._config.pairing_seconds:g} s after its start; missing: {what}"
        if "paired" in missing:
            message += f" ({proof.state})"
        return self._failed(ErrorCode.PAIRING_TIMEOUT, message)

    def _refuse_what_is_no_sandbox(self) -> None:
        container = self._running_or_raise()
        image = self._engine.look.inspect_image(container["Image"])  # type: ignore[no-untyped-call]  # so in the stubs
        declared = (image.get("Config") or {}).get("ExposedPorts") or {}
        if not declared.keys() & {f"{RFB_PORT}/tcp", f"{NOVNC_PORT}/tcp"}:
            message = (
                f"the image is no sandbox: it declares neither port {RFB_PORT} nor {NOVNC_PORT}, and has served "
                f"nothing there for {UNDECLARED_SECONDS} s; name a sandbox image, or let it EXPOSE its ports"
            )
            raise self._failed(ErrorCode.IMAGE_MISMATCH, message)

    def _failed(self, code: ErrorCode, message: str, *, lasting: bool = False) -> Exception:
        generation = self._request.generation
        lines = log_tail(self._engine, self._request.container_id) or []
        return failure(code, message, phase=_PHASE, generation=generation, log_tail=lines, lasting=lasting)

    def _gateway_url(self) -> str:
        if self._config.gateway_url:
            return self._config.gateway_url
        bridge = self._engine.look.inspect_network("bridge")
        settings = (bridge.get("IPAM") or {}).get("Config") or [{}]
        return gateway_origin(self._config.gateway_ws_url, str(settings[0].get("Gateway") or "127.0.0.1"))


def _started_at(container: Inspection) -> datetime:
    return parse_docker_time(str(container["State"]["StartedAt"]))


def _ms(since: datetime, until: datetime) -> float:
    return round((until - since).total_seconds() * 1000, 1)
