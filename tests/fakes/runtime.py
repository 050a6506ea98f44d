"""Runtime hosts in memory, for workflow tests: the family of design section 8.

    FakeRuntime            every step succeeds at once
    ├── SlowRuntime        `seconds` before each step in `steps` (default: all), cancellable
    ├── NeverRuntime       the step `step` never ends until it is cancelled
    ├── FlakyRuntime       the step `step` fails `times` times with `code`, then succeeds
    ├── DiesAfterCreate    the container exits (code 137, a log line) before the node pairs, the first `times` times
    ├── NotFoundRuntime    `ensure_image` fails with `image_not_found`
    └── MoodyRuntime       fails and delays whatever it was told to beforehand

Use::

    runtime = SlowRuntime(0.3, steps={"ensure_image"})
    with ThreadPoolExecutor(16) as pool:
        Worker(client, task_queue=host_task_queue("h1"), activities=runtime.activities(), activity_executor=pool)
    runtime.connect(client)                         # container events and docker_health go out as real signals
    runtime.crash(environment_id, exit_code=139)    # -> signal container_event `exited`, with code and log tail
    runtime.remove_by_hand(environment_id)          # -> `removed`
    runtime.pause_by_hand(environment_id)           # -> `paused`
    runtime.set_docker(False)                       # steps fail with docker_unavailable; monitor signals docker_health

What tests read: `calls` (list of `Call(name, environment_id, generation, request)`), `count(name)`, `containers` (by
environment id: `FakeContainer(container_id, environment_id, generation, running, rfb_port, novnc_port, …)`),
`identities`, `tokens`, `wiped` (environment ids whose runtime home was emptied), `directories` (environment ids with a
host directory), `events` (what was emitted), `created` and `removed` (container ids in order), `cancelled` (names of
steps that ended by cancellation), `images` (by reference: those `ensure_image` saw to; for the others, and wherever it
has a gate, it is asked). `gate(step)` returns a `threading.Event`: the step waits until it is set. With `prepares_all`
false this is a host of the version before `prepare_identity` minted tokens and looked for images.
Everything is behind one lock; methods may be called from any thread. Without `connect`, `on_event` (environment id,
ContainerEvent) is called instead, when given. Generations are fenced as `activities.guards` fences them.
"""

import asyncio
import hashlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import CancelledError
from temporalio.service import RPCError, RPCStatusCode

from activities.failures import failure
from activities.interface import HostActivities
from models import messages as m
from models.errors import ErrorCode
from models.identifiers import container_name, environment_workflow_id, host_workflow_id

OnEvent = Callable[[str, m.ContainerEvent], None]


@dataclass(frozen=True)
class Call:
    """One activity attempt that began."""

    name: str
    environment_id: str
    generation: int
    request: Any


@dataclass
class FakeContainer:
    """A container in memory."""

    container_id: str
    environment_id: str
    generation: int
    image_ref: str
    rfb_port: int
    novnc_port: int
    running: bool = True
    paused: bool = False
    exit_code: int | None = None
    oom_killed: bool = False
    log: list[str] = field(default_factory=lambda: ["desktop up"])


