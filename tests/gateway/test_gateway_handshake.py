"""The upgrade and the handshake beyond the vectors (protocol sections 1 and 3)."""

import asyncio
import json
import logging
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api.gateway import Limits
from api.gateway.connection import Connection
from api.gateway.credentials import Credentials
from api.gateway.handshake import device_id_of
from api.gateway.upgrade import FailureLimit
from models import tokens
from models.errors import Unavailable
from tests.gateway.harness import ADMIN_TOKEN, Identity, Node, Stack, new_engine, serving, standard_base64

WELL_FORMED = (
    "tyrum-token.v1.4f36b3dc-364a-4123-89b9-bd992405479e.Mi4IaCMR95e8WLlVKeDIHt2BKvyKUxFJpYUwJhrv7J0"
)


async def refused_status(stack: Stack, **options: Any) -> InvalidStatus:
    with pytest.raises(InvalidStatus) as caught:
        async with stack.socket(**options):
            pass
    return caught.value


async def close_after(
    stack: Stack, *frames: str | bytes, token: str | None = ADMIN_TOKEN
) -> tuple[int | None, str]:
    async with stack.socket(token) as socket:
        node = Node(socket, Identity())
        try:
            for frame in frames:
                await socket.send(frame)
        except ConnectionClosed:
            pass
        return await node.closed()


def envelope(kind: str, payload: Any) -> str:
    return json.dumps({"request_id": "r", "type": kind, "payload": payload})


async def test_upgrade_without_the_subprotocol_is_400_before_accept(stack: Stack) -> None:
    refusal = await refused_status(stack, subprotocols=["other"])
    assert refusal.response.status_code == 400
    assert refusal.response.headers["content-type"].startswith("text/plain")
    assert b"tyrum-v1" in refusal.response.body


async def test_selected_subprotocol_is_never_the_token(stack: Stack) -> None:
    async with stack.socket(subprotocols=[tokens.encode_subprotocol("other"), "tyrum-v1"]) as socket:
        assert socket.subprotocol == "tyrum-v1"
    refusal = await refused_status(stack, subprotocols=[])
    assert refusal.response.status_code == 400


@pytest.mark.parametrize(
    "token",
    [None, "unknown", "tyrum-token.v1.x.y", "f" * 64, WELL_FORMED, "\u00e9"],
    ids=["none", "unknown", "malformed", "scoped", "well-formed", "not-ascii"],
)
async def test_bad_token_is_accepted_first_and_closed_with_4001(stack: Stack, token: str | None) -> None:
    assert await close_after(stack, token=token) == (4001, "unauthorized")


async def test_token_places_and_their_rank(stack: Stack) -> None:
    async def outcome(**options: Any) -> bool:
        async with stack.socket(**options) as socket:
            node = Node(socket, Identity())
            try:
                return bool(await node.handshake())
            except ConnectionClosed:
                assert socket.close_code == 4001
                return False

    origin = stack.node_url
    good, bad = f"Bearer {ADMIN_TOKEN}", "Bearer nobody"
    cookie = f"tyrum_admin_token={ADMIN_TOKEN}"
    assert await outcome(token=None, additional_headers={"Authorization": good})
    assert await outcome(token="nobody", additional_headers={"Authorization": good})
    assert not await outcome(additional_headers={"Authorization": bad})
    assert await outcome(additional_headers={"Authorization": f"bearer {ADMIN_TOKEN}"})
    assert not await outcome(token=None, additional_headers={"Authorization": f"bearer {ADMIN_TOKEN}"})
    assert await outcome(token=None, additional_headers={"Cookie": cookie}, origin=origin)
    assert not await outcome(token=None, additional_headers={"Cookie": cookie})
    assert not await outcome(token=None, additional_headers={"Cookie": cookie}, origin="http://elsewhere")
    assert not await outcome(token=None, additional_headers={"Cookie": cookie}, origin="http://[")


def test_subprotocol_decoding_is_lenient_in_form_only() -> None:
    assert tokens.decode_subprotocol("tyrum-auth." + standard_base64(b"\xc3\xbf\xc3\xbe?")) == "\xff\xfe?"
    for entry in ("tyrum-auth.", "tyrum-auth.!!", "tyrum-auth._w", "tyrum-v1", "tyrum-auth.A"):
        assert tokens.decode_subprotocol(entry) is None


