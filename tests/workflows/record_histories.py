"""Record the histories that `test_replay` replays: `python -m tests.workflows.record_histories NAME …` (default: all).

A committed history is a promise to environments that live now: record a new one beside it rather than over it.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from models import messages as m
from models.identifiers import environment_workflow_id, host_workflow_id
from models.lifecycle import Status
from tests.fakes.runtime import FakeRuntime, FlakyRuntime
from tests.support.temporal import start_dev_server
from tests.support.waiting import eventually
from tests.workflows.plane import Plane, plane_of
from tests.workflows.test_host import watch
from workflows import policies

TARGET = Path(__file__).parent / "histories"
FORM = 2
"""In the files' names; one more with each `workflow.patched`, so that the histories before it stay.

1, which their names do not say: before credentials went with the records.
"""
Story = Callable[[Plane], Awaitable[str]]


async def start_stop_delete(plane: Plane) -> str:
    """The happy path, with hand-typed odd signals in between."""
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    await plane.cli_signal(environment_id, "frob", "--input", '"odd"')
    await plane.cli_signal(environment_id, "stop", "--input", '{"reason": "lunch"}')
    await plane.settled(environment_id, Status.STOPPED)
    await plane.cli_signal(environment_id, "start")
    await plane.settled(environment_id, Status.RUNNING)
    await plane.cli_signal(environment_id, "delete")
    await plane.handle(environment_id).result()
    return environment_workflow_id(environment_id)


async def interrupted(plane: Plane) -> str:
    """Reset during a start, stop during another, delete during a third."""
    gate = plane.runtime.gate("await_node_pairing")
    environment_id = await plane.create()
    handle = plane.handle(environment_id)
    await eventually(lambda: plane.runtime.count("await_node_pairing"), "pairing awaited")
    await handle.signal("reset")
    await plane.until(
        environment_id, lambda v: v.generation == 2 and v.phase == "await_node_pairing", "again"
    )
    await handle.signal("stop")
    await plane.settled(environment_id, Status.STOPPED)
    await handle.signal("start")
    await plane.until(
        environment_id, lambda v: v.generation == 3 and v.phase == "await_node_pairing", "again"
    )
    await handle.signal("delete")
    await handle.result()
    gate.set()
    return environment_workflow_id(environment_id)


async def crash(plane: Plane) -> str:
    """Two failed starts, a crash while running, a node that goes and comes."""
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    plane.runtime.crash(environment_id, exit_code=137, oom_killed=True)
    view = await plane.until(environment_id, lambda v: v.settled and v.generation == 4, "mended")
    for connected in (False, True):
        presence = m.NodePresence(generation=view.generation, connected=connected)
        await plane.handle(environment_id).signal("node_presence", presence)
    await plane.cli_signal(environment_id, "stop")
    await plane.settled(environment_id, Status.STOPPED)
    return environment_workflow_id(environment_id)


async def host_loss(plane: Plane) -> str:
    """The host goes and comes; then goes, and the environment is deleted meanwhile."""
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    handle = plane.handle(environment_id)
    await handle.signal("host_event", m.HostEvent(event="lost"))
    await plane.settled(environment_id, Status.ERROR)
    await handle.signal("host_event", m.HostEvent(event="restored"))
    await plane.settled(environment_id, Status.RUNNING)
    await handle.signal("host_event", m.HostEvent(event="lost"))
    await plane.settled(environment_id, Status.ERROR)
    await handle.signal("delete")
    await handle.result()
    return environment_workflow_id(environment_id)


async def continued(plane: Plane) -> str:
    """The run after a continue-as-new, with an update in it."""
    policies.HISTORY_LIMIT = 30
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    policies.HISTORY_LIMIT = 2000
    handle = plane.handle(environment_id)
    await handle.signal("change_spec", m.SpecChange(label="green"))
    await handle.signal("stop", m.CommandSignal(request_id="r1"))
    await handle.execute_update(
        "await_settled",
        m.AwaitSettled(after_request_id="r1", timeout_seconds=20),
        result_type=m.EnvironmentView,
    )
    return environment_workflow_id(environment_id)


async def logs(plane: Plane) -> str:
    """Logs read while the desktop runs; an image that is pulled for long, and is not pulled the second time."""
    gate = plane.runtime.gate("ensure_image")
    environment_id = await plane.create(running=False)
    await plane.settled(environment_id, Status.STOPPED)
    handle = plane.handle(environment_id)
    await handle.signal("start")
    await plane.until(environment_id, lambda v: v.phase == "ensure_image", "pulling")
    gate.set()
    await plane.settled(environment_id, Status.RUNNING)
    await handle.execute_update("refresh_logs", result_type=list[str])
    await handle.signal("reset")
    await plane.until(environment_id, lambda v: v.settled and v.generation == 2, "reset")
    await handle.execute_update("refresh_logs", result_type=list[str])
    await handle.signal("delete")
    await handle.result()
    return environment_workflow_id(environment_id)


async def older_host(plane: Plane) -> str:
    """A host whose worker is of the version before."""
    plane.runtime.prepares_all = False
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    await plane.cli_signal(environment_id, "stop")
    await plane.settled(environment_id, Status.STOPPED)
    return environment_workflow_id(environment_id)


async def host(plane: Plane) -> str:
    """The host workflow: healthy, Docker away and back, cancelled."""
    await watch(plane)
    handle = plane.client.get_workflow_handle(host_workflow_id(plane.host_id))
    environment_id = await plane.create()
    await plane.settled(environment_id, Status.RUNNING)
    plane.runtime.set_docker(False)
    await plane.settled(environment_id, Status.ERROR)
    plane.runtime.set_docker(True)
    await plane.settled(environment_id, Status.RUNNING)
    await handle.cancel()
    await handle.result()
    return host_workflow_id(plane.host_id)


STORIES: dict[str, tuple[Story, Callable[[], FakeRuntime]]] = {
    "start_stop_delete": (start_stop_delete, FakeRuntime),
    "interrupted": (interrupted, FakeRuntime),
    "crash": (crash, lambda: FlakyRuntime("start_container", times=2)),
    "host_loss": (host_loss, FakeRuntime),
    "continued": (continued, FakeRuntime),
    "logs": (logs, FakeRuntime),
    "older_host": (older_host, FakeRuntime),
    "host": (host, FakeRuntime),
}


def without_stack_traces(value: Any) -> Any:
    """The same JSON without stack traces: they name this machine's paths, and replay does not look at them."""
    if isinstance(value, dict):
        return {key: without_stack_traces(part) for key, part in value.items() if key != "stackTrace"}
    if isinstance(value, list):
        return [without_stack_traces(part) for part in value]
    return value


async def record(names: list[str]) -> None:
    """Play each story and write its history."""
    TARGET.mkdir(exist_ok=True)
    async with await start_dev_server() as server:
        for name in names or list(STORIES):
            story, runtime = STORIES[name]
            with tempfile.TemporaryDirectory() as directory:
                async with plane_of(server.client, Path(directory), runtime()) as plane:
                    workflow_id = await story(plane)
                    history = await server.client.get_workflow_handle(workflow_id).fetch_history()
            text = json.dumps(without_stack_traces(json.loads(history.to_json())), indent=1)
            (TARGET / f"{name}.{FORM}.json").write_text(text + "\n")
            print(f"{name}: {len(history.events)} events")


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1:]))
