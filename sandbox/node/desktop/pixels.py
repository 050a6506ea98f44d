"""Conversion of X images to RGB bytes."""

_FIVE_BITS = bytes((value >> 3) * 255 // 31 for value in range(256))


def to_rgb(data: bytes, depth: int, width: int, height: int) -> bytes:
    """RGB bytes of a little-endian ZPixmap: 24 (32 bits per pixel, BGRX) or 16 (5-6-5) bits deep.

    Raises:
        ValueError: another depth.
    """
    rgb = bytearray(width * height * 3)
    if depth == 24:
        rgb[0::3], rgb[1::3], rgb[2::3] = data[2::4], data[1::4], data[0::4]
    elif depth == 16:
        # X pads every row to 32 bits.
        stride = (width * 2 + 3) // 4 * 4
        packed = b"".join(data[row * stride : row * stride + width * 2] for row in range(height))
        low, high = packed[0::2], packed[1::2]
        rgb[0::3] = high.translate(_FIVE_BITS)
        rgb[1::3] = bytes((h & 7) << 5 | (v >> 5) << 2 | (h & 7) >> 1 for h, v in zip(high, low, strict=True))
        rgb[2::3] = low.translate(bytes((value & 31) * 255 // 31 for value in range(256)))
    else:
        raise ValueError(f"screens of depth {depth} are not supported")
    return bytes(rgb)
