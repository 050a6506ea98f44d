"""Nothing wedges: bugs, odd states and hands on the real `temporal` command end in an entry of the timeline."""

import pkgutil
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from temporalio.client import WorkflowHandle

from models import messages as m
from models.errors import ErrorCode
from models.identifiers import CONTROL_TASK_QUEUE, environment_workflow_id, new_environment_id
from models.lifecycle import Recovery, Status
from tests.support.temporal import temporal_cli
from tests.support.waiting import eventually
from tests.workflows.conftest import MakePlane
from tests.workflows.invariants import agree, failed_tasks, gone
from tests.workflows.plane import Plane
from workflows import policies
from workflows.environment import DesktopEnvironment

pytestmark = pytest.mark.usefixtures("impatient")


class Bug:
    """A function that raises instead of doing its work, as long as `left` lasts."""

    def __init__(self, error: Callable[[], Exception]) -> None:
        self.error = error
        self.left = 0
        self.met = 0

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The function with the bug in it."""

        def buggy(*args: Any, **named: Any) -> Any:
            if self.left > 0:
                self.left -= 1
                self.met += 1
                raise self.error()
            return original(*args, **named)

        return buggy


@pytest.fixture
def bug_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bug]:
    """`bug_in("module.Class.method")` puts a bug there that sleeps until its `left` is set."""

    def put(place: str, error: Callable[[], Exception] = lambda: KeyError("a bug")) -> Bug:
        bug = Bug(error)
        path, _, name = place.rpartition(".")
        owner = pkgutil.resolve_name(path)
        monkeypatch.setattr(owner, name, bug.wrap(getattr(owner, name)))
        return bug

    return put


FOR_EVER = 1_000_000


async def test_a_container_that_cannot_be_removed_holds_up_no_delete(
    make_cached_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runtime hangs, say, in an engine that is well; the host is healthy all the while."""
    plane = await make_cached_plane()
    environment_id = await plane.create()
    await agree(plane, environment_id, Status.RUNNING)
    monkeypatch.setitem(policies.CLEAN_UP_IN_DELETE, "schedule_to_close_timeout", timedelta(seconds=2))
    gate = plane.runtime.gate("remove_container", environment_id)
    await plane.handle(environment_id).signal("delete")
    await eventually(lambda: plane.deleted(environment_id), "gone for the operator")
    assert plane.live_tokens(environment_id) == []
    assert environment_id in plane.runtime.containers
    assert "note:clean_up_postponed" in await plane.names(environment_id)
    gate.set()
    await gone(plane, environment_id)


@pytest.mark.parametrize(
    "place",
    [
        "workflows.reactions.Reactions.take_in",
        "workflows.reactions.Reactions._on_command",
        "workflows.reactions.Reactions.ended_well",
        "workflows.reactions.Reactions.operation_ended",
        "workflows.operations.Operations._new_generation",
        "workflows.operations.Operations.begin",
        "workflows.environment.next_operation",
        "workflows.environment.describe",
        "workflows.environment.DesktopEnvironment._deadlines",
        "workflows.state.EnvironmentState.record",
    ],
)
async def test_a_bug_in_the_workflow_is_an_internal_error_and_over_when_mended(
    make_cached_plane: MakePlane, bug_in: Callable[..., Bug], place: str
) -> None:
    bug = bug_in(place)
    plane = await make_cached_plane()
    environment_id = await plane.create(running=False)
    await agree(plane, environment_id, Status.STOPPED)
    bug.left = 3
    handle = plane.handle(environment_id)
    for _ in range(4):
        await handle.signal("start")
    await eventually(lambda: bug.met, "the bug was met")
    view = await plane.until(
        environment_id, lambda view: view.status is Status.RUNNING or not bug.left, "through"
    )
    await handle.signal("start")
    view = await agree(plane, environment_id, Status.RUNNING)
    assert view.last_error is None
    if place != "workflows.environment.describe":
        assert "error:internal" in await plane.names(environment_id)
    await handle.signal("delete")
    await gone(plane, environment_id)
    assert await failed_tasks(plane, handle.id) == []


