"""Committed histories replay on the code as it is, and the test that says so can fail.

To add one, or after a change that is guarded by `workflow.patched`: `python -m tests.workflows.record_histories`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from tests.workflows.record_histories import FORM, STORIES
from workflows.environment import DesktopEnvironment
from workflows.host import DesktopHost
from workflows.plugin import ControlPlanePlugin

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))


def load(path: Path) -> WorkflowHistory:
    """A history as `temporal workflow show --output json` prints it."""
    text = path.read_text()
    started = json.loads(text)["events"][0]["workflowExecutionStartedEventAttributes"]
    return WorkflowHistory.from_json(started["workflowId"], text)


def test_there_are_histories() -> None:
    names = {path.stem for path in HISTORIES}
    stories = {"start_stop_delete", "interrupted", "crash", "host_loss", "continued", "host"}
    assert stories <= names
    assert {f"{story}.{FORM}" for story in STORIES} <= names


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_history_replays(path: Path) -> None:
    replayer = Replayer(workflows=[DesktopEnvironment, DesktopHost], plugins=[ControlPlanePlugin()])
    await replayer.replay_workflow(load(path))


@workflow.defn(name="DesktopEnvironment")
class ChangedEnvironment(DesktopEnvironment):
    """The workflow with one more step at its beginning: what a careless change looks like."""

    @workflow.init
    def __init__(self, *payloads: Any) -> None:
        super().__init__(*payloads)

    @workflow.run
    async def run(self, *payloads: Any) -> None:
        await workflow.sleep(1)
        await super().run(*payloads)


async def test_a_changed_workflow_does_not_replay() -> None:
    path = next(path for path in HISTORIES if path.stem == "start_stop_delete")
    replayer = Replayer(workflows=[ChangedEnvironment], plugins=[ControlPlanePlugin()])
    with pytest.raises(NondeterminismError):
        await replayer.replay_workflow(load(path))
