"""The node's side of one connection, without any I/O (node-protocol.md sections 2 to 4)."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sandbox.node import envelopes, handshake
from sandbox.node.dedupe import RecentIds, TaskCache
from sandbox.node.identity import Identity


@dataclass(frozen=True)
class Send:
    """Send this frame."""

    frame: str


@dataclass(frozen=True)
class Execute:
    """Carry out this task, then call `NodeProtocol.finish`."""

    request_id: str
    payload: Any


@dataclass(frozen=True)
class Proven:
    """The gateway accepted the proof: the node is connected."""


@dataclass(frozen=True)
class Note:
    """Tell the operator."""

    message: str


Effect = Send | Execute | Proven | Note


class NodeProtocol:
    """Turns frames of one connection into effects; the caches outlive it and are handed in."""

    def __init__(
        self, identity: Identity, label: str, mode: str | None, capabilities: Sequence[str],
        tasks: TaskCache, events: RecentIds,
    ) -> None:  # fmt: skip
        self._identity = identity
        self._tasks = tasks
        self._events = events
        self._init_id = str(uuid.uuid4())
        self._proof_id: str | None = None
        self._init = handshake.connect_init(identity, label, mode, capabilities)
        self.proven = False

    def opening(self) -> str:
        """The ``connect.init`` frame, to be sent as soon as the socket is open."""
        return envelopes.request(self._init_id, "connect.init", self._init)

    def receive(self, text: str) -> list[Effect]:
        """What to do about one text frame; invalid frames are dropped silently (section 2.2).

        Raises:
            HandshakeError: the handshake was answered in a way that forbids another try.
        """
        try:
            message = envelopes.parse(text)
        except envelopes.EnvelopeError:
            return []
        if isinstance(message, envelopes.Response):
            return self._on_response(message)
        if isinstance(message, envelopes.Event):
            return self._on_event(message)
        return self._on_request(message)

    def finish(self, request_id: str, frame: str) -> None:
        """Remember the answer to an executed task, so that a repeated request gets it again (section 2.4)."""
        self._tasks.finish(request_id, frame)

    def _on_response(self, response: envelopes.Response) -> list[Effect]:
        if (
            response.request_id == self._init_id
            and self._proof_id is None
            and response.type == "connect.init"
        ):
            self._refuse_failure(response)
            self._proof_id = str(uuid.uuid4())
            proof = handshake.connect_proof(self._identity, response.result)
            return [Send(envelopes.request(self._proof_id, "connect.proof", proof))]
        if response.request_id == self._proof_id and not self.proven and response.type == "connect.proof":
            self._refuse_failure(response)
            handshake.check_proof_result(response.result)
            self.proven = True
            return [Proven()]
        return []

    @staticmethod
    def _refuse_failure(response: envelopes.Response) -> None:
        if not response.ok:
            raise handshake.HandshakeError(
                f"the gateway refused {response.type}: {response.code}: {response.message}"
            )

    def _on_event(self, event: envelopes.Event) -> list[Effect]:
        if not self._events.add(event.event_id) or not isinstance(event.payload, dict):
            return []
        # Only named fields are logged: the event of an approval also carries a token.
        if event.type == "pairing.updated" and isinstance(pairing := event.payload.get("pairing"), dict):
            return [Note(f"pairing {pairing.get('status')}")]
        if event.type == "error":
            return [Note(f"gateway error {event.payload.get('code')}: {event.payload.get('message')}")]
        return []

    def _on_request(self, request: envelopes.Request) -> list[Effect]:
        if request.type == "ping":
            return [Send(envelopes.success(request.request_id, "ping"))]
        if request.type == "task.execute":
            if self._tasks.begin(request.request_id):
                return [Execute(request.request_id, request.payload)]
            answer = self._tasks.answer(request.request_id)
            return [Send(answer)] if answer is not None else []
        if request.type in ("connect", "connect.init", "connect.proof"):
            message = f"unexpected {request.type} from the gateway"
            return [Send(envelopes.failure(request.request_id, request.type, "unexpected_connect", message))]
        return []
