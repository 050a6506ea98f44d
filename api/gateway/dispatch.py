"""One capability call to one node: what must hold, and what comes back (protocol sections 4.3, 6 and 10)."""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4
from weakref import WeakValueDictionary

from pydantic import ValidationError
from sqlalchemy import Engine

from api import audit, database
from api.gateway.connection import Connection, Disconnected, Registry
from api.gateway.handshake import DEVICE_ID
from api.gateway.limits import Limits
from inventory import nodes, pairings
from models import capabilities
from models.errors import Conflict, InvalidRequest, NotFound
from models.lifecycle import Status
from models.pairing import PairingStatus
from models.wire import Failure, Success, TaskResult

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT_SECONDS = 30.0
_DEFAULT_WAIT_MS = 30_000
_LONGEST_WAIT_MS = 600_000
_ARGS_KEPT = 20

_REPEATABLE = frozenset(
    {f"tyrum.desktop.{name}" for name in ("screenshot", "snapshot", "query", "wait-for")}
    | {f"tyrum.fs.{name}" for name in ("read", "glob", "grep")}
)
"""What changes nothing and so may be asked again when its outcome is unknown."""

_BY_TEXT = (
    ("no provider", "action_not_supported"),
    ("not supported", "action_not_supported"),
    ("unsupported", "action_not_supported"),
    ("consent", "consent_denied"),
    ("permission", "permission_denied"),
    ("disabled", "disabled_by_operator"),
    ("invalid", "invalid_input"),
    ("missing", "invalid_input"),
)


@dataclass(frozen=True)
class Task:
    """One call.

    Attributes:
        args: of the action, without or with the matching `op`.
        timeout: seconds for the queue and again for the node; None for 30.
    """

    capability: str
    args: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None


@dataclass(frozen=True)
class TaskError:
    """Why a task failed: a code of protocol section 6.5. `retryable`: asking again does no harm and may help."""

    code: str
    message: str
    retryable: bool


@dataclass(frozen=True)
class Outcome:
    """What became of a dispatched task; `error` is None when it succeeded."""

    task_id: str
    dispatch_id: str
    result: Any = None
    evidence: Any = None
    error: TaskError | None = None


