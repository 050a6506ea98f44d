"""Dispatch between an operator who sends anything and a node that answers anything (protocol section 6)."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from api.gateway import Limits
from tests.attack.budget import EXAMPLES, SECONDS, attack
from tests.attack.junk import deep, dumped, mutations, nested, texts, values
from tests.gateway.harness import Node, Stack, new_engine, serving
from tests.gateway.test_gateway_dispatch import desktop

pytestmark = pytest.mark.timeout(SECONDS)

JSON = {"Content-Type": "application/json"}
SOUND_BODY: dict[str, Any] = {
    "capability": "tyrum.desktop.mouse",
    "args": {"action": "click", "x": 1, "y": 2},
    "timeout_seconds": 5,
}
SOUND_ANSWERS: list[Any] = [
    {"ok": True, "result": {"result": {"a": [1, 2.5, None]}, "evidence": {"type": "x"}}},
    {"ok": False, "error": {"code": "c", "message": "m", "details": {"evidence": {"a": 1}}}},
]
bodies = (
    mutations([SOUND_BODY]).map(dumped)
    | values.map(lambda args: dumped(SOUND_BODY | {"args": {"a": args}}))
    | deep.map(lambda text: '{"capability": "tyrum.desktop.mouse", "args": {"a": ' + text + "}}")
    | st.integers(50, 250).map(
        lambda depth: '{"capability": "tyrum.desktop.query", "args": {"a": ' + nested(depth) + "}}"
    )
    | values.map(dumped)
)
answers = (
    mutations(SOUND_ANSWERS).map(dumped)
    | values.map(lambda value: dumped({"ok": True, "result": {"result": value, "evidence": value}}))
    | st.integers(10, 250).map(lambda depth: '{"ok": true, "result": {"result": ' + nested(depth) + "}}")
    | st.integers(10, 250).map(
        lambda depth: (
            '{"ok": true, "result": {"evidence": ' + nested(depth, '{"a":', "}").replace(":}", ":1}") + "}}"
        )
    )
    | texts.map(lambda text: dumped({"ok": False, "error": {"code": text, "message": text}}))
)


@pytest.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    engine = new_engine(tmp_path_factory.mktemp("dispatch"))
    async with serving(engine, limits=Limits(failures_per_window=10**6)) as stack:
        yield stack
    engine.dispose()


async def answer_oddly(node: Node, odd: str) -> None:
    """Answer each task with `odd`, and then, should that have been no answer, properly."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            message = json.loads(await node.socket.recv())
            if message["type"] != "task.execute" or "payload" not in message:
                continue
            head = {"request_id": message["request_id"], "type": "task.execute"}
            if odd.startswith("{"):
                rest = odd[1:].strip()
                await node.socket.send(json.dumps(head)[:-1] + (", " + rest if rest != "}" else "}"))
            await node.send(head | {"ok": True, "result": {}})


@attack(EXAMPLES * 6)
@given(body=bodies, odd=answers)
async def test_any_task_and_any_answer(
    gateway: Stack, body: str, odd: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Or a failing example is shown with all of it.
    gateway.told.clear()
    with caplog.at_level(logging.WARNING):
        async with desktop(gateway) as (node, _):
            answering = asyncio.create_task(answer_oddly(node, odd))
            try:
                for sent in (body, json.dumps(SOUND_BODY)):
                    path = f"/nodes/{node.identity.device_id}/dispatch"
                    answer = await gateway.admin.post(path, content=sent, headers=JSON)
                    # 409: what is no capability of this node.
                    assert answer.status_code in (200, 400, 409), answer.text[:500]
                    answer.json()
            finally:
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)
    assert answer.status_code == 200, "a sound task is served whatever came before"
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR or r.exc_info]
