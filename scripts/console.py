"""What the set-up shows: numbered steps with times, and lines beneath them."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SetupError(Exception):
    """Set-up cannot go on; the message is one line that says what to do."""


def say(text: str) -> None:
    """One line beneath the current step."""
    print(f"      {text}", flush=True)


@contextmanager
def step(number: int, total: int, title: str) -> Iterator[None]:
    """Print a step's title, run it, print how long it took."""
    print(f"[{number}/{total}] {title}", flush=True)
    started = time.monotonic()
    yield
    say(f"done in {time.monotonic() - started:.1f} s")


class Ticker:
    """Passes on at most one line per interval, so that a long output shows it moves and stays readable."""

    def __init__(self, interval: float = 3.0) -> None:
        self._interval = interval
        self._started = self._last = time.monotonic()

    def tick(self, text: str) -> None:
        """Show `text`, unless something was shown a moment ago."""
        now = time.monotonic()
        if now - self._last >= self._interval:
            self._last = now
            say(f"{now - self._started:5.0f} s  {' '.join(text.split())[:100]}")


def tail(lines: Iterable[str], count: int = 20) -> None:
    """Print the last lines of something that failed."""
    for line in list(lines)[-count:]:
        print(f"      | {line.rstrip()}", file=sys.stderr, flush=True)
