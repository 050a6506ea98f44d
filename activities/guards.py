"""What keeps two steps of one environment apart on this host: locks, fences and the containers not to report.

Kept in memory only: a zombie step cannot outlive the worker's process, and what a dead process left behind is
found by its container's name and label (design decisions 7 and 9).
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from activities.failures import failure
from activities.steps import LOOK_SECONDS, Step
from models.errors import ErrorCode

EXPECTED_KEPT = 10_000
"""Removals of our own that are remembered; Docker reports each within seconds."""


class Guards:
    """Locks, fences and registries of one host worker. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._removed_up_to: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._expected: OrderedDict[str, None] = OrderedDict()
        self._watched: dict[str, int] = {}

    @contextmanager
    def only(self, environment_id: str, step: Step) -> Iterator[None]:
        """Hold the environment's lock; raises `steps.Stopped` when the activity ends while waiting for it."""
        with self._lock:
            lock = self._locks.setdefault(environment_id, threading.Lock())
        while not lock.acquire(timeout=LOOK_SECONDS):
            step.check()
        try:
            step.check()
            yield
        finally:
            lock.release()

    def fence(self, environment_id: str, generation: int) -> None:
        """From now on nothing of this generation or an older one is started."""
        with self._lock:
            before = self._removed_up_to.get(environment_id, -1)
            self._removed_up_to[environment_id] = max(before, generation)

    def refuse_fenced(self, environment_id: str, generation: int, phase: str) -> None:
        """Raise the failure `start_failed` when this generation was removed already."""
        with self._lock:
            fenced = generation <= self._removed_up_to.get(environment_id, -1)
        if fenced:
            message = f"generation {generation} was removed already; a newer one has to be started"
            raise failure(
                ErrorCode.START_FAILED, message, phase=phase, generation=generation, non_retryable=True
            )

    def mark_gone(self, environment_id: str, generation: int) -> None:
        """The environment is deleted: no step of this generation or an older one makes anything for it again.

        A newer one may: an environment whose workflow was terminated by hand can be given another one.
        """
        with self._lock:
            self._gone[environment_id] = max(self._gone.get(environment_id, -1), generation)

    def refuse_gone(self, environment_id: str, generation: int, phase: str) -> None:
        """Raise the failure `internal` when the environment's host directory was deleted."""
        with self._lock:
            gone = generation <= self._gone.get(environment_id, -1)
        if gone:
            message = "the environment was deleted from this host"
            raise failure(ErrorCode.INTERNAL, message, phase=phase, generation=generation, non_retryable=True)

    def expect_removal(self, container_id: str) -> None:
        """This container is ours to end: its events are not reported."""
        with self._lock:
            self._expected[container_id] = None
            while len(self._expected) > EXPECTED_KEPT:
                self._expected.popitem(last=False)

    @contextmanager
    def watching(self, container_id: str) -> Iterator[None]:
        """While held, whoever holds it reports this container's end, and nobody else."""
        with self._lock:
            self._watched[container_id] = self._watched.get(container_id, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._watched[container_id] -= 1
                if not self._watched[container_id]:
                    del self._watched[container_id]

    def is_silent(self, container_id: str) -> bool:
        """Whether this container's events are not to be reported by the monitor."""
        with self._lock:
            return container_id in self._expected or container_id in self._watched