class Dispatcher:
    """Sends tasks to connected nodes."""

    def __init__(self, engine: Engine, registry: Registry, limits: Limits) -> None:
        self._engine = engine
        self._registry = registry
        self._limits = limits
        self._input: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def dispatch(self, node_id: str, task: Task) -> Outcome:
        """Give one task to a node and wait for the answer.

        Raises:
            InvalidRequest: no such capability, or arguments that cannot be sent.
            NotFound: no such node.
            Conflict: the node may not, or cannot now, be given this; or its input queue did not move in time.
            Unavailable: the inventory does not answer.
        """
        action = _action(task)
        timeout = self._timeout(task, action["args"])
        if task.capability not in capabilities.INPUT:
            connection = await self._admitted(node_id, task.capability)
            return await self._execute(connection, task.capability, action, timeout)
        lock = self._input.setdefault(node_id, asyncio.Lock())
        # The place in the queue is taken before anything is looked up: look-ups end in any order.
        place = asyncio.create_task(lock.acquire())
        try:
            await self._admitted(node_id, task.capability)
            await self._reach(place, node_id, timeout)
            # Much may have changed in the queue.
            connection = await self._admitted(node_id, task.capability)
            return await self._execute(connection, task.capability, action, timeout)
        finally:
            if place.cancel():
                await asyncio.wait([place])
            if not place.cancelled():
                lock.release()

    async def _reach(self, place: "asyncio.Task[Literal[True]]", node_id: str, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(place)
        except TimeoutError:
            raise Conflict(
                f"node {node_id} was busy with other input for {timeout:g} s; try again when it is done"
            ) from None

    async def _admitted(self, node_id: str, capability: str) -> Connection:
        known = DEVICE_ID.fullmatch(node_id) is not None
        audit.note(detail={"capability": capability})
        facts = await database.read(self._engine, lambda s: nodes.facts(s, node_id)) if known else None
        if facts is None:
            raise NotFound("there is no node of that id; see GET /nodes")
        pairing, status = facts.pairing, facts.environment_status
        audit.note(environment_id=pairing.environment_id if pairing else None)
        if pairing is None or pairing.status != PairingStatus.APPROVED:
            now = "unpaired" if pairing is None else pairing.status
            raise Conflict(f"the pairing of node {node_id} is {now}, not approved; see GET /pairings")
        allowed = {descriptor.id: descriptor.version for descriptor in pairings.allowlist(pairing)}
        if allowed.get(capability) != capabilities.VERSION:
            raise Conflict(
                f"{capability} {capabilities.VERSION} is not in the allowlist of node {node_id}'s pairing"
            )
        if pairing.environment_id is not None and status != Status.RUNNING:
            raise Conflict(f"environment {pairing.environment_id} is {status or 'unknown'}, not running")
        connection = self._registry.get(node_id)
        if connection is None or connection.pairing is None:
            raise Conflict(f"node {node_id} is not connected")
        if pairing.environment_id is not None and connection.claims.environment_id is None:
            raise Conflict(f"node {node_id} is connected without its environment's token")
        if capability not in connection.advertised:
            raise Conflict(f"node {node_id} does not advertise {capability}")
        if capability not in connection.ready:
            raise Conflict(f"node {node_id} reports {capability} as not ready")
        return connection

    async def _execute(
        self, connection: Connection, capability: str, action: Mapping[str, Any], timeout: float
    ) -> Outcome:
        task_id, dispatch_id = f"task-{uuid4()}", str(uuid4())
        payload = {"dispatch_id": dispatch_id, "action": action}
        request = {"request_id": task_id, "type": "task.execute", "payload": payload}
        self._check_size(request)
        await audit.begin(
            generation=connection.claims.generation,
            detail={"task_id": task_id, "args": _redacted(action["args"])},
        )
        future: asyncio.Future[Success | Failure] = asyncio.get_running_loop().create_future()
        connection.tasks[task_id] = future
        repeatable = capability in _REPEATABLE
        try:
            async with asyncio.timeout(timeout):
                await connection.send(request)
                answer = await future
        except TimeoutError:
            message = f"the node did not answer within {timeout:g} s; it may still be carrying this out"
            error = TaskError("dispatch_timeout", message, repeatable)
            outcome = Outcome(task_id, dispatch_id, error=error)
        except Disconnected:
            message = "the node disconnected before it answered"
            error = TaskError("runtime_unavailable", message, repeatable)
            outcome = Outcome(task_id, dispatch_id, error=error)
        else:
            outcome = _outcome(task_id, dispatch_id, answer)
        finally:
            connection.tasks.pop(task_id, None)
        code = "ok" if outcome.error is None else outcome.error.code
        audit.note(failure=outcome.error.code if outcome.error else None)
        logger.info("dispatch %s of %s to %s: %s", task_id, capability, connection.node_id, code)
        return outcome

    def _timeout(self, task: Task, args: Mapping[str, Any]) -> float:
        timeout = DEFAULT_TIMEOUT_SECONDS if task.timeout is None else task.timeout
        if task.capability != capabilities.WAIT_FOR:
            return timeout
        wait = args.get("timeout_ms", _DEFAULT_WAIT_MS)
        if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait <= _LONGEST_WAIT_MS:
            raise InvalidRequest(f"args.timeout_ms: must be between 0 and {_LONGEST_WAIT_MS}")
        # Equal deadlines would race; the node's own is to come first.
        return max(timeout, wait / 1000 + self._limits.wait_margin)

    def _check_size(self, request: Mapping[str, Any]) -> None:
        try:
            size = len(json.dumps(request, allow_nan=False, ensure_ascii=False).encode())
        except (ValueError, RecursionError):
            raise InvalidRequest("args: cannot be sent as JSON") from None
        if size > self._limits.frame_bytes:
            raise InvalidRequest(f"args: larger than {self._limits.frame_bytes} bytes")


def _action(task: Task) -> dict[str, Any]:
    action = capabilities.action_of(task.capability)
    if action is None:
        raise InvalidRequest(
            f"capability: {task.capability[:100]!r} has no action here; name one such as tyrum.desktop.screenshot"
        )
    kind, op = action
    args = dict(task.args)
    if args.setdefault("op", op) != op:
        raise InvalidRequest(f"args.op: must be {op!r} for {task.capability}, or absent")
    if task.capability == capabilities.SCREENSHOT:
        # Nodes insist on it (protocol section 6.2).
        args.setdefault("display", "primary")
    return {"type": kind, "args": args}


def _redacted(args: Mapping[str, Any]) -> dict[str, Any]:
    """What of a task's arguments may be kept: numbers, and of anything that could be typed text its size."""
    kept: dict[str, Any] = {}
    for name, value in list(args.items())[:_ARGS_KEPT]:
        if name == "op" or value is None or isinstance(value, bool | int | float):
            kept[name[:40]] = value
        elif isinstance(value, str):
            kept[name[:40]] = f"<{len(value)} characters>"
        else:
            kept[name[:40]] = f"<{type(value).__name__} of {len(value)}>"
    return kept


def _outcome(task_id: str, dispatch_id: str, answer: Success | Failure) -> Outcome:
    if isinstance(answer, Failure):
        details = answer.error.details
        evidence = details.get("evidence") if isinstance(details, dict) else None
        code = _error_code(answer)
        return Outcome(
            task_id,
            dispatch_id,
            evidence=evidence,
            error=TaskError(code, answer.error.message[:2000], retryable=False),
        )
    try:
        result = TaskResult.model_validate({} if answer.result is None else answer.result)
    except ValidationError:
        message = "the node's answer is not of the protocol's form"
        return Outcome(task_id, dispatch_id, error=TaskError("execution_failed", message, retryable=False))
    return Outcome(task_id, dispatch_id, result=result.result, evidence=result.evidence)


def _error_code(answer: Failure) -> str:
    if answer.error.code == "invalid_request":
        return "invalid_input"
    text = answer.error.message.lower()
    return next((code for part, code in _BY_TEXT if part in text), "execution_failed")
