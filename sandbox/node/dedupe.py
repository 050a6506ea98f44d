"""What the node remembers so as to do nothing twice (node-protocol.md section 2.4)."""

from collections import OrderedDict

_REMEMBERED = 1000
_LARGE_CHARACTERS = 64 * 1024
_LARGE_BUDGET = 48 * 1024 * 1024


class RecentIds:
    """The last 1000 event ids."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def add(self, identifier: str) -> bool:
        """Remember `identifier`; False when it was known."""
        if identifier in self._ids:
            return False
        self._ids[identifier] = None
        if len(self._ids) > _REMEMBERED:
            self._ids.popitem(last=False)
        return True


class TaskCache:
    """Running and answered ``task.execute`` requests, kept across reconnects.

    The last 1000 answers are kept, but large ones (screenshots) only up to 48 MiB together: a thousand of
    them would not fit the container, and taking a forgotten screenshot again harms nobody.
    """

    def __init__(self, large_budget: int = _LARGE_BUDGET) -> None:
        self._running: set[str] = set()
        self._answers: OrderedDict[str, str] = OrderedDict()
        self._large: OrderedDict[str, int] = OrderedDict()
        self._large_total = 0
        self._large_budget = large_budget

    def begin(self, request_id: str) -> bool:
        """Claim `request_id`; False when it is running or answered already."""
        if request_id in self._running or request_id in self._answers:
            return False
        self._running.add(request_id)
        return True

    def answer(self, request_id: str) -> str | None:
        """The frame that answered `request_id`, or None."""
        return self._answers.get(request_id)

    def finish(self, request_id: str, frame: str) -> None:
        """Record the answer to a claimed request."""
        self._running.discard(request_id)
        self._answers[request_id] = frame
        if len(frame) > _LARGE_CHARACTERS:
            self._large[request_id] = len(frame)
            self._large_total += len(frame)
        while len(self._answers) > _REMEMBERED:
            self._forget(next(iter(self._answers)))
        while self._large_total > self._large_budget and len(self._large) > 1:
            self._forget(next(iter(self._large)))

    def _forget(self, request_id: str) -> None:
        del self._answers[request_id]
        self._large_total -= self._large.pop(request_id, 0)
