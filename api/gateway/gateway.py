"""The gateway: every node's socket, from the proof to its end (design sections 2 and 3).

**One device, two connections.** The newer one wins once it has proven the key, and the older one is closed with
4001 "replaced by a newer connection". A node takes most other codes as "connect again" (protocol section 1.3), so
two live processes of one identity would throw each other out for ever; 4001 ends the older. The usual older
socket is a half-open one that its own process has given up, and then nobody hears the code.

**Shutting down** closes sockets with 1001 and leaves the rows as they are: nodes come back within the grace time of
the next process, and nobody is told of a disconnection. `close` has to run before uvicorn is told to exit, which
closes the sockets itself with 1012.
"""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy import Engine
from starlette.websockets import WebSocket

from api import database
from api.gateway import records
from api.gateway.alarms import Alarms
from api.gateway.connection import Connection, Disconnected, Registry
from api.gateway.credentials import AdminVerifier, Credentials
from api.gateway.decisions import Decisions, send_pairing
from api.gateway.dispatch import Dispatcher, Outcome, Task
from api.gateway.door import Admitted, Door
from api.gateway.handshake import Issue, random_issue
from api.gateway.limits import Limits
from api.gateway.peer import Peer
from api.gateway.presence import PresenceListener, PresenceReporter, persist
from inventory import node_tokens, nodes, pairings
from models.errors import Unauthorized, Unavailable
from models.messages import NodePresence
from models.pairing import NodePairing, PairingStatus

logger = logging.getLogger(__name__)

_TOKENS_PER_QUERY = 500


@dataclass(frozen=True)
class SelfView:
    """A node token's own node.

    Attributes:
        pairing: None until the node has connected once.
        connected: by this very token. approved: and its pairing is.
    """

    pairing: NodePairing | None
    connected: bool
    approved: bool


