"""What of an environment, or of a whole installation, is on this machine; and its removal."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import docker
from docker.errors import DockerException, NotFound
from requests.exceptions import RequestException

from models.identifiers import LABEL_ENVIRONMENT, LABEL_HOST

_LIVE = {
    "live node tokens": "SELECT count(*) FROM node_tokens WHERE environment_id = ? AND revoked_at IS NULL",
    "live takeover sessions": (
        "SELECT count(*) FROM takeover_sessions WHERE environment_id = ? AND revoked_at IS NULL"
    ),
    "approved pairings": (
        "SELECT count(*) FROM node_pairings p JOIN nodes n ON n.node_id = p.node_id "
        "WHERE n.environment_id = ? AND p.status = 'approved'"
    ),
    "connected nodes": "SELECT count(*) FROM nodes WHERE environment_id = ? AND connected",
}


def in_inventory(database: Path, environment_id: str) -> dict[str, int]:
    """How much of a deleted environment is still live in an SQLite inventory; read-only."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        return {
            name: int(connection.execute(query, (environment_id,)).fetchone()[0])
            for name, query in _LIVE.items()
        }


def containers(environment_id: str) -> list[str]:
    """Names of an environment's containers, running or not."""
    return _named(LABEL_ENVIRONMENT, environment_id)


def remove_installation(state_dir: Path, host_id: str | None) -> list[str]:
    """Remove the containers and the state of a demonstration; its logs and addresses stay.

    Args:
        host_id: whose containers; None leaves containers alone.

    Returns:
        Names of the containers that were removed. An engine that does not answer has none to remove.
    """
    removed = []
    if host_id is not None:
        try:
            removed = _remove(LABEL_HOST, host_id)
        except (DockerException, RequestException):
            removed = []
    for path in [*state_dir.glob("temporal.db*"), *state_dir.glob("inventory.db*")]:
        path.unlink(missing_ok=True)
    shutil.rmtree(state_dir / "desktop-environments", ignore_errors=True)
    return removed


def _named(label: str, value: str) -> list[str]:
    with closing(docker.from_env(timeout=20)) as engine:
        found = engine.containers.list(all=True, filters={"label": f"{label}={value}"}, ignore_removed=True)
        return [str(container.name) for container in found]


def _remove(label: str, value: str) -> list[str]:
    removed = []
    with closing(docker.from_env(timeout=20)) as engine:
        for name in _named(label, value):
            try:
                engine.containers.get(name).remove(force=True)
            except NotFound:
                continue
            removed.append(name)
    return removed
