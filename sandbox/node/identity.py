"""The node's Ed25519 device identity (node-protocol.md sections 1.2 and 3.2)."""

import base64
import binascii
import hashlib
import json
import os
import secrets
from dataclasses import dataclass, field

# With the fixed-size Ed25519 keys the DER of both structures is a constant followed by the 32 raw bytes.
_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")
_PKCS8_PREFIX = bytes.fromhex("302e020100300506032b657004220420")
_KEY_BYTES = 32
_FILE = os.path.join("desktop-node", "device-identity.json")


class IdentityError(Exception):
    """The identity file cannot be used or made; the message never holds key material."""


@dataclass(frozen=True)
class Identity:
    """A device key pair.

    Attributes:
        device_id: ``dev_`` and 52 base32 characters, the hash of the public key.
        public_key: base64url of the DER SubjectPublicKeyInfo, without padding.
        seed: the 32 private bytes.
    """

    device_id: str
    public_key: str
    seed: bytes = field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """The 64-byte pure Ed25519 signature over `message`."""
        # PyNaCl, because importing `cryptography` takes 70 ms longer and this is on the way to the gateway.
        from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

        _, secret_key = crypto_sign_seed_keypair(self.seed)
        signed: bytes = crypto_sign(message, secret_key)
        return signed[:64]


def encode(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: str) -> bytes:
    """Decode canonical base64url without padding.

    Raises:
        ValueError: `text` is anything else.
    """
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise ValueError("not base64url") from error
    if encode(data) != text:
        raise ValueError("not canonical base64url")
    return data


def device_id_of(spki: bytes) -> str:
    """``dev_`` + lower-case unpadded base32 of the SHA-256 of a DER SubjectPublicKeyInfo (section 3.2)."""
    return "dev_" + base64.b32encode(hashlib.sha256(spki).digest()).decode("ascii").rstrip("=").lower()


def load_or_create(home: str) -> Identity:
    """The identity below `home`; made (directory 0700, file 0600) when the file is absent.

    Raises:
        IdentityError: the file is unreadable or inconsistent, or could not be written.
    """
    path = os.path.join(home, _FILE)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return _create(path)
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityError(f"cannot read the device identity at {path}: {type(error).__name__}") from None
    return parse(text)


def parse(text: str) -> Identity:
    """The identity in the JSON `text` of an identity file.

    Raises:
        IdentityError: malformed, not Ed25519, or the id or public key does not belong to the private key.
    """
    try:
        document = json.loads(text)
        device_id, public_key, private_key = (
            document[key] for key in ("deviceId", "publicKey", "privateKey")
        )
        spki, pkcs8 = decode(public_key), decode(private_key)
    except (ValueError, KeyError, TypeError):
        raise IdentityError("the device identity file is malformed") from None
    if len(spki) != len(_SPKI_PREFIX) + _KEY_BYTES or not spki.startswith(_SPKI_PREFIX):
        raise IdentityError("the device identity's public key is not Ed25519")
    if len(pkcs8) != len(_PKCS8_PREFIX) + _KEY_BYTES or not pkcs8.startswith(_PKCS8_PREFIX):
        raise IdentityError("the device identity's private key is not Ed25519")
    if device_id != device_id_of(spki):
        raise IdentityError("the device identity's id is not the hash of its public key")
    return Identity(device_id, public_key, pkcs8[len(_PKCS8_PREFIX) :])


def _create(path: str) -> Identity:
    # Only the first start of a hand-run container comes here; no other needs to wait for these imports.
    import tempfile

    from nacl.bindings import crypto_sign_seed_keypair

    seed = secrets.token_bytes(_KEY_BYTES)
    public, _ = crypto_sign_seed_keypair(seed)
    spki = _SPKI_PREFIX + public
    identity = Identity(device_id_of(spki), encode(spki), seed)
    document = {
        "deviceId": identity.device_id,
        "publicKey": identity.public_key,
        "privateKey": encode(_PKCS8_PREFIX + seed),
    }
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        # Written aside and renamed, so that a crash leaves no half identity behind. mkstemp makes 0600.
        descriptor, temporary = tempfile.mkstemp(dir=folder)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(document, indent=2) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise IdentityError(f"cannot write a device identity to {path}: {error.strerror}") from error
    return identity
