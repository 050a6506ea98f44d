"""Chromium from Debian's packages, for the tests that look at a desktop through a browser."""

import shutil

from scripts.console import SetupError, say
from scripts.machine import apt_install, can_install_packages, exclusive

_PROGRAM = "chromium"


def program() -> str | None:
    """Path of the browser."""
    return shutil.which(_PROGRAM)


def ensure() -> None:
    """See to it that Chromium is there.

    Raises:
        SetupError: it is not, and we may not install it.
    """
    if program() is None:
        if not can_install_packages():
            raise SetupError("Chromium is missing: install it (on Debian, as root: apt-get install chromium)")
        with exclusive("chromium"):
            if program() is None:
                apt_install([_PROGRAM])
    found = program()
    if found is None:
        raise SetupError("the package chromium is installed, but there is no chromium on PATH")
    say(f"Chromium is {found}")
