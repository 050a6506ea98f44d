"""Every vector of the protocol's specification; handshakes against the real server, with the recommended verdict."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)
from sqlalchemy import Engine
from websockets.exceptions import ConnectionClosed

from api.gateway import Limits
from api.gateway.credentials import Claims, Credentials
from api.gateway.handshake import device_id_of, verified
from models import tokens
from models.capabilities import Descriptor, normalise
from models.identifiers import container_name
from models.takeover import entry_url
from models.wire import proof_transcript
from tests.gateway.harness import Identity, Node, Stack, new_engine, serving

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "node-protocol-vectors.json").read_text()
)


def _named(kind: str) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in VECTORS[kind]]


class FixedIssue:
    """Issues what the vector at hand says."""

    def __init__(self) -> None:
        self.next = ("", "")

    def __call__(self) -> tuple[str, str]:
        return self.next


@pytest.fixture(scope="module")
def issue() -> FixedIssue:
    return FixedIssue()


@pytest.fixture(scope="module")
async def vector_stack(tmp_path_factory: pytest.TempPathFactory, issue: FixedIssue) -> AsyncIterator[Stack]:
    engine: Engine = new_engine(tmp_path_factory.mktemp("vectors"))
    async with serving(engine, issue=issue, limits=Limits(failures_per_window=1000)) as stack:
        yield stack
    engine.dispose()


async def _talk(stack: Stack, vector: dict[str, Any]) -> tuple[int | None, str] | dict[str, Any]:
    async with stack.socket() as socket:
        node = Node(socket, Identity())
        try:
            issued = await node.request("connect.init", vector["connect_init_payload"])
            assert set(issued) == {"request_id", "type", "ok", "result"}
            assert set(issued["result"]) == {"connection_id", "challenge"}
            answer = await node.request("connect.proof", vector["connect_proof_payload"])
        except ConnectionClosed:
            return socket.close_code, socket.close_reason or ""
        result: dict[str, Any] = answer["result"]
        return result


@pytest.mark.parametrize("vector", _named("positive"))
async def test_handshake_is_accepted(vector_stack: Stack, issue: FixedIssue, vector: dict[str, Any]) -> None:
    issue.next = (vector["connection_id"], vector["challenge"])
    assert await _talk(vector_stack, vector) == {
        "client_id": vector["connection_id"],
        "device_id": vector["device_id"],
        "role": vector["role"],
    }


@pytest.mark.parametrize("vector", _named("negative"))
async def test_handshake_has_the_recommended_verdict(
    vector_stack: Stack, issue: FixedIssue, vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    issue.next = (vector["issued_connection_id"], vector["issued_challenge"])
    claims = _claims(vector.get("auth"))
    if claims is not None:

        async def resolve(_self: Credentials, _token: str) -> Claims:
            return claims

        monkeypatch.setattr(Credentials, "resolve", resolve)
    verdict = vector["recommended_verdict"]
    outcome = await _talk(vector_stack, vector)
    if verdict["outcome"] == "accept":
        assert isinstance(outcome, dict)
    else:
        assert outcome == (verdict["code"], verdict["reason"])


def _claims(auth: dict[str, Any] | None) -> Claims | None:
    if auth is None:
        return None
    if auth["kind"] == "scoped_node":
        return Claims(kind="scoped", key="vector", role="node", device_id=auth["node_id"])
    return Claims(kind="device", key="vector", role=auth["role"], device_id=auth["device_id"])


@pytest.mark.parametrize("vector", _named("positive"))
def test_transcript_and_signature(vector: dict[str, Any]) -> None:
    transcript = proof_transcript(
        role=vector["role"],
        device_id=vector["device_id"],
        connection_id=vector["connection_id"],
        challenge=vector["challenge"],
    )
    assert transcript.hex() == vector["transcript_hex"]
    assert transcript.decode() == vector["transcript"]
    assert len(transcript) == vector["transcript_len"]
    pubkey = vector["connect_init_payload"]["device"]["pubkey"]
    assert verified(pubkey, vector["proof_b64url"], transcript)


@pytest.mark.parametrize("vector", _named("keypairs"))
def test_keys_and_device_ids(vector: dict[str, Any]) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["seed_hex"]))
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert tokens.b64url(der) == vector["public_key_spki_b64url"]
    assert device_id_of(der) == vector["device_id"]
    stored = tokens.b64url_strict(vector["private_key_pkcs8_b64url"])
    assert stored is not None
    loaded = load_der_private_key(stored, None)
    raw = (Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    assert loaded.private_bytes(*raw) == key.private_bytes(*raw)


@pytest.mark.parametrize("vector", _named("tokens"))
def test_tokens(vector: dict[str, Any]) -> None:
    token = vector["token"]
    assert tokens.encode_subprotocol(token) == vector["ws_subprotocol"]
    assert tokens.decode_subprotocol(vector["ws_subprotocol"]) == token
    if "sha256_hex_stored" in vector:
        assert tokens.sha256_hex(token) == vector["sha256_hex_stored"]
        assert tokens.is_scoped(token)
        assert tokens.parse(token) is None
        return
    parsed = tokens.parse(token)
    assert parsed is not None
    assert (parsed.token_id, parsed.secret.hex()) == (vector["token_id"], vector["secret_hex"])
    assert tokens.scrypt_hash(parsed.secret, vector["salt_b64url"]) == vector["hash_b64url"]
    assert tokens.scrypt_verify(parsed.secret, vector["salt_b64url"], vector["hash_b64url"])
    assert not tokens.scrypt_verify(bytes(32), vector["salt_b64url"], vector["hash_b64url"])
    assert token not in repr(parsed)


@pytest.mark.parametrize("vector", VECTORS["takeover"])
def test_takeover(vector: dict[str, Any]) -> None:
    assert entry_url(vector["public_base_url"], vector["token"]) == vector["entry_url"]
    assert tokens.sha256_hex(vector["token"]) == vector["sha256_hex_stored"]


@pytest.mark.parametrize("vector", VECTORS["capability_normalisation"])
def test_capability_normalisation(vector: dict[str, Any]) -> None:
    found = normalise(Descriptor.model_validate(entry) for entry in vector["in"])
    assert [descriptor.model_dump() for descriptor in found] == vector["out"]


@pytest.mark.parametrize("vector", VECTORS["container_names"])
def test_container_names(vector: dict[str, Any]) -> None:
    assert container_name(vector["environment_id"]) == vector["container"]
