"""HTTP as nobody's library would send it, over a plain socket."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

SILENCE_SECONDS = 0.5
_ENOUGH = 65536


@dataclass(frozen=True)
class Answer:
    """The head of an answer, names in lower case, and what came of the body with it."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


async def exchange(
    url: str,
    method: str,
    target: bytes,
    headers: Sequence[tuple[str, bytes]],
    body: bytes = b"",
    *,
    silence: float = SILENCE_SECONDS,
) -> Answer | None:
    """Send one request as it is and read the answer; None where there is none within so many seconds."""
    lines = [method.encode() + b" " + target + b" HTTP/1.1", *(n.encode() + b": " + v for n, v in headers)]
    given = {name.lower() for name, _ in headers}
    if "host" not in given:
        lines.append(b"Host: " + urlsplit(url).netloc.encode())
    if "connection" not in given:
        lines.append(b"Connection: close")
    return parse(await send(url, b"\r\n".join(lines) + b"\r\n\r\n" + body, silence))


async def send(url: str, data: bytes, silence: float = SILENCE_SECONDS) -> bytes:
    """Send bytes; the answer's head and what comes with it, as far as the server says anything."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    heard = b""
    try:
        writer.write(data)
        await writer.drain()
        while b"\r\n\r\n" not in heard:
            # A server that waits for the rest of a request says nothing: that is an answer too.
            more = await asyncio.wait_for(reader.read(_ENOUGH), silence)
            if not more:
                break
            heard += more
    except (ConnectionError, TimeoutError):
        return heard if b"\r\n\r\n" in heard else b""
    finally:
        writer.close()
    return heard


def parse(data: bytes) -> Answer | None:
    """The answer; None where there is none. Raises AssertionError for what is no HTTP."""
    if not data:
        return None
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    assert first.startswith(b"HTTP/1.1 "), data[:200]
    headers = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        assert colon, line
        headers[name.strip().lower()] = value.strip()
    return Answer(int(first.split(b" ")[1]), headers, body)
