"""What the gateway says of credentials that did not open it: to the audit, and so to the environment's timeline.

A managed token that has ended, or is used by another device than its own, is an alarm: one a minute per token and
reason. Whatever else is refused is one line a minute per address. Nobody can fill a disk by being refused.
"""

import asyncio
import logging
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from api import audit, database
from api.gateway.credentials import Claims
from api.throttle import Throttle
from inventory import node_tokens
from inventory.audit import TOKEN_REFUSED, ActorKind, Fact, Outcome
from inventory.node_tokens import Ended
from models import tokens
from models.errors import Unavailable

logger = logging.getLogger(__name__)

GRACE = timedelta(seconds=15)
"""A node that is stopped may knock once more with the token that has just been revoked: nothing to alarm about."""
_MOST_AT_ONCE = 50
_MOST_LOOKUPS = 4


class Alarms:
    """Records refusals in the background; beyond `_MOST_AT_ONCE` under way it lets them pass."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tokens = Throttle(turns=600)
        self._addresses = Throttle()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lookups = asyncio.Semaphore(_MOST_LOOKUPS)

    def refused(self, token: str | None, claims: Claims | None, address: str, code: str) -> None:
        """A peer was refused.

        Args:
            claims: of a token that is live but was not enough. code: why, such as a close code.
        """
        if claims is not None and claims.token_id is not None:
            # Live, and still refused: whoever holds it is not the device it was made for.
            ended = Ended(
                claims.token_id, claims.environment_id or "", claims.generation or 0, "used by another device"
            )
            self._spawn(self._alarm(ended, address))
        elif token is not None:
            self._spawn(self._look(token, address, code))
        else:
            self._spawn(self._stranger(address, code))

    async def close(self) -> None:
        """Leave the rest."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _look(self, token: str, address: str, code: str) -> None:
        if tokens.parse(token) is None:
            await self._stranger(address, code)
            return
        digest, now = tokens.sha256_hex(token), datetime.now(UTC)

        def work(session: Session) -> Ended | None:
            return node_tokens.why_ended(session, digest, now, GRACE)

        try:
            async with self._lookups:
                ended = await database.read(self._engine, work)
        except Unavailable as error:
            logger.warning("a refused token cannot be looked up: %s", error.message)
            return
        if ended is None:
            await self._stranger(address, code)
        elif ended.reason is not None:
            await self._alarm(ended, address)

    async def _alarm(self, ended: Ended, address: str) -> None:
        turn = self._tokens.take(f"{ended.token_id} {ended.reason}")
        if turn is None:
            return
        logger.warning(
            "token %s of environment %s refused from %s: %s",
            ended.token_id,
            ended.environment_id,
            address,
            ended.reason,
        )
        fact = Fact(
            action=TOKEN_REFUSED,
            outcome=Outcome.REFUSED,
            actor_kind=ActorKind.UNKNOWN,
            actor="unknown",
            source=address or None,
            code=ended.reason,
            environment_id=ended.environment_id,
            generation=ended.generation,
            target=ended.token_id,
            detail=turn.detail(),
        )
        await audit.attempt(self._engine, fact)

    async def _stranger(self, address: str, code: str) -> None:
        turn = self._addresses.take(address)
        if turn is None:
            return
        fact = Fact(
            action="auth.refused",
            outcome=Outcome.REFUSED,
            actor_kind=ActorKind.UNKNOWN,
            actor="unknown",
            source=address or None,
            code=code,
            detail={"listener": "node"} | turn.detail(),
        )
        await audit.attempt(self._engine, fact)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._tasks) >= _MOST_AT_ONCE:
            work.close()
            return
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
