"""Awaiting blocking calls in daemon threads: a call that hangs can be abandoned and does not hold up the
process.

`asyncio.to_thread` will not do: its executor is joined when the loop closes, and a hung Docker engine would
keep the worker from ending.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from activities.steps import background

T = TypeVar("T")


def post(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Have the loop make a call, from any thread; nothing happens when the loop has closed."""
    if loop.is_closed():
        return
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        # It closed in between: nobody is left to be told.
        return


async def in_daemon_thread(name: str, work: Callable[[], T]) -> T:
    """Await `work()` in a thread of its own; cancelling abandons it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]  # no error: the value is there, None where T is None

    def run() -> None:
        try:
            value = work()
        except Exception as error:  # handed to whoever awaits
            raised = error
            post(loop, lambda: settle(None, raised))
        else:
            post(loop, lambda: settle(value, None))

    background(name, run)
    return await future
