"""What operators decide about pairings, and how their nodes hear of it (protocol sections 4.4 and 10).

**A revoked pairing** closes the socket. A scoped token is dead with it: 4001. A managed or admin token is not, and
4001 would end the sandbox's main process and make a crash loop of an operator's decision: 1008, and the node
comes back, unpaired.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from api import audit, database
from api.gateway.connection import Connection, Disconnected
from inventory import pairings
from inventory.pairings import Approval, Decided
from models.errors import NotFound
from models.pairing import NodePairing
from models.tables import NodeRow

logger = logging.getLogger(__name__)


class Decisions:
    """Carries out operators' decisions.

    Args:
        connected: the recorded connection of a node, or None.
        changed: to be called when a node's pairing is another.
    """

    def __init__(
        self, engine: Engine, connected: Callable[[str], Connection | None], changed: Callable[[str], None]
    ) -> None:
        self._engine = engine
        self._connected = connected
        self._changed = changed

    async def approve(
        self, pairing_id: int, approval: Approval, *, operator: str, reason: str | None
    ) -> NodePairing:
        """Approve a pairing and tell its node; in a state that has nothing to approve, nothing changes.

        Raises:
            NotFound: there is no such pairing.
        """
        known = await self._pairing(pairing_id)
        connected = self._connected(known.node.node_id) is not None

        def work(session: Session) -> Decided | None:
            decided = pairings.approve(
                session,
                pairing_id,
                approval,
                operator=operator,
                reason=reason,
                connected=connected,
                now=datetime.now(UTC),
            )
            return _recorded(session, decided, reason)

        decided = _found(await database.write(self._engine, work), pairing_id)
        connection = self._learn(decided.pairing)
        if connection is not None and decided.changed:
            try:
                await send_pairing(connection, decided)
            except Disconnected:
                logger.info("node %s left before it heard of its approval", connection.node_id)
        return decided.pairing

    async def deny(self, pairing_id: int, *, operator: str, reason: str | None) -> NodePairing:
        """Deny a waiting pairing; in other states nothing changes.

        Raises:
            NotFound: there is no such pairing.
        """

        def work(session: Session) -> Decided | None:
            decided = pairings.deny(
                session, pairing_id, operator=operator, reason=reason, now=datetime.now(UTC)
            )
            return _recorded(session, decided, reason)

        decided = _found(await database.write(self._engine, work), pairing_id)
        self._learn(decided.pairing)
        return decided.pairing

    async def revoke(self, pairing_id: int, *, operator: str, reason: str | None) -> NodePairing:
        """Revoke an approved pairing and close its node's socket; in other states nothing changes.

        Raises:
            NotFound: there is no such pairing.
        """

        def work(session: Session) -> Decided | None:
            decided = pairings.revoke(
                session, pairing_id, operator=operator, reason=reason, now=datetime.now(UTC)
            )
            return _recorded(session, decided, reason)

        decided = _found(await database.write(self._engine, work), pairing_id)
        connection = self._learn(decided.pairing)
        if connection is not None and decided.changed:
            await connection.close(4001 if connection.claims.kind == "scoped" else 1008, "pairing revoked")
        return decided.pairing

    async def _pairing(self, pairing_id: int) -> NodePairing:
        found = await database.read(self._engine, lambda session: pairings.get(session, pairing_id))
        if found is None:
            raise NotFound(f"there is no pairing {pairing_id}")
        return found

    def _learn(self, pairing: NodePairing) -> Connection | None:
        connection = self._connected(pairing.node.node_id)
        if connection is not None:
            connection.pairing = pairing
            self._changed(connection.node_id)
        return connection


async def send_pairing(connection: Connection, decided: Decided) -> None:
    """Send `pairing.updated`, with the scoped token where one was minted just now.

    Raises:
        Disconnected: the socket is closed or lost.
    """
    payload: dict[str, Any] = {"pairing": decided.pairing.wire()}
    if decided.scoped_token is not None:
        payload["scoped_token"] = decided.scoped_token
    await connection.send_event("pairing.updated", payload)


def _recorded(session: Session, decided: Decided | None, reason: str | None) -> Decided | None:
    if decided is not None:
        pairing = decided.pairing
        node = session.get(NodeRow, pairing.node.node_id)
        audit.stage(
            session,
            environment_id=node.environment_id if node else None,
            generation=node.generation if node else None,
            target=pairing.node.node_id,
            detail={
                "pairing_id": pairing.pairing_id,
                "status": pairing.status,
                "changed": decided.changed,
                "reason": reason,
            },
        )
    return decided


def _found(decided: Decided | None, pairing_id: int) -> Decided:
    if decided is None:
        raise NotFound(f"there is no pairing {pairing_id}")
    return decided
