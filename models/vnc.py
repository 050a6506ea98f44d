"""VNC Authentication: the password file and the answer to a challenge (RFC 6143, section 7.2.2).

DES with a key of eight characters keeps nobody out who means it. It is a fence against other users of the host.
"""

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

PASSWORD_BYTES = 8
CHALLENGE_BYTES = 16

_FILE_KEY = bytes((23, 82, 107, 6, 35, 78, 88, 7))
"""Known to everybody: `vncpasswd` obfuscates and does not encrypt."""


def password_file(password: str) -> bytes:
    """What `vncpasswd -f` writes: the password obfuscated, 8 bytes."""
    return _des(_FILE_KEY, _padded(password))


def challenge_response(password: str, challenge: bytes) -> bytes:
    """The answer to the server's challenge of 16 bytes; characters after the eighth do not count.

    Raises:
        ValueError: not a challenge.
    """
    if len(challenge) != CHALLENGE_BYTES:
        raise ValueError("a challenge has 16 bytes")
    return _des(_padded(password), challenge)


def _padded(password: str) -> bytes:
    return password.encode("latin-1", "replace")[:PASSWORD_BYTES].ljust(PASSWORD_BYTES, b"\0")


def _des(key: bytes, data: bytes) -> bytes:
    # VNC takes the bits of each byte of the key in the other order; three times the same key is plain DES.
    mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in key)
    encryptor = Cipher(TripleDES(mirrored * 3), modes.ECB()).encryptor()  # noqa: S305  # as RFC 6143 has it
    return encryptor.update(data) + encryptor.finalize()
