"""The node's connection to its gateway: connect, serve, come back."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from websockets import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from sandbox.log import log
from sandbox.node import envelopes, tasks
from sandbox.node.config import NodeConfig
from sandbox.node.dedupe import RecentIds, TaskCache
from sandbox.node.desktop import Desktop
from sandbox.node.handshake import HandshakeError, subprotocols
from sandbox.node.identity import Identity
from sandbox.node.protocol import Execute, NodeProtocol, Note, Proven, Send
from sandbox.node.reconnect import STOPPED_EXIT_CODE, Backoff, stop_reason

if TYPE_CHECKING:
    # Debian's websockets 10 calls it WebSocketClientProtocol; what is used here, both have.
    from websockets.asyncio.client import ClientConnection

_OPEN_SECONDS = 10.0
_CLOSE_SECONDS = 0.3
_PROOF_SECONDS = 15.0
_KEEPALIVE_SECONDS = 20.0
_LARGEST_MESSAGE = 16 * 1024 * 1024
_ABNORMAL_CLOSURE = 1006


class Stopped(Exception):
    """The gateway told the node to go away for good."""


class GatewayClient:
    """Keeps one proven connection to the gateway for as long as it lives."""

    def __init__(self, config: NodeConfig, identity: Identity, token: str | None, desktop: Desktop) -> None:
        self._config = config
        self._identity = identity
        self._token = token
        self._desktop = desktop
        self._backoff = Backoff()
        self._tasks = TaskCache()
        self._events = RecentIds()
        self._running: set[asyncio.Task[None]] = set()
        # One thread: two input tasks at once would fight over the one pointer (section 12, gotcha 19).
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="desktop")

    async def run(self) -> int:
        """Serve until told to stop; returns the process's exit code."""
        while True:
            try:
                await self._serve_once()
            except Stopped as stopped:
                log("node", f"stopping for good: {stopped}")
                return STOPPED_EXIT_CODE
            except InvalidURI:
                log("node", "TYRUM_GATEWAY_WS_URL is not a usable WebSocket URL")
                return STOPPED_EXIT_CODE
            except (OSError, InvalidHandshake, TimeoutError, ConnectionClosed) as error:
                delay = self._backoff.next_delay()
                log("node", f"gateway away ({_reason(error)}), next try in {delay:.1f} s")
                await asyncio.sleep(delay)

    async def _serve_once(self) -> None:
        async with connect(
            self._config.gateway_url,
            subprotocols=[Subprotocol(name) for name in subprotocols(self._token)],
            compression=None,
            open_timeout=_OPEN_SECONDS,
            close_timeout=_CLOSE_SECONDS,
            # A gateway whose machine lost power says nothing; without this the node would wait for ever.
            ping_interval=_KEEPALIVE_SECONDS,
            ping_timeout=_KEEPALIVE_SECONDS,
            max_size=_LARGEST_MESSAGE,
        ) as socket:
            if socket.subprotocol is None:
                # The reference's WebSocket refuses this as well (section 1.2).
                raise ConnectionError("the gateway selected no subprotocol")
            protocol = NodeProtocol(
                self._identity, self._config.label, self._config.mode, self._desktop.capabilities,
                self._tasks, self._events,
            )  # fmt: skip
            try:
                await socket.send(protocol.opening())
                # The reference leaves this to the gateway; a half-open socket would then hold it for ever.
                async with asyncio.timeout(_PROOF_SECONDS):
                    while not protocol.proven:
                        await self._handle(protocol, socket, await socket.recv())
                while True:
                    await self._handle(protocol, socket, await socket.recv())
            except HandshakeError as error:
                raise Stopped(str(error)) from error
            except ConnectionClosed as closed:
                code = closed.rcvd.code if closed.rcvd is not None else _ABNORMAL_CLOSURE
                reason = stop_reason(code, has_token=self._token is not None)
                if reason is not None:
                    raise Stopped(f"{reason} (close code {code})") from closed
                raise

    async def _handle(self, protocol: NodeProtocol, socket: ClientConnection, message: str | bytes) -> None:
        # Binary frames are no part of the protocol and are dropped, as the reference does (section 1.2).
        for effect in protocol.receive(message) if isinstance(message, str) else ():
            match effect:
                case Send(frame):
                    await socket.send(frame)
                case Execute(request_id, payload):
                    task = asyncio.create_task(self._execute(protocol, socket, request_id, payload))
                    self._running.add(task)
                    task.add_done_callback(self._running.discard)
                case Proven():
                    self._backoff.reset()
                    log("node", "connected, key proven")
                    self._executor.submit(self._desktop.warm_up)
                case Note(text):
                    log("node", text)

    async def _execute(
        self, protocol: NodeProtocol, socket: ClientConnection, request_id: str, payload: Any
    ) -> None:  # fmt: skip
        loop = asyncio.get_running_loop()
        frame = await loop.run_in_executor(self._executor, answer_task, self._desktop, request_id, payload)
        protocol.finish(request_id, frame)
        # A lost connection loses nothing: the gateway gets the answer by asking again (section 2.4).
        with contextlib.suppress(ConnectionClosed):
            await socket.send(frame)


def answer_task(desktop: Desktop, request_id: str, payload: Any) -> str:
    """Carry out one ``task.execute`` and return the response frame; never raises (section 6.3)."""
    try:
        result = tasks.carry_out(tasks.parse_action(payload), desktop.operations)
    except tasks.InvalidRequest as error:
        return envelopes.failure(
            request_id, "task.execute", "invalid_request", str(error), {"issues": error.issues}
        )  # fmt: skip
    except tasks.TaskFailed as error:
        return envelopes.failure(request_id, "task.execute", "task_failed", str(error), {})
    except Exception as error:  # one broken task must not end the node
        log("node", f"task failed: {type(error).__name__}")
        message = f"backend error: {type(error).__name__}: {error}"
        return envelopes.failure(request_id, "task.execute", "task_failed", message, {})
    return envelopes.success(request_id, "task.execute", result)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
