"""Open takeover sockets end when their session does: one query twice a second, only while one is open."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from sqlalchemy import Engine

from api import database
from api.takeover.targets import Target, open_ports
from models.errors import Unavailable

logger = logging.getLogger(__name__)

CHECK_SECONDS = 0.5
PATIENCE_SECONDS = 10.0
"""How long a socket stays open while the inventory cannot say whether its session lives."""


class LiveSockets:
    """The open takeover sockets of this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: dict[asyncio.Event, Target] = {}
        self._watcher: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def watched(self, target: Target) -> AsyncIterator[asyncio.Event]:
        """Watch one socket; the event is set when it must be closed."""
        ended = asyncio.Event()
        self._open[ended] = target
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch(), name="takeover-watch")
        try:
            yield ended
        finally:
            del self._open[ended]

    async def aclose(self) -> None:
        """End every socket and the watch."""
        for ended in self._open:
            ended.set()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    async def _watch(self) -> None:
        answered_at = time.monotonic()
        while self._open:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self._check()
            except Unavailable as error:
                logger.warning("takeover sessions cannot be checked: %s", error)
                if time.monotonic() - answered_at > PATIENCE_SECONDS:
                    self._end(set())
            else:
                answered_at = time.monotonic()

    async def _check(self) -> None:
        targets = set(self._open.values())
        ids = {target.session_id for target in targets}
        ports = await database.read(self._engine, lambda session: open_ports(session, ids, datetime.now(UTC)))
        self._end({target for target in targets if ports.get(target.session_id) == target.port}, targets)

    def _end(self, living: set[Target], asked: set[Target] | None = None) -> None:
        for ended, target in self._open.items():
            if target not in living and (asked is None or target in asked):
                ended.set()
