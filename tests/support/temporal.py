"""A real Temporal dev server for tests, and the real `temporal` command against it."""

import asyncio
import json
import shutil
from typing import Any

from temporalio.common import SearchAttributeKey
from temporalio.testing import WorkflowEnvironment

from models.identifiers import SEARCH_ATTRIBUTE_HOST, SEARCH_ATTRIBUTE_STATUS
from workflows.plugin import ControlPlanePlugin

DEV_SERVER_ARGS = [
    *("--dynamic-config-value", "history.transferProcessorMaxPollRPS=2000"),
    *("--dynamic-config-value", 'history.timerProcessorMaxTimeShift="20ms"'),
]
"""Without the first every hop costs 50 to 100 ms (design section 2), without the second every timer a second."""


async def start_dev_server() -> WorkflowEnvironment:
    """The dev server of the `temporal` command on PATH, with this project's search attributes."""
    temporal = shutil.which("temporal")
    assert temporal, "no `temporal` command: run `make setup`"
    return await WorkflowEnvironment.start_local(
        dev_server_existing_path=temporal,
        dev_server_extra_args=DEV_SERVER_ARGS,
        dev_server_log_level="error",
        plugins=[ControlPlanePlugin()],
        search_attributes=[
            SearchAttributeKey.for_keyword(SEARCH_ATTRIBUTE_STATUS),
            SearchAttributeKey.for_keyword(SEARCH_ATTRIBUTE_HOST),
        ],
    )


async def temporal_cli(address: str, *args: str) -> str:
    """Run the `temporal` command; its standard output.

    Raises:
        AssertionError: it failed; carries its standard error.
    """
    process = await asyncio.create_subprocess_exec(
        "temporal",
        *args,
        "--address",
        address,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, f"temporal {' '.join(args)}: {err.decode()}"
    return out.decode()


async def temporal_json(address: str, *args: str) -> Any:
    """The same, with `--output json` parsed."""
    return json.loads(await temporal_cli(address, *args, "--output", "json"))
