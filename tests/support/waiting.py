"""Waiting for something to become true, with a deadline and a message."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(probe: Callable[[], Awaitable[T | None]], what: str, seconds: float = 30) -> T: ...
@overload
async def eventually(probe: Callable[[], T | None], what: str, seconds: float = 30) -> T: ...
async def eventually(probe: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """The first truthy answer of `probe`.

    Raises:
        AssertionError: none came within `seconds`; names `what` and the last answer.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    answer = None
    while loop.time() < deadline:
        result = probe()
        answer = await result if inspect.isawaitable(result) else result
        if answer:
            return answer
        await asyncio.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds:g} s; last answer {answer!r}")


def until(probe: Callable[[], T | None], what: str, seconds: float = 30) -> T:
    """The same for synchronous tests."""
    deadline, answer = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        answer = probe()
        if answer:
            return answer
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {seconds:g} s; last answer {answer!r}")