class FakeRuntime(HostActivities):
    """A runtime host whose every step succeeds at once."""

    def __init__(self, on_event: OnEvent | None = None) -> None:
        self.on_event = on_event
        self.calls: list[Call] = []
        self.containers: dict[str, FakeContainer] = {}
        self.identities: dict[str, m.Identity] = {}
        self.tokens: dict[tuple[str, int], m.NodeToken] = {}
        self.directories: set[str] = set()
        self.wiped: list[str] = []
        self.events: list[tuple[str, m.ContainerEvent]] = []
        self.created: list[str] = []
        self.removed: list[str] = []
        self.cancelled: list[str] = []
        self.images: dict[str | None, m.ImageReady] = {}
        self.prepares_all = True
        self.docker_available = True
        self.lock = threading.RLock()
        self._fence: dict[str, int] = {}
        self._rotated: dict[str, int] = {}
        self._gone: set[str] = set()
        self._gates: dict[tuple[str, str | None], threading.Event] = {}
        self._ports = itertools.count(40000)
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sent: list[Future[None]] = []
        self._health_changed = threading.Event()

    # --- what tests use ---------------------------------------------------------------------------------------

    def activities(self) -> list[Callable[..., Any]]:
        """What a worker's `activities=` takes."""
        return [
            self.ensure_image,
            self.prepare_identity,
            self.mint_node_token,
            self.start_container,
            self.await_node_pairing,
            self.capture_logs,
            self.remove_container,
            self.wipe_runtime,
            self.monitor_host,
        ]

    def connect(self, client: Client) -> None:
        """From now on events go out as signals; call it in the event loop the client belongs to."""
        self._client = client
        self._loop = asyncio.get_running_loop()

    def count(self, name: str, environment_id: str | None = None) -> int:
        """How often an activity was attempted."""
        with self.lock:
            return sum(c.name == name and environment_id in (None, c.environment_id) for c in self.calls)

    def gate(self, step: str, environment_id: str | None = None) -> threading.Event:
        """From now on the step, of all environments or of one, waits, cancellable, until the returned event is set."""
        return self._gates.setdefault((step, environment_id), threading.Event())

    def running(self) -> list[FakeContainer]:
        """Containers that run."""
        with self.lock:
            return [c for c in self.containers.values() if c.running]

    def crash(self, environment_id: str, exit_code: int = 1, oom_killed: bool = False) -> None:
        """The container exits by itself. Raises KeyError where there is none."""
        with self.lock:
            container = self.containers[environment_id]
            container.running, container.exit_code, container.oom_killed = False, exit_code, oom_killed
            container.log.append(f"process ended with {exit_code}")
            self.emit(environment_id, self._event_of(container, "exited"))

    def remove_by_hand(self, environment_id: str) -> None:
        """Somebody removes the container with the docker command. Raises KeyError where there is none."""
        with self.lock:
            container = self.containers.pop(environment_id)
            self.removed.append(container.container_id)
            self.emit(environment_id, m.ContainerEvent(generation=container.generation, event="removed"))

    def pause_by_hand(self, environment_id: str) -> None:
        """Somebody pauses the container with the docker command. Raises KeyError where there is none."""
        with self.lock:
            container = self.containers[environment_id]
            container.paused = True
            self.emit(environment_id, self._event_of(container, "paused"))

    async def flush(self) -> None:
        """Everything emitted by now has been sent."""
        with self.lock:
            sent, self._sent = self._sent, []
        for future in sent:
            await asyncio.wrap_future(future)

    def set_docker(self, available: bool) -> None:
        """The Docker engine goes away or comes back; a running `monitor_host` reports it."""
        self.docker_available = available
        self._health_changed.set()

    def emit(self, environment_id: str, event: m.ContainerEvent) -> None:
        """Send one container event as the host would."""
        with self.lock:
            self.events.append((environment_id, event))
        if self._client is not None and self._loop is not None:
            sending = self._signal(environment_workflow_id(environment_id), "container_event", event)
            self._sent.append(asyncio.run_coroutine_threadsafe(sending, self._loop))
        elif self.on_event is not None:
            self.on_event(environment_id, event)

    # --- hooks of the family ----------------------------------------------------------------------------------

    def before(self, step: str, environment_id: str, generation: int) -> None:
        """Runs at the start of each step; subclasses delay or fail here."""

    def pulls(self, environment_id: str) -> bool:
        """Whether the image counts as missing although it was seen to before; subclasses say so here."""
        return False

    def pause(self, seconds: float) -> None:
        """Wait, heartbeating and cancellable, as a real step does."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._beat()
            time.sleep(min(left, 0.02))

    # --- the activities ---------------------------------------------------------------------------------------

    @activity.defn
    def ensure_image(self, request: m.EnsureImage) -> m.ImageReady:
        self._step("ensure_image", request, request.environment_id, request.generation)
        digest = hashlib.sha256(request.image_ref.encode()).hexdigest()
        ready = m.ImageReady(image_id=f"sha256:{digest}", user="1000")
        with self.lock:
            self.images[request.image_ref] = ready
        return ready

    @activity.defn
    def prepare_identity(self, request: m.PrepareIdentity) -> m.Prepared:
        self._step("prepare_identity", request, request.environment_id, request.generation)
        environment_id = request.environment_id
        with self.lock:
            self._refuse_gone(environment_id, request.generation)
            self.directories.add(environment_id)
            known = self.identities.get(environment_id)
            rotate = request.rotate and self._rotated.get(environment_id) != request.generation
            if known is not None and not rotate:
                return self._prepared(known.model_copy(update={"created": False}), request)
            if request.rotate:
                self._rotated[environment_id] = request.generation
            device_id = f"dev_{uuid4().hex}"
            self.identities[environment_id] = m.Identity(
                device_id=device_id, public_key=f"pub-{device_id}", created=True
            )
            return self._prepared(self.identities[environment_id], request)

    @activity.defn
    def mint_node_token(self, request: m.MintNodeToken) -> m.NodeToken:
        self._step("mint_node_token", request, request.environment_id, request.generation)
        with self.lock:
            return self._minted(request.environment_id, request.generation, request.ttl_seconds)

    def _prepared(self, identity: m.Identity, request: m.PrepareIdentity) -> m.Prepared:
        token, image = None, None
        if request.ttl_seconds and self.prepares_all:
            token = self._minted(request.environment_id, request.generation, request.ttl_seconds)
        held = {("ensure_image", None), ("ensure_image", request.environment_id)} & self._gates.keys()
        if self.prepares_all and not held and not self.pulls(request.environment_id):
            image = self.images.get(request.image_ref)
        return m.Prepared(**identity.model_dump(), token=token, image=image)

    def _minted(self, environment_id: str, generation: int, ttl_seconds: int) -> m.NodeToken:
        with self.lock:
            self._refuse_gone(environment_id, generation)
            key = (environment_id, generation)
            newest = max((g for e, g in self.tokens if e == environment_id), default=0)
            if newest > generation:
                message = f"generation {newest} has its token already; generation {generation} is over"
                raise failure(ErrorCode.INTERNAL, message, generation=generation, non_retryable=True)
            if key not in self.tokens:
                now = datetime.now(UTC)
                self.tokens[key] = m.NodeToken(
                    token_id=str(uuid4()),
                    token_sha256=hashlib.sha256(uuid4().bytes).hexdigest(),
                    issued_at=now,
                    expires_at=now + timedelta(seconds=ttl_seconds),
                )
            return self.tokens[key]

    @activity.defn
    def start_container(self, request: m.StartContainer) -> m.ContainerStarted:
        environment_id, generation = request.spec.environment_id, request.generation
        self._step("start_container", request, environment_id, generation)
        with self.lock:
            there = self.containers.get(environment_id)
            if there is not None and there.generation == generation and there.paused:
                message = "the container is paused; a new one is needed"
                raise failure(ErrorCode.SANDBOX_UNHEALTHY, message, generation=generation)
            if there is not None and there.generation == generation and there.running:
                return self._started(there, adopted=True)
            if request.adopt_only:
                raise failure(
                    ErrorCode.SANDBOX_EXITED, "no running container to adopt", generation=generation
                )
            self._refuse_gone(environment_id, generation)
            if generation <= self._fence.get(environment_id, -1):
                message = f"generation {generation} was already removed"
                raise failure(ErrorCode.START_FAILED, message, generation=generation, non_retryable=True)
            if there is not None and there.generation > generation:
                message = f"a container of generation {there.generation} is there"
                raise failure(ErrorCode.START_FAILED, message, generation=generation, non_retryable=True)
            if there is not None and there.generation == generation:
                raise self._exited(there)
            if there is not None:
                self.removed.append(there.container_id)
            container = FakeContainer(
                container_id=uuid4().hex,
                environment_id=environment_id,
                generation=generation,
                image_ref=request.spec.image_ref,
                rfb_port=next(self._ports),
                novnc_port=next(self._ports),
            )
            self.containers[environment_id] = container
            self.created.append(container.container_id)
            return self._started(container, adopted=False)

    @activity.defn
    def await_node_pairing(self, request: m.AwaitNodePairing) -> m.NodePaired:
        self._step("await_node_pairing", request, request.environment_id, request.generation)
        with self.lock:
            container = self.containers.get(request.environment_id)
            if container is None or container.generation != request.generation:
                raise failure(
                    ErrorCode.SANDBOX_EXITED, "the container is gone", generation=request.generation
                )
            if not container.running:
                raise self._exited(container)
            if container.paused:
                message = "the sandbox does not answer"
                raise failure(ErrorCode.SANDBOX_UNHEALTHY, message, generation=request.generation)
            identity = self.identities.get(request.environment_id)
            node_id = identity.device_id if identity else f"dev_{request.environment_id}"
            phases = {"rfb": 100.0, "novnc": 120.0, "node_connected": 300.0, "paired": 310.0}
            return m.NodePaired(node_id=node_id, pairing_id=1, phases=phases)

    @activity.defn
    def capture_logs(self, request: m.CaptureLogs) -> m.CapturedLogs:
        self._step("capture_logs", request, request.environment_id, request.generation)
        with self.lock:
            container = self.containers.get(request.environment_id)
            return m.CapturedLogs(lines=list(container.log) if container else [], found=container is not None)

    @activity.defn
    def remove_container(self, request: m.RemoveContainer) -> m.ContainerRemoved:
        self._step("remove_container", request, request.environment_id, request.generation)
        environment_id = request.environment_id
        with self.lock:
            self._fence[environment_id] = max(self._fence.get(environment_id, -1), request.generation)
            container = self.containers.get(environment_id)
            if container is None or container.generation > request.generation:
                return m.ContainerRemoved()
            del self.containers[environment_id]
            self.removed.append(container.container_id)
            exit_code = 143 if container.running else container.exit_code
            return m.ContainerRemoved(
                removed=True, exit_code=exit_code, oom_killed=container.oom_killed, lines=list(container.log)
            )

    @activity.defn
    def wipe_runtime(self, request: m.WipeRuntime) -> None:
        self._step("wipe_runtime", request, request.environment_id, request.generation)
        with self.lock:
            self.wiped.append(request.environment_id)
            if request.everything:
                self.directories.discard(request.environment_id)
                self.identities.pop(request.environment_id, None)
                self._gone.add(request.environment_id)

    @activity.defn
    async def monitor_host(self, request: m.MonitorHost) -> None:
        with self.lock:
            self.calls.append(Call("monitor_host", "", 0, request))
        self._health_changed.set()
        while True:
            activity.heartbeat()
            if self._health_changed.is_set():
                self._health_changed.clear()
                await self._signal(
                    host_workflow_id(request.host_id), "docker_health", self._health(request.host_id)
                )
            await asyncio.sleep(0.05)

    # --- inside -----------------------------------------------------------------------------------------------

    def _step(self, name: str, request: Any, environment_id: str, generation: int) -> None:
        with self.lock:
            self.calls.append(Call(name, environment_id, generation, request))
        try:
            self._beat()
            for gate in (self._gates.get((name, None)), self._gates.get((name, environment_id))):
                while gate is not None and not gate.is_set():
                    self.pause(0.02)
            self.before(name, environment_id, generation)
        except CancelledError:
            with self.lock:
                self.cancelled.append(name)
            raise
        on_disk = {"prepare_identity", "mint_node_token", "wipe_runtime"}
        if not self.docker_available and name not in on_disk:
            raise failure(
                ErrorCode.DOCKER_UNAVAILABLE, "the Docker engine does not answer", generation=generation
            )

    def _refuse_gone(self, environment_id: str, generation: int) -> None:
        if environment_id in self._gone:
            message = "the environment was deleted from this host"
            raise failure(ErrorCode.INTERNAL, message, generation=generation, non_retryable=True)

    def _beat(self) -> None:
        if activity.in_activity():
            activity.heartbeat()

    def _started(self, container: FakeContainer, *, adopted: bool) -> m.ContainerStarted:
        return m.ContainerStarted(
            container_id=container.container_id,
            name=container_name(container.environment_id),
            rfb_port=container.rfb_port,
            novnc_port=container.novnc_port,
            adopted=adopted,
        )

    def _exited(self, container: FakeContainer) -> Exception:
        return failure(
            ErrorCode.SANDBOX_EXITED,
            f"the sandbox exited with code {container.exit_code}",
            phase="await_node_pairing",
            generation=container.generation,
            exit_code=container.exit_code,
            oom_killed=container.oom_killed,
            log_tail=container.log,
        )

    def _event_of(self, container: FakeContainer, event: str) -> m.ContainerEvent:
        return m.ContainerEvent.model_validate(
            {
                "generation": container.generation,
                "event": event,
                "container_id": container.container_id,
                "exit_code": container.exit_code,
                "oom_killed": container.oom_killed,
                "at": datetime.now(UTC),
                "log_tail": list(container.log),
            }
        )

    def _health(self, host_id: str) -> m.HostRecord:
        return m.HostRecord(
            host_id=host_id,
            label=f"fake:{host_id}",
            version="fake",
            docker_available=self.docker_available,
            last_error=None if self.docker_available else "the Docker engine does not answer",
            last_seen_at=datetime.now(UTC),
        )

    async def _signal(self, workflow_id: str, name: str, argument: m.Message) -> None:
        if self._client is None:
            return
        try:
            await self._client.get_workflow_handle(workflow_id).signal(name, argument)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise


class SlowRuntime(FakeRuntime):
    """Every step in `steps` (all when None) takes `seconds` longer."""

    def __init__(
        self, seconds: float, steps: Collection[str] | None = None, on_event: OnEvent | None = None
    ) -> None:
        super().__init__(on_event)
        self.seconds = seconds
        self.steps = steps

    def before(self, step: str, environment_id: str, generation: int) -> None:
        if self.steps is None or step in self.steps:
            self.pause(self.seconds)


class NeverRuntime(FakeRuntime):
    """The step `step` never ends until it is cancelled."""

    def __init__(self, step: str, on_event: OnEvent | None = None) -> None:
        super().__init__(on_event)
        self.never = step

    def before(self, step: str, environment_id: str, generation: int) -> None:
        while step == self.never:
            self.pause(1)


class FlakyRuntime(FakeRuntime):
    """The step `step` fails the first `times` times, with `code`."""

    def __init__(
        self,
        step: str,
        times: int,
        code: ErrorCode = ErrorCode.START_FAILED,
        non_retryable: bool = True,
        on_event: OnEvent | None = None,
    ) -> None:
        super().__init__(on_event)
        self.flaky = step
        self.left = times
        self.code = code
        self.non_retryable = non_retryable

    def before(self, step: str, environment_id: str, generation: int) -> None:
        with self.lock:
            if step != self.flaky or self.left <= 0:
                return
            self.left -= 1
        raise failure(
            self.code, f"flaky {step}", phase=step, generation=generation, non_retryable=self.non_retryable
        )


class DiesAfterCreate(FakeRuntime):
    """The container exits after it was made and before the node pairs, the first `times` times."""

    def __init__(self, times: int = 1_000_000, exit_code: int = 137, on_event: OnEvent | None = None) -> None:
        super().__init__(on_event)
        self.left = times
        self.exit_code = exit_code

    def before(self, step: str, environment_id: str, generation: int) -> None:
        if step != "await_node_pairing":
            return
        with self.lock:
            container = self.containers.get(environment_id)
            if self.left > 0 and container is not None and container.generation == generation:
                self.left -= 1
                container.running, container.exit_code = False, self.exit_code
                container.log.append("Xvnc: fatal server error")


class NotFoundRuntime(FakeRuntime):
    """The image is nowhere."""

    def before(self, step: str, environment_id: str, generation: int) -> None:
        if step == "ensure_image":
            message = "image not found: check the name and that the host may pull it"
            raise failure(ErrorCode.IMAGE_NOT_FOUND, message, phase="ensure_image", generation=generation)


class MoodyRuntime(FakeRuntime):
    """Every step takes up to `seconds`, by a repeatable chance; a step in `moods` fails once, with the code there."""

    def __init__(self, seconds: float = 0.01, seed: int = 7) -> None:
        super().__init__()
        self.seconds = seconds
        self.moods: dict[str, ErrorCode] = {}
        self._chance = random.Random(seed)  # noqa: S311 - a repeatable order, no secret

    def before(self, step: str, environment_id: str, generation: int) -> None:
        with self.lock:
            code = self.moods.pop(step, None)
            wait = self._chance.random() * self.seconds
        self.pause(wait)
        if code is not None:
            raise failure(code, f"moody {step}", phase=step, generation=generation)

    def pulls(self, environment_id: str) -> bool:
        with self.lock:
            return "ensure_image" in self.moods