class Gateway:
    """The nodes of one api process. `decisions`: what operators decide about pairings.

    Args:
        presence_listener: told when a managed node is lost and when a lost one is back.
        verify_admin: asked for tokens that are neither a node's nor a pairing's; without it no admin token
            opens `/ws`.
        issue: makes connection ids and challenges; for tests.
    """

    def __init__(
        self,
        engine: Engine,
        presence_listener: PresenceListener | None = None,
        *,
        verify_admin: AdminVerifier | None = None,
        limits: Limits | None = None,
        issue: Issue = random_issue,
    ) -> None:
        self._engine = engine
        self._limits = limits or Limits()
        self._credentials = Credentials(engine, verify_admin)
        self._alarms = Alarms(engine)
        self._door = Door(self._credentials, self._limits, issue, self._alarms)
        self._registry = Registry()
        self._peer = Peer(self._registry)
        self._dispatcher = Dispatcher(engine, self._registry, self._limits)
        self._reporter = PresenceReporter(presence_listener)
        self.decisions = Decisions(engine, self.connection, self._changed)
        self._node_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._changes: dict[str, asyncio.Event] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._closing = False

    async def start(self) -> None:
        """Begin to watch tokens, and to wait for the nodes of a former process."""
        self._spawn(self._watch_tokens())
        self._spawn(self._await_former())

    async def close(self) -> None:
        """Close every socket with 1001, answer every waiting caller, end the background tasks."""
        self._closing = self._door.closing = True
        for node_id in list(self._changes):
            self._changed(node_id)
        peers = self._registry.everyone()
        await asyncio.gather(*(peer.close(1001, "server shutdown") for peer in peers))
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._reporter.close()
        await self._alarms.close()

    # --- sockets ---

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one `/ws` upgrade to its end; never raises for what the peer does."""
        admitted = await self._door.admit(websocket)
        if admitted is not None:
            await self._attend(admitted)

    def connection(self, node_id: str) -> Connection | None:
        """The node's connection, once it is recorded."""
        connection = self._registry.get(node_id)
        return connection if connection is not None and connection.pairing is not None else None

    async def _attend(self, admitted: Admitted) -> None:
        connection = admitted.connection
        older = self._registry.add(connection)
        if older is not None:
            older.reject_tasks()
            self._spawn(older.close(4001, "replaced by a newer connection"))
        try:
            await connection.send(admitted.reply)
            if connection.role == "node":
                await self._arrive(connection)
            for frame in admitted.ahead:
                await self._peer.take(connection, frame)
            while True:
                await self._peer.take(connection, await connection.socket.receive())
        except Disconnected:
            logger.debug("peer %s disconnected", connection.node_id)
        except Exception:
            # One peer's trouble is not the others': it gets a code that lets it come again.
            logger.exception("the socket of %s failed", connection.node_id)
            await connection.close(1011, "internal error")
        finally:
            self._registry.remove(connection)
            connection.reject_tasks()
            connection.socket.abandon()
            if connection.role == "node":
                self._changed(connection.node_id)
                if not self._closing:
                    self._spawn(self._depart(connection.node_id, connection.leaving or "disconnected"))

    async def _arrive(self, connection: Connection) -> None:
        async with self._lock(connection.node_id):
            if self._registry.get(connection.node_id) is not connection:
                raise Disconnected
            try:
                arrival = await database.write(self._engine, lambda s: records.arrive(s, connection))
            except Unavailable:
                await connection.close(1013, "try again later")
                raise Disconnected from None
        if arrival is None:
            await connection.close(4001, "token revoked")
            raise Disconnected
        connection.pairing = arrival.decided.pairing
        self._changed(connection.node_id)
        claims = connection.claims
        if arrival.back and claims.environment_id is not None and claims.generation is not None:
            self._report(claims.environment_id, claims.generation, connection.node_id, True, "reconnected")
        if arrival.decided.approved:
            await send_pairing(connection, arrival.decided)

    async def _depart(self, node_id: str, reason: str, *, again: bool = False) -> None:
        async def attempt() -> None:
            async with self._lock(node_id):
                # The registry knows better than the row: a newer connection is, or will be, recorded.
                if self._closing or self._registry.get(node_id) is not None:
                    return
                work = partial(records.depart, node_id=node_id, again=again)
                gone = await database.write(self._engine, work)
            if gone is not None:
                self._report(gone.environment_id, gone.generation, node_id, False, reason)

        await persist(attempt, f"record of node {node_id}'s disconnection")

    def _report(
        self, environment_id: str, generation: int, node_id: str, connected: bool, reason: str
    ) -> None:
        presence = NodePresence(
            generation=generation, connected=connected, node_id=node_id, reason=reason, at=datetime.now(UTC)
        )
        self._reporter.report(environment_id, presence)

    async def _await_former(self) -> None:
        former: list[str] = []

        async def read() -> None:
            former.extend(await database.read(self._engine, nodes.expected))

        await persist(read, "list of the former process's nodes")
        await asyncio.sleep(self._limits.reconnect_grace)
        for node_id in former:
            if self._registry.get(node_id) is None:
                await self._depart(node_id, "did not come back after the gateway's restart", again=True)

    # --- revocation ---

    async def close_token(self, token_id: str, reason: str = "token revoked") -> None:
        """Close the live sockets of one managed token with 4001."""
        peers = [peer for peer in self._registry.everyone() if peer.claims.token_id == token_id]
        await asyncio.gather(*(peer.close(4001, reason) for peer in peers))

    async def close_revoked(self) -> None:
        """Close the live sockets of every managed token that has ended.

        Raises:
            Unavailable: the inventory does not answer.
        """
        live = sorted({p.claims.token_id for p in self._registry.everyone() if p.claims.token_id is not None})
        for start in range(0, len(live), _TOKENS_PER_QUERY):
            some = live[start : start + _TOKENS_PER_QUERY]
            for token_id in await database.read(
                self._engine, partial(node_tokens.ended_among, token_ids=some)
            ):
                await self.close_token(token_id)

    async def _watch_tokens(self) -> None:
        while True:
            await asyncio.sleep(self._limits.revocation_interval)
            try:
                await self.close_revoked()
            except Unavailable as error:
                logger.warning("tokens cannot be checked now: %s", error.message)
            except Exception:
                logger.exception("tokens could not be checked")

    # --- operators ---

    async def dispatch(self, node_id: str, task: Task) -> Outcome:
        """As `Dispatcher.dispatch`."""
        return await self._dispatcher.dispatch(node_id, task)

    # --- the node's own view ---

    async def view_self(self, token: str, wait: float, address: str = "") -> SelfView:
        """What a managed node token may know: its own node and pairing (design decision 13).

        Args:
            wait: seconds to wait at most until the node is connected by this token and approved.
            address: where it is asked from, for the audit of a refusal.

        Raises:
            Unauthorized: not a live managed node token, or no longer.
            Unavailable: the inventory does not answer.
        """
        claims = await self._credentials.resolve_node(token)
        if claims is None or claims.token_id is None or claims.device_id is None:
            self._alarms.refused(token, None, address, Unauthorized.code)
            raise Unauthorized("send 'Authorization: Bearer <node token>' with a live node token")
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            connection = self.connection(claims.device_id)
            mine = connection is not None and connection.claims.token_id == claims.token_id
            if connection is not None and mine and connection.approved:
                return SelfView(connection.pairing, connected=True, approved=True)
            try:
                async with asyncio.timeout_at(deadline):
                    if wait <= 0 or self._closing:
                        raise TimeoutError
                    await self._changes.setdefault(claims.device_id, asyncio.Event()).wait()
            except TimeoutError:
                break
        if wait > 0 and await self._credentials.resolve_node(token) is None:
            raise Unauthorized("the node token has ended")
        device_id = claims.device_id
        pairing = await database.read(self._engine, lambda session: pairings.of_node(session, device_id))
        approved = mine and pairing is not None and pairing.status is PairingStatus.APPROVED
        return SelfView(pairing, connected=mine, approved=approved)

    def _changed(self, node_id: str) -> None:
        event = self._changes.pop(node_id, None)
        if event is not None:
            event.set()

    def _lock(self, node_id: str) -> asyncio.Lock:
        return self._node_locks.setdefault(node_id, asyncio.Lock())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
