"""The timeline as server-sent events (design section 5): resumable, prompt, bounded."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from sqlmodel import Session
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from api import database
from api.bodies import PLACE
from api.dependencies import Admin, EnvironmentId, Services, ServicesDep, authenticate
from api.errors import responses
from api.feed import Feed
from api.schemas import TimelineEntryOut
from inventory import environments, timeline
from inventory.timeline import START, Item, Place
from models.errors import InvalidRequest, NotFound, Unauthorized, Unavailable

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/desktop-environments", tags=["environments"])

HEARTBEAT_SECONDS = 15.0
CHECK_SECONDS = 0.4
"""How often a stream asks whether its token still holds: revocation has to within 1 s."""
SEND_SECONDS = 10.0
"""A client that takes nothing for so long is dropped."""
_PAGE = 200
_RETRY = "retry: 1000\n\n"
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Entries of the timeline, each with its place as `id`; at the end an event `deleted`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


class EventStream(StreamingResponse):
    """A stream that drops a client which does not read."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[str], resources: ExitStack) -> None:
        super().__init__(content, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def timed(message: Message) -> None:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        with self._resources:
            try:
                await super().__call__(scope, receive, timed)
            except* TimeoutError:
                logger.info("an event stream is dropped: its client takes nothing")


@router.get(
    "/{environment_id}/events",
    summary="Timeline as server-sent events",
    status_code=200,
    response_class=EventStream,
    responses=responses(InvalidRequest, Unauthorized, NotFound, Unavailable) | _STREAM,
)
async def stream_environment_events(
    request: Request,
    environment_id: EnvironmentId,
    services: ServicesDep,
    _operator: Admin,
    after: Annotated[
        str | None, Query(pattern=PLACE, description="`id` of the last entry already read.")
    ] = None,
    last_event_id: Annotated[
        str | None, Header(pattern=PLACE, description="As `after`; sent by clients that resume.")
    ] = None,
) -> EventStream:
    """The timeline from its beginning, or after the place named, and then as it grows; ends with deletion."""
    given = last_event_id or after
    place = START if given is None else timeline.parse_place(given) or START
    row = await database.read(
        services.engine, lambda session: environments.get(session, environment_id, True)
    )
    if row is None:
        raise NotFound("there is no environment of that id")
    feed: Feed = request.app.state.feed
    with ExitStack() as stack:
        news = stack.enter_context(feed.listening(environment_id))
        return EventStream(_events(request, services, feed, news, environment_id, place), stack.pop_all())


async def _events(
    request: Request, services: Services, feed: Feed, news: asyncio.Event, environment_id: str, place: Place
) -> AsyncIterator[str]:
    yield _RETRY
    while not feed.closing:
        news.clear()
        try:
            items, deleted = await database.read(
                services.engine, partial(_look, environment_id=environment_id, place=place)
            )
        except Unavailable as error:
            logger.debug("an event stream waits: %s", error.message)
            items, deleted = [], False
            news.set()
            await asyncio.sleep(CHECK_SECONDS)
        if items:
            place = items[-1].place
            # In one piece: between the writes of a page nothing would notice a client that has gone.
            yield "".join(map(_frame, items))
            continue
        if deleted:
            yield f'id: {place}\nevent: deleted\ndata: {{"environment_id":"{environment_id}"}}\n\n'
            return
        async for beat in _wait(request, news):
            if beat is None:
                return
            yield beat


async def _wait(request: Request, news: asyncio.Event) -> AsyncIterator[str | None]:
    """Until there is news; heartbeats meanwhile, and None when the token has ended."""
    loop = asyncio.get_running_loop()
    beat_at = loop.time() + HEARTBEAT_SECONDS
    while True:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await news.wait()
        except TimeoutError:
            pass
        try:
            await authenticate(request)
        except Unauthorized:
            yield None
            return
        except Unavailable as error:
            logger.debug("a token cannot be checked now: %s", error.message)
        if news.is_set():
            return
        if loop.time() >= beat_at:
            beat_at = loop.time() + HEARTBEAT_SECONDS
            yield ": still here\n\n"


def _look(session: Session, environment_id: str, place: Place) -> tuple[list[Item], bool]:
    # Deletion first: what was recorded before it is then on the page.
    row = environments.get(session, environment_id, include_deleted=True)
    deleted = row is None or row.deleted_at is not None
    return timeline.page(session, environment_id, place, _PAGE), deleted


def _frame(item: Item) -> str:
    return f"id: {item.place}\ndata: {TimelineEntryOut.from_item(item).model_dump_json()}\n\n"
