"""The environments' directories on this host: whose they are, and the removal of one that nobody owns (design
decision 10).
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from activities.container_spec import HostConfig
from activities.hostfiles import EnvironmentFiles, environment_files, read_json, remove_tree, write_file
from models.identifiers import is_environment_id

Touched = tuple[int, ...]
"""When a step last changed something in a directory: differs as soon as one has since."""


@dataclass(frozen=True)
class Home:
    """One environment's directory as it was found.

    Attributes:
        marked: it says that it is this host's and this installation's. foreign: it says that it is another's.
        touched: see `Touched`.
    """

    environment_id: str
    marked: bool
    foreign: bool
    touched: Touched


class Homes:
    """The directories of one host. Every method may be called from any thread and raises OSError."""

    def __init__(self, config: HostConfig) -> None:
        self._state_dir = config.state_dir
        self._mark = {"host_id": config.host_id, "installation": config.installation}

    def begin(self, files: EnvironmentFiles) -> None:
        """A start has the directory now: it says whose it is, and that it is in use. Under the environment's lock."""
        if read_json(files.owner) != self._mark:
            write_file(files.owner, json.dumps(self._mark) + "\n")
        # Finer than the file system's own clock: no two of these are the same.
        now = time.time_ns()
        os.utime(files.home, ns=(now, now))

    def found(self) -> list[Home]:
        """Every directory that an environment's id names; symbolic links and whatever else is there are left out."""
        try:
            entries = list(os.scandir(self._state_dir / "desktop-environments"))
        except FileNotFoundError:
            return []
        homes = []
        for entry in entries:
            if not is_environment_id(entry.name) or not entry.is_dir(follow_symlinks=False):
                continue
            home = self._look(environment_files(self._state_dir, entry.name), entry.name)
            if home is not None:
                homes.append(home)
        return homes

    def remove(self, home: Home) -> bool:
        """Remove the directory if nothing has touched it since it was found; whether it did. Under the environment's
        lock, with no container left that uses it.

        Raises:
            ApplicationError: something in it cannot be removed.
        """
        files = environment_files(self._state_dir, home.environment_id)
        if self._look(files, home.environment_id) != home:
            return False
        remove_tree(files.home)
        return True

    def _look(self, files: EnvironmentFiles, environment_id: str) -> Home | None:
        # First, so that a step under way meanwhile makes it differ later.
        touched = _touched(files)
        if touched is None:
            return None
        mark = read_json(files.owner)
        marked = bool(self._mark["installation"]) and mark == self._mark
        return Home(environment_id, marked, mark is not None and mark != self._mark, touched)


def _touched(files: EnvironmentFiles) -> Touched | None:
    """None where there is no such directory; what a container writes into its own home does not count."""
    watched: tuple[Path, ...] = (files.token.parent, files.identity.parent, files.identity.parent.parent)
    try:
        top = files.home.stat()
    except FileNotFoundError:
        return None
    times = [top.st_ino, top.st_mtime_ns]
    for directory in watched:
        try:
            times.append(directory.stat().st_mtime_ns)
        except FileNotFoundError:
            times.append(0)
    return tuple(times)
