"""Commands against the entity workflow on the real dev server, some of them typed by the real `temporal` command."""

import asyncio
import json
import random

import pytest
from temporalio.common import SearchAttributeKey

from activities.failures import failure
from models import messages as m
from models.errors import ErrorCode
from models.identifiers import SEARCH_ATTRIBUTE_STATUS, environment_workflow_id
from models.lifecycle import Command, Recovery, Status
from tests.fakes.runtime import (
    DiesAfterCreate,
    FakeRuntime,
    FlakyRuntime,
    NeverRuntime,
    NotFoundRuntime,
    SlowRuntime,
)
from tests.support.temporal import temporal_cli, temporal_json
from tests.support.waiting import eventually
from tests.workflows.conftest import MakePlane
from tests.workflows.invariants import agree
from workflows.environment import DesktopEnvironment

START_STEPS = ["ensure_image", "prepare_identity", "start_container", "await_node_pairing"]


async def test_start_stop_start_delete(make_plane: MakePlane) -> None:
    plane = await make_plane()
    environment_id = await plane.create()
    view = await plane.settled(environment_id, Status.RUNNING)
    assert view.generation == 1
    assert view.takeover_available
    assert {"prepare", "start_container", "await_node_pairing", "total"} <= set(view.phases)
    await agree(plane, environment_id, view.status)

    await plane.cli_signal(environment_id, "stop")
    view = await plane.settled(environment_id, Status.STOPPED)
    await agree(plane, environment_id, view.status)
    assert not view.takeover_available

    await plane.cli_signal(environment_id, "start", "--input", '{"reason": "again", "actor": "ann"}')
    view = await plane.settled(environment_id, Status.RUNNING)
    assert view.generation == 2
    await agree(plane, environment_id, view.status)
    command = [row for row in plane.events(environment_id) if row.kind == "command" and row.name == "start"][
        -1
    ]
    assert (command.actor, command.reason) == ("ann", "again")

    await plane.cli_signal(environment_id, "delete")
    await plane.handle(environment_id).result()
    row = plane.row(environment_id)
    assert row is not None and row.deleted_at is not None
    assert plane.runtime.containers == {} and plane.runtime.directories == set()
    assert plane.live_tokens(environment_id) == []
    sequences = [row.sequence for row in plane.events(environment_id)]
    assert sequences == list(range(1, len(sequences) + 1))


async def test_created_stopped_stays_stopped(make_plane: MakePlane) -> None:
    plane = await make_plane()
    environment_id = await plane.create(running=False)
    view = await plane.settled(environment_id, Status.STOPPED)
    assert view.generation == 0
    assert plane.runtime.calls == []


HISTORY_EVENTS = 60
"""What a start, running, stop cycle may cost (design section 7)."""


async def test_one_cycle_stays_in_the_history_budget(make_plane: MakePlane, cached_workflows: int) -> None:
    plane = await make_plane()
    environment_id = await plane.create(running=False)
    await agree(plane, environment_id, Status.STOPPED)
    image_ref = (await plane.view(environment_id)).spec.image_ref
    plane.runtime.images[image_ref] = m.ImageReady(image_id="sha256:there")
    spent = []
    for _ in range(2):
        # What the last activity's end costs comes after it.
        await asyncio.sleep(0.3)
        before = (await plane.handle(environment_id).describe()).history_length
        await plane.cli_signal(environment_id, "start")
        await agree(plane, environment_id, Status.RUNNING)
        await plane.cli_signal(environment_id, "stop")
        await agree(plane, environment_id, Status.STOPPED)
        await asyncio.sleep(0.3)
        spent.append((await plane.handle(environment_id).describe()).history_length - before)
    print(f"start, running, stop cycles: {spent} history events (budget {HISTORY_EVENTS})")
    assert max(spent) <= HISTORY_EVENTS


