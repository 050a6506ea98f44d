"""Runs blocking work beside an activity's thread, so that the activity heartbeats and ends promptly when
cancelled.

A Docker call cannot be interrupted half-way: the work therefore runs in a thread of its own and looks at
`Step.stop` between two calls, while the activity's thread heartbeats and watches for cancellation (notes
A.5). Work that outlives its activity is harmless: it holds the environment's lock until it ends and is fenced
(see `guards`).
"""

import contextvars
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from temporalio import activity
from temporalio.exceptions import CancelledError

T = TypeVar("T")

LOOK_SECONDS = 0.05
"""How often an activity looks for cancellation; it also bounds how late it ends."""
BEAT_EVERY = 4
"""Heartbeats are sent every so many looks; the SDK batches them further."""


class Stopped(Exception):
    """The activity this work was for has ended; nobody waits for the result."""


class Step:
    """What running work and its activity share.

    Attributes:
        stop: set when the activity has ended.
        progress: for people, shown as the heartbeat's detail.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.progress = ""

    def check(self) -> None:
        """Raise `Stopped` when nobody waits any more."""
        if self.stop.is_set():
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Wait; raise `Stopped` as soon as nobody waits any more."""
        if self.stop.wait(seconds):
            raise Stopped


class _Outcome(Generic[T]):
    def __init__(self) -> None:
        self.done = threading.Event()
        self.value: T | None = None
        self.error: BaseException | None = None


def background(name: str, work: Callable[[], Any]) -> threading.Thread:
    """Start a daemon thread that sees the activity's context, so that its logger works there."""
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(work,), name=name, daemon=True)
    thread.start()
    return thread


def run_step(work: Callable[[Step], T]) -> T:
    """Run `work` to its end in a thread of its own, heartbeating.

    Raises:
        CancelledError: the activity was cancelled; raised within about `LOOK_SECONDS`.
        Exception: what `work` raised.
    """
    step = Step()
    outcome: _Outcome[T] = _Outcome()

    def run() -> None:
        try:
            outcome.value = work(step)
        except BaseException as error:  # handed to the activity's thread, which raises it
            outcome.error = error
        finally:
            outcome.done.set()

    activity.heartbeat(step.progress)
    background(f"{activity.info().activity_type}", run)
    try:
        looks = 0
        while not outcome.done.wait(LOOK_SECONDS):
            raise_if_cancelled()
            looks += 1
            if looks % BEAT_EVERY == 0:
                activity.heartbeat(step.progress)
    finally:
        step.stop.set()
    if outcome.error is not None:
        raise outcome.error
    return outcome.value  # type: ignore[return-value]  # no error: the value is there, None where T is None


def raise_if_cancelled() -> None:
    """Raise CancelledError when the running activity was asked to end.

    The activities ask instead of having the error thrown into their thread, which would hit at any bytecode.
    """
    if activity.is_cancelled():
        raise CancelledError("the step was cancelled")
