"""Bearer tokens: their form, their hashes, and how one travels in a subprotocol (protocol sections 1.1 and 7)."""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from uuid import UUID, uuid4

WS_SUBPROTOCOL = "tyrum-v1"
WS_AUTH_PREFIX = "tyrum-auth."
ADMIN_COOKIE = "tyrum_admin_token"

_PREFIX = ("tyrum-token", "v1")
_SECRET_BYTES = 32
_SALT_BYTES = 16
_VNC_PASSWORD_CHARS = 8
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 16384, 8, 1


@dataclass(frozen=True)
class Token:
    """A token `tyrum-token.v1.<token_id>.<secret>`; its text and secret stay out of `repr`.

    Attributes:
        text: the whole token. token_id: UUID. secret: 32 raw bytes.
    """

    token_id: str
    text: str = field(repr=False)
    secret: bytes = field(repr=False)


def b64url(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def b64url_strict(text: str) -> bytes | None:
    """The bytes behind canonical unpadded base64url, None for any other spelling (protocol section 3.2)."""
    data = b64url_lenient(text)
    return data if data is not None and b64url(data) == text else None


def b64url_lenient(text: str) -> bytes | None:
    """The bytes behind base64, either alphabet, padded or not; None where it is none (protocol section 1.1)."""
    plain = text.rstrip("=").replace("+", "-").replace("/", "_")
    if not re.fullmatch(r"[A-Za-z0-9_-]*", plain):
        return None
    try:
        return base64.urlsafe_b64decode(plain + "=" * (-len(plain) % 4))
    except binascii.Error:
        return None


def mint() -> Token:
    """A fresh token."""
    return _token(str(uuid4()), secrets.token_bytes(_SECRET_BYTES))


def parse(text: str) -> Token | None:
    """The parts of a token, or None where `text` has not a token's form (protocol section 7.1)."""
    parts = text.split(".")
    if len(parts) != 4 or tuple(parts[:2]) != _PREFIX:
        return None
    secret = b64url_strict(parts[3])
    if secret is None or len(secret) != _SECRET_BYTES:
        return None
    try:
        if str(UUID(parts[2])) != parts[2]:
            return None
    except ValueError:
        return None
    return Token(token_id=parts[2], text=text, secret=secret)


def sha256_hex(text: str) -> str:
    """The form in which node, pairing and takeover tokens are kept: SHA-256 of the token's text, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def vnc_password(token: str) -> str:
    """The VNC password of a generation, derived from its node token, so that nothing has to carry or keep it.

    Eight characters, which is all that VncAuth looks at (RFC 6143, section 7.2.2).
    """
    digest = hmac.digest(token.encode(), b"desktop-environments vnc password", "sha256")
    return b64url(digest)[:_VNC_PASSWORD_CHARS]


def new_salt() -> str:
    """A fresh salt for `scrypt_hash`, base64url."""
    return b64url(secrets.token_bytes(_SALT_BYTES))


def scrypt_hash(secret: bytes, salt: str) -> str:
    """The form in which admin tokens are kept (protocol section 7.1); takes tens of milliseconds of CPU.

    Args:
        salt: base64url.

    Raises:
        ValueError: the salt is not base64url.
    """
    raw_salt = b64url_strict(salt)
    if raw_salt is None:
        raise ValueError("the salt is not base64url")
    return b64url(hashlib.scrypt(secret, salt=raw_salt, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P, dklen=32))


def scrypt_verify(secret: bytes, salt: str, expected: str) -> bool:
    """Whether `secret` has that hash; in constant time."""
    return hmac.compare_digest(scrypt_hash(secret, salt), expected)


def mint_scoped() -> str:
    """A fresh scoped pairing token: 64 hex characters (protocol section 7.3)."""
    return secrets.token_hex(_SECRET_BYTES)


def is_scoped(text: str) -> bool:
    """Whether `text` has the form of a scoped pairing token."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def encode_subprotocol(token: str) -> str:
    """The `Sec-WebSocket-Protocol` entry that carries a token (protocol section 1.2)."""
    return WS_AUTH_PREFIX + b64url(token.encode())


def decode_subprotocol(entry: str) -> str | None:
    """The token in an entry, or None where there is none to read."""
    if not entry.startswith(WS_AUTH_PREFIX):
        return None
    data = b64url_lenient(entry.removeprefix(WS_AUTH_PREFIX))
    try:
        return data.decode() or None if data is not None else None
    except UnicodeDecodeError:
        return None


def _token(token_id: str, secret: bytes) -> Token:
    return Token(token_id=token_id, text=".".join((*_PREFIX, token_id, b64url(secret))), secret=secret)
