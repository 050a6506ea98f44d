"""A bound on what a stranger can have recorded."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

_KEYS_KEPT = 10_000


@dataclass
class _Seen:
    since: float
    repeated: int = 0


@dataclass(frozen=True)
class Turn:
    """Leave to record. `repeated`: how often this key was passed over before; `others`: other keys altogether."""

    repeated: int
    others: int

    def detail(self) -> dict[str, int]:
        """For the record: only what is not zero."""
        counts = {"repeated_before": self.repeated, "others_not_recorded": self.others}
        return {name: count for name, count in counts.items() if count}


class Throttle:
    """At most one turn per key and interval, and so many altogether.

    Args:
        interval: seconds. turns: of all keys in one interval.
    """

    def __init__(
        self, interval: float = 60.0, turns: int = 60, clock: Callable[[], float] = monotonic
    ) -> None:
        self._interval = interval
        self._turns = turns
        self._clock = clock
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._since = clock()
        self._taken = 0
        self._others = 0

    def take(self, key: str) -> Turn | None:
        """Leave to record this key now, or None."""
        now = self._clock()
        seen = self._seen.get(key)
        if seen is not None and now - seen.since < self._interval:
            seen.repeated += 1
            return None
        if now - self._since >= self._interval:
            self._since, self._taken = now, 0
        if self._taken >= self._turns:
            self._others += 1
            return None
        self._taken += 1
        turn = Turn(seen.repeated if seen else 0, self._others)
        self._others = 0
        self._seen[key] = _Seen(now)
        self._seen.move_to_end(key)
        if len(self._seen) > _KEYS_KEPT:
            self._seen.popitem(last=False)
        return turn
