"""What Docker tells of one host's containers: the witness that no environment ever had two."""

import threading
from collections import defaultdict
from contextlib import closing
from typing import Any

import docker

from models.identifiers import LABEL_ENVIRONMENT, LABEL_GENERATION, LABEL_HOST


class EngineWatch:
    """Follows the engine's events of one host from its making to `close`."""

    def __init__(self, host_id: str) -> None:
        self.engine = docker.from_env(timeout=60)
        self._host_id = host_id
        self._lock = threading.Lock()
        self._existing: dict[str, set[str]] = defaultdict(set)
        self._started: dict[tuple[str, int], set[str]] = defaultdict(set)
        self._wrong: list[str] = []
        filters = {"label": f"{LABEL_HOST}={host_id}", "type": "container"}
        self._events = self.engine.events(decode=True, filters=filters)
        self._reader = threading.Thread(target=self._read, name="engine-watch", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """End it."""
        self._events.close()
        self._reader.join(10)
        self.engine.close()

    def wrong(self) -> list[str]:
        """Everything seen so far that must never happen."""
        with self._lock:
            # A witness that looked away has seen nothing wrong.
            return self._wrong + ([] if self._reader.is_alive() else ["the watch of Docker's events ended"])

    def containers(self) -> list[dict[str, Any]]:
        """This host's containers now, running or not: `id`, `environment_id`, `generation`, `state`."""
        found = self.engine.api.containers(all=True, filters={"label": f"{LABEL_HOST}={self._host_id}"})
        return [
            {
                "id": container["Id"],
                "environment_id": container["Labels"].get(LABEL_ENVIRONMENT, ""),
                "generation": int(container["Labels"].get(LABEL_GENERATION, "-1")),
                "state": container["State"],
            }
            for container in found
        ]

    def _read(self) -> None:
        with closing(self._events):
            for event in self._events:
                with self._lock:
                    self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        attributes = event["Actor"]["Attributes"]
        environment_id, container_id = attributes.get(LABEL_ENVIRONMENT, ""), event["id"]
        generation = int(attributes.get(LABEL_GENERATION, "-1"))
        match event["Action"]:
            case "create":
                self._existing[environment_id].add(container_id)
                if len(self._existing[environment_id]) > 1:
                    self._wrong.append(f"{environment_id}: two containers at once, generation {generation}")
            case "start":
                self._started[environment_id, generation].add(container_id)
                if len(self._started[environment_id, generation]) > 1:
                    self._wrong.append(f"{environment_id}: generation {generation} was started twice")
            case "destroy":
                self._existing[environment_id].discard(container_id)
