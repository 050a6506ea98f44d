"""A timer that outlives the waits it is for."""

import asyncio
from datetime import datetime

from temporalio import workflow


class Alarm:
    """Rings at the set time or before; whoever hears it looks at the time.

    A timer that ends with each wait costs two history events whenever a signal comes in. This one goes on through
    whatever comes in between, for a deadline far off that mostly moves further.

    Args:
        summary: for the Web UI.
    """

    def __init__(self, summary: str) -> None:
        self._summary = summary
        self._at: datetime | None = None
        self._timer: asyncio.Task[None] | None = None

    def set(self, at: datetime) -> None:
        """Have it ring at `at`, or before."""
        if self._timer is not None and not self._timer.done() and self._at is not None and self._at <= at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        sleep = workflow.sleep(at - workflow.now(), summary=self._summary)
        self._timer = asyncio.create_task(sleep)

    def rings(self) -> bool:
        """Whether the time that was set has come."""
        return self._timer is not None and self._timer.done()
