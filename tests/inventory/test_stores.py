"""Hosts, timelines, defaults and takeover sessions."""

from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError

from inventory import defaults, environments, events, hosts, takeover
from inventory.engine import reading, writing
from models.lifecycle import Status
from models.messages import HostRecord
from models.tables import TakeoverSessionRow
from tests.inventory.makers import entry, record, spec, write

HASH = "ab" * 32


def test_host_record_is_guarded_by_revision(engine: Engine, now: datetime) -> None:
    healthy = HostRecord(
        host_id="h",
        label="lab",
        version="20.10",
        docker_available=True,
        healthy=True,
        takeover_origin="http://desk.example",
        last_seen_at=now,
        revision=7,
    )
    lost = HostRecord(host_id="h", label="lab", last_error="no heartbeat", revision=8)
    with writing(engine) as session:
        assert hosts.record(session, healthy, now)
        assert not hosts.record(session, lost.model_copy(update={"revision": 6}), now)
        assert not hosts.record(session, healthy, now)
    with reading(engine) as session:
        row = hosts.get(session, "h")
    assert row is not None
    assert (row.healthy, row.docker_available, row.version, row.last_seen_at) == (True, True, "20.10", now)
    later = now + timedelta(seconds=9)
    with writing(engine) as session:
        assert hosts.record(session, lost, later)
    with reading(engine) as session:
        row = hosts.get(session, "h")
    assert row is not None
    assert (row.healthy, row.last_error, row.last_seen_at) == (False, "no heartbeat", now)
    assert (row.created_at, row.updated_at) == (now, later)


def test_first_report_replaces_the_placeholder(engine: Engine, now: datetime) -> None:
    with writing(engine) as session:
        hosts.ensure_known(session, "h", now)
        hosts.ensure_known(session, "h", now)
        assert hosts.record(session, HostRecord(host_id="h", healthy=True, revision=0), now)
        row = hosts.get(session, "h")
        assert row is not None and row.healthy and row.label == "h"
        assert hosts.get(session, "other\x00") is None


def test_hosts_are_listed_by_label_then_id(engine: Engine, now: datetime) -> None:
    with writing(engine) as session:
        for host_id, label in [("c", "beta"), ("a", "beta"), ("b", "alpha")]:
            hosts.record(session, HostRecord(host_id=host_id, label=label), now)
    with reading(engine) as session:
        assert [row.host_id for row in hosts.list_all(session)] == ["b", "a", "c"]


def test_timeline_pages(engine: Engine, now: datetime) -> None:
    wanted, other = spec(), spec()
    entries = [entry(n, now, actor="ann", detail={"ms": n}, generation=n) for n in range(12)]
    write(engine, record(wanted, 1, now, entries=entries), record(other, 1, now, entries=[entry(0, now)]))
    with reading(engine) as session:
        first = events.page(session, wanted.environment_id, limit=5)
        rest = events.page(session, wanted.environment_id, after=first[-1].sequence)
        assert first + rest == entries
        assert events.page(session, wanted.environment_id, after=10**30) == []
        assert events.page(session, wanted.environment_id, after=-(10**30)) == entries
        assert events.page(session, wanted.environment_id, after=11) == []
        assert events.page(session, "no-such") == []


def test_the_entries_of_a_workflow_task_carried_out_again_replace_those_of_the_one_cut_off(
    engine: Engine, now: datetime
) -> None:
    wanted = spec()

    def told() -> list[str | None]:
        with reading(engine) as session:
            return [one.message for one in events.page(session, wanted.environment_id)]

    write(engine, record(wanted, 1, now, entries=[entry(0, now, message="container gone")]))
    again = [entry(0, now, message="stop"), entry(1, now, message="container gone")]
    write(engine, record(wanted, 2, now, entries=again))
    assert told() == ["stop", "container gone"]
    # A write that comes late, of the task that was cut off, replaces nothing.
    write(engine, record(wanted, 1, now, entries=[entry(0, now, message="container gone")]))
    assert told() == ["stop", "container gone"]


def test_more_entries_than_the_workflow_ever_wrote_are_not_replaced(engine: Engine, now: datetime) -> None:
    wanted = spec()
    write(engine, record(wanted, 1, now, entries=[entry(n, now, message="first run") for n in range(3)]))
    write(engine, record(wanted, 2, now, entries=[entry(1, now, message="reset by hand")]))
    with reading(engine) as session:
        told = [one.message for one in events.page(session, wanted.environment_id)]
    assert told == ["first run"] * 3


