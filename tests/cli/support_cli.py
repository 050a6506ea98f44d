"""Helpers of the command tests: bounded waits, processes that are ended whatever happens."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

DEADLINE = 30.0


def eventually(condition: Callable[[], bool], seconds: float = DEADLINE) -> bool:
    """Whether the condition came to hold before the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


async def eventually_async(condition: Callable[[], bool], seconds: float = DEADLINE) -> bool:
    """The same while the event loop goes on."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def process(*command: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    """A child process with its output in pipes, ended with all its group when the block is left."""
    child: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]  # options vary by test
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
