"""`monitor_host`: the host watches its Docker engine and the containers' events (design decisions 5 and
10).
"""

import asyncio
import logging
import socket
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.container_spec import HostConfig
from activities.containers import Containers
from activities.daemon_threads import in_daemon_thread, post
from activities.engine import DOCKER_ERRORS, Engine, EventStream, reason
from activities.guards import Guards
from activities.logs import log_tail
from activities.steps import background
from activities.sweep import Sweep
from activities.temporal_link import ControlPlane, Unreachable
from models.identifiers import (
    LABEL_ENVIRONMENT,
    LABEL_GENERATION,
    LABEL_HOST,
    environment_workflow_id,
    host_workflow_id,
    is_environment_id,
)
from models.messages import ContainerEvent, HostRecord

BEAT_SECONDS = 1.0
PROBE_SECONDS = 3.0
"""How often the engine is asked whether it is there; a broken event stream asks at once."""
PROBE_DEADLINE = 5.0
"""An engine that has not answered for so long is hung, not slow."""
RECONNECT_SECONDS = 0.3
RETRY_SECONDS = 3.0
"""How long a signal or a sweep waits for Temporal or Docker before it is tried again."""

EVENTS = ["die", "destroy", "pause", "oom"]

log = logging.getLogger(__name__)

Kind = Literal["exited", "removed", "paused", "absent"]

OUT_OF_MEMORY_SECONDS = 1.0
"""A container that ends within this of a program's death by memory ended of it; that is told with its end."""
OUT_OF_MEMORY_PAUSE = 60.0
"""Seconds between two such reports of one container: a program may be started and killed again for ever."""