async def test_a_lasting_bug_is_shown_and_commands_still_get_in(
    make_cached_plane: MakePlane, bug_in: Callable[..., Bug], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.policies.RESTART_ATTEMPTS", 2)
    bug = bug_in("workflows.operations.Operations._new_generation")
    bug.left = FOR_EVER
    plane = await make_cached_plane()
    environment_id = await plane.create()
    view = await agree(plane, environment_id, Status.ERROR)
    assert view.last_error is not None and view.last_error.code is ErrorCode.INTERNAL
    assert view.recovery is Recovery.OPERATOR
    assert "KeyError" in view.last_error.message
    bug.left = 0
    await plane.handle(environment_id).signal("start")
    await agree(plane, environment_id, Status.RUNNING)
    assert await failed_tasks(plane, environment_workflow_id(environment_id)) == []


async def test_a_record_that_is_refused_for_ever_blocks_no_operation(
    make_cached_plane: MakePlane, bug_in: Callable[..., Bug]
) -> None:
    bug = bug_in("inventory.environments.record")
    plane = await make_cached_plane()
    environment_id = await plane.create(running=False)
    await agree(plane, environment_id, Status.STOPPED)
    bug.left = FOR_EVER
    handle = plane.handle(environment_id)
    await handle.signal("start", m.CommandSignal(request_id="one"))
    view = await plane.await_settled(
        environment_id, m.AwaitSettled(after_request_id="one", timeout_seconds=30)
    )
    assert view.status is Status.RUNNING
    assert "error:internal" in await plane.names(environment_id)
    await handle.signal("stop")
    await plane.settled(environment_id, Status.STOPPED)
    await handle.signal("start")
    await plane.settled(environment_id, Status.RUNNING)
    row = plane.row(environment_id)
    assert row is not None and row.status == Status.STOPPED.value, "the projection is behind, as it must be"
    bug.left = 0
    await agree(plane, environment_id, Status.RUNNING)
    await handle.signal("delete")
    await gone(plane, environment_id)
    assert await failed_tasks(plane, handle.id) == []


async def test_with_the_database_away_everything_waits_and_nothing_is_lost(
    make_cached_plane: MakePlane, bug_in: Callable[..., Bug]
) -> None:
    away = bug_in("inventory.environments.record", lambda: OperationalError("record", {}, Exception("away")))
    plane = await make_cached_plane()
    environment_id = await plane.create(running=False)
    await agree(plane, environment_id, Status.STOPPED)
    away.left = FOR_EVER
    handle = plane.handle(environment_id)
    for command in ("start", "stop", "start"):
        await handle.signal(command)
    await eventually(lambda: away.met > 6, "several attempts, and the first wait by a timer")
    assert plane.runtime.created == [], "no container before its token can be registered"
    away.left = 0
    await agree(plane, environment_id, Status.RUNNING)
    names = await plane.names(environment_id)
    assert [name for name in names if name.startswith("command:")][1:] == [
        "command:start",
        "command:stop",
        "command:start",
    ]
    assert "error:internal" not in names


async def test_a_delete_whose_revocation_has_a_bug_ends_for_the_operator_and_later_for_good(
    make_cached_plane: MakePlane, bug_in: Callable[..., Bug]
) -> None:
    bug = bug_in("inventory.node_tokens.revoke_up_to")
    plane = await make_cached_plane()
    environment_id = await plane.create()
    await agree(plane, environment_id, Status.RUNNING)
    bug.left = FOR_EVER
    handle = plane.handle(environment_id)
    await handle.signal("delete")
    await eventually(lambda: plane.deleted(environment_id), "a tombstone")
    await eventually(lambda: environment_id not in plane.runtime.directories, "nothing on the host")
    assert plane.runtime.containers == {}
    assert (await handle.describe()).close_time is None
    length = (await handle.describe()).history_length
    await eventually(lambda: bug.met > 30, "tried again")
    # With a back-off, not in a circle as fast as it goes.
    assert (await handle.describe()).history_length - length < 400
    bug.left = 0
    await gone(plane, environment_id)
    assert "error:internal" in {f"{row.kind}:{row.name}" for row in plane.events(environment_id)}


async def test_a_registration_with_a_bug_is_a_lasting_error_and_a_stop_ends_it(
    make_cached_plane: MakePlane, bug_in: Callable[..., Bug], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.policies.RESTART_ATTEMPTS", 1)
    bug_in("inventory.node_tokens.register").left = FOR_EVER
    plane = await make_cached_plane()
    environment_id = await plane.create()
    view = await agree(plane, environment_id, Status.ERROR)
    assert view.last_error is not None
    assert (view.last_error.code, view.last_error.phase) == (ErrorCode.INTERNAL, "register_node_token")
    await plane.handle(environment_id).signal("stop")
    await agree(plane, environment_id, Status.STOPPED)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ({}, Status.ERROR),
        ({"situation": {"status": "levitating"}, "generation": 3}, Status.ERROR),
        ({"situation": {"status": "running", "desired_running": True}, "generation": "three"}, None),
        ({"situation": {"status": "stopped"}, "spec": {"no": "spec"}, "inbox": [{"odd": 1}]}, Status.STOPPED),
        (
            {"situation": {"status": "stopped"}, "timeline": [7], "token": "none", "future": True},
            Status.STOPPED,
        ),
    ],
)
async def test_a_state_that_cannot_be_read_fails_no_task(
    make_cached_plane: MakePlane, state: dict[str, Any], status: Status | None
) -> None:
    plane = await make_cached_plane()
    environment_id = new_environment_id()
    spec = m.EnvironmentSpec(environment_id=environment_id, host_id=plane.host_id, image_ref="image:1")
    handle: WorkflowHandle[Any, Any] = await plane.client.start_workflow(
        DesktopEnvironment.run,
        m.EnvironmentInput(spec=spec, state=state),
        id=environment_workflow_id(environment_id),
        task_queue=CONTROL_TASK_QUEUE,
    )
    if status is not None:
        view = await agree(plane, environment_id, status)
        assert view.status is not Status.ERROR or view.last_error is not None
    assert "error:internal" in await plane.names(environment_id)
    await handle.signal("reset")
    await handle.signal("start")
    await agree(plane, environment_id, Status.RUNNING)
    await handle.signal("delete")
    await gone(plane, environment_id)
    assert await failed_tasks(plane, handle.id) == []


