"""What a peer of `/ws` can send: the parser, the handshake, every later message, and what is no WebSocket at all."""

import asyncio
import base64
import json
import logging
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from websockets.exceptions import ConnectionClosed

from api.gateway import Limits
from api.gateway.credentials import Claims
from api.gateway.handshake import Handshake, HandshakeRefused, Step
from models.wire import (
    CapabilityReady,
    InvalidJson,
    InvalidMessage,
    PresenceBeacon,
    TaskResult,
    parse_envelope,
)
from tests.attack.budget import EXAMPLES, SECONDS, attack
from tests.attack.junk import (
    ODD_NUMBERS,
    ODD_TEXTS,
    REMOVED,
    changed,
    deep,
    dumped,
    mutations,
    places,
    texts,
    values,
)
from tests.attack.raw import parse, send
from tests.gateway.harness import DESKTOP, Identity, Node, Stack, new_engine, serving

pytestmark = pytest.mark.timeout(SECONDS)

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "node-protocol-vectors.json").read_text())
HANDSHAKE_CODES = {4001, 4003, 4005, 4006, 4007, 4008}

CONNECTED: list[dict[str, Any]] = [
    {"request_id": "r", "type": "ping", "payload": {}},
    {
        "request_id": "r",
        "type": "presence.beacon",
        "payload": {"host": "h", "mode": "node", "last_input_seconds": 1},
    },
    {
        "request_id": "r",
        "type": "capability.ready",
        "payload": {
            "capabilities": DESKTOP[:2],
            "capability_states": [
                {
                    "capability": DESKTOP[0],
                    "actions": [{"name": "screenshot", "enabled": True, "availability_status": "available"}],
                }
            ],
        },
    },
    {"request_id": "r", "type": "task.execute", "ok": True, "result": {"result": {}, "evidence": None}},
    {
        "request_id": "r",
        "type": "task.execute",
        "ok": False,
        "error": {"code": "c", "message": "m", "details": {}},
    },
    {
        "event_id": "e",
        "type": "t",
        "occurred_at": "2026-11-23T12:00:00.000Z",
        "payload": {},
        "scope": {"kind": "node"},
    },
]
"""One of each message that a connected peer may send, or that has an envelope of its own."""

json_texts = values.map(dumped) | deep | texts | mutations(CONNECTED).map(dumped)


@attack(EXAMPLES * 20)
@given(json_texts)
@example("\ud800")
@example('{"request_id": "r", "type": "ping", "payload": ' + "9" * 5000 + "}")
def test_the_parser_gives_an_envelope_or_one_of_two_errors(frame: str) -> None:
    try:
        parse_envelope(frame)
    except (InvalidJson, InvalidMessage):
        return


@attack(EXAMPLES * 20)
@given(values | mutations([frame["payload"] for frame in CONNECTED if "payload" in frame]))
def test_payloads_are_taken_or_refused(payload: Any) -> None:
    for kind in (CapabilityReady, PresenceBeacon, TaskResult):
        refused = ""
        try:
            kind.model_validate(payload)
        except ValidationError as error:
            refused = str(error)
        assert "input_value" not in refused, "what a peer sent is not repeated into a log"


def _handshakes() -> st.SearchStrategy[tuple[dict[str, Any], Any, Any]]:
    vectors = st.sampled_from(VECTORS["positive"])
    return vectors.flatmap(
        lambda vector: st.tuples(
            st.just(vector),
            st.just(vector["connect_init_payload"]) | mutations([vector["connect_init_payload"]]),
            st.just(vector["connect_proof_payload"]) | mutations([vector["connect_proof_payload"]]),
        )
    )


@attack(EXAMPLES * 20)
@given(_handshakes())
def test_a_changed_handshake_proves_no_other_key(given_: tuple[dict[str, Any], Any, Any]) -> None:
    vector, init, proof = given_
    handshake = Handshake(
        Claims(kind="admin", key="attack"), lambda: (vector["connection_id"], vector["challenge"])
    )
    steps: list[Step] = []
    refused: HandshakeRefused | None = None
    try:
        steps.append(handshake.take(dumped({"request_id": "1", "type": "connect.init", "payload": init})))
        steps.append(handshake.take(dumped({"request_id": "2", "type": "connect.proof", "payload": proof})))
    except HandshakeRefused as error:
        refused = error
    assert all(step.proven is None for step in steps[:1])
    if refused is not None:
        assert refused.code in HANDSHAKE_CODES and len(refused.reason.encode()) <= 123
        return
    step = steps[1]
    assert step.proven is not None
    assert (
        step.proven.init.device.device_id == vector["device_id"] and step.proven.init.role == vector["role"]
    )