@pytest.mark.parametrize("step", START_STEPS)
@pytest.mark.parametrize("command", [Command.STOP, Command.RESET, Command.DELETE])
async def test_a_command_interrupts_a_start_in_each_phase(
    make_plane: MakePlane, step: str, command: Command
) -> None:
    plane = await make_plane()
    gate = plane.runtime.gate(step)
    environment_id = await plane.create()
    await eventually(lambda: plane.runtime.count(step), f"{step} begun")
    await plane.handle(environment_id).signal(command)
    if command is Command.RESET:
        await eventually(lambda: plane.runtime.count("wipe_runtime"), "wiped while the start hung")
        gate.set()
        view = await plane.settled(environment_id, Status.RUNNING)
        assert view.generation == 2
        await agree(plane, environment_id, view.status)
    elif command is Command.STOP:
        view = await plane.settled(environment_id, Status.STOPPED)
        gate.set()
        await agree(plane, environment_id, view.status)
    else:
        await plane.handle(environment_id).result()
        gate.set()
        assert plane.live_tokens(environment_id) == []
    assert len(plane.runtime.running()) == (command is Command.RESET)


async def test_start_during_stopping_ends_running(make_plane: MakePlane) -> None:
    plane = await make_plane()
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    gate = plane.runtime.gate("remove_container")
    await plane.cli_signal(environment_id, "stop")
    await plane.until(environment_id, lambda v: v.phase == "remove_container", "stopping")
    await plane.cli_signal(environment_id, "start")
    gate.set()
    view = await plane.until(
        environment_id, lambda v: v.settled and v.status is Status.RUNNING, "running again"
    )
    assert view.generation == 2
    await agree(plane, environment_id, view.status)


async def test_reset_gives_a_clean_desktop_and_keeps_the_identity(make_plane: MakePlane) -> None:
    plane = await make_plane()
    environment_id = await plane.create()
    first = await plane.settled(environment_id, Status.RUNNING)
    await plane.cli_signal(environment_id, "reset")
    second = await plane.until(environment_id, lambda v: v.settled and v.generation == 2, "reset")
    assert second.status is Status.RUNNING
    assert second.node_id == first.node_id
    assert plane.runtime.wiped == [environment_id]
    assert len(plane.runtime.removed) == 1
    await plane.cli_signal(environment_id, "reset", "--input", '{"rotate_identity": true}')
    third = await plane.until(
        environment_id, lambda v: v.settled and v.generation == 3, "reset with a new identity"
    )
    assert third.node_id != first.node_id
    await agree(plane, environment_id, third.status)


async def test_reset_of_a_stopped_environment_wipes_and_stays_stopped(make_plane: MakePlane) -> None:
    plane = await make_plane()
    environment_id = await plane.create(running=False)
    await plane.settled(environment_id, Status.STOPPED)
    await plane.cli_signal(environment_id, "reset")
    await eventually(lambda: plane.runtime.wiped, "wiped")
    view = await plane.settled(environment_id, Status.STOPPED)
    await agree(plane, environment_id, view.status)


async def test_twenty_random_commands_settle_where_the_last_one_says(make_plane: MakePlane) -> None:
    plane = await make_plane(SlowRuntime(0.02))
    environment_id = await plane.create()
    chooser = random.Random(7)  # noqa: S311 - a repeatable order, no secret
    handle = plane.handle(environment_id)
    desired = True
    for _ in range(20):
        command = chooser.choice([Command.START, Command.STOP, Command.RESET])
        desired = {Command.START: True, Command.STOP: False}.get(command, desired)
        await handle.signal(command)
    view = await plane.await_settled(environment_id, m.AwaitSettled(timeout_seconds=60))
    assert view.status is (Status.RUNNING if desired else Status.STOPPED)
    await agree(plane, environment_id, view.status)