async def test_signals_that_come_twice_count_once(make_cached_plane: MakePlane) -> None:
    plane = await make_cached_plane()
    environment_id = await plane.create()
    await agree(plane, environment_id, Status.RUNNING)
    handle = plane.handle(environment_id)
    plane.runtime.crash(environment_id)
    await plane.runtime.flush()
    event = plane.runtime.events[-1][1]
    for _ in range(3):
        await handle.signal("container_event", event)
    view = await plane.until(environment_id, lambda view: view.settled and view.generation > 1, "mended")
    await handle.signal("container_event", event)
    view = await agree(plane, environment_id, Status.RUNNING)
    assert (view.generation, view.restarts) == (2, 1)
    lost, back = m.HostEvent(event="lost"), m.HostEvent(event="restored")
    for word in (lost, lost, back, back):
        await handle.signal("host_event", word)
    view = await agree(plane, environment_id, Status.RUNNING)
    assert view.generation == 2
    gone_away = m.NodePresence(generation=2, connected=False)
    for presence in (gone_away, gone_away, gone_away.model_copy(update={"connected": True})):
        await handle.signal("node_presence", presence)
    view = await agree(plane, environment_id, Status.RUNNING)
    assert len(plane.runtime.created) == 2


async def test_word_of_the_host_that_comes_too_late_is_not_believed(make_cached_plane: MakePlane) -> None:
    plane = await make_cached_plane()
    environment_id = await plane.create()
    view = await agree(plane, environment_id, Status.RUNNING)
    early, late = view.created_at, view.updated_at.replace(year=view.updated_at.year + 1)
    await plane.handle(environment_id).signal("host_event", m.HostEvent(event="restored", at=late))
    await plane.handle(environment_id).signal("host_event", m.HostEvent(event="lost", at=early))
    view = await plane.view(environment_id)
    assert view.status is Status.RUNNING and view.settled