async def test_early_frames_are_kept(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = _slow_lookup(monkeypatch)
    identity = Identity()
    async with stack.socket() as socket:
        for _ in range(8):
            await socket.send(envelope("connect.init", identity.init()))
        gate.set()
        node = Node(socket, identity)
        issued = [await node.receive() for _ in range(8)]
        assert len({answer["result"]["connection_id"] for answer in issued}) == 8
        # Each init replaced the one before it.
        answer = await node.request("connect.proof", identity.proof(issued[-1]["result"]))
        assert answer["ok"] is True


@pytest.mark.parametrize("frames", [["{}"] * 9, ["x" * 40_000] * 2], ids=["many", "large"])
async def test_too_much_before_the_token_is_known(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, frames: list[str]
) -> None:
    gate = _slow_lookup(monkeypatch)
    assert (await close_after(stack, *frames))[0] == 4003
    gate.set()


def _slow_lookup(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    gate = asyncio.Event()
    real = Credentials.resolve

    async def resolve(self: Credentials, token: str) -> Any:
        await gate.wait()
        return await real(self, token)

    monkeypatch.setattr(Credentials, "resolve", resolve)
    return gate


async def test_inventory_away_lets_the_node_try_again(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(_self: Credentials, _token: str) -> None:
        raise Unavailable("away")

    monkeypatch.setattr(Credentials, "resolve", resolve)
    assert (await close_after(stack))[0] == 1013


async def test_admin_verifier_that_cannot_answer(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    async def verify(_token: str) -> str | None:
        raise Unavailable("away")

    monkeypatch.setattr(stack.gateway._credentials, "_verify_admin", verify)
    assert (await close_after(stack))[0] == 1013


async def test_handshake_times_out(engine: Engine) -> None:
    async with serving(engine, limits=Limits(handshake_timeout=0.05)) as stack:
        assert await close_after(stack) == (4002, "handshake timeout")


async def test_unfinished_handshakes_of_one_token_are_bounded(engine: Engine) -> None:
    async with serving(engine, limits=Limits(pending_per_credential=1)) as stack:
        identity = Identity()
        async with stack.socket() as socket:
            first = Node(socket, identity)
            await first.request("connect.init", identity.init())
            assert (await close_after(stack))[0] == 1013
            await first.handshake()
        async with stack.node():
            pass


def _variants() -> list[Any]:
    identity = Identity()
    init = identity.init()
    device = init["device"]

    def with_device(**changes: Any) -> str:
        return envelope("connect.init", init | {"device": device | changes})

    return [
        ("not json", "{", 4003),
        ("nan", envelope("connect.init", init | {"protocol_rev": float("nan")}), 4003),
        ("binary", b"{}", 4003),
        ("array", "[]", 4003),
        ("deep", "[" * 50_000, 4003),
        ("lone surrogate", envelope("connect.init", init).replace("a node", "\\ud800"), 4003),
        ("nul", with_device(label="a\x00b"), 4003),
        ("too large", with_device(label="x" * 70_000), 4003),
        ("no payload", json.dumps({"request_id": "r", "type": "connect.init"}), 4003),
        ("extra key", json.dumps({"request_id": "r", "type": "connect.init", "payload": init, "x": 1}), 4003),
        ("legacy", envelope("connect", init), 4003),
        ("other request", envelope("ping", {}), 4003),
        ("response", json.dumps({"request_id": "r", "type": "connect.init", "ok": True}), 4003),
        ("proof first", envelope("connect.proof", {"connection_id": "c", "proof": "p"}), 4003),
        ("string rev", envelope("connect.init", init | {"protocol_rev": "2"}), 4003),
        ("rev 3", envelope("connect.init", init | {"protocol_rev": 3}), 4005),
        ("null label", with_device(label=None), 4003),
        ("blank label", with_device(label="  "), 4003),
        ("device type", with_device(device_type="toaster"), 4003),
        ("plain capability", envelope("connect.init", init | {"capabilities": ["tyrum.desktop"]}), 4003),
        ("bad capability", envelope("connect.init", init | {"capabilities": [{"id": "a_b.c"}]}), 4003),
        (
            "bad version",
            envelope("connect.init", init | {"capabilities": [{"id": "a.b", "version": "1"}]}),
            4003,
        ),
        ("trailing bytes", with_device(**_key(identity.pubkey, b"\x00")), 4006),
        ("upper-case id", with_device(device_id=identity.device_id.upper()), 4006),
        ("whitespace in key", with_device(pubkey=identity.pubkey[:20] + "\n" + identity.pubkey[20:]), 4006),
    ]


def _key(pubkey: str, tail: bytes) -> dict[str, str]:
    der = tokens.b64url_strict(pubkey)
    assert der is not None
    return {"pubkey": tokens.b64url(der + tail)}


@pytest.mark.parametrize(("frame", "code"), [pytest.param(v[1], v[2], id=v[0]) for v in _variants()])
async def test_first_frame_verdicts(stack: Stack, frame: str | bytes, code: int) -> None:
    assert (await close_after(stack, frame))[0] == code


@pytest.mark.parametrize("kind", ["trailing", "ecdsa"])
async def test_other_keys_do_not_verify(stack: Stack, kind: str) -> None:
    """A key with its own, right device id that is not one canonical Ed25519 key."""
    identity = Identity()
    der = tokens.b64url_strict(identity.pubkey)
    assert der is not None
    if kind == "trailing":
        der += b"\x00"
    else:
        public = ec.generate_private_key(ec.SECP256R1()).public_key()
        der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    init = identity.init(device_id=device_id_of(der), pubkey=tokens.b64url(der))
    async with stack.socket() as socket:
        node = Node(socket, identity)
        issued = await node.request("connect.init", init)
        proof = identity.proof(issued["result"])
        await node.send({"request_id": "p", "type": "connect.proof", "payload": proof})
        assert await node.closed() == (4007, "invalid proof")


async def test_trimmed_strings_and_trace_are_fine(stack: Stack) -> None:
    identity = Identity()
    init = identity.init(device_id=f" {identity.device_id} ")
    async with stack.socket() as socket:
        node = Node(socket, identity)
        request = {"request_id": "1", "type": "connect.init", "payload": init, "trace": {"a": None}}
        await node.send(request)
        issued = await node.receive()
        assert (await node.request("connect.proof", identity.proof(issued["result"])))["ok"]


def test_failure_limit_slides() -> None:
    now = 0.0
    limit = FailureLimit(2, 60, clock=lambda: now)
    limit.failed("a")
    assert limit.retry_after("a") is None
    now = 10.0
    limit.failed("a")
    assert limit.retry_after("a") == 50
    assert limit.retry_after("b") is None
    now = 60.5
    assert limit.retry_after("a") is None
    limit.failed("a")
    assert limit.retry_after("a") == 10


async def test_failures_never_lock_out_a_sandbox_of_the_same_address(engine: Engine) -> None:
    async with serving(engine, limits=Limits(failures_per_window=3)) as stack:
        for _ in range(3):
            assert (await close_after(stack, token="nobody"))[0] == 4001
        refusal = await refused_status(stack, token="nobody")
        assert refusal.response.status_code == 429
        assert int(refusal.response.headers["retry-after"]) >= 1
        assert refusal.response.headers["content-length"] == "0"
        identity = Identity()
        token = stack.token(stack.environment(), identity)
        for _ in range(5):
            async with stack.node(token, identity):
                pass


async def test_twenty_nodes_at_once(stack: Stack) -> None:
    identities = [Identity() for _ in range(20)]
    made = [stack.token(stack.environment(), identity) for identity in identities]

    async def run(token: str, identity: Identity) -> None:
        async with stack.node(token, identity) as node:
            event = await node.receive_type("pairing.updated")
            assert event["payload"]["pairing"]["status"] == "approved"

    await asyncio.gather(*(run(*pair) for pair in zip(made, identities, strict=True)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
envelopes = st.dictionaries(
    st.sampled_from(
        [
            "request_id",
            "type",
            "payload",
            "ok",
            "result",
            "error",
            "event_id",
            "occurred_at",
            "scope",
            "trace",
        ]
    ),
    json_values
    | st.sampled_from(
        ["ping", "connect.init", "connect.proof", "capability.ready", "presence.beacon", "task.execute"]
    ),
)
frames = (
    st.text(max_size=200) | st.binary(max_size=100) | envelopes.map(json.dumps) | json_values.map(json.dumps)
)
_FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


@pytest.fixture(scope="module")
async def fuzz_stack(tmp_path_factory: pytest.TempPathFactory) -> Any:
    engine = new_engine(tmp_path_factory.mktemp("fuzz"))
    async with serving(engine, limits=Limits(failures_per_window=10**6)) as stack:
        yield stack
    engine.dispose()


@_FUZZ
@given(sent=st.lists(frames, min_size=1, max_size=4))
async def test_garbage_before_the_handshake(fuzz_stack: Stack, sent: list[str | bytes]) -> None:
    code, _ = await close_after(fuzz_stack, *sent)
    assert code in (4003, 4005, 4006)


@_FUZZ
@given(sent=st.lists(frames, min_size=1, max_size=6))
async def test_garbage_after_the_handshake_never_ends_the_connection(
    fuzz_stack: Stack, sent: list[str | bytes]
) -> None:
    async with fuzz_stack.node() as node:
        for frame in sent:
            await node.socket.send(frame)
        answer = await node.request("ping", {})
        assert answer["ok"] is True


async def test_unexpected_trouble_closes_one_socket_only(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with stack.node() as other, stack.node() as node:
        real = stack.gateway._peer.take

        async def take(connection: Connection, frame: str | bytes) -> None:
            if connection.node_id == node.identity.device_id:
                raise RuntimeError("a defect")
            await real(connection, frame)

        monkeypatch.setattr(stack.gateway._peer, "take", take)
        with caplog.at_level(logging.CRITICAL, "api.gateway.gateway"):
            await node.send({"request_id": "r", "type": "ping", "payload": {}})
            assert (await node.closed())[0] == 1011
        assert (await other.request("ping", {}))["ok"]


async def test_no_token_in_any_log(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert (await close_after(stack, token="a-secret-of-a-stranger"))[0] == 4001
        async with stack.node():
            pass
    assert "a-secret-of-a-stranger" not in caplog.text
    assert ADMIN_TOKEN not in caplog.text
    assert "tyrum-auth" not in caplog.text
