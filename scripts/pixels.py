"""Reads PNG screenshots pixel by pixel, without an imaging library."""

import struct
import zlib
from dataclasses import dataclass

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {2: 3, 6: 4}


class NotAPicture(Exception):
    """The bytes are no PNG of 8-bit RGB or RGBA, not interlaced."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture. `rows`: one per line, `channels` bytes per pixel."""

    width: int
    height: int
    channels: int
    rows: tuple[bytes, ...]

    def pixel(self, x: int, y: int) -> bytes:
        """Colour of one pixel: red, green, blue."""
        start = x * self.channels
        return self.rows[y][start : start + 3]


@dataclass(frozen=True)
class Difference:
    """Where two pictures differ: how many pixels, and the box around them, all 0 for none."""

    pixels: int
    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


def decode(image: bytes) -> Picture:
    """Decode a PNG.

    Raises:
        NotAPicture: it is not one of the kind screenshots are.
    """
    try:
        width, height, channels, data = _chunks(image)
        raw = zlib.decompress(data)
    except (struct.error, zlib.error, KeyError) as error:
        raise NotAPicture(f"not a PNG screenshot: {error}") from None
    size = width * channels
    if len(raw) != height * (size + 1):
        raise NotAPicture("not a PNG screenshot: its data does not fill it")
    rows: list[bytes] = []
    above = bytes(size)
    for at in range(0, len(raw), size + 1):
        above = _unfiltered(raw[at], raw[at + 1 : at + 1 + size], above, channels)
        rows.append(above)
    return Picture(width, height, channels, tuple(rows))


def difference(one: Picture, other: Picture) -> Difference:
    """Compare two pictures of one size."""
    found = [
        (x, y)
        for y, (a, b) in enumerate(zip(one.rows, other.rows, strict=True))
        if a != b
        for x in range(one.width)
        if one.pixel(x, y) != other.pixel(x, y)
    ]
    if not found:
        return Difference(0)
    across, down = [x for x, _ in found], [y for _, y in found]
    return Difference(len(found), min(across), min(down), max(across), max(down))


def _chunks(image: bytes) -> tuple[int, int, int, bytes]:
    if not image.startswith(_SIGNATURE):
        raise NotAPicture("not a PNG screenshot: another signature")
    width = height = channels = 0
    data = b""
    at = len(_SIGNATURE)
    while at < len(image):
        length, kind = struct.unpack_from(">I4s", image, at)
        content = image[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", content)
            if depth != 8 or interlaced:
                raise NotAPicture("not a PNG screenshot: not 8 bits, or interlaced")
            channels = _CHANNELS[colour]
        elif kind == b"IDAT":
            data += content
        at += 12 + length
    return width, height, channels, data


def _unfiltered(kind: int, line: bytes, above: bytes, channels: int) -> bytes:
    """One line without its filter (PNG specification, section 9)."""
    if kind == 0:
        return line
    out = bytearray(line)
    for i, value in enumerate(line):
        left = out[i - channels] if i >= channels else 0
        corner = above[i - channels] if i >= channels else 0
        match kind:
            case 1:
                guess = left
            case 2:
                guess = above[i]
            case 3:
                guess = (left + above[i]) // 2
            case 4:
                guess = _paeth(left, above[i], corner)
            case _:
                raise NotAPicture(f"not a PNG screenshot: filter {kind}")
        out[i] = (value + guess) & 0xFF
    return bytes(out)


def _paeth(left: int, up: int, corner: int) -> int:
    estimate = left + up - corner
    return min((left, up, corner), key=lambda candidate: abs(estimate - candidate))