async def test_odd_signals_are_survived_and_noted(make_plane: MakePlane) -> None:
    plane = await make_plane()
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    await plane.cli_signal(environment_id, "frobnicate", "--input", '"now"')
    await plane.cli_signal(environment_id, "container_event", "--input", '{"event": "on fire"}')
    await plane.cli_signal(environment_id, "node_presence")
    await plane.cli_signal(environment_id, "start", "--input", "[1, 2]", "--input", '"twice"')
    await plane.cli_signal(environment_id, "start", "--input", '{"reason": {"deep": 1}}')
    await plane.cli_signal(
        environment_id,
        "start",
        "--input-base64",
        "--input",
        "/////w==",
        "--input-meta",
        "encoding=binary/odd",
    )
    await plane.cli_signal(environment_id, "start", "--input", '{"reason": "' + "x" * 5000 + '"}')
    view = await plane.view(environment_id)
    assert view.status is Status.RUNNING and view.settled
    entries = await plane.handle(environment_id).query(DesktopEnvironment.timeline)
    odd = [entry.message or "" for entry in entries if entry.name == "odd_signal"]
    assert len(odd) == 3
    assert "unknown signal" in odd[0] and "frobnicate" in odd[0]
    assert "payload ignored" in json.dumps([entry.message for entry in entries])
    assert all(len(entry.reason or "") <= 300 for entry in entries)
    await plane.cli_signal(environment_id, "stop", "--input", "null")
    await plane.settled(environment_id, Status.STOPPED)


async def test_a_repeated_request_is_carried_out_once(make_plane: MakePlane) -> None:
    plane = await make_plane()
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    for _ in range(3):
        await plane.handle(environment_id).signal("reset", m.CommandSignal(request_id="one"))
    wish = m.AwaitSettled(after_request_id="one", timeout_seconds=30)
    view = await plane.await_settled(environment_id, wish)
    assert view.generation == 2
    assert (await plane.names(environment_id)).count("command:reset") == 1


async def test_missing_image_is_one_attempt_and_a_clear_code(make_plane: MakePlane) -> None:
    plane = await make_plane(NotFoundRuntime())
    environment_id = await plane.create()
    view = await plane.settled(environment_id, Status.ERROR)
    assert view.last_error is not None and view.last_error.code is ErrorCode.IMAGE_NOT_FOUND
    assert view.last_error.phase == "ensure_image"
    assert view.recovery is Recovery.OPERATOR
    assert plane.runtime.count("ensure_image") == 1
    await agree(plane, environment_id, view.status)


async def test_a_flaky_start_recovers_and_the_error_clears(make_plane: MakePlane) -> None:
    plane = await make_plane(FlakyRuntime("start_container", times=2))
    environment_id = await plane.create()
    view = await plane.settled(environment_id, Status.RUNNING)
    assert view.last_error is None
    assert view.restarts == 2
    names = await plane.names(environment_id)
    assert names.count("error:start_failed") == 2
    await agree(plane, environment_id, view.status)


