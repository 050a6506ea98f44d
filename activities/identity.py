"""The device identity of an environment's node (protocol sections 1.2 and 3.2)."""

import base64
import hashlib
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from activities.failures import failure
from activities.hostfiles import EnvironmentFiles, read_json, write_file
from models.errors import ErrorCode
from models.messages import Identity
from models.tokens import b64url, b64url_strict


def prepare_identity(files: EnvironmentFiles, generation: int, rotate: bool) -> Identity:
    """Make or read the identity; `rotate` makes a new one once per generation.

    Raises:
        ApplicationError: the identity file is there and damaged. It is not made anew behind the operator's
            back: the node would be another peer.
    """
    files.make_directories()
    rotated_for = (read_json(files.rotation) or {}).get("generation")
    already_rotated = isinstance(rotated_for, int) and rotated_for >= generation
    if rotate and not already_rotated:
        made = _make(files)
        write_file(files.rotation, json.dumps({"generation": generation}) + "\n")
        return made
    if not files.identity.exists():
        return _make(files)
    known = read_identity(files.identity)
    if known is None:
        message = (
            f"the device identity {files.identity} is damaged; restore it, or reset the environment with "
            "rotate_identity for a new one"
        )
        raise failure(
            ErrorCode.INTERNAL,
            message,
            phase="prepare_identity",
            generation=generation,
            lasting=True,
        )
    return known


def device_id_of(spki: bytes) -> str:
    """The device id of a public key in DER SPKI form (protocol section 3.2)."""
    digest = hashlib.sha256(spki).digest()
    return "dev_" + base64.b32encode(digest).decode().rstrip("=").lower()


def identity_document(key: Ed25519PrivateKey) -> dict[str, str]:
    """The JSON object of the identity file (protocol section 1.2)."""
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return {"deviceId": device_id_of(spki), "publicKey": b64url(spki), "privateKey": b64url(private)}


def read_identity(path: Path) -> Identity | None:
    """The public half of the identity file; None where it is not whole: the three fields must belong
    together.
    """
    document = read_json(path) or {}
    try:
        key = load_der_private_key(b64url_strict(document["privateKey"]) or b"", password=None)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    if not isinstance(key, Ed25519PrivateKey):
        return None
    whole = identity_document(key)
    if any(document.get(name) != whole[name] for name in ("deviceId", "publicKey")):
        return None
    return Identity(device_id=whole["deviceId"], public_key=whole["publicKey"], created=False)


def _make(files: EnvironmentFiles) -> Identity:
    document = identity_document(Ed25519PrivateKey.generate())
    write_file(files.identity, json.dumps(document, indent=2) + "\n")
    return Identity(device_id=document["deviceId"], public_key=document["publicKey"], created=True)
