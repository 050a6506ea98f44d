"""Payload encryption: round trips, rotation, tampering, the endpoint, and no readable byte in Temporal's own file."""

import asyncio
import base64
import json
import shutil
from pathlib import Path

import httpx
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.common import SearchAttributeKey
from temporalio.testing import WorkflowEnvironment

from api.codec import codec_app
from models import keyring
from models import messages as m
from models.codec_address import codec_capability
from models.identifiers import SEARCH_ATTRIBUTE_HOST, SEARCH_ATTRIBUTE_STATUS, environment_workflow_id
from models.keyring import KeyRing
from models.lifecycle import Status
from models.settings import ConfigurationError
from tests.fakes.runtime import NotFoundRuntime
from tests.support.temporal import DEV_SERVER_ARGS, temporal_cli
from tests.workflows.plane import plane_of
from workflows.codec import ENCODING, KEY_ID, EncryptionCodec, UndecryptableError
from workflows.plugin import ControlPlanePlugin

RING = KeyRing("new", {"old": b"o" * 32, "new": b"n" * 32})
TOKEN = "an-admin-token-for-tests"


def sealed(payload: Payload, ring: KeyRing = RING) -> Payload:
    return asyncio.run(EncryptionCodec(ring).encode([payload]))[0]


def content_of(folder: Path) -> bytes:
    """Everything the server has written there."""
    return b"".join(file.read_bytes() for file in folder.glob("temporal.db*"))


def opened(payload: Payload, ring: KeyRing = RING) -> Payload:
    return asyncio.run(EncryptionCodec(ring).decode([payload]))[0]


@given(st.binary(max_size=500))
def test_round_trip(data: bytes) -> None:
    payload = Payload(metadata={"encoding": b"json/plain"}, data=data)
    encrypted = sealed(payload)
    assert opened(encrypted) == payload
    assert encrypted.metadata["encoding"] == ENCODING
    assert len(data) < 8 or data not in encrypted.data
    assert sealed(encrypted) == encrypted


def test_rotation_keeps_the_old_readable() -> None:
    payload = Payload(metadata={"encoding": b"json/plain"}, data=b'"before"')
    before = sealed(payload, KeyRing("old", {"old": b"o" * 32}))
    assert before.metadata[KEY_ID] == b"old"
    assert opened(before) == payload
    assert sealed(payload).metadata[KEY_ID] == b"new"


def test_tampering_and_foreign_keys_are_told() -> None:
    encrypted = sealed(Payload(metadata={"encoding": b"json/plain"}, data=b"1"))
    flipped = Payload(
        metadata=dict(encrypted.metadata), data=encrypted.data[:-1] + bytes([encrypted.data[-1] ^ 1])
    )
    renamed = Payload(metadata={"encoding": ENCODING, KEY_ID: b"old"}, data=encrypted.data)
    unknown = Payload(metadata={"encoding": ENCODING, KEY_ID: b"lost"}, data=encrypted.data)
    short = Payload(metadata={"encoding": ENCODING, KEY_ID: b"new"}, data=b"")
    for bad in (flipped, renamed, unknown, short):
        with pytest.raises(UndecryptableError):
            opened(bad)


def test_key_ring_files(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(ConfigurationError, match="No such file"):
        keyring.load(path)
    keyring.add_key(path, "a")
    assert path.stat().st_mode & 0o777 == 0o600
    keyring.add_key(path, "b")
    ring = keyring.load(path)
    assert ring.active == "b" and set(ring.keys) == {"a", "b"} and len(ring.keys["a"]) == 32
    with pytest.raises(ConfigurationError, match="already"):
        keyring.add_key(path, "a")
    for text in (
        "",
        "[]",
        '{"active": "a"}',
        '{"active": "x", "keys": {"a": "AAAA"}}',
        '{"active":1,"keys":{"1":7}}',
    ):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match="DESKTOP_CODEC_KEYS_FILE"):
            keyring.load(path)


async def test_the_endpoint() -> None:
    app = Starlette()
    app.mount("/codec", codec_app(RING, TOKEN, ["http://127.0.0.1:8233"]))
    plain = Payloads(payloads=[Payload(metadata={"encoding": b"json/plain"}, data=b'"x"')])
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        body = json_format.MessageToJson(plain)
        capability = codec_capability(TOKEN)
        assert TOKEN not in capability
        origin = {"Origin": "http://127.0.0.1:8233"}
        encrypted = await http.post(f"/codec/{capability}/encode", content=body, headers=origin)
        assert encrypted.headers["access-control-allow-origin"] == "http://127.0.0.1:8233"
        assert base64.b64decode(encrypted.json()["payloads"][0]["metadata"]["encoding"]) == ENCODING
        decrypted = await http.post(f"/codec/{capability}/decode", content=encrypted.content)
        assert json_format.Parse(decrypted.content, Payloads()) == plain
        assert (await http.post("/codec/wrong/decode", content=body)).status_code == 404
        assert (await http.post(f"/codec/{capability}/decode", content=b"{]")).status_code == 400
        assert (await http.post(f"/codec/{capability}/decode", content=b"\xff")).status_code == 400
        foreign = json.loads(encrypted.content)
        foreign["payloads"][0]["metadata"][KEY_ID] = base64.b64encode(b"lost").decode()
        answer = await http.post(f"/codec/{capability}/decode", json=foreign)
        assert answer.status_code == 400 and "no key" in answer.json()["message"]
        evil = await http.post(
            f"/codec/{capability}/decode", content=body, headers={"Origin": "http://evil.test"}
        )
        assert "access-control-allow-origin" not in evil.headers


async def test_nothing_readable_is_in_temporals_file_and_hand_typed_signals_are_understood(
    tmp_path: Path,
) -> None:
    database = tmp_path / "temporal.db"
    temporal = shutil.which("temporal")
    assert temporal
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=temporal,
        dev_server_database_filename=str(database),
        dev_server_extra_args=DEV_SERVER_ARGS,
        dev_server_log_level="error",
        plugins=[ControlPlanePlugin(RING)],
        search_attributes=[
            SearchAttributeKey.for_keyword(SEARCH_ATTRIBUTE_STATUS),
            SearchAttributeKey.for_keyword(SEARCH_ATTRIBUTE_HOST),
        ],
    ) as server:
        runtime = NotFoundRuntime()
        async with plane_of(server.client, tmp_path, runtime) as plane:
            environment_id = await plane.create()
            view = await plane.settled(environment_id, Status.ERROR)
            assert view.last_error is not None and "check the name" in view.last_error.message
            await plane.handle(environment_id).signal("stop", m.CommandSignal(reason="canary-from-the-api"))
            await plane.settled(environment_id, Status.STOPPED)
            await plane.cli_signal(environment_id, "delete", "--input", '{"reason": "typed-by-hand"}')
            await plane.handle(environment_id).result()
            reasons = [row.reason for row in plane.events(environment_id)]
            assert "canary-from-the-api" in reasons and "typed-by-hand" in reasons
            shown = await temporal_cli(
                plane.address, "workflow", "show", "--workflow-id", environment_workflow_id(environment_id)
            )
            assert "canary-from-the-api" not in shown
            stored = await asyncio.to_thread(content_of, tmp_path)
    # What a person typed without a codec is stored as it was typed; everything of ours is not.
    assert b"typed-by-hand" in stored
    for canary in (b"canary-from-the-api", b"image:1", b"check the name"):
        assert canary not in stored
