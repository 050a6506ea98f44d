"""The audit's rows on both databases: append-only, in the order they become visible, paged, filtered, joined."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from inventory import audit, environments, events, hosts, timeline
from inventory.audit import TOKEN_REFUSED, ActorKind, Fact, Filters, Outcome
from inventory.engine import reading, writing
from inventory.timeline import START, Place, parse_place
from models import messages as m
from models.lifecycle import Status
from models.tables import AuditRow

FACT = Fact("environment.start", Outcome.ACCEPTED, ActorKind.OPERATOR, "alice", source="192.0.2.1")


def add(engine: Engine, now: datetime, **changes: Any) -> int:
    with writing(engine) as session:
        return audit.append(session, replace(FACT, **changes), now)


def listed(engine: Engine, cursor: int | None = None, limit: int = 100, **filters: Any) -> list[AuditRow]:
    with reading(engine) as session:
        return audit.page(session, Filters(**filters), cursor, limit)


def environment(engine: Engine, now: datetime, generation: int = 4) -> str:
    spec = m.EnvironmentSpec(environment_id=str(uuid4()), host_id="host", image_ref="image")
    with writing(engine) as session:
        hosts.record(session, m.HostRecord(host_id="host", revision=1), now)
        record = m.EnvironmentRecord(
            spec=spec,
            status=Status.RUNNING,
            desired_running=True,
            generation=generation,
            revision=1,
            at=now,
        )
        assert environments.record(session, record, now)
    return spec.environment_id


def test_rows_cannot_be_changed_or_removed(engine: Engine, now: datetime) -> None:
    add(engine, now)
    for statement in ("UPDATE audit SET actor = 'bob'", "DELETE FROM audit"):
        with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
            connection.execute(text(statement))
    assert [row.actor for row in listed(engine)] == ["alice"]


def test_what_is_kept_is_bounded_and_storable(engine: Engine, now: datetime) -> None:
    add(
        engine,
        now,
        actor="x" * 500,
        target="\x00\ud800" * 300,
        detail={"a\x00": ["\ud800", {"b": 1}], "n": None},
    )
    add(engine, now, detail={"long": ["x" * 900] * 9})
    newest, oldest = listed(engine)
    assert newest.detail == {"left_out": "too long to keep"}
    assert len(oldest.actor) == 120 and oldest.target is not None and len(oldest.target) == 200
    assert oldest.detail == {"a\ufffd": ["?", {"b": 1}]}
    assert oldest.at == now


def test_pages_and_filters(engine: Engine, now: datetime) -> None:
    one = environment(engine, now)
    for number in range(7):
        add(engine, now + timedelta(seconds=number), target=str(number))
    add(engine, now, action="pairing.approve", actor="bob", environment_id=one)
    add(engine, now, action="pairings", outcome=Outcome.REFUSED, code="conflict")
    collected: list[AuditRow] = []
    while page := listed(engine, collected[-1].audit_id if collected else None, 2):
        collected += page
    ids = [row.audit_id for row in collected]
    assert len(ids) == 9 and ids == sorted(ids, key=lambda i: -(i or 0))
    assert [row.action for row in listed(engine, action="pairing")] == ["pairing.approve"]
    assert [row.actor for row in listed(engine, actor="bob")] == ["bob"]
    assert [row.generation for row in listed(engine, environment_id=one)] == [4]
    assert [row.code for row in listed(engine, outcome=Outcome.REFUSED)] == ["conflict"]
    since, until = now + timedelta(seconds=2), now + timedelta(seconds=4)
    assert [row.target for row in listed(engine, since=since, until=until)] == ["3", "2"]
    assert listed(engine, action="%") == listed(engine, actor="\x00") == []
    with reading(engine) as session:
        rest = audit.page(session, Filters(), ids[-3], 100, oldest_first=True)
    assert [row.audit_id for row in rest] == ids[:-3][::-1]


def test_a_follower_misses_nothing_while_many_write(engine: Engine, now: datetime) -> None:
    writers, each = 6, 15
    done = threading.Event()

    def write(number: int) -> None:
        for index in range(each):
            with writing(engine) as session:
                audit.append(session, replace(FACT, target=f"{number}-{index}"), now)

    def follow() -> list[str | None]:
        seen: list[str | None] = []
        last, finished = 0, False
        while True:
            with reading(engine) as session:
                rows = audit.page(session, Filters(), last, 50, oldest_first=True)
            seen += [row.target for row in rows]
            last = rows[-1].audit_id or 0 if rows else last
            if not rows and finished:
                return seen
            finished = done.is_set()

    with ThreadPoolExecutor(writers + 1) as pool:
        follower = pool.submit(follow)
        for future in [pool.submit(write, number) for number in range(writers)]:
            future.result()
        done.set()
        seen = follower.result()
    assert len(seen) == len(set(seen)) == writers * each


def lines(engine: Engine, environment_id: str, limit: int) -> Iterator[tuple[Place, str]]:
    place = START
    while True:
        with reading(engine) as session:
            items = timeline.page(session, environment_id, place, limit)
        if not items:
            return
        for item in items:
            place = item.place
            line = item.line
            yield place, line.name if isinstance(line, m.TimelineEntry) else line.action


def test_timeline_joins_what_concerns_the_desktop(engine: Engine, now: datetime) -> None:
    one = environment(engine, now)
    entries = [
        m.TimelineEntry(
            sequence=number,
            at=now + timedelta(seconds=2 * number),
            kind="status",
            name=f"w{number}",
            status="running",
        )
        for number in range(4)
    ]
    with writing(engine) as session:
        events.append(session, one, entries)
    for number, action in enumerate(("takeover.open", "environment.start", TOKEN_REFUSED, "dispatch")):
        add(engine, now + timedelta(seconds=2 * number + 1), action=action, environment_id=one)
    add(engine, now, action="dispatch", environment_id=str(uuid4()))
    expected = ["w0", "takeover.open", "w1", "w2", TOKEN_REFUSED, "w3", "dispatch"]
    for limit in (1, 2, 3, 100):
        places, names = zip(*lines(engine, one, limit), strict=True)
        assert list(names) == expected, limit
        assert all(parse_place(str(place)) == place for place in places)
    with reading(engine) as session:
        mark = timeline.marks(session, [one, str(uuid4())])
    assert list(mark) == [one] and mark[one].sequence == 3 and not mark[one].deleted


@pytest.mark.parametrize(
    "bad", ["", "x", "1.", ".1", "-2", "1.-1", "1 .2", "1" * 11, "1." + "9" * 20, "\u0661.1"]
)
def test_no_places(bad: str) -> None:
    assert parse_place(bad) is None


def test_places() -> None:
    assert parse_place("-1") == START
    assert parse_place("7") == Place(7, 0)
    assert parse_place("7." + "9" * 19) == Place(7, audit.MAX_ID)
