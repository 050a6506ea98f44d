"""A PNG writer for 8-bit RGB, which needs no imaging library to be imported."""

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NO_FILTER = b"\0"
# Level 3 costs a third of the default level's time and a tenth more bytes on a desktop's flat areas.
_LEVEL = 3


def encode(width: int, height: int, rgb: bytes) -> bytes:
    """The PNG file of `width` x `height` pixels given as RGB bytes."""
    stride = width * 3
    rows = b"".join(_NO_FILTER + rgb[start : start + stride] for start in range(0, stride * height, stride))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows, _LEVEL)), (b"IEND", b"")
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
