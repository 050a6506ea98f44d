"""The control activities on real databases, with signals through a real Temporal dev server."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio
from sqlalchemy import Engine
from sqlmodel import Session, select
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError
from temporalio.testing import WorkflowEnvironment

from activities.interface import ControlActivities
from activities.inventory import INVENTORY_UNAVAILABLE, SqlControlActivities
from inventory import environments, events, hosts, node_tokens, pairings, takeover
from inventory.engine import make_engine, reading, writing
from models import messages as m
from models.identifiers import environment_workflow_id
from models.lifecycle import Status
from models.tables import NodeRow, NodeTokenRow, PairingRow
from tests.inventory.makers import entry, record, spec, write
from tests.support.temporal import start_dev_server
from workflows.plugin import ControlPlanePlugin


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def temporal() -> AsyncIterator[WorkflowEnvironment]:
    """A dev server of this module."""
    async with await start_dev_server() as server:
        yield server


@pytest.fixture
def activities(engine: Engine, temporal: WorkflowEnvironment) -> SqlControlActivities:
    return SqlControlActivities(engine, temporal.client)


def test_every_activity_is_registered_under_its_name(activities: SqlControlActivities) -> None:
    for name in sorted(ControlActivities.__abstractmethods__):
        definition = vars(getattr(activities, name).__func__)["__temporal_activity_definition"]
        assert definition.name == name


def test_record_environment_carries_its_timeline(
    activities: SqlControlActivities, engine: Engine, now: datetime
) -> None:
    wanted = spec()
    projected = record(wanted, 1, now, entries=[entry(0, now), entry(1, now)])
    activities.record_environment(projected)
    activities.record_environment(projected)
    with reading(engine) as session:
        row = environments.get(session, wanted.environment_id)
        assert row is not None and row.status == "running"
        assert events.page(session, wanted.environment_id) == projected.entries


def test_record_host(activities: SqlControlActivities, engine: Engine, now: datetime) -> None:
    activities.record_host(m.HostRecord(host_id="h", healthy=True, last_seen_at=now, revision=1))
    with reading(engine) as session:
        row = hosts.get(session, "h")
    assert row is not None and row.healthy and row.last_seen_at == now


def test_credentials_live_and_end(activities: SqlControlActivities, engine: Engine) -> None:
    present = datetime.now(UTC)
    wanted = spec()
    activities.record_environment(record(wanted, 1, present, generation=3))
    issued = m.NodeToken(
        token_id=str(uuid4()),
        token_sha256="ab" * 32,
        issued_at=present,
        expires_at=present + timedelta(hours=1),
    )
    register = m.RegisterNodeToken(
        environment_id=wanted.environment_id, generation=3, device_id="d" * 64, token=issued
    )
    activities.register_node_token(register)
    activities.register_node_token(register)
    later = present + timedelta(hours=5)
    activities.extend_node_token(
        m.ExtendNodeToken(environment_id=wanted.environment_id, generation=3, expires_at=later)
    )
    with writing(engine) as session:
        token = node_tokens.live_token(session, "ab" * 32, present + timedelta(hours=2))
        assert token is not None and token.expires_at == later
        takeover.create(
            session,
            environment_id=wanted.environment_id,
            generation=3,
            token_sha256="cd" * 32,
            created_by="ann",
            now=present,
            ttl_seconds=600,
        )
        pair(session, wanted.environment_id, present)
        session.flush()
        assert takeover.find_live(session, "cd" * 32, present) is not None

    def revoke(generation: int, pairing: bool = False) -> tuple[bool, bool, str]:
        activities.revoke_credentials(
            m.RevokeCredentials(
                environment_id=wanted.environment_id, generation=generation, reason="stop", pairing=pairing
            )
        )
        with reading(engine) as session:
            return (
                node_tokens.live_token(session, "ab" * 32, present) is not None,
                takeover.find_live(session, "cd" * 32, present) is not None,
                session.exec(select(PairingRow.status)).one(),
            )

    assert revoke(2) == (True, True, "approved")
    assert revoke(3) == (False, False, "approved")
    assert revoke(3, pairing=True) == (False, False, "revoked")
    with reading(engine) as session:
        row = session.exec(select(NodeTokenRow)).one()
        pairing_id = session.exec(select(PairingRow.pairing_id)).one()
        assert pairing_id is not None
        pairing = pairings.get(session, pairing_id)
    assert row.revoke_reason == "stop"
    assert pairing is not None and pairing.latest_review is not None
    assert pairing.latest_review.reason == "stop"


def test_credentials_go_with_a_record(activities: SqlControlActivities, engine: Engine) -> None:
    present = datetime.now(UTC)
    wanted = spec()

    def token(sha256: str) -> m.NodeToken:
        return m.NodeToken(
            token_id=str(uuid4()),
            token_sha256=sha256,
            issued_at=present,
            expires_at=present + timedelta(hours=1),
        )

    def live(sha256: str) -> bool:
        with reading(engine) as session:
            return node_tokens.live_token(session, sha256, present) is not None

    def record_it(revision: int, generation: int, **credentials: object) -> m.Recorded:
        projection = record(wanted, revision, present, generation=generation)
        return activities.record_environment(projection.model_copy(update=credentials))

    first = m.RegisterNodeToken(
        environment_id=wanted.environment_id, generation=1, device_id="d" * 64, token=token("ab" * 32)
    )
    second = first.model_copy(update={"generation": 2, "token": token("cd" * 32)})
    end = m.RevokeCredentials(environment_id=wanted.environment_id, generation=1, reason="stopped")
    # The first record of all makes the row that the token belongs to.
    assert record_it(1, 1, registers=first).credentials
    assert record_it(1, 1, registers=first).credentials
    assert live("ab" * 32)
    record_it(2, 2, registers=second)
    assert not live("ab" * 32) and live("cd" * 32)
    # A record that comes too late: its projection is not written, its generation's credentials end all the same.
    record_it(1, 1, revokes=end)
    assert live("cd" * 32)
    record_it(1, 1, registers=first)
    assert not live("ab" * 32) and live("cd" * 32)
    record_it(1, 2, revokes=end.model_copy(update={"generation": 2}))
    assert not live("cd" * 32)
    with reading(engine) as session:
        row = environments.get(session, wanted.environment_id)
        assert row is not None and (row.revision, row.generation) == (2, 2)
        assert {one.revoke_reason for one in session.exec(select(NodeTokenRow))} == {"superseded", "stopped"}


def test_a_record_whose_credentials_are_refused_is_not_written(
    activities: SqlControlActivities, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = datetime.now(UTC)
    wanted = spec()
    activities.record_environment(record(wanted, 1, present))

    def refuse(*arguments: object) -> int:
        raise KeyError("a bug")

    monkeypatch.setattr(node_tokens, "revoke_up_to", refuse)
    end = m.RevokeCredentials(environment_id=wanted.environment_id, generation=1, reason="stopped")
    with pytest.raises(KeyError):
        activities.record_environment(record(wanted, 2, present).model_copy(update={"revokes": end}))
    with reading(engine) as session:
        row = environments.get(session, wanted.environment_id)
        assert row is not None and row.revision == 1


def pair(session: Session, environment_id: str, now: datetime) -> None:
    """An approved managed pairing."""
    node = NodeRow(
        node_id="d" * 64, public_key="k", environment_id=environment_id, created_at=now, last_seen_at=now
    )
    pairing = PairingRow(
        node_id="d" * 64,
        status="approved",
        motivation="managed",
        environment_id=environment_id,
        requested_at=now,
        updated_at=now,
    )
    session.add(node)
    session.flush()
    session.add(pairing)


async def test_live_environments_of_the_host_are_told(
    activities: SqlControlActivities, engine: Engine, temporal: WorkflowEnvironment, now: datetime
) -> None:
    told, elsewhere, deleted, unstarted = spec(), spec(host_id="host-2"), spec(), spec()
    write(engine, *[record(one, 1, now) for one in (told, elsewhere, unstarted)])
    write(engine, record(deleted, 1, now, Status.DELETING, deleted=True))
    for one in (told, elsewhere, deleted):
        await start(temporal.client, one.environment_id)
    event = m.HostEvent(event="lost", message="no heartbeat", at=now)
    assert await activities.notify_environments(m.NotifyEnvironments(host_id="host-1", event=event)) == 1
    assert await signals(temporal.client, told.environment_id) == ["host_event"]
    assert await signals(temporal.client, elsewhere.environment_id) == []
    assert await signals(temporal.client, deleted.environment_id) == []


async def test_a_hundred_environments_are_told(
    activities: SqlControlActivities, engine: Engine, temporal: WorkflowEnvironment, now: datetime
) -> None:
    ids = []
    for _ in range(100):
        wanted = spec(host_id="host-3")
        write(engine, record(wanted, 1, now))
        await start(temporal.client, wanted.environment_id)
        ids.append(wanted.environment_id)
    event = m.HostEvent(event="restored", at=now)
    started = datetime.now(UTC)
    assert await activities.notify_environments(m.NotifyEnvironments(host_id="host-3", event=event)) == 100
    print(f"100 environments told in {(datetime.now(UTC) - started).total_seconds() * 1000:.0f} ms")
    assert await signals(temporal.client, ids[-1]) == ["host_event"]


async def test_temporal_away_is_an_error(engine: Engine, now: datetime) -> None:
    write(engine, record(spec(), 1, now))
    nowhere = await Client.connect("127.0.0.1:1", lazy=True, plugins=[ControlPlanePlugin()])
    event = m.HostEvent(event="lost", at=now)
    with pytest.raises((RPCError, RuntimeError)):
        await SqlControlActivities(engine, nowhere).notify_environments(
            m.NotifyEnvironments(host_id="host-1", event=event)
        )


async def test_database_away_is_one_short_error_to_repeat(
    temporal: WorkflowEnvironment, tmp_path: Path, now: datetime
) -> None:
    unmigrated = make_engine(f"sqlite:///{tmp_path / 'empty.db'}")
    away = make_engine("postgresql://somebody:hunter2@127.0.0.1:1/inventory")
    for engine in (unmigrated, away):
        activities = SqlControlActivities(engine, temporal.client)
        with pytest.raises(ApplicationError) as caught:
            activities.record_environment(record(spec(), 1, now))
        assert (caught.value.type, caught.value.non_retryable) == (INVENTORY_UNAVAILABLE, False)
        assert "hunter2" not in str(caught.value) and "INSERT" not in str(caught.value)
        request = m.NotifyEnvironments(host_id="h", event=m.HostEvent(event="lost", at=now))
        with pytest.raises(ApplicationError):
            await activities.notify_environments(request)
        engine.dispose()


async def start(client: Client, environment_id: str) -> None:
    """A workflow that no worker runs, to take signals."""
    await client.start_workflow("Ear", id=environment_workflow_id(environment_id), task_queue="nobody")


async def signals(client: Client, environment_id: str) -> list[str]:
    """Names of the signals a workflow was sent."""
    handle = client.get_workflow_handle(environment_workflow_id(environment_id))
    return [
        event.workflow_execution_signaled_event_attributes.signal_name
        async for event in handle.fetch_history_events()
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    ]
