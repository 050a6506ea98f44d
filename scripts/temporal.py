"""The `temporal` command: the one of the virtual environment, else any on PATH."""

import shutil
import subprocess
import sys
from pathlib import Path

from scripts.console import SetupError, say


def program() -> Path | None:
    """Path of the `temporal` command, beside this Python or on PATH."""
    beside = Path(sys.executable).with_name("temporal")
    if beside.exists():
        return beside
    found = shutil.which("temporal")
    return Path(found) if found else None


def ensure() -> None:
    """Check that it runs.

    Raises:
        SetupError: there is none, or it does not run on this machine.
    """
    path = program()
    if path is None:
        raise SetupError("there is no `temporal` command: install Temporal's CLI and put it on PATH")
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise SetupError(f"{path} does not run here: {error}") from None
    say(answer.stdout.strip())
