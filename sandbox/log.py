"""Operator log lines on stdout, each with its age since the container started."""

import sys
import time

_started = time.monotonic()


def log(part: str, message: str) -> None:
    """Write ``+<seconds>s <part>: <message>`` as one line, flushed for ``docker logs``."""
    text = message.replace("\r", " ").replace("\n", " ")
    sys.stdout.write(f"+{time.monotonic() - _started:.3f}s {part}: {text}\n")
    sys.stdout.flush()
