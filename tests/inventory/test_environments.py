"""Environments: guarded projection, tombstones, lists."""

import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from inventory import environments, events, hosts
from inventory.engine import reading, writing
from models.errors import InvalidRequest
from models.lifecycle import Recovery, Status
from models.messages import EnvironmentRecord, Limits, TimelineEntry
from models.tables import EnvironmentRow
from tests.inventory.makers import entry, error, record, spec, write


def read(engine: Engine, environment_id: str, include_deleted: bool = False) -> EnvironmentRow | None:
    with reading(engine) as session:
        return environments.get(session, environment_id, include_deleted)


def test_pending_row_until_the_workflow_writes(engine: Engine, now: datetime) -> None:
    wanted = spec(limits=Limits(cpus=1.5), security_profile="compatible")
    with writing(engine) as session:
        assert environments.insert_pending(session, wanted, True, now)
        assert not environments.insert_pending(session, wanted, False, now)
    row = read(engine, wanted.environment_id)
    assert row is not None
    assert (row.status, row.desired_running, row.generation) == ("pending", True, 0)
    view = environments.view(row)
    assert view.spec == wanted
    assert (view.created_at, view.settled, view.takeover_available) == (now, False, False)
    assert write(engine, record(wanted, 0, now)) == [True]
    row = read(engine, wanted.environment_id)
    assert row is not None
    assert (row.status, row.created_at) == ("running", now)


def test_workflow_may_be_faster_than_the_insert(engine: Engine, now: datetime) -> None:
    wanted = spec()
    write(engine, record(wanted, 1, now))
    with writing(engine) as session:
        assert not environments.insert_pending(session, wanted, True, now)
    row = read(engine, wanted.environment_id)
    assert row is not None and row.status == "running"


def test_record_is_read_back_whole(engine: Engine, now: datetime) -> None:
    wanted = spec()
    failed = record(
        wanted,
        3,
        now,
        Status.ERROR,
        node_id="n" * 64,
        last_error=error(now, ["a\x00b", "ü"]),
        recovery=Recovery.SCHEDULED,
        restarts=2,
        next_retry_at=now + timedelta(seconds=4),
        logs=["line"],
    )
    write(engine, failed)
    row = read(engine, wanted.environment_id)
    assert row is not None
    view = environments.view(row)
    same = (
        "spec",
        "status",
        "desired_running",
        "generation",
        "node_id",
        "rfb_port",
        "novnc_port",
        "last_error",
    )
    for name in (*same, "recovery", "restarts", "next_retry_at", "phases"):
        assert getattr(view, name) == getattr(failed, name), name
    assert row.logs == ["line"]
    assert row.last_error is not None and "log_tail" not in row.last_error
    assert (view.updated_at, view.takeover_available, view.settled) == (failed.at, False, False)


def test_older_and_equal_revisions_change_nothing(engine: Engine, now: datetime) -> None:
    wanted = spec()
    newest = record(wanted, 5, now, Status.STOPPED)
    assert write(engine, newest, record(wanted, 4, now), newest, record(wanted, 5, now)) == [
        True,
        False,
        False,
        False,
    ]
    row = read(engine, wanted.environment_id)
    assert row is not None
    assert (row.status, row.revision, row.updated_at) == ("stopped", 5, newest.at)


def test_logs_stay_where_a_record_has_none(engine: Engine, now: datetime) -> None:
    wanted = spec()
    write(engine, record(wanted, 1, now, logs=["kept"]), record(wanted, 2, now))
    row = read(engine, wanted.environment_id)
    assert row is not None and row.logs == ["kept"]
    write(engine, record(wanted, 3, now, logs=[]))
    row = read(engine, wanted.environment_id)
    assert row is not None and row.logs == []


def test_tombstone_is_hidden_and_keeps_its_evidence(engine: Engine, now: datetime) -> None:
    wanted = spec()
    last = record(wanted, 2, now, Status.DELETING, deleted=True, entries=[entry(0, now)])
    write(engine, record(wanted, 1, now, logs=["evidence"]), last)
    assert read(engine, wanted.environment_id) is None
    row = read(engine, wanted.environment_id, include_deleted=True)
    assert row is not None
    assert (row.deleted_at, row.logs) == (last.at, ["evidence"])
    assert environments.view(row).deleted and environments.view(row).settled
    write(engine, record(wanted, 3, now, Status.DELETING, deleted=True), record(wanted, 4, now))
    row = read(engine, wanted.environment_id, include_deleted=True)
    assert row is not None and row.deleted_at == last.at
    with reading(engine) as session:
        assert environments.list_page(session).environments == []
        assert environments.live_ids(session, "host-1") == []
        assert [one.sequence for one in events.page(session, wanted.environment_id)] == [0]


def test_generation_never_falls(engine: Engine, now: datetime) -> None:
    wanted = spec()
    write(engine, record(wanted, 1, now, generation=4), record(wanted, 2, now, generation=3))
    row = read(engine, wanted.environment_id)
    assert row is not None
    assert (row.revision, row.generation) == (2, 4)


def test_unknown_host_gets_a_row_that_claims_nothing(engine: Engine, now: datetime) -> None:
    write(engine, record(spec(host_id="host-9"), 1, now))
    with reading(engine) as session:
        host = hosts.get(session, "host-9")
    assert host is not None
    assert (host.healthy, host.docker_available, host.last_seen_at) == (False, False, None)


