"""The handshake as a state machine without a socket (protocol section 3), with the stricter verdicts.

A refusal is a close code, never an error response: that would end the node's process (section 1.3).
"""

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_bytes
from typing import Any
from uuid import uuid4

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from pydantic import ValidationError

from api.gateway.credentials import Claims
from models.capabilities import Descriptor, normalise
from models.tokens import b64url, b64url_strict
from models.wire import (
    PROTOCOL_REV,
    ConnectInit,
    ConnectProof,
    InvalidJson,
    InvalidMessage,
    Request,
    parse_envelope,
    proof_transcript,
)

Issue = Callable[[], tuple[str, str]]
"""Makes a connection id and a challenge."""


DEVICE_ID = re.compile(r"dev_[a-z2-7]{52}")
"""The form of every device id, and so of every node id (protocol section 3.2)."""


def random_issue() -> tuple[str, str]:
    """A UUIDv4 and 32 random bytes in base64url (protocol section 3.1)."""
    return str(uuid4()), b64url(token_bytes(32))


class HandshakeRefused(Exception):
    """The socket is to be closed.

    Attributes:
        code, reason: of the close frame (protocol section 1.3).
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


@dataclass(frozen=True)
class Proven:
    """The peer has proven its key. `capabilities`: normalised."""

    connection_id: str
    init: ConnectInit
    capabilities: tuple[Descriptor, ...]


@dataclass(frozen=True)
class Step:
    """What to send back, and what is proven now, if anything."""

    reply: dict[str, Any]
    proven: Proven | None = None


@dataclass(frozen=True)
class _Pending:
    init: ConnectInit
    connection_id: str
    challenge: str


class Handshake:
    """One handshake; `take` each text frame until a step has `proven`."""

    def __init__(self, claims: Claims, issue: Issue = random_issue) -> None:
        self._claims = claims
        self._issue = issue
        self._pending: _Pending | None = None

    def take(self, frame: str) -> Step:
        """Answer one frame.

        Raises:
            HandshakeRefused: the socket is to be closed.
        """
        try:
            request = parse_envelope(frame)
        except InvalidJson:
            raise HandshakeRefused(4003, "invalid json") from None
        except InvalidMessage:
            raise _unexpected() from None
        if not isinstance(request, Request):
            raise _unexpected()
        try:
            if request.type == "connect.init":
                return self._init(request, ConnectInit.model_validate(request.payload))
            if request.type == "connect.proof":
                return self._proof(request, ConnectProof.model_validate(request.payload))
        except ValidationError:
            raise _unexpected() from None
        raise _unexpected()

    def _init(self, request: Request, init: ConnectInit) -> Step:
        claims, device = self._claims, init.device
        if init.protocol_rev != PROTOCOL_REV:
            raise HandshakeRefused(4005, "protocol_rev mismatch")
        if claims.kind == "scoped" and init.role != "node":
            raise HandshakeRefused(4001, "unauthorized")
        key = b64url_strict(device.pubkey)
        if key is None or device_id_of(key) != device.device_id:
            raise HandshakeRefused(4006, "device_id mismatch")
        if claims.kind == "device" and (claims.role, claims.device_id) != (init.role, device.device_id):
            raise HandshakeRefused(4001, "unauthorized")
        if claims.kind == "scoped" and claims.device_id != device.device_id:
            raise HandshakeRefused(4008, "scoped token mismatch")
        connection_id, challenge = self._issue()
        self._pending = _Pending(init, connection_id, challenge)
        return Step(_success(request, {"connection_id": connection_id, "challenge": challenge}))

    def _proof(self, request: Request, payload: ConnectProof) -> Step:
        pending = self._pending
        if pending is None:
            raise HandshakeRefused(4003, "connect.init required first")
        if payload.connection_id != pending.connection_id:
            raise HandshakeRefused(4003, "connection_id mismatch")
        device, role = pending.init.device, pending.init.role
        transcript = proof_transcript(
            role=role,
            device_id=device.device_id,
            connection_id=pending.connection_id,
            challenge=pending.challenge,
        )
        if not verified(device.pubkey, payload.proof, transcript):
            raise HandshakeRefused(4007, "invalid proof")
        result = {"client_id": pending.connection_id, "device_id": device.device_id, "role": role}
        capabilities = tuple(normalise(pending.init.capabilities))
        return Step(_success(request, result), Proven(pending.connection_id, pending.init, capabilities))


def device_id_of(spki_der: bytes) -> str:
    """The device id of a public key (protocol section 3.2)."""
    digest = base64.b32encode(hashlib.sha256(spki_der).digest())
    return "dev_" + digest.decode().rstrip("=").lower()


def verified(pubkey: str, proof: str, transcript: bytes) -> bool:
    """Whether `proof` is the Ed25519 signature of `transcript` by `pubkey`; every encoding canonical."""
    der, signature = b64url_strict(pubkey), b64url_strict(proof)
    if der is None or signature is None:
        return False
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        return False
    if not isinstance(key, Ed25519PublicKey):
        return False
    # A key spelt another way, such as with trailing bytes, would have another device id.
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != der:
        return False
    try:
        key.verify(signature, transcript)
    except InvalidSignature:
        return False
    return True


def _unexpected() -> HandshakeRefused:
    return HandshakeRefused(4003, "expected connect.init/connect.proof")


def _success(request: Request, result: dict[str, Any]) -> dict[str, Any]:
    return {"request_id": request.request_id, "type": request.type, "ok": True, "result": result}
