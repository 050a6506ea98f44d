"""Encryption of Temporal payloads: AES-256-GCM, the key's id in the metadata and authenticated with the rest.

What carries another encoding passes unchanged, so that a signal typed by hand is still understood. That also means that
who may signal a workflow is the Temporal server's to decide, not the codec's.
"""

import os
from collections.abc import Sequence
from dataclasses import replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from temporalio.api.common.v1 import Payload
from temporalio.converter import (
    DataConverter,
    DefaultFailureConverterWithEncodedAttributes,
    PayloadCodec,
)

from models.keyring import KeyRing

ENCODING = b"binary/encrypted"
KEY_ID = "encryption-key-id"
NONCE_BYTES = 12


class UndecryptableError(Exception):
    """A payload was encrypted with a key this ring does not have, or was tampered with."""


class EncryptionCodec(PayloadCodec):
    """Encrypts every payload with the ring's active key."""

    def __init__(self, ring: KeyRing) -> None:
        self._active = ring.active
        self._keys = {name: AESGCM(key) for name, key in ring.keys.items()}

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Encrypt; what is encrypted already stays as it is."""
        return [self._encrypted(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Decrypt; anything else passes unchanged.

        Raises:
            UndecryptableError: the key is not in the ring, or the payload is not what was encrypted.
        """
        return [self._decrypted(payload) for payload in payloads]

    def _encrypted(self, payload: Payload) -> Payload:
        if payload.metadata.get("encoding") == ENCODING:
            return payload
        nonce, key_id = os.urandom(NONCE_BYTES), self._active.encode()
        sealed = self._keys[self._active].encrypt(nonce, payload.SerializeToString(), key_id)
        return Payload(metadata={"encoding": ENCODING, KEY_ID: key_id}, data=nonce + sealed)

    def _decrypted(self, payload: Payload) -> Payload:
        if payload.metadata.get("encoding") != ENCODING:
            return payload
        key_id = payload.metadata.get(KEY_ID, b"")
        key = self._keys.get(key_id.decode(errors="replace"))
        if key is None:
            raise UndecryptableError(f"no key {key_id[:40]!r} in the key ring")
        try:
            plain = key.decrypt(payload.data[:NONCE_BYTES], payload.data[NONCE_BYTES:], key_id)
        except (InvalidTag, ValueError):
            raise UndecryptableError("the payload is not what was encrypted") from None
        return Payload.FromString(plain)


def encrypting(converter: DataConverter, ring: KeyRing | None) -> DataConverter:
    """The converter with the ring's codec; failures' messages and stacks are encrypted as well."""
    if ring is None:
        return converter
    return replace(
        converter,
        payload_codec=EncryptionCodec(ring),
        failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
    )