def test_text_no_database_can_keep_is_made_storable(engine: Engine, now: datetime) -> None:
    wanted = spec(label="a\x00b" + "x" * 1000)
    odd = entry(0, now, reason="\x00\ud800", message="m" * 9000, detail={"k\x00": "v\x00"})
    write(engine, record(wanted, 1, now, entries=[odd]))
    row = read(engine, wanted.environment_id)
    assert row is not None and row.label is not None
    assert row.label.startswith("a\ufffdb") and len(row.label) == environments.LABEL_CHARS
    with reading(engine) as session:
        (kept,) = events.page(session, wanted.environment_id)
        assert environments.get(session, "\x00") is None
        assert environments.list_page(session, label="\x00", host_id="\ud800").environments == []
    assert (kept.reason, kept.detail) == ("\ufffd?", {"k\x00": "v\x00"})


def test_guarded_upsert_under_threads(engine: Engine, now: datetime) -> None:
    wanted = spec()
    records = [record(wanted, n, now, label=None, entries=[entry(n, now)]) for n in range(40)]
    gate = threading.Barrier(8)
    failures: list[BaseException] = []

    def work(mine: list[EnvironmentRecord]) -> None:
        try:
            gate.wait(10)
            write(engine, *mine)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(records[n::8][:: (-1) ** n],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    row = read(engine, wanted.environment_id)
    assert row is not None
    assert (row.revision, row.updated_at) == (39, records[39].at)
    with reading(engine) as session:
        assert [one.sequence for one in events.page(session, wanted.environment_id)] == list(range(40))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_converges(engine: Engine, now: datetime, data: st.DataObject) -> None:
    wanted = spec()
    statuses = data.draw(st.lists(st.sampled_from(list(Status)), min_size=1, max_size=8))
    entries = [entry(n, now, status=status) for n, status in enumerate(statuses)]
    records = [
        record(wanted, n, now, status, generation=n, logs=[str(n)], entries=entries[max(0, n - 2) : n + 1])
        for n, status in enumerate(statuses)
    ]
    repeated = records + data.draw(st.lists(st.sampled_from(records), max_size=4))
    write(engine, *data.draw(st.permutations(repeated)))
    row = read(engine, wanted.environment_id)
    assert row is not None
    last = records[-1]
    assert (row.revision, row.status, row.generation) == (last.revision, last.status, last.generation)
    assert (row.logs, row.updated_at) == (last.logs, last.at)
    with reading(engine) as session:
        kept: list[TimelineEntry] = events.page(session, wanted.environment_id)
    assert kept == entries


def test_list_is_filtered_and_newest_first(engine: Engine, now: datetime) -> None:
    first, second = spec(label="one"), spec(host_id="host-2", label=None)
    write(engine, record(first, 1, now), record(second, 2, now, Status.STOPPED, last_error=error(now, ["x"])))

    def ids(**filters: str) -> list[str]:
        with reading(engine) as session:
            return [one.environment_id for one in environments.list_page(session, **filters).environments]  # type: ignore[arg-type]  # keyword filters are all text

    assert ids() == [second.environment_id, first.environment_id]
    assert ids(host_id="host-1") == ids(status="running") == ids(label="one") == [first.environment_id]
    assert ids(host_id="host-2", status="stopped") == [second.environment_id]
    assert ids(host_id="host-2", status="running") == ids(status="no-such") == []
    with reading(engine) as session:
        newest, oldest = environments.list_page(session).environments
    assert (newest.takeover_available, oldest.takeover_available) == (False, True)
    assert newest.last_error is not None and newest.last_error["code"] == "sandbox_exited"
    assert newest.updated_at.tzinfo is UTC or newest.updated_at.utcoffset() == timedelta(0)


def test_pages_hold_everything_once(engine: Engine, now: datetime) -> None:
    specs = [spec() for _ in range(23)]
    # Rows of one moment have to be told apart by their id.
    write(engine, *[record(one, n // 5, now) for n, one in enumerate(specs)])
    seen: list[environments.EnvironmentSummary] = []
    cursor = None
    with reading(engine) as session:
        while True:
            page = environments.list_page(session, cursor=cursor, limit=4)
            seen += page.environments
            cursor = page.next_cursor
            if cursor is None:
                break
    assert sorted(one.environment_id for one in seen) == sorted(one.environment_id for one in specs)
    assert seen == sorted(seen, key=lambda one: (-one.updated_at.timestamp(), one.environment_id))


@pytest.mark.parametrize(
    "cursor",
    ["", "!", "AAAA", "\x00", "ü", "\ud800", "MjAyNg", "=" * 50, "OTk5OS0xMi0zMVQyMzo1OTo1OS0xNDowMCB4"],
)
def test_bad_cursor_is_refused(engine: Engine, cursor: str) -> None:
    with reading(engine) as session, pytest.raises(InvalidRequest, match="cursor"):
        environments.list_page(session, cursor=cursor)


def test_live_ids_are_of_one_host(engine: Engine, now: datetime) -> None:
    mine, other, gone = spec(), spec(host_id="host-2"), spec()
    write(engine, record(mine, 1, now), record(other, 1, now), record(gone, 1, now, deleted=True))
    with reading(engine) as session:
        assert environments.live_ids(session, "host-1") == [mine.environment_id]


def test_times_of_any_zone_come_back_in_utc(engine: Engine, now: datetime) -> None:
    wanted = spec()
    write(engine, record(wanted, 0, now.astimezone(timezone(timedelta(hours=5)))))
    row = read(engine, wanted.environment_id)
    assert row is not None
    assert row.updated_at == now
    assert row.updated_at.utcoffset() == timedelta(0)
