"""How measurements are printed: Markdown, with the machine and its load."""

import math
import os
import platform
import signal
import statistics
import subprocess
import sys


def middle_and_p95(seconds: list[float]) -> tuple[float, float]:
    """Median and 95th percentile (nearest rank) of at least one value."""
    ranked = sorted(seconds)
    return statistics.median(ranked), ranked[math.ceil(0.95 * len(ranked)) - 1]


class Table:
    """Rows of measurements, printed as they come, with the machine's load at the end of each."""

    def __init__(self, title: str) -> None:
        print(
            f"\n### {title}\n\n| what | median | p95 | n | ratio to the floor (medians) | budget | load |\n"
            "|---|---|---|---|---|---|---|",
            flush=True,
        )

    def floor(self, what: str, seconds: list[float]) -> float:
        """The same thing done by hand, in the same run; returns the median, for the rows compared with it."""
        self._print(f"floor: {what}", seconds, "", "")
        return middle_and_p95(seconds)[0]

    def row(self, what: str, seconds: list[float], budget: str = "", *, floor: float | None = None) -> None:
        """One measurement."""
        ratio = f"{middle_and_p95(seconds)[0] / floor:.2f}" if floor else ""
        self._print(what, seconds, ratio, budget)

    def _print(self, what: str, seconds: list[float], ratio: str, budget: str) -> None:
        median, p95 = (f"{value:.3f} s" for value in middle_and_p95(seconds))
        load = os.getloadavg()[0]
        print(f"| {what} | {median} | {p95} | {len(seconds)} | {ratio} | {budget} | {load:.1f} |", flush=True)


def machine() -> str:
    """The machine, in a line."""
    docker = subprocess.run(
        ["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, Docker {docker}, "
        f"Python {platform.python_version()}, load before {os.getloadavg()[0]:.1f}"
    )


def end_in_order() -> None:
    """Let SIGTERM and SIGINT end the program as an exception would, so that nothing is left behind."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
