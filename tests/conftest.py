"""What every test may count on, however pytest was started."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

import pytest

from tests.attack import budget

# The `temporal` command comes with the environment that runs the tests, activated or not. Last, because nothing else
# is to be found there before the machine's own.
os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{Path(sys.executable).parent}"


def pytest_configure() -> None:
    """A run that is told to end, by `timeout` or by a machine that shuts down, cleans up as after Ctrl-C; and Ctrl-C is
    heeded by the programs under test, although a shell that runs this in the background has it ignored.
    """
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    # Once: the fixtures' clean-up is not to be cut short as well.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let `xdist_group` hold: xdist 3.8 writes a test's group where pytest 9.2 does not look any more, so that every
    worker would start a stack of its own (held by tests/setup/test_groups.py).
    """
    for item in items:
        grouped = getattr(item, "_nodeid", item.nodeid)
        if grouped != item.nodeid:
            item._id = type(item.id).parse(grouped)


def pytest_report_header() -> str:
    """How to have the same attacks again."""
    return budget.described()