async def reset_by_hand(plane: Plane, environment_id: str, kind: str) -> None:
    """`temporal workflow reset`."""
    workflow_id = environment_workflow_id(environment_id)
    await temporal_cli(
        plane.address,
        *("workflow", "reset", "--workflow-id", workflow_id, "--type", kind, "--reason", "test"),
    )


@pytest.mark.parametrize("kind", ["FirstWorkflowTask", "LastWorkflowTask"])
@pytest.mark.parametrize("last", [Status.RUNNING, Status.STOPPED])
async def test_reset_by_hand_ends_consistent(make_cached_plane: MakePlane, kind: str, last: Status) -> None:
    plane = await make_cached_plane()
    environment_id = await plane.create()
    handle = plane.handle(environment_id)
    await agree(plane, environment_id, Status.RUNNING)
    for generation in range(2, 10):
        await handle.signal("reset", m.CommandSignal(request_id=f"{generation}"))
        wish = m.AwaitSettled(after_request_id=f"{generation}", timeout_seconds=30)
        assert (await plane.await_settled(environment_id, wish)).generation == generation
    if last is Status.STOPPED:
        await handle.signal("stop")
    before = await agree(plane, environment_id, last)
    assert before.generation == 9
    await reset_by_hand(plane, environment_id, kind)
    after = await agree(plane, environment_id, last)
    assert after.generation >= before.generation
    assert after.last_error is None
    names = [f"{row.kind}:{row.name}" for row in plane.events(environment_id)]
    assert "error:internal" not in names and "error:start_failed" not in names
    if kind == "FirstWorkflowTask":
        assert "note:rewound" in names
    await handle.signal("start")
    await agree(plane, environment_id, Status.RUNNING)
    await handle.signal("delete")
    await gone(plane, environment_id)
    assert await failed_tasks(plane, handle.id) == []


async def test_reset_by_hand_of_a_deleted_environment_deletes_it_again(make_cached_plane: MakePlane) -> None:
    plane = await make_cached_plane()
    environment_id = await plane.create()
    await agree(plane, environment_id, Status.RUNNING)
    await plane.handle(environment_id).signal("delete")
    await gone(plane, environment_id)
    created = len(plane.runtime.created)
    await reset_by_hand(plane, environment_id, "FirstWorkflowTask")
    await gone(plane, environment_id)
    assert len(plane.runtime.created) == created


async def test_odd_updates_are_refused(make_cached_plane: MakePlane) -> None:
    plane = await make_cached_plane()
    environment_id = await plane.create()
    await agree(plane, environment_id, Status.RUNNING)
    workflow_id = environment_workflow_id(environment_id)
    for arguments in (
        ("--name", "await_settled", "--input", '"soon"'),
        ("--name", "await_settled", "--input", '{"timeout_seconds": -1}'),
        ("--name", "no_such_update"),
    ):
        with pytest.raises(AssertionError):
            await temporal_cli(
                plane.address, "workflow", "update", "execute", "--workflow-id", workflow_id, *arguments
            )
    await agree(plane, environment_id, Status.RUNNING)
    assert await failed_tasks(plane, workflow_id) == []


async def test_cancelled_by_hand_with_the_host_away_leaves_nothing_either(
    make_cached_plane: MakePlane,
) -> None:
    plane = await make_cached_plane()
    environment_id = await plane.create()
    await agree(plane, environment_id, Status.RUNNING)
    gate = plane.runtime.gate("remove_container", environment_id)
    handle = plane.handle(environment_id)
    await handle.signal("host_event", m.HostEvent(event="lost"))
    await handle.signal("delete")
    await eventually(lambda: plane.deleted(environment_id), "a tombstone")
    await eventually(lambda: plane.runtime.count("remove_container"), "waiting for the host")
    await handle.cancel()
    await plane.view(environment_id)
    gate.set()
    await gone(plane, environment_id)
