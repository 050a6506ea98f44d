"""The inventory from asynchronous code: in a thread, with a deadline, and with one meaning for "away"."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import anyio
from anyio import to_thread
from sqlalchemy import Engine
from sqlmodel import Session

from inventory.engine import describe, is_unavailable, reading, writing
from models.errors import Unavailable

T = TypeVar("T")

DEADLINE_SECONDS = 6
"""A caller waits this long at most; just above SQLite's time-out for a busy writer."""


async def read(engine: Engine, work: Callable[[Session], T], deadline: float = DEADLINE_SECONDS) -> T:
    """What `work` returns, in a session for reads.

    Args:
        deadline: seconds.

    Raises:
        Unavailable: the inventory does not answer in time.
    """
    return await _run(reading, engine, work, deadline)


async def write(engine: Engine, work: Callable[[Session], T], deadline: float = DEADLINE_SECONDS) -> T:
    """What `work` returns, in one transaction.

    Args:
        deadline: seconds; past it the transaction may still be committed, so `work` should bear repetition.

    Raises:
        Unavailable: the inventory does not answer in time.
    """
    return await _run(writing, engine, work, deadline)


async def _run(
    open_session: Callable[[Engine], AbstractContextManager[Session]],
    engine: Engine,
    work: Callable[[Session], T],
    deadline: float,
) -> T:
    def call() -> T:
        with open_session(engine) as session:
            return work(session)

    try:
        with anyio.fail_after(deadline):
            return await to_thread.run_sync(call, abandon_on_cancel=True)
    except TimeoutError:
        raise Unavailable(f"the inventory does not answer within {deadline:g} s; try again") from None
    except Exception as error:
        if is_unavailable(error):
            raise Unavailable(f"the inventory does not answer: {describe(error)}") from error
        raise
