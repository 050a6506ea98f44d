"""Telling an environment's workflow that its node came or went (design decision 14)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from models.messages import NodePresence

logger = logging.getLogger(__name__)

PresenceListener = Callable[[str, NodePresence], Awaitable[None]]
"""Told the environment id and what happened. What it raises means "not delivered": it is called again."""

_FIRST_DELAY, _LONGEST_DELAY = 0.2, 5.0
_GIVE_UP_AFTER = 600.0


async def persist(attempt: Callable[[], Awaitable[None]], what: str) -> None:
    """Call `attempt` until it returns, with growing pauses, for ten minutes at most.

    Args:
        what: names it in the log.
    """
    delay = _FIRST_DELAY
    waited = 0.0
    while True:
        try:
            await attempt()
            return
        except Exception as error:
            # Whatever keeps it from being delivered, the node's state is no less true a moment later.
            if waited >= _GIVE_UP_AFTER:
                logger.exception("%s: given up after %.0f s", what, waited)
                return
            if waited == 0:
                logger.warning("%s failed (%s); trying again", what, type(error).__name__)
        await asyncio.sleep(delay)
        waited += delay
        delay = min(delay * 2, _LONGEST_DELAY)


class PresenceReporter:
    """Delivers presence in order, one environment at a time; what is newer replaces what was not delivered."""

    def __init__(self, listener: PresenceListener | None) -> None:
        self._listener = listener
        self._newest: dict[str, NodePresence] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def report(self, environment_id: str, presence: NodePresence) -> None:
        """Deliver soon."""
        if self._listener is None:
            return
        self._newest[environment_id] = presence
        if environment_id not in self._tasks:
            task = asyncio.create_task(self._deliver(environment_id, self._listener))
            self._tasks[environment_id] = task

    async def close(self) -> None:
        """Stop; what is not delivered is found again from the rows by the next process."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _deliver(self, environment_id: str, listener: PresenceListener) -> None:
        async def newest() -> None:
            presence = self._newest[environment_id]
            await listener(environment_id, presence)
            if self._newest[environment_id] is presence:
                del self._newest[environment_id]

        try:
            while environment_id in self._newest:
                presence = self._newest[environment_id]
                await persist(newest, f"presence of environment {environment_id}")
                if self._newest.get(environment_id) is presence:
                    del self._newest[environment_id]
        finally:
            del self._tasks[environment_id]