@pytest.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    engine = new_engine(tmp_path_factory.mktemp("attack"))
    async with serving(engine, limits=Limits(failures_per_window=10**6)) as stack:
        yield stack
    engine.dispose()


@pytest.fixture(autouse=True)
def nothing_unexpected(caplog: pytest.LogCaptureFixture) -> Any:
    """No test here may leave an error, and so no traceback, in any log."""
    with caplog.at_level(logging.WARNING):
        yield
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR or r.exc_info]


def _wrong_in_every_place() -> list[Any]:
    return [
        pytest.param(frame, place, id=f"{frame['type']}:{'.'.join(map(str, place)) or 'whole'}")
        for frame in CONNECTED
        for place in places(frame)
    ]


@pytest.mark.parametrize(("frame", "place"), _wrong_in_every_place())
async def test_a_wrong_value_in_each_place_of_each_message(gateway: Stack, frame: Any, place: Any) -> None:
    async with gateway.node() as node:
        for wrong in [None, True, [], {}, [[]], {"a": {}}, REMOVED, *ODD_TEXTS, *ODD_NUMBERS]:
            await node.socket.send(dumped(changed(frame, place, wrong)))
        assert (await node.request("ping", {}))["ok"] is True


@attack(EXAMPLES * 4)
@given(sent=st.lists(json_texts | mutations(CONNECTED).map(dumped) | st.binary(max_size=2000), max_size=8))
async def test_a_connected_peer_stays_connected(gateway: Stack, sent: list[str | bytes]) -> None:
    async with gateway.node() as node:
        for frame in sent:
            await node.socket.send(_sendable(frame))
        assert (await node.request("ping", {}))["ok"] is True


inits = mutations([vector["connect_init_payload"] for vector in VECTORS["positive"]]).map(
    lambda payload: dumped({"request_id": "1", "type": "connect.init", "payload": payload})
)


@attack(EXAMPLES * 4)
@given(sent=st.lists(json_texts | inits, min_size=1, max_size=4))
async def test_a_stranger_is_closed_with_a_code(gateway: Stack, sent: list[str]) -> None:
    async with gateway.socket() as socket:
        try:
            for frame in sent:
                await socket.send(_sendable(frame))
            # Whatever of it was a sound `connect.init`, this is no sound proof.
            await socket.send("{}")
            while True:
                await asyncio.wait_for(socket.recv(), 30)
        except ConnectionClosed:
            assert socket.close_code in HANDSHAKE_CODES
    await _serves(gateway)


@attack(EXAMPLES * 4)
@given(
    head=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "Sec-WebSocket-Protocol",
                    "Authorization",
                    "Cookie",
                    "Origin",
                    "Host",
                    "Sec-WebSocket-Extensions",
                ]
            ),
            st.binary(max_size=60).map(lambda raw: raw.translate(None, b"\r\n\0"))
            | st.sampled_from(
                [b"tyrum-auth.", b"tyrum-v1, tyrum-auth.%00", b"Bearer \xff", b"http://[", b"a" * 9000]
            ),
        ),
        max_size=4,
    ),
    target=st.sampled_from(
        [b"/ws", b"/ws/", b"//ws", b"/ws?x=\xff", b"/%77s", b"http://evil.example/ws", b"/nodes/self"]
    ),
    rest=st.binary(max_size=200),
)
async def test_odd_upgrades_and_raw_bytes_after_them(
    gateway: Stack, head: list[tuple[str, bytes]], target: bytes, rest: bytes
) -> None:
    key = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + _key() + b"\r\n"
    lines = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in head)
    request = b"GET " + target + b" HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + key + lines
    answer = parse(await send(gateway.node_url, request + b"\r\n" + rest))
    assert answer is None or answer.status < 500, answer
    await _serves(gateway)


def _key() -> bytes:
    return base64.b64encode(secrets.token_bytes(16))


def _sendable(frame: str | bytes) -> str | bytes:
    # A lone surrogate has no place in a text frame: as binary, which is what it is.
    if isinstance(frame, bytes):
        return frame
    try:
        frame.encode()
    except UnicodeEncodeError:
        return frame.encode("utf-8", "surrogatepass")
    return frame


async def _serves(gateway: Stack) -> None:
    async with gateway.socket() as socket:
        await Node(socket, Identity()).handshake()
