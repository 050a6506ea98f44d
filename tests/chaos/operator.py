"""An operator who remembers every command and what was answered."""

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx

COMMANDS = ("start", "stop", "reset", "delete")


@dataclass(frozen=True)
class Sent:
    """One command. `marker`: its reason, as the timeline shows it. `accepted`: it was answered with 2xx."""

    marker: str
    name: str
    accepted: bool


@dataclass
class Ledger:
    """Everything sent so far, by environment. `created`: the desired state each was created with."""

    created: dict[str, bool] = field(default_factory=dict)
    commands: dict[str, list[Sent]] = field(default_factory=lambda: defaultdict(list))
    wrong: list[str] = field(default_factory=list)
    refused: int = 0
    seconds: list[float] = field(default_factory=list)


class Operator:
    """Sends commands through the API and writes them down. Any thread may use it, one per environment at a time."""

    def __init__(self, api_url: str, token: str, image: str) -> None:
        self.ledger = Ledger()
        self._image = image
        self._lock = threading.Lock()
        headers = {"Authorization": f"Bearer {token}"}
        self.http = httpx.Client(base_url=api_url, headers=headers, timeout=30, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def create(self, *, desired_running: bool = True) -> str | None:
        """Create an environment; its id, or None when that was not answered with 2xx."""
        body = {"desired_running": desired_running, "image_ref": self._image, "label": f"chaos {uuid4()}"}
        answer = self._request("POST", "/desktop-environments", body)
        if answer is None or answer.status_code != 201:
            return None
        environment_id = str(answer.json()["environment"]["environment_id"])
        self.ledger.created[environment_id] = desired_running
        return environment_id

    def send(self, environment_id: str, name: str, *, wait: int = 0) -> bool:
        """Send one command; whether it was accepted."""
        marker = f"chaos {uuid4()}"
        path = f"/desktop-environments/{environment_id}"
        method = "DELETE" if name == "delete" else "POST"
        path += "" if name == "delete" else f"/{name}"
        answer = self._request(method, path, {"reason": marker}, wait=wait)
        accepted = answer is not None and answer.is_success
        self.ledger.commands[environment_id].append(Sent(marker, name, accepted))
        return accepted

    def note(self, environment_id: str, name: str) -> str:
        """Write down a command that goes to the workflow directly; returns its marker."""
        marker = f"chaos {uuid4()}"
        self.ledger.commands[environment_id].append(Sent(marker, name, accepted=True))
        return marker

    def show(self, environment_id: str) -> dict[str, Any] | None:
        """The environment's detail, or None when it was not answered."""
        answer = self._request("GET", f"/desktop-environments/{environment_id}")
        return answer.json()["environment"] if answer is not None and answer.is_success else None

    def get(self, path: str) -> Any:
        """A parsed answer, or None when it was not answered with 200."""
        answer = self._request("GET", path)
        return answer.json() if answer is not None and answer.status_code == 200 else None

    def _request(self, method: str, path: str, body: Any = None, **params: Any) -> httpx.Response | None:
        began = time.monotonic()
        try:
            answer = self.http.request(method, path, json=body, params=params)
        except httpx.TransportError:
            with self._lock:
                self.ledger.refused += 1
            return None
        with self._lock:
            if method != "GET" and not params.get("wait"):
                self.ledger.seconds.append(time.monotonic() - began)
            if not answer.is_success:
                self.ledger.refused += 1
                self._judge(method, path, answer)
        return answer

    def _judge(self, method: str, path: str, answer: httpx.Response) -> None:
        """Whatever is away: a refusal has the documented shape, and nothing is an internal error."""
        try:
            sound = set(answer.json()) == {"error", "message"}
        except ValueError:
            sound = False
        if not sound or answer.status_code not in (404, 409, 503):
            self.ledger.wrong.append(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
