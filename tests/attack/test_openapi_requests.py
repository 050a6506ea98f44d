"""Every operation of the OpenAPI document, with what it allows and with what it does not."""

import asyncio
import logging
from collections import Counter
from typing import Any

import pytest
from schemathesis import GenerationMode

from tests.api.stack import Stack
from tests.attack.budget import EXAMPLES, SECONDS
from tests.attack.openapi import attack, operations

pytestmark = [pytest.mark.timeout(SECONDS), pytest.mark.xdist_group("attack")]


async def existing(stack: Stack) -> dict[str, dict[str, Any]]:
    """Path parameters that exist, for each operation an environment of its own that runs."""
    found: dict[str, dict[str, Any]] = {}
    for operation in operations(stack.app):
        if "{environment_id}" in operation.path:
            found[operation.label] = {"environment_id": await stack.started(label="attacked")}
        if "{host_id}" in operation.path:
            found[operation.label] = {"host_id": stack.host_id}
    return found


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
async def test_every_operation(stack: Stack, mode: GenerationMode, caplog: pytest.LogCaptureFixture) -> None:
    known = await existing(stack)
    statuses: Counter[tuple[str, int]] = Counter()
    with caplog.at_level(logging.ERROR):
        found = await asyncio.to_thread(
            lambda: list(attack(stack.app, stack.url, mode, known, EXAMPLES, statuses))
        )
    assert not found, "\n\n".join(found)
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert (await stack.http.get("/readyz")).status_code == 200
    if mode is GenerationMode.POSITIVE:
        # Nothing is attacked where everything is refused at the door.
        reached = {label for label, status in statuses if status < 400}
        assert len(reached) >= 15, reached
    else:
        assert {status for _, status in statuses} <= {200, 201, 202, 307, 400, 404, 405, 409, 503}, statuses
    # In its documented shape, or it was found above: a machine too busy to answer in time, and no more than that.
    assert sum(n for (_, status), n in statuses.items() if status == 503) * 10 <= statuses.total(), statuses
