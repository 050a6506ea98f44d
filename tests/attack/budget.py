"""How hard the attacks try, and with which seed.

`DESKTOP_ATTACK_EXAMPLES`: examples of each attack over the real API, 15 where it is not set; attacks that are cheaper
make a multiple of it. `DESKTOP_ATTACK_SEED`: the same seed makes the same requests, but for ids that the server chose.
Both are in the head of a test run.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, seed, settings

EXAMPLES = int(os.environ.get("DESKTOP_ATTACK_EXAMPLES", "15"))
SEED = int(os.environ.get("DESKTOP_ATTACK_SEED", "20261123"))
SECONDS = max(120, EXAMPLES * 20)
"""Deadline of one test, far beyond what it takes."""

Test = TypeVar("Test", bound=Callable[..., Any])


def described() -> str:
    """One line for the head of a test run."""
    return f"attack: DESKTOP_ATTACK_SEED={SEED} DESKTOP_ATTACK_EXAMPLES={EXAMPLES}"


def profile(examples: int = EXAMPLES, **more: Any) -> settings:
    """Settings for an attack over slow, shared parts: the function's own fixture serves every example."""
    known: dict[str, Any] = {
        "max_examples": max(1, examples),
        "deadline": None,
        "database": None,
        "suppress_health_check": list(HealthCheck),
        "phases": [Phase.explicit, Phase.generate, Phase.shrink],
        "print_blob": True,
    }
    return settings(**(known | more))


def attack(examples: int = EXAMPLES) -> Callable[[Test], Test]:
    """Decorator for a hypothesis test: the budget and the seed."""

    def decorate(test: Test) -> Test:
        return seed(SEED)(profile(examples)(test))

    return decorate
