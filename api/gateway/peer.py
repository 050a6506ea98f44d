"""What a connected peer may say, and the answer (protocol sections 2.3, 4.2 and 4.4)."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from api.gateway.connection import Connection, Registry
from models.capabilities import normalise
from models.wire import (
    CapabilityReady,
    Event,
    Failure,
    InvalidJson,
    InvalidMessage,
    PresenceBeacon,
    Request,
    Success,
    parse_envelope,
    timestamp,
)

_NODE_REQUESTS = frozenset(
    {"ping", "presence.beacon", "location.beacon", "attempt.evidence", "capability.ready"}
)
"""What a node's token permits (protocol section 2.3); not all of it is offered here."""

_PRESENCE_MODES = frozenset(
    {"ui", "web", "cli", "node", "backend", "probe", "test", "desktop", "browser-node"}
)

Handler = Callable[[Connection, Request], Awaitable[None]]


class Peer:
    """Answers frames of connections that have finished the handshake."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._handlers: dict[str, Handler] = {
            "ping": _ping,
            "presence.beacon": _presence_beacon,
            "capability.ready": self._capability_ready,
        }

    async def take(self, connection: Connection, frame: str | bytes) -> None:
        """Answer one frame; whatever it holds, the connection stays.

        Raises:
            Disconnected: the socket is closed or lost.
        """
        if isinstance(frame, bytes):
            await _complain(connection, "invalid_message", "frames are text")
            return
        try:
            message = parse_envelope(frame)
        except InvalidJson:
            await _complain(connection, "invalid_json", "the frame is not JSON")
        except InvalidMessage:
            await _complain(connection, "invalid_message", "the frame is no request, response or event")
        else:
            await self._route(connection, message)

    async def _route(self, connection: Connection, message: Request | Success | Failure | Event) -> None:
        if isinstance(message, Event):
            await _complain(connection, "unexpected_event", "the gateway takes no events")
        elif isinstance(message, Request):
            await self._request(connection, message)
        elif message.type == "task.execute":
            await self._task_response(connection, message)

    async def _request(self, connection: Connection, request: Request) -> None:
        if connection.claims.kind != "admin" and request.type not in _NODE_REQUESTS:
            await _fail(connection, request, "forbidden", f"a node may not send {request.type[:100]}")
            return
        handler = self._handlers.get(request.type)
        if handler is None:
            await _fail(
                connection, request, "unsupported_request", f"{request.type[:100]} is not offered here"
            )
            return
        try:
            await handler(connection, request)
        except ValidationError as error:
            await _fail(
                connection, request, "invalid_request", "the payload is not valid", {"issues": _issues(error)}
            )

    async def _task_response(self, connection: Connection, message: Success | Failure) -> None:
        future = connection.tasks.pop(message.request_id, None)
        if future is not None:
            if not future.done():
                future.set_result(message)
            return
        # Unknown here: late, and dropped, unless another connection is being waited for.
        others = (other for other in self._registry.everyone() if other is not connection)
        if any(message.request_id in other.tasks for other in others):
            await _complain(connection, "unauthorized", "this task was given to another connection")

    async def _capability_ready(self, connection: Connection, request: Request) -> None:
        if connection.role != "node":
            await _fail(connection, request, "unauthorized", "only a node has capabilities")
            return
        report = CapabilityReady.model_validate(request.payload)
        ready = [d for d in normalise(report.capabilities) if d.id in connection.advertised]
        connection.ready = {descriptor.id for descriptor in ready}
        await _succeed(connection, request)
        payload = {
            "node_id": connection.node_id,
            "capabilities": [descriptor.model_dump() for descriptor in ready],
            "capability_states": [
                state.model_dump(exclude_none=True)
                for state in report.capability_states
                if state.capability.id in connection.advertised
            ],
        }
        scope = {"kind": "node", "node_id": connection.node_id}
        # Not to other nodes, as the reference does: one sandbox has no business knowing of another.
        for listener in [connection, *self._registry.clients()]:
            await listener.send_event("capability.ready", payload, scope)


async def _ping(connection: Connection, request: Request) -> None:
    await _succeed(connection, request)


async def _presence_beacon(connection: Connection, request: Request) -> None:
    beacon = PresenceBeacon.model_validate(request.payload)
    device = connection.proven.init.device
    entry: dict[str, Any] = {
        "instance_id": connection.node_id,
        "role": connection.role,
        "last_seen_at": timestamp(datetime.now(UTC)),
        "reason": "periodic",
    }
    if device.version is not None:
        entry["version"] = device.version
    if device.mode in _PRESENCE_MODES:
        entry["mode"] = device.mode
    entry |= beacon.model_dump(exclude_none=True)
    await _succeed(connection, request, {"entry": entry})


async def _succeed(connection: Connection, request: Request, result: Any = None) -> None:
    answer = {"request_id": request.request_id, "type": request.type, "ok": True}
    if result is not None:
        answer["result"] = result
    await connection.send(answer)


async def _fail(
    connection: Connection, request: Request, code: str, message: str, details: Any = None
) -> None:
    error = {"code": code, "message": message}
    if details is not None:
        error["details"] = details
    await connection.send(
        {"request_id": request.request_id, "type": request.type, "ok": False, "error": error}
    )


async def _complain(connection: Connection, code: str, message: str) -> None:
    await connection.send_event("error", {"code": code, "message": message})


def _issues(error: ValidationError) -> list[dict[str, Any]]:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        {"path": [str(part)[:100] for part in problem["loc"]], "message": problem["msg"][:200]}
        for problem in problems[:20]
    ]
