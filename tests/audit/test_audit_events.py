"""Server-sent events: prompt, resumable without gaps or duplicates, bounded, ended by deletion and revocation."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api import feed
from api.routers import events as events_router
from inventory import audit
from inventory.audit import ActorKind, Fact, Outcome
from inventory.engine import writing
from tests.api.stack import ADMIN_TOKEN, BEARER, Stack
from tests.support.waiting import eventually

Event = dict[str, Any]


class Reader:
    """One stream, read in the background."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.comments = 0
        self.ended = asyncio.Event()
        self.status = 0

    @property
    def names(self) -> list[str]:
        return [
            f"{e['data']['kind']} {e['data']['name']}" for e in self.events if "data" in e and not e["event"]
        ]

    async def read(self, response: httpx.Response) -> None:
        event: Event = {"event": ""}
        try:
            async for line in response.aiter_lines():
                if line.startswith(":"):
                    self.comments += 1
                elif not line:
                    if "data" in event:
                        self.events.append(event)
                    event = {"event": ""}
                else:
                    name, _, value = line.partition(": ")
                    event[name] = json.loads(value) if name == "data" else value
        finally:
            self.ended.set()


@asynccontextmanager
async def streaming(
    stack: Stack, environment_id: str, token: str = ADMIN_TOKEN, **headers: str
) -> AsyncIterator[Reader]:
    reader = Reader()
    sent = {"Authorization": f"Bearer {token}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    path = f"/desktop-environments/{environment_id}/events"
    async with (
        httpx.AsyncClient(base_url=stack.url, timeout=60, trust_env=False) as http,
        http.stream("GET", path, headers=sent) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        task = asyncio.create_task(reader.read(response))
        try:
            yield reader
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def has_news(reader: Reader, known: int, instead: asyncio.Task[None] | None = None) -> bool:
    """Whether more than so many events were read, or what would bring them is done."""
    return len(reader.events) > known or (instead is not None and instead.done())


def alarm(stack: Stack, environment_id: str, target: str) -> None:
    fact = Fact(
        audit.TOKEN_REFUSED,
        Outcome.REFUSED,
        ActorKind.UNKNOWN,
        "unknown",
        source="192.0.2.7",
        code="older generation",
        environment_id=environment_id,
        target=target,
    )
    with writing(stack.engine) as session:
        audit.append(session, fact, datetime.now(UTC))


async def test_a_life_from_creation_to_deletion(stack: Stack) -> None:
    environment_id = await stack.create()
    path = f"/desktop-environments/{environment_id}"
    async with streaming(stack, environment_id) as reader:
        await stack.http.post(f"{path}/start?wait=30")
        await stack.http.post(f"{path}/takeover-token")
        await eventually(lambda: "takeover open" in reader.names, "the takeover is streamed")
        await stack.http.delete(f"{path}?wait=30")
        await asyncio.wait_for(reader.ended.wait(), 30)
    last = reader.events[-1]
    assert last["event"] == "deleted" and last["data"] == {"environment_id": environment_id}
    entries = (await stack.http.get(f"{path}/timeline", params={"limit": 1000})).json()["entries"]
    streamed = [e["data"] for e in reader.events[:-1]]
    assert all(e["id"] == e["data"]["id"] for e in reader.events[:-1])
    for half in (True, False):
        wanted = [e["name"] for e in entries if (e["sequence"] is None) is half]
        assert [e["name"] for e in streamed if (e["sequence"] is None) is half] == wanted
    assert len(entries) == len(streamed)
    # Whoever comes late reads the same and its end.
    async with streaming(stack, environment_id, Last_Event_ID=reader.events[1]["id"]) as late:
        await asyncio.wait_for(late.ended.wait(), 30)
    assert len(late.events) == len(reader.events) - 2 and late.events[-1]["event"] == "deleted"


async def test_resumed_without_gaps_or_duplicates(stack: Stack) -> None:
    environment_id = await stack.started()
    total = 60

    async def write() -> None:
        for number in range(total):
            await asyncio.to_thread(alarm, stack, environment_id, str(number))
            await asyncio.sleep(0.01)

    writing_task = asyncio.create_task(write())
    seen: list[Event] = []
    place = "-1"
    # Cut off again and again, wherever it happens to be.
    while len([e for e in seen if e["data"]["name"] == "token_refused"]) < total:
        async with streaming(stack, environment_id, Last_Event_ID=place) as reader:
            await eventually(partial(has_news, reader, 5, writing_task), "news")
            await asyncio.sleep(0.05 if not writing_task.done() else 0.5)
        seen += reader.events
        place = seen[-1]["id"]
    await writing_task
    alarms = [e["data"]["detail"]["target"] for e in seen if e["data"]["name"] == "token_refused"]
    assert alarms == [str(number) for number in range(total)]
    own = [e["data"]["sequence"] for e in seen if e["data"]["sequence"] is not None]
    assert own == list(range(own[0], own[0] + len(own))) and len(own) > 3
    refused = next(e["data"] for e in seen if e["data"]["name"] == "token_refused")
    assert (refused["kind"], refused["reason"]) == ("credential", "older generation")
    assert refused["detail"]["source"] == "192.0.2.7"


async def test_news_is_prompt_and_shared(stack: Stack) -> None:
    environment_id = await stack.create()
    waits = []
    async with streaming(stack, environment_id) as one, streaming(stack, environment_id) as two:
        await asyncio.sleep(0.5)
        for number in range(8):
            before = len(one.events), len(two.events)
            since = time.monotonic()
            await asyncio.to_thread(alarm, stack, environment_id, str(number))
            for reader, known in zip((one, two), before, strict=True):
                await eventually(partial(has_news, reader, known), "the event")
            waits.append(time.monotonic() - since)
    print(f"event latency ms: {sorted(round(1000 * wait) for wait in waits)}")
    assert len(stack.app.state.feed) <= 2


async def test_heartbeats(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_router, "HEARTBEAT_SECONDS", 0.05)
    async with streaming(stack, await stack.create()) as reader:
        await eventually(lambda: reader.comments >= 2, "heartbeats")


async def test_a_revoked_token_ends_its_streams(stack: Stack) -> None:
    made = (await stack.http.post("/tokens", json={"name": f"viewer-{uuid4()}"})).json()
    environment_id = await stack.create()
    async with streaming(stack, environment_id, made["bearer_token"]) as reader:
        await eventually(lambda: reader.events, "something")
        assert not reader.ended.is_set()
        await stack.http.post(f"/tokens/{made['token']['token_id']}/revoke")
        since = time.monotonic()
        await asyncio.wait_for(reader.ended.wait(), 30)
        print(f"stream ended {time.monotonic() - since:.2f} s after revocation")


async def test_streams_are_bounded_and_let_go(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    environment_id = await stack.create()
    shared: feed.Feed = stack.app.state.feed
    await eventually(lambda: len(shared) == 0, "former streams are let go")
    monkeypatch.setattr(shared, "_most", 2)
    async with streaming(stack, environment_id), streaming(stack, environment_id):
        answer = await stack.http.get(f"/desktop-environments/{environment_id}/events")
        assert answer.status_code == 503 and "event streams" in answer.json()["message"]
    await eventually(lambda: len(shared) == 0, "they are let go")
    await eventually(
        lambda: shared._poller is not None and shared._poller.done(), "no look while nobody waits", 10
    )


async def test_a_client_that_reads_nothing_is_dropped(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_router, "SEND_SECONDS", 0.3)
    environment_id = await stack.create()
    shared: feed.Feed = stack.app.state.feed
    host, port = stack.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port), limit=1024)
    try:
        writer.write(
            f"GET /desktop-environments/{environment_id}/events HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: {BEARER['Authorization']}\r\n\r\n".encode()
        )
        await eventually(lambda: len(shared) == 1, "the stream is open")

        def flood() -> None:
            detail = {f"n{number}": "x" * 900 for number in range(4)}
            for _ in range(1500):
                fact = Fact(
                    "dispatch",
                    Outcome.ACCEPTED,
                    ActorKind.OPERATOR,
                    "a",
                    environment_id=environment_id,
                    detail=detail,
                )
                with writing(stack.engine) as session:
                    for _ in range(4):
                        audit.append(session, fact, datetime.now(UTC))

        await asyncio.to_thread(flood)
        await eventually(lambda: len(shared) == 0, "the slow client is dropped")
    finally:
        writer.close()


async def test_refusals(stack: Stack) -> None:
    environment_id = await stack.create()
    path = f"/desktop-environments/{environment_id}/events"
    for headers, params in (
        ({"Last-Event-ID": "x"}, {}),
        ({}, {"after": "1.x"}),
        ({"Last-Event-ID": "-2"}, {}),
    ):
        answer = await stack.http.get(path, headers=headers, params=params)
        assert answer.status_code == 400, answer.text
    assert (await stack.http.get(f"/desktop-environments/{uuid4()}/events")).status_code == 404
    for after in ("x", "1.", "-2"):
        answer = await stack.http.get(
            f"/desktop-environments/{environment_id}/timeline", params={"after": after}
        )
        assert answer.status_code == 400
    document = stack.app.openapi()["paths"]["/desktop-environments/{environment_id}/events"]["get"]
    assert "text/event-stream" in document["responses"]["200"]["content"]
