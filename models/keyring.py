"""The key ring that Temporal payloads are encrypted with, where an operator wants that."""

import base64
import binascii
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.settings import ConfigurationError

KEY_BYTES = 32
"""AES-256."""


@dataclass(frozen=True)
class KeyRing:
    """Keys by id; `active` encrypts, all decrypt, so that a key is rotated by adding one and keeping the old."""

    active: str
    keys: Mapping[str, bytes]


def load(path: Path) -> KeyRing:
    """Read a key ring: `{"active": ID, "keys": {ID: base64 of 32 bytes}}`.

    Raises:
        ConfigurationError: the file is not there, or does not hold that; says nothing of the keys.
    """
    try:
        found = json.loads(path.read_text())
        keys = {str(name): base64.b64decode(text, validate=True) for name, text in found["keys"].items()}
        active = str(found["active"])
    except OSError as error:
        raise ConfigurationError(f"DESKTOP_CODEC_KEYS_FILE: {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        raise ConfigurationError(f"DESKTOP_CODEC_KEYS_FILE: {path} does not hold a key ring") from None
    if active not in keys or any(len(key) != KEY_BYTES for key in keys.values()):
        message = f"{path}: `active` has to name a key, and every key has to be {KEY_BYTES} bytes"
        raise ConfigurationError(f"DESKTOP_CODEC_KEYS_FILE: {message}")
    return KeyRing(active, keys)


def configured(file: str) -> KeyRing | None:
    """The key ring of `DESKTOP_CODEC_KEYS_FILE`, or None where payloads stay readable.

    Raises:
        ConfigurationError: see `load`.
    """
    return load(Path(file)) if file else None


def add_key(path: Path, key_id: str) -> None:
    """Add a fresh key and make it the active one; the file is made, 0600, when it is not there.

    Raises:
        ConfigurationError: the file holds something else, or has a key of that id.
    """
    known = load(path) if path.exists() else KeyRing(key_id, {})
    if key_id in known.keys:
        raise ConfigurationError(f"{path} has a key {key_id!r} already")
    keys = {**known.keys, key_id: os.urandom(KEY_BYTES)}
    text = json.dumps(
        {"active": key_id, "keys": {name: base64.b64encode(key).decode() for name, key in keys.items()}}
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{text}\n")
    temporary.replace(path)
