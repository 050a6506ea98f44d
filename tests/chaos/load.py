"""Operators who keep sending random commands, whatever happens to the control plane."""

import random
import threading

from tests.chaos.operator import Operator

PAUSE_SECONDS = 0.4
"""Longest pause between two commands to one environment."""

_USUAL = ("start", "stop", "reset")
_WEIGHTS = (4, 3, 2)
_DELETES = 0.06


class Load:
    """One thread per environment, so that the order of an environment's commands is known.

    Args:
        seed: makes commands and pauses repeatable. environments: how many are kept alive at once.
        deletes: now and then one is deleted and another one made in its place.
    """

    def __init__(self, operator: Operator, seed: int, environments: int, *, deletes: bool = True) -> None:
        self._operator = operator
        self._deletes = deletes
        self._going = threading.Event()
        self._ended = threading.Event()
        self._sending = [threading.Lock() for _ in range(environments)]
        chances = [random.Random(f"{seed}/{n}") for n in range(environments)]  # noqa: S311 - repeatable, no secret
        self._threads = [
            threading.Thread(target=self._command, args=(number, chance), daemon=True)
            for number, chance in enumerate(chances)
        ]
        for thread in self._threads:
            thread.start()

    def resume(self) -> None:
        """Send commands from now on."""
        self._going.set()

    def pause(self) -> None:
        """Send no more; returns when every command sent is answered."""
        self._going.clear()
        for sending in self._sending:
            with sending:
                pass

    def close(self) -> None:
        """End the threads."""
        self._ended.set()
        self._going.set()
        for thread in self._threads:
            thread.join(60)

    def _command(self, number: int, chance: random.Random) -> None:
        environment_id: str | None = None
        while not self._ended.wait(chance.uniform(0, PAUSE_SECONDS)):
            self._going.wait()
            with self._sending[number]:
                # Again, since a pause may have begun in between; who pauses waits for the lock.
                if self._going.is_set() and not self._ended.is_set():
                    environment_id = self._send(environment_id, chance)

    def _send(self, environment_id: str | None, chance: random.Random) -> str | None:
        if environment_id is None:
            return self._operator.create(desired_running=chance.random() < 0.7)
        if self._deletes and chance.random() < _DELETES:
            return None if self._operator.send(environment_id, "delete") else environment_id
        self._operator.send(environment_id, chance.choices(_USUAL, _WEIGHTS)[0])
        return environment_id