def test_defaults_have_revisions(engine: Engine, now: datetime) -> None:
    with reading(engine) as session:
        assert defaults.current(session) is None
    with writing(engine) as session:
        first = defaults.put(session, "image:1", created_by="ann", now=now, reason="start")
        second = defaults.put(session, "image:2", created_by="bob", now=now)
        assert first.revision is not None
        third = defaults.put(session, "image:1", created_by="bob", now=now, reverted_from=second.revision)
    with reading(engine) as session:
        present = defaults.current(session)
        assert present is not None
        assert (present.revision, present.reverted_from_revision) == (third.revision, second.revision)
        assert [row.default_image_ref for row in defaults.history(session)] == [
            "image:1",
            "image:2",
            "image:1",
        ]
        kept = defaults.get(session, first.revision)
        assert kept is not None and (kept.created_by, kept.reason) == ("ann", "start")
        assert defaults.get(session, 999) is None


def open_session(
    engine: Engine, environment_id: str, now: datetime, token: str = HASH, generation: int = 1
) -> str:
    with writing(engine) as session:
        row = takeover.create(
            session,
            environment_id=environment_id,
            generation=generation,
            token_sha256=token,
            created_by="ann",
            now=now,
            ttl_seconds=60,
        )
        return row.session_id


def live(engine: Engine, now: datetime, token: str = HASH) -> takeover.LiveTakeover | None:
    with reading(engine) as session:
        return takeover.find_live(session, token, now)


def test_takeover_opens_the_running_generation(engine: Engine, now: datetime) -> None:
    wanted = spec()
    write(engine, record(wanted, 1, now))
    session_id = open_session(engine, wanted.environment_id, now)
    assert live(engine, now) == takeover.LiveTakeover(
        session_id, wanted.environment_id, 1, now + timedelta(seconds=60), "http://127.0.0.1", 32001
    )
    assert live(engine, now, "cd" * 32) is None
    assert live(engine, now + timedelta(seconds=60)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"status": Status.STOPPING},
        {"status": Status.ERROR},
        {"generation": 2},
        {"novnc_port": None},
        {"deleted": True},
    ],
)
def test_takeover_opens_nothing_else(engine: Engine, now: datetime, change: dict[str, object]) -> None:
    wanted = spec()
    write(engine, record(wanted, 1, now))
    open_session(engine, wanted.environment_id, now)
    write(engine, record(wanted, 2, now).model_copy(update=change))
    assert live(engine, now) is None


def test_takeover_is_revoked_by_id_and_by_generation(engine: Engine, now: datetime) -> None:
    wanted, other = spec(), spec()
    write(engine, record(wanted, 1, now, generation=2), record(other, 1, now, generation=2))
    first = open_session(engine, wanted.environment_id, now, "01" * 32, 2)
    open_session(engine, wanted.environment_id, now, "02" * 32, 2)
    newer = open_session(engine, wanted.environment_id, now, "03" * 32, 3)
    open_session(engine, other.environment_id, now, "04" * 32, 2)
    with writing(engine) as session:
        assert takeover.revoke(session, first, now)
        assert not takeover.revoke(session, first, now)
        assert not takeover.revoke(session, "no-such", now)
    assert live(engine, now, "01" * 32) is None
    with writing(engine) as session:
        assert takeover.revoke_up_to(session, wanted.environment_id, 2, now) == 1
        assert takeover.revoke_up_to(session, wanted.environment_id, 2, now) == 0
        assert [row.session_id for row in takeover.list_open(session, wanted.environment_id, now)] == [newer]
    assert live(engine, now, "02" * 32) is None
    assert live(engine, now, "04" * 32) is not None


def test_expired_takeover_sessions_go_when_one_is_made(engine: Engine, now: datetime) -> None:
    wanted = spec()
    write(engine, record(wanted, 1, now))
    open_session(engine, wanted.environment_id, now, "01" * 32)
    kept = open_session(engine, wanted.environment_id, now + timedelta(seconds=60), "02" * 32)
    with reading(engine) as session:
        assert list(session.scalars(select(TakeoverSessionRow.session_id))) == [kept]  # type: ignore[call-overload]  # SQLModel's attribute types
    with writing(engine) as session:
        assert takeover.purge_expired(session, now + timedelta(days=1)) == 1


def test_takeover_needs_its_environment(engine: Engine, now: datetime) -> None:
    with pytest.raises(IntegrityError):
        open_session(engine, "no-such", now)


def test_readers_cannot_write_on_postgresql_and_see_one_moment(engine: Engine, now: datetime) -> None:
    wanted = spec()
    write(engine, record(wanted, 1, now))
    with reading(engine) as session:
        before = environments.get(session, wanted.environment_id)
        assert before is not None
        write(engine, record(wanted, 2, now, Status.STOPPED))
        if engine.dialect.name == "postgresql":
            with pytest.raises(Exception, match="read-only"):
                hosts.ensure_known(session, "h", now)
    with reading(engine) as session:
        after = environments.get(session, wanted.environment_id)
    assert after is not None and (before.status, after.status) == ("running", "stopped")
