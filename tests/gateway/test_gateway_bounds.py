"""Peers that are slow or send too much are let go, and nobody else notices."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sqlalchemy import Engine
from websockets.exceptions import ConnectionClosed

from api.gateway import Limits
from tests.gateway.harness import Identity, Node, Stack, serving


async def test_a_frame_above_the_protocols_limit_ends_its_connection_only(stack: Stack) -> None:
    async with stack.node() as other, stack.node() as node:

        async def too_much() -> AsyncIterator[str]:
            for _ in range(8):
                yield "x" * (8 * 1024 * 1024)
            # The one that is too many. Nothing follows it: what a server has not read as it closes costs the client
            # the close code.
            yield "x"
            await node.socket.wait_closed()

        with contextlib.suppress(ConnectionClosed):
            await node.socket.send(too_much())
        assert (await node.closed())[0] == 1009
        assert (await other.request("ping", {}))["ok"] is True


async def test_a_node_that_takes_nothing_is_dropped(engine: Engine) -> None:
    async with serving(engine, limits=Limits(send_timeout=0.5)) as stack:
        slow, token_of = Identity(), stack.token
        token = token_of(stack.environment(), slow)
        # One frame is read ahead, and then none.
        async with stack.socket(token, max_queue=1) as socket, stack.node() as other:
            node = Node(socket, slow)
            await node.handshake()
            await node.receive_type("pairing.updated")
            task = {"capability": "tyrum.desktop.screenshot", "args": {"padding": "x" * 4_000_000}}
            path = f"/nodes/{slow.device_id}/dispatch"
            answers = await asyncio.gather(*(stack.admin.post(path, json=task) for _ in range(8)))
            codes = {
                answer.json()["error"]["code"] if answer.status_code == 200 else answer.status_code
                for answer in answers
            }
            assert (
                codes <= {"runtime_unavailable", "dispatch_timeout", 409} and "runtime_unavailable" in codes
            )
            await stack.disconnected(slow.device_id)
            assert (await other.request("ping", {}))["ok"] is True