async def test_a_crash_loop_ends_in_a_lasting_error(
    make_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.policies.RESTART_ATTEMPTS", 2)
    plane = await make_plane(DiesAfterCreate())
    environment_id = await plane.create()
    view = await plane.settled(environment_id, Status.ERROR)
    assert view.last_error is not None
    assert view.last_error.code is ErrorCode.SANDBOX_EXITED
    assert view.last_error.exit_code == 137
    assert "Xvnc: fatal server error" in view.last_error.log_tail
    assert view.recovery is Recovery.OPERATOR
    assert plane.runtime.count("start_container") == 3
    await agree(plane, environment_id, view.status)
    await plane.cli_signal(environment_id, "stop")
    view = await plane.settled(environment_id, Status.STOPPED)
    assert view.last_error is None


async def test_a_crash_while_running_is_mended_with_a_new_generation(make_plane: MakePlane) -> None:
    plane = await make_plane()
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    plane.runtime.crash(environment_id, exit_code=139, oom_killed=True)
    view = await plane.until(environment_id, lambda v: v.settled and v.generation == 2, "mended")
    assert view.status is Status.RUNNING
    await agree(plane, environment_id, view.status)
    error = next(row for row in plane.events(environment_id) if row.kind == "error")
    assert error.detail["exit_code"] == 139 and error.detail["oom_killed"]


async def test_an_event_of_an_older_generation_is_ignored(make_plane: MakePlane) -> None:
    plane = await make_plane()
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    await plane.cli_signal(environment_id, "reset")
    await plane.until(environment_id, lambda v: v.settled and v.generation == 2, "reset")
    await plane.handle(environment_id).signal(
        "container_event", m.ContainerEvent(generation=1, event="exited")
    )
    view = await plane.view(environment_id)
    assert view.status is Status.RUNNING and view.settled and view.generation == 2


async def test_changed_image_makes_a_running_desktop_anew(make_plane: MakePlane) -> None:
    plane = await make_plane()
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    await plane.handle(environment_id).signal("change_spec", m.SpecChange(image_ref="image:2", label="blue"))
    view = await plane.until(environment_id, lambda v: v.settled and v.generation == 2, "made anew")
    assert view.spec.image_ref == "image:2" and view.spec.label == "blue"
    assert plane.runtime.containers[environment_id].image_ref == "image:2"
    await agree(plane, environment_id, view.status)


async def test_delete_ends_with_the_host_away(make_plane: MakePlane, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = await make_plane()
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    gate = plane.runtime.gate("remove_container")
    lost = m.HostEvent(event="lost", message="gone fishing")
    await plane.handle(environment_id).signal("host_event", lost)
    view = await plane.settled(environment_id, Status.ERROR)
    assert view.last_error is not None and view.last_error.code is ErrorCode.HOST_UNREACHABLE
    await plane.cli_signal(environment_id, "delete")
    await eventually(lambda: plane.live_tokens(environment_id) == [], "tokens revoked at once")
    await eventually(lambda: plane.deleted(environment_id), "tombstone at once")
    assert plane.runtime.containers
    gate.set()
    await plane.handle(environment_id).result()
    assert plane.runtime.containers == {} and plane.runtime.directories == set()


async def test_host_outage_restarts_nothing_that_still_runs(make_plane: MakePlane) -> None:
    plane = await make_plane()
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    handle = plane.handle(environment_id)
    await handle.signal("host_event", m.HostEvent(event="lost"))
    view = await plane.settled(environment_id, Status.ERROR)
    assert view.recovery is Recovery.HOST
    await handle.signal("host_event", m.HostEvent(event="restored"))
    view = await plane.settled(environment_id, Status.RUNNING)
    assert view.generation == 1 and view.restarts == 0
    assert len(plane.runtime.created) == 1
    await agree(plane, environment_id, view.status)


async def test_a_storm_of_signals_loses_none(make_plane: MakePlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.policies.HISTORY_LIMIT", 100)
    plane = await make_plane()
    environment_id = await plane.create(running=False)
    await plane.settled(environment_id, Status.STOPPED)
    handle = plane.handle(environment_id)
    first_run = (await handle.describe()).run_id
    for number in range(150):
        await handle.signal("frob", f"{number}")
    await eventually(
        lambda: sum(row.name == "odd_signal" for row in plane.events(environment_id)) == 150, "all 150 noted"
    )
    await plane.settled(environment_id, Status.STOPPED)
    assert (await handle.describe()).run_id != first_run


async def test_continue_as_new_carries_everything(
    make_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.policies.HISTORY_LIMIT", 30)
    plane = await make_plane()
    environment_id = await plane.create()
    first_run = (await plane.handle(environment_id).describe()).run_id
    # Agreed upon, not only queried: a query may run ahead of the workflow, with other times.
    before = await agree(plane, environment_id, Status.RUNNING)
    await plane.cli_signal(environment_id, "frob")

    async def continued() -> bool:
        return (await plane.handle(environment_id).describe()).run_id != first_run

    await eventually(continued, "continued as new")
    after = await agree(plane, environment_id, Status.RUNNING)
    assert after.model_dump(exclude={"updated_at"}) == before.model_dump(exclude={"updated_at"})
    assert len(plane.runtime.created) == 1
    await plane.cli_signal(environment_id, "stop")
    await agree(plane, environment_id, Status.STOPPED)


async def test_an_unexpected_exception_does_not_wedge(make_plane: MakePlane) -> None:
    class Broken(FakeRuntime):
        def before(self, step: str, environment_id: str, generation: int) -> None:
            if step == "prepare_identity" and generation == 1:
                raise KeyError("a bug in the host")

    plane = await make_plane(Broken())
    environment_id = await plane.create()
    view = await plane.settled(environment_id, Status.RUNNING)
    assert view.generation == 2
    assert "error:internal" in await plane.names(environment_id)


async def test_cancelled_by_hand_leaves_nothing(make_plane: MakePlane) -> None:
    plane = await make_plane()
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    await temporal_cli(
        plane.address, "workflow", "cancel", "--workflow-id", environment_workflow_id(environment_id)
    )
    await plane.handle(environment_id).result()
    assert plane.runtime.containers == {}
    assert plane.live_tokens(environment_id) == []


async def test_readable_in_the_web_ui(make_plane: MakePlane) -> None:
    plane = await make_plane(NeverRuntime("await_node_pairing"))
    environment_id = await plane.create()
    workflow_id = environment_workflow_id(environment_id)
    await eventually(lambda: plane.runtime.count("await_node_pairing"), "pairing awaited")
    answer = await temporal_json(plane.address, "workflow", "metadata", "--workflow-id", workflow_id)
    metadata = answer["queryResult"][0]
    assert "starting" in metadata["currentDetails"]
    assert "await_node_pairing" in metadata["currentDetails"]
    signals = {signal["name"] for signal in metadata["definition"]["signalDefinitions"] if "name" in signal}
    assert {"start", "stop", "reset", "delete"} <= signals
    found = await temporal_json(
        plane.address,
        "workflow",
        "list",
        "--query",
        f"EnvironmentHost='{plane.host_id}' AND ExecutionStatus='Running'",
    )
    assert workflow_id in {entry["execution"]["workflowId"] for entry in found}
    await plane.cli_signal(environment_id, "delete")
    await plane.handle(environment_id).result()


async def test_what_only_an_operator_can_mend_is_one_attempt(make_plane: MakePlane) -> None:
    class TooMuch(FakeRuntime):
        def before(self, step: str, environment_id: str, generation: int) -> None:
            if step == "start_container":
                message = "limits: cpus 8 is above the maximum 4 of this host"
                raise failure(ErrorCode.START_FAILED, message, generation=generation, lasting=True)

    plane = await make_plane(TooMuch())
    environment_id = await plane.create()
    view = await agree(plane, environment_id, Status.ERROR)
    assert view.last_error is not None and view.last_error.code is ErrorCode.START_FAILED
    assert view.recovery is Recovery.OPERATOR
    assert plane.runtime.count("start_container") == 1


async def test_refreshed_logs_are_projected(make_plane: MakePlane) -> None:
    plane = await make_plane()
    environment_id = await plane.create()
    await agree(plane, environment_id, Status.RUNNING)
    plane.runtime.containers[environment_id].log.append("a line since then")
    lines: list[str] = await plane.handle(environment_id).execute_update(
        "refresh_logs", result_type=list[str]
    )
    assert lines[-1] == "a line since then"

    def logs() -> bool:
        row = plane.row(environment_id)
        return row is not None and row.logs == lines

    await eventually(logs, "projected")
    await agree(plane, environment_id, Status.RUNNING)


async def test_a_deleted_environment_is_found_as_deleted(make_plane: MakePlane) -> None:
    plane = await make_plane()
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    handle = plane.handle(environment_id)
    await handle.signal("delete")
    await handle.result()
    key = SearchAttributeKey.for_keyword(SEARCH_ATTRIBUTE_STATUS)
    assert (await handle.describe()).typed_search_attributes.get(key) == "deleted"
