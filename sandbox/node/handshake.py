"""What the node says to prove its key (node-protocol.md section 3)."""

from collections.abc import Sequence
from typing import Any, Final

from sandbox.node.identity import Identity, encode

PROTOCOL_REV: Final = 2
VERSION: Final = "0.1.0"
_ROLE: Final = "node"
_CAPABILITY_VERSION: Final = "1.0.0"


class HandshakeError(Exception):
    """The gateway answered the handshake with an error or a wrong shape: the node must not try again."""


def subprotocols(token: str | None) -> list[str]:
    """What to offer in the upgrade: the protocol and, encoded, the token if there is one (section 1.2)."""
    return ["tyrum-v1", f"tyrum-auth.{encode(token.encode())}"] if token else ["tyrum-v1"]


def connect_init(
    identity: Identity, label: str, mode: str | None, capabilities: Sequence[str]
) -> dict[str, Any]:
    """The strict payload of ``connect.init`` (section 3.1)."""
    device = {
        "device_id": identity.device_id,
        "pubkey": identity.public_key,
        "label": label,
        "platform": "linux",
        "version": VERSION,
    }
    if mode:
        device["mode"] = mode
    return {
        "protocol_rev": PROTOCOL_REV,
        "role": _ROLE,
        "device": device,
        "capabilities": [{"id": capability, "version": _CAPABILITY_VERSION} for capability in capabilities],
    }


def transcript(device_id: str, connection_id: str, challenge: str) -> bytes:
    """The bytes the proof signs; the trailing line feed is part of them (section 3.3)."""
    lines = (
        "tyrum-connect-proof",
        f"protocol_rev={PROTOCOL_REV}",
        f"role={_ROLE}",
        f"device_id={device_id}",
        f"connection_id={connection_id}",
        f"challenge={challenge}",
    )
    return "".join(f"{line}\n" for line in lines).encode()


def connect_proof(identity: Identity, init_result: Any) -> dict[str, str]:
    """The strict payload of ``connect.proof``, from the result of ``connect.init`` (section 3.4).

    Raises:
        HandshakeError: `init_result` is not exactly ``{connection_id, challenge}``.
    """
    connection_id, challenge = _strict_texts(init_result, ("connection_id", "challenge"))
    proof = identity.sign(transcript(identity.device_id, connection_id, challenge))
    return {"connection_id": connection_id, "proof": encode(proof)}


def check_proof_result(result: Any) -> None:
    """Accept the result of ``connect.proof`` by its shape alone, as the reference does (section 3.4).

    Raises:
        HandshakeError: it is not exactly ``{client_id, device_id, role}``.
    """
    *_, role = _strict_texts(result, ("client_id", "device_id", "role"))
    if role not in ("client", "node"):
        raise HandshakeError("the gateway's connect.proof result names no known role")


def _strict_texts(result: Any, keys: tuple[str, ...]) -> list[str]:
    if not isinstance(result, dict) or set(result) != set(keys):
        raise HandshakeError(f"the gateway's handshake result must have exactly the keys {', '.join(keys)}")
    texts = [value.strip() if isinstance(value, str) else "" for value in (result[key] for key in keys)]
    if not all(texts):
        raise HandshakeError("the gateway's handshake result has an empty or non-text value")
    return texts
