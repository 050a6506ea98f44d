"""Log files of the supervised parts: appended to, set aside when they grow large."""

import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

LARGEST = 10 * 1024 * 1024
"""Bytes after which a log is set aside as `<name>.log.1`."""


class LogFile:
    """One part's log; the previous one is kept beside it.

    Args:
        path: the file. largest: bytes after which it is set aside.
    """

    def __init__(self, path: Path, largest: int = LARGEST) -> None:
        self.path = path
        self._largest = largest
        self._set_aside_if_large()
        self._file: BinaryIO = self._open()

    def write(self, data: bytes) -> None:
        """Append; what a full disk does not take is lost, and the part goes on."""
        with suppress(OSError):
            self._size += self._file.write(data)
            if self._size > self._largest:
                self._file.close()
                self._set_aside_if_large()
                self._file = self._open()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _open(self) -> BinaryIO:
        file = open(self.path, "ab", buffering=0, opener=_private)  # noqa: SIM115 - held for the part's life
        self._size = file.tell()
        return file

    def _set_aside_if_large(self) -> None:
        if self.path.exists() and self.path.stat().st_size > self._largest:
            self.path.replace(self.path.with_name(self.path.name + ".1"))


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log; empty when there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip() for line in deque(file, maxlen=lines)]
    except OSError:
        return []


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
