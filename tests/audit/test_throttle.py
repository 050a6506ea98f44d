"""A stranger cannot have more recorded than so much a minute."""

from api.throttle import Throttle


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_turn_per_key_and_interval_with_what_was_passed_over() -> None:
    clock = Clock()
    throttle = Throttle(interval=60, turns=3, clock=clock)
    first = throttle.take("a")
    assert first is not None and first.detail() == {}
    assert [throttle.take("a") for _ in range(5)] == [None] * 5
    clock.now = 61
    again = throttle.take("a")
    assert again is not None and again.detail() == {"repeated_before": 5}
    assert [throttle.take(key) is not None for key in "bcde"] == [True, True, False, False]
    clock.now = 130
    later = throttle.take("f")
    assert later is not None and later.others == 2


def test_keys_are_bounded() -> None:
    throttle = Throttle(turns=1_000_000)
    for number in range(11_000):
        throttle.take(str(number))
    assert len(throttle._seen) == 10_000
