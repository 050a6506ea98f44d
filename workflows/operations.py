"""Start, stop, wipe, clean and delete as small coroutines. Each can be cancelled at any await: whatever it left is
found by name and generation by the operation that follows (design decision 9).
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception
from temporalio.workflow import ActivityConfig

with workflow.unsafe.imports_passed_through():
    from activities.interface import ControlActivities, HostActivities
    from models import messages as m
    from models.errors import HOST_CODES, ErrorCode
    from models.lifecycle import Event, Operation, Recovery, Status
    from workflows import policies
    from workflows.calls import Request, Result, in_inventory, on_host
    from workflows.failures import classify
    from workflows.state import Credentials, EnvironmentState


A = TypeVar("A")
B = TypeVar("B")


class Failure(Exception):
    """An operation did not reach its end; carries the error to record."""

    def __init__(self, error: m.LastError) -> None:
        super().__init__(error.message)
        self.error = error


class Record(Protocol):
    """Projects the state into the inventory if there is anything new, and registers or ends credentials with it.

    Returns whether the credentials were dealt with. Where they were not, the record was refused, which is a bug, or met
    a worker of an older version: the activity for them alone is called for then.
    """

    def __call__(self, credentials: Credentials | None) -> Awaitable[bool]: ...


class Note(Protocol):
    """Adds one entry to the timeline."""

    def __call__(self, kind: str, name: str, *, message: str | None = None, **detail: Any) -> None: ...


class Operations:
    """The operations on one environment.

    Args:
        state: read and changed in place. note: writes the timeline. record: see `Record`.
        entered: called with the name of each phase as it begins.

    Attributes:
        interrupted: the operation in flight was cancelled; its next step does not begin even where the cancellation
            met a step that had just ended well.
    """

    def __init__(
        self,
        state: EnvironmentState,
        note: Note,
        record: Record,
        entered: Callable[[str], None],
    ) -> None:
        self._state = state
        self._note = note
        self._record = record
        self._entered = entered
        self.interrupted = False

    def records(self, operation: Operation) -> bool:
        """Whether the operation begins with a record of its own, so that none is needed before it."""
        return operation is not Operation.START or self._state.container is None

    def begin(self, operation: Operation) -> Coroutine[Any, Any, Event]:
        """The coroutine of an operation. It returns the event of its success and raises `Failure` otherwise."""
        self.interrupted = False
        coroutines: dict[Operation, Callable[[], Coroutine[Any, Any, Event]]] = {
            Operation.START: self._start,
            Operation.STOP: self._stop,
            Operation.WIPE: self._wipe,
            Operation.CLEAN: self._clean,
            Operation.DELETE: self._delete,
        }
        return coroutines[operation]()

    async def _start(self) -> Event:
        state = self._state
        began = workflow.now()
        started = await self._adopt() if state.container else None
        if started is None:
            started = await self._new_generation()
        state.container = started
        awaited = workflow.now()
        paired = await self._on_host(
            HostActivities.await_node_pairing,
            m.AwaitNodePairing(
                environment_id=state.spec.environment_id,
                generation=state.generation,
                container_id=started.container_id,
                rfb_port=started.rfb_port,
                novnc_port=started.novnc_port,
            ),
            policies.PAIRING,
            "wait for RFB, noVNC and the node's pairing",
        )
        state.device_id = paired.node_id
        # Proven here and now, whatever was seen of it before an outage.
        state.node_lost_at = None
        self._timed("await_node_pairing", awaited)
        self._timed("total", began)
        state.phases |= {f"container_to_{name}": ms for name, ms in paired.phases.items()}
        self._note(
            "phase",
            "node_paired",
            node_id=paired.node_id,
            pairing_id=paired.pairing_id,
            ms=dict(paired.phases),
        )
        return Event.STARTED

    async def _adopt(self) -> m.ContainerStarted | None:
        """The container of the present generation, when it survived an outage of its host."""
        state = self._state
        try:
            adopted = await self._on_host(
                HostActivities.start_container,
                m.StartContainer(spec=state.spec, generation=state.generation, adopt_only=True),
                policies.CONTAINER,
                f"look for the running container of generation {state.generation}",
            )
        except Failure as failure:
            if failure.error.code in HOST_CODES:
                raise
            self._note("event", "container_absent", message=failure.error.message)
            state.container = None
            return None
        self._note("phase", "container_adopted", container_id=adopted.container_id[:12])
        return adopted

    async def _new_generation(self) -> m.ContainerStarted:
        state = self._state
        state.generation += 1
        state.phases = {}
        generation = state.generation
        began = workflow.now()
        prepared = await self._prepare()
        token = prepared.token or await self._mint()
        if state.device_id not in (None, prepared.device_id):
            self._note("credential", "identity_replaced", node_id=prepared.device_id)
        state.rotate_identity = False
        state.device_id = prepared.device_id
        state.token = token
        registration = m.RegisterNodeToken(
            environment_id=state.spec.environment_id,
            generation=generation,
            device_id=prepared.device_id,
            public_key=prepared.public_key,
            token=token,
        )
        if prepared.image is not None:
            self._timed("prepare", began)
            await self._register(registration)
        else:
            image, _ = await _both(self._ensure_image(), self._register(registration))
            self._timed("prepare", began)
            self._note_pull(image)
        return await self._start_container()

    async def _prepare(self) -> m.Prepared:
        """Identity, token, and the image where the host has it; in lists the start shows at the latest when the host
        is slow to take it up.
        """
        state = self._state
        request = m.PrepareIdentity(
            environment_id=state.spec.environment_id,
            generation=state.generation,
            rotate=state.rotate_identity,
            ttl_seconds=int(policies.NODE_TOKEN_TTL.total_seconds()),
            image_ref=state.spec.image_ref,
        )
        summary = f"identity and node token of generation {state.generation}; look for the image"
        try:
            return await self._on_host(
                HostActivities.prepare_identity, request, policies.FILES_AT_ONCE, summary
            )
        except Failure as failure:
            if failure.error.code is not ErrorCode.HOST_UNREACHABLE:
                raise
        await self._record(None)
        if self.interrupted:
            raise asyncio.CancelledError
        return await self._on_host(HostActivities.prepare_identity, request, policies.FILES, summary)

    async def _mint(self) -> m.NodeToken:
        """The node token, by a step of its own."""
        state = self._state
        return await self._on_host(
            HostActivities.mint_node_token,
            m.MintNodeToken(
                environment_id=state.spec.environment_id,
                generation=state.generation,
                ttl_seconds=int(policies.NODE_TOKEN_TTL.total_seconds()),
            ),
            policies.FILES,
            f"mint the node token of generation {state.generation}",
            phase=False,
        )

    async def _ensure_image(self) -> m.ImageReady:
        spec = self._state.spec
        return await self._on_host(
            HostActivities.ensure_image,
            m.EnsureImage(
                environment_id=spec.environment_id,
                generation=self._state.generation,
                image_ref=spec.image_ref,
            ),
            policies.IMAGE,
            f"have image {spec.image_ref}",
        )

    def _note_pull(self, image: m.ImageReady) -> None:
        state = self._state
        if image.pulled:
            state.phases["pull"] = image.pull_ms
            self._note("phase", "image_pulled", image_ref=state.spec.image_ref, ms=round(image.pull_ms))

    async def _register(self, registration: m.RegisterNodeToken) -> None:
        """Record the start with its token, which is live before its container is made."""
        state = self._state
        if not await self._record(registration):
            await self._in_inventory(
                ControlActivities.register_node_token,
                registration,
                f"register the node token of generation {registration.generation}",
            )
        overtaken = (
            state.generation != registration.generation or state.situation.status is not Status.STARTING
        )
        if self.interrupted or overtaken:
            # Overtaken: the inventory knew better, of a workflow that was reset by hand.
            raise asyncio.CancelledError

    async def _start_container(self) -> m.ContainerStarted:
        state = self._state
        began = workflow.now()
        started = await self._on_host(
            HostActivities.start_container,
            m.StartContainer(spec=state.spec, generation=state.generation),
            policies.CONTAINER,
            f"start the container of generation {state.generation}",
        )
        self._timed("start_container", began)
        self._note(
            "phase",
            "container_started",
            message="; ".join(started.notes) or None,
            container_id=started.container_id[:12],
            rfb_port=started.rfb_port,
            novnc_port=started.novnc_port,
        )
        return started

    async def _stop(self) -> Event:
        await self._revoke("stopped")
        await self._remove(policies.CLEAN_UP, "stop and remove the container")
        return Event.STOPPED

    async def _wipe(self) -> Event:
        await self._revoke("reset")
        await self._remove(policies.CLEAN_UP, "remove the container for the reset")
        await self._on_host(
            HostActivities.wipe_runtime,
            m.WipeRuntime(environment_id=self._state.spec.environment_id, generation=self._state.generation),
            policies.CLEAN_UP,
            "empty the runtime home",
        )
        self._note("phase", "wiped")
        return Event.WIPED

    async def _clean(self) -> Event:
        """Undo what a failed start or a lost sandbox left; the next operation would, but an error may last."""
        await self._revoke("failed")
        self._state.container = None
        try:
            removed = await self._remove(policies.CLEAN_UP, "remove what the failure left")
        except Failure as failure:
            if self._state.situation.recovery is Recovery.OPERATOR:
                # No next operation comes by itself: it is this one that has to be tried again.
                raise
            self._note("note", "clean_up_postponed", message=failure.error.message)
            return Event.CLEANED
        error = self._state.last_error
        if error and removed.lines and not error.log_tail:
            self._state.last_error = error.model_copy(update={"log_tail": removed.lines})
        return Event.CLEANED

    async def _delete(self) -> Event:
        """Ends whatever the host does (design decision 11). Run again after a failure, it goes on where it was."""
        state = self._state
        owed: Failure | None = None
        try:
            await self._revoke("deleted", pairing=True)
        except Failure as failure:
            # The tombstone ends the credentials as well; neither it nor the container waits for this.
            owed = failure
        erased = False
        if not state.deleted:
            try:
                if state.situation.host_available:
                    await self._erase(policies.CLEAN_UP_IN_DELETE, "remove the container")
                    erased = True
            except Failure as failure:
                self._note("note", "clean_up_postponed", message=failure.error.message)
            state.deleted = True
            self._note("status", "deleted")
            await self._record(None)
        if not erased:
            await self._erase(policies.CLEAN_UP_AT_LAST, "remove the container when the host is back")
        if owed is not None:
            raise owed
        state.erased = True
        return Event.CLEANED

    async def _erase(self, policy: ActivityConfig, summary: str) -> None:
        await self._remove(policy, summary)
        await self._wipe_everything(policy)

    async def _wipe_everything(self, policy: ActivityConfig) -> None:
        await self._on_host(
            HostActivities.wipe_runtime,
            m.WipeRuntime(
                environment_id=self._state.spec.environment_id,
                generation=self._state.generation,
                everything=True,
            ),
            policy,
            "remove the host directory",
        )

    async def _remove(self, policy: ActivityConfig, summary: str) -> m.ContainerRemoved:
        state = self._state
        removed = await self._on_host(
            HostActivities.remove_container,
            m.RemoveContainer(environment_id=state.spec.environment_id, generation=state.generation),
            policy,
            summary,
        )
        state.container = None
        if removed.removed:
            state.logs = removed.lines
            self._note("phase", "container_removed", exit_code=removed.exit_code)
        return removed

    async def _revoke(self, reason: str, *, pairing: bool = False) -> None:
        """Record where things stand, and end the credentials with it."""
        state = self._state
        # Whether or not this workflow knows of a token: one that was replaced or reset by hand may not.
        if state.generation == 0 and not pairing:
            await self._record(None)
        else:
            await self._record_revoked(reason, pairing)
        if self.interrupted:
            raise asyncio.CancelledError
        if state.token is not None:
            self._note("credential", "credentials_revoked", message=reason)
        state.token = None
        state.node_lost_at = None

    async def _record_revoked(self, reason: str, pairing: bool) -> None:
        state = self._state
        ended = -1
        while ended < state.generation:
            # Again where the inventory knew of newer ones, of a workflow that was reset by hand.
            ended = state.generation
            revocation = m.RevokeCredentials(
                environment_id=state.spec.environment_id, generation=ended, reason=reason, pairing=pairing
            )
            if not await self._record(revocation):
                await self._in_inventory(
                    ControlActivities.revoke_credentials,
                    revocation,
                    f"revoke credentials up to generation {ended}",
                )

    async def extend_token(self) -> None:
        """Move the expiry of the live token; the node keeps the token it has read."""
        state = self._state
        if state.token is None:
            return
        expires_at = workflow.now() + policies.NODE_TOKEN_TTL
        await self._in_inventory(
            ControlActivities.extend_node_token,
            m.ExtendNodeToken(
                environment_id=state.spec.environment_id, generation=state.generation, expires_at=expires_at
            ),
            "extend the node token",
        )
        state.token = state.token.model_copy(update={"expires_at": expires_at})

    async def capture_logs(self) -> m.CapturedLogs:
        """The container's log tail now. Raises: Failure."""
        state = self._state
        return await self._on_host(
            HostActivities.capture_logs,
            m.CaptureLogs(environment_id=state.spec.environment_id, generation=state.generation),
            policies.LOGS,
            "read the container's log",
            phase=False,
        )

    async def _on_host(
        self,
        method: Callable[[HostActivities, Request], Result],
        request: Request,
        policy: ActivityConfig,
        summary: str,
        *,
        phase: bool = True,
    ) -> Result:
        name = method.__name__
        if phase:
            self._entered(name)
        try:
            result = await on_host(
                method, request, host_id=self._state.spec.host_id, policy=policy, summary=summary
            )
        except ActivityError as error:
            raise self._failed(error, name) from error
        if phase and self.interrupted:
            raise asyncio.CancelledError
        return result

    async def _in_inventory(
        self, method: Callable[[ControlActivities, Request], Result], request: Request, summary: str
    ) -> Result:
        try:
            result = await in_inventory(method, request, policy=policies.INVENTORY, summary=summary)
        except ActivityError as error:
            raise self._failed(error, method.__name__) from error
        if self.interrupted:
            raise asyncio.CancelledError
        return result

    def _failed(self, error: ActivityError, phase: str) -> BaseException:
        if is_cancelled_exception(error):
            return asyncio.CancelledError()
        generation, now = self._state.generation, workflow.now()
        return Failure(classify(error, phase=phase, generation=generation, at=now))

    def _timed(self, phase: str, began: datetime) -> None:
        self._state.phases[phase] = round((workflow.now() - began) / timedelta(milliseconds=1), 1)


async def _both(first: Coroutine[Any, Any, A], second: Coroutine[Any, Any, B]) -> tuple[A, B]:
    """Both results; what ends the one badly ends the other, and is raised once both have ended."""
    a, b = tasks = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        while (running := [task for task in tasks if not task.done()]) and not any(map(_ended_badly, tasks)):
            await workflow.wait(running, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if a.cancelled():
        # For the other's sake, as a rule.
        b.result()
    return a.result(), b.result()


def _ended_badly(task: "asyncio.Task[Any]") -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
