"""Everything a running installation leaves lying about, place by place."""

import base64
import json
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import make_url

from scripts.postgresql import programs
from tests.canary.needles import Place


def files(root: Path) -> Iterator[Place]:
    """Every file below a directory, as it is on the disk; what a database keeps in free pages is there too."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            try:
                yield f"file {path.relative_to(root)}", path.read_bytes()
            except FileNotFoundError:
                # A journal that has just been folded in.
                continue


def sqlite(path: Path) -> Iterator[Place]:
    """Every value of every table: in the file a long one is cut into pages."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        connection.text_factory = bytes
        names = [
            name.decode()
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        for name in names:
            cells = [
                cell if isinstance(cell, bytes) else str(cell).encode()
                for row in connection.execute(f'SELECT * FROM "{name}"')  # noqa: S608  # the database's own name
                for cell in row
                if cell is not None
            ]
            yield f"table {path.name}/{name}", b"\n".join(cells)


def postgresql(url: str) -> Iterator[Place]:
    """A dump of the database, and every statement the server still knows."""
    parsed = make_url(url)
    binaries = programs()
    assert binaries is not None
    where = {"host": str(parsed.query["host"]), "dbname": str(parsed.database), "user": str(parsed.username)}
    command = [str(binaries / "pg_dump"), "-h", where["host"], "-U", where["user"], where["dbname"]]
    yield "dump of PostgreSQL", subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    with psycopg.connect(host=where["host"], dbname=where["dbname"], user=where["user"]) as connection:
        rows = connection.execute("SELECT query FROM pg_stat_activity").fetchall()
    yield "activity of PostgreSQL", "\n".join(str(row[0]) for row in rows).encode()


def processes(roots: dict[str, int]) -> Iterator[Place]:
    """Arguments and environment of every process below the given ones; `roots`: their ids by name."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    for name, root in roots.items():
        below = {root}
        while more := {pid for pid, parent in parents.items() if parent in below} - below:
            below |= more
        for pid in sorted(below):
            try:
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
                environment = Path(f"/proc/{pid}/environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                # Ended meanwhile, or another user's: then `docker inspect` has to do.
                continue
            shown = arguments.replace(b"\0", b" ").decode(errors="replace").strip()
            yield f"arguments of {name}: {shown}", arguments
            yield f"environment of {name}: {shown}", environment


def container(attributes: dict[str, Any], logs: bytes) -> Iterator[Place]:
    """What `docker inspect` and `docker logs` tell of one container."""
    yield f"docker inspect {attributes['Name']}", json.dumps(attributes).encode()
    yield f"docker logs {attributes['Name']}", logs


def payloads(history: str) -> Iterator[Place]:
    """A history in JSON, as it is and with its payloads decoded."""
    yield "history", history.encode()
    found: list[bytes] = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("data"), str):
                try:
                    found.append(base64.b64decode(value["data"], validate=True))
                except ValueError:
                    found.append(str(value["data"]).encode())
            for part in value.values():
                walk(part)
        elif isinstance(value, list):
            for part in value:
                walk(part)

    walk(json.loads(history))
    yield "payloads of the history", b"\n".join(found)