class HostMonitor:
    """One run of `monitor_host`; lives in the worker's event loop."""

    def __init__(
        self,
        engine: Engine,
        config: HostConfig,
        guards: Guards,
        containers: Containers,
        control_plane: ControlPlane,
    ) -> None:
        self._engine = engine
        self._config = config
        self._guards = guards
        self._control_plane = control_plane
        self._sweep = Sweep(engine, config, guards, containers, control_plane)
        self._probe_engine = Engine(config.docker_host, answer_seconds=PROBE_DEADLINE)
        self._probe_now = asyncio.Event()
        self._stream: EventStream | None = None
        self._since = int(time.time())
        self._available: bool | None = None
        self._seen: set[tuple[str, str, int]] = set()
        self._reported: set[str] = set()
        self._out_of_memory: dict[str, float] = {}
        self._out_of_memory_told: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Watch until cancelled, or until the worker is told to stop: it would wait for us otherwise."""
        ends = activity.wait_for_worker_shutdown()
        parts = [asyncio.create_task(part) for part in (self._beat(), self._probe(), self._follow(), ends)]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            left = [*parts, *self._tasks]
            for task in left:
                task.cancel()
            if self._stream is not None:
                self._stream.stop()
            await asyncio.gather(*left, return_exceptions=True)
            self._probe_engine.close()

    async def _beat(self) -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(BEAT_SECONDS)

    # --- health
    # ----------------------------------------------------------------------------------------------

    async def _probe(self) -> None:
        known: tuple[bool, str | None, str | None] | None = None
        while True:
            self._probe_now.clear()
            record = await self._ask_engine()
            if record.docker_available and self._available is False and self._stream is not None:
                # An engine that hung may have dropped events without ending the stream: follow anew, and
                # sweep.
                self._stream.stop()
            self._available = record.docker_available
            told = (record.docker_available, record.version, record.last_error)
            if told != known and await self._send_health(record):
                known = told
            # Not `asyncio.wait_for`: Python 3.11's loses a cancellation that comes together with the event.
            # An engine that is away is asked again at once: one that hangs keeps the question, and answers it as soon
            # as it can.
            pause = PROBE_SECONDS if record.docker_available else RECONNECT_SECONDS
            try:
                async with asyncio.timeout(pause):
                    await self._probe_now.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _ask_engine(self) -> HostRecord:
        version, error = None, None
        try:
            async with asyncio.timeout(PROBE_DEADLINE + 1):
                version = await in_daemon_thread("probe", self._probe_engine.version)
        except TimeoutError:
            error = "the Docker engine accepts connections but does not answer in time"
        except DOCKER_ERRORS as failed:
            error = reason(failed)[1]
        return HostRecord(
            host_id=self._config.host_id,
            label=self._config.host_label or f"desktop-runtime:{socket.gethostname()}",
            version=version,
            docker_available=error is None,
            healthy=error is None,
            takeover_origin=self._config.takeover_origin,
            last_error=error,
            last_seen_at=datetime.now(UTC),
            max_limits=self._config.max_limits,
        )

    async def _send_health(self, record: HostRecord) -> bool:
        try:
            return await self._control_plane.signal(
                host_workflow_id(self._config.host_id), "docker_health", record
            )
        except Unreachable as error:
            log.warning("health not told, Temporal does not answer: %s", error)
            return False

    # --- events
    # ----------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            news: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
            background("docker-events", partial(self._read, loop, news))
            while (event := await news.get()) is not None:
                if "opened" in event:
                    self._stream = event["opened"]
                    # An engine that answers again is told at once, not at the next round.
                    self._probe_now.set()
                    self._sweep_again()
                else:
                    self._take(event)
            self._stream = None
            self._probe_now.set()
            await asyncio.sleep(RECONNECT_SECONDS)

    def _read(self, loop: asyncio.AbstractEventLoop, news: "asyncio.Queue[dict[str, Any] | None]") -> None:
        """Runs in a thread of its own: opening the stream blocks for as long as the engine hangs."""
        filters: dict[str, str | list[str]] = {
            "label": f"{LABEL_HOST}={self._config.host_id}",
            "type": "container",
            "event": EVENTS,
        }
        try:
            with EventStream(self._engine, filters, self._since) as stream:
                post(loop, partial(news.put_nowait, {"opened": stream}))
                for event in stream:
                    post(loop, partial(news.put_nowait, event))
        except (*DOCKER_ERRORS, ValueError) as error:
            # ValueError: a line cut short when the stream broke.
            log.info("Docker's event stream ended: %s", type(error).__name__)
        finally:
            post(loop, lambda: news.put_nowait(None))

    def _take(self, event: dict[str, Any]) -> None:
        self._since = max(self._since, int(event.get("time") or 0))
        container_id, action = str(event.get("id", "")), str(event.get("status", ""))
        key = (container_id, action, int(event.get("timeNano") or 0))
        if key in self._seen:
            return
        # `since` has whole seconds: a reconnected stream repeats what this second had already told.
        self._seen = {old for old in self._seen if old[2] >= (self._since - 60) * 1_000_000_000} | {key}
        marked = (event.get("Actor") or {}).get("Attributes") or {}
        environment_id, generation = marked.get(LABEL_ENVIRONMENT, ""), str(marked.get(LABEL_GENERATION, ""))
        if not is_environment_id(environment_id) or not generation.isdecimal():
            return
        if action == "oom":
            self._out_of_memory[container_id] = time.monotonic()
            self._spawn(self._report_memory(environment_id, container_id, int(generation)))
            return
        if action == "destroy":
            again = container_id in self._reported
            self._reported.discard(container_id)
            self._out_of_memory.pop(container_id, None)
            self._out_of_memory_told.pop(container_id, None)
            if again:
                return
        kind: Kind = "exited" if action == "die" else "removed" if action == "destroy" else "paused"
        code = str(marked.get("exitCode", ""))
        exit_code = int(code) if code.lstrip("-").isdecimal() else None
        self._spawn(self._report(environment_id, container_id, int(generation), kind, exit_code))

    async def _report_found(self, environment_id: str, container_id: str, generation: int, kind: str) -> None:
        await self._report(
            environment_id, container_id, generation, "exited" if kind == "exited" else "paused"
        )

    async def _report(
        self,
        environment_id: str,
        container_id: str,
        generation: int,
        kind: Kind,
        exit_code: int | None = None,
    ) -> None:
        if self._guards.is_silent(container_id):
            return
        if kind == "exited":
            # The sweep and the event stream may both have found it.
            if container_id in self._reported:
                return
            self._reported.add(container_id)
        event = ContainerEvent(
            generation=generation,
            event=kind,
            container_id=container_id,
            exit_code=exit_code,
            oom_killed=self._just_out_of_memory(container_id),
            at=datetime.now(UTC),
        )
        if kind == "exited":
            event = await in_daemon_thread("post-mortem", partial(self._post_mortem, container_id, event))
        await self._tell(environment_id, event)

    def _just_out_of_memory(self, container_id: str) -> bool:
        at = self._out_of_memory.get(container_id)
        return at is not None and time.monotonic() - at < 2 * OUT_OF_MEMORY_SECONDS

    async def _report_memory(self, environment_id: str, container_id: str, generation: int) -> None:
        now = time.monotonic()
        if now - self._out_of_memory_told.get(container_id, -OUT_OF_MEMORY_PAUSE) < OUT_OF_MEMORY_PAUSE:
            return
        self._out_of_memory_told[container_id] = now
        await asyncio.sleep(OUT_OF_MEMORY_SECONDS)
        if container_id in self._reported or container_id not in self._out_of_memory:
            return
        await self._tell(environment_id, ContainerEvent(generation=generation, event="out_of_memory"))

    def _post_mortem(self, container_id: str, event: ContainerEvent) -> ContainerEvent:
        try:
            container = self._engine.inspect(container_id)
            if container is None:
                return event
            state = container["State"]
            return event.model_copy(
                update={
                    "exit_code": state.get("ExitCode", event.exit_code),
                    "oom_killed": event.oom_killed or bool(state.get("OOMKilled")),
                    "log_tail": log_tail(self._engine, container_id) or [],
                }
            )
        except DOCKER_ERRORS:
            # The event itself is what matters; the rest is lost with the engine.
            return event

    async def _tell(self, environment_id: str, event: ContainerEvent) -> None:
        workflow_id = environment_workflow_id(environment_id)
        while True:
            try:
                await self._control_plane.signal(workflow_id, "container_event", event)
                return
            except Unreachable as error:
                log.warning("event not told yet, Temporal does not answer: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    def _sweep_again(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._sweeping = self._spawn(self._sweep_until_done())

    async def _sweep_until_done(self) -> None:
        while True:
            try:
                await self._sweep.run(self._report_found, self._tell)
                return
            except (*DOCKER_ERRORS, Unreachable, ApplicationError, OSError) as error:
                log.warning("sweep not complete: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_log_failure)
        return task


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("monitor_host: a part failed", exc_info=error)
