"""Secrets, and every spelling of one that would still give it away."""

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from models import tokens, vnc

Place = tuple[str, bytes]
"""Where something was found lying, and all of it."""


@dataclass(frozen=True)
class Secret:
    """Something that must not lie about.

    Attributes:
        name: for people; its first word is the kind. forms: the byte strings that would give it away.
    """

    name: str
    forms: frozenset[bytes] = field(repr=False)


def secret(name: str, *values: str | bytes) -> Secret:
    """Each value as it is, in hex, quoted for URLs and JSON, and in base64 at any place in something larger."""
    forms: set[bytes] = set()
    for value in values:
        data = value.encode() if isinstance(value, str) else value
        forms |= {data, data.hex().encode(), data.hex().upper().encode(), *_in_base64(data)}
        if isinstance(value, str):
            forms |= {quote(value, safe="").encode(), json.dumps(value)[1:-1].encode()}
    return Secret(name, frozenset(forms))


def bearer_token(name: str, text: str) -> Secret:
    """A token `tyrum-token.v1.<id>.<secret>`: the whole, its secret part, and the bytes behind that."""
    parsed = tokens.parse(text)
    assert parsed is not None, f"{name} is no token"
    return secret(name, text, text.rsplit(".", 1)[1], parsed.secret)


def private_key(name: str, encoded: str) -> Secret:
    """An Ed25519 key in base64url of PKCS #8: that, the PEM's body, and the raw seed."""
    der = tokens.b64url_strict(encoded)
    assert der is not None, f"{name} is no private key"
    key = load_der_private_key(der, password=None)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    seed = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    return secret(name, encoded, *pem.splitlines()[1:-1], seed)


def vnc_password(name: str, node_token: str) -> Secret:
    """The desktop's password: as typed, and as `vncpasswd` keeps it."""
    password = tokens.vnc_password(node_token)
    return secret(name, password, vnc.password_file(password))


def found(secrets: Iterable[Secret], places: Iterable[Place]) -> Iterator[tuple[str, str]]:
    """Name of each secret with each place it lies in; never the secret itself."""
    known = list(secrets)
    for where, content in places:
        for one in known:
            if any(form in content for form in one.forms):
                yield one.name, where


def _in_base64(data: bytes) -> Iterator[bytes]:
    """What of `data` is always the same in the base64 of something that holds it, by alignment and alphabet."""
    for shift in range(3):
        # Characters that hold bits of what stands before or after are not ours.
        first, last = (0, 2, 3)[shift], (8 * (shift + len(data))) // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(bytes(shift) + data)[first:last]
