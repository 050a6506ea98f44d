"""Who waits for news of which environment, and the one look at the inventory that serves them all."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from sqlalchemy import Engine

from api import database
from inventory import timeline
from models.errors import Unavailable

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25
AWAY_SECONDS = 1.0
MOST_STREAMS = 100
"""In one process; each costs a socket, a task and a part of one statement every `POLL_SECONDS`."""


class Feed:
    """Wakes whoever waits when an environment's records go further; idle, and no task, while nobody does."""

    def __init__(self, engine: Engine, most: int = MOST_STREAMS) -> None:
        self._engine = engine
        self._most = most
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._marks: dict[str, timeline.Mark] = {}
        self._poller: asyncio.Task[None] | None = None
        self.closing = False

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @contextmanager
    def listening(self, environment_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever there may be something to read.

        Raises:
            Unavailable: there are too many streams, or the process ends.
        """
        if self.closing:
            raise Unavailable("the API is shutting down; try again")
        if len(self) >= self._most:
            raise Unavailable(f"{self._most} event streams are open, as many as there may be; close one")
        news = asyncio.Event()
        self._waiting[environment_id].add(news)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="event feed")
        try:
            yield news
        finally:
            self._waiting[environment_id].discard(news)
            if not self._waiting[environment_id]:
                del self._waiting[environment_id]
                self._marks.pop(environment_id, None)

    async def aclose(self) -> None:
        """End every stream."""
        self.closing = True
        for events in self._waiting.values():
            for news in events:
                news.set()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.wait([self._poller])

    async def _poll(self) -> None:
        while self._waiting:
            ids = list(self._waiting)
            pause = POLL_SECONDS
            try:
                found = await database.read(self._engine, partial(timeline.marks, environment_ids=ids))
            except Unavailable as error:
                logger.debug("no news: %s", error.message)
                found, pause = {}, AWAY_SECONDS
            except Exception:
                # The streams outlive whatever it was; they would be silent for ever without this task.
                logger.exception("the event feed could not look")
                found, pause = {}, AWAY_SECONDS
            for environment_id, mark in found.items():
                if environment_id in self._waiting and self._marks.get(environment_id) != mark:
                    self._marks[environment_id] = mark
                    for news in self._waiting[environment_id]:
                        news.set()
            await asyncio.sleep(pause)
