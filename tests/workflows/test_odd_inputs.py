"""Workflows that somebody starts by hand with an input they cannot use end at once, and say why."""

import json

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError

from models.identifiers import CONTROL_TASK_QUEUE, new_environment_id
from tests.support.temporal import temporal_cli
from tests.workflows.conftest import MakePlane

ANOTHER = new_environment_id()
ODD = {
    "nothing": (),
    "null": ("--input", "null"),
    "text": ("--input", '"start"'),
    "two": ("--input", "{}", "--input", "{}"),
    "empty": ("--input", "{}"),
    "wrong": ("--input", '{"spec": {"environment_id": 7}, "record": [], "state": 3}'),
    "another's": (
        "--input",
        json.dumps(
            {
                "spec": {"environment_id": ANOTHER, "host_id": "h", "image_ref": "i"},
                "record": {"host_id": "h"},
            }
        ),
    ),
    "undecodable": ("--input-base64", "--input", "/////w==", "--input-meta", "encoding=binary/odd"),
}


@pytest.mark.parametrize("kind", ["DesktopEnvironment", "DesktopHost"])
async def test_odd_inputs_end_the_workflow(make_plane: MakePlane, kind: str) -> None:
    plane = await make_plane(host_worker=False)
    for name, arguments in ODD.items():
        workflow_id = f"odd/{new_environment_id()}"
        await temporal_cli(
            plane.address,
            *("workflow", "start", "--workflow-id", workflow_id, "--type", kind),
            *("--task-queue", CONTROL_TASK_QUEUE, *arguments),
        )
        handle = plane.client.get_workflow_handle(workflow_id)
        with pytest.raises(WorkflowFailureError) as caught:
            await handle.result()
        cause = caught.value.cause
        assert isinstance(cause, ApplicationError) and cause.type == "invalid_request", name
        assert "takes exactly one JSON object" in cause.message
        history = await handle.fetch_history()
        kinds = [event.event_type for event in history.events]
        assert EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED not in kinds, name
