"""The whole stack as `desktopctl up` starts it, in a state directory of its own, with the real sandbox image."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from scripts import leftovers

IMAGE = os.environ.get("DESKTOP_SANDBOX_IMAGE", "desktop-sandbox:dev")


@dataclass
class Stack:
    """A running stack and an operator in front of it. `more`: environment variables of its own."""

    state_dir: Path
    up: dict[str, Any]
    process: subprocess.Popen[str]
    http: httpx.Client
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables an operator of this stack has."""
        own = {"TEMPORAL_ADDRESS": self.up["temporal_address"], **self.more}
        return stack_environment(self.state_dir) | own

    def desktopctl(self, *args: str, code: int = 0) -> Any:
        """Run `desktopctl … --json`; its parsed answer.

        Raises:
            AssertionError: it ended with another exit code than `code`.
        """
        command = [sys.executable, "-m", "cli.main", *args, "--json"]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == code, f"{args}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    def call(self, method: str, path: str, body: Any = None, **params: Any) -> httpx.Response:
        """One request with the admin token."""
        return self.http.request(method, path, json=body, params=params)

    def temporal(self, *args: str) -> str:
        """Run the real `temporal` command."""
        done = subprocess.run(
            ["temporal", *args], env=self.environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def create(self, **body: Any) -> dict[str, Any]:
        """Create an environment and wait until it is settled."""
        answer = self.call(
            "POST", "/desktop-environments", {"desired_running": True, "image_ref": IMAGE} | body
        )
        assert answer.status_code == 201, answer.text
        return self.settled(str(answer.json()["environment"]["environment_id"]))

    def settled(self, environment_id: str, command: str = "start") -> dict[str, Any]:
        """Send a command (the default asks for what is wanted already) and wait for the outcome."""
        answer = self.call("POST", f"/desktop-environments/{environment_id}/{command}", {}, wait=90)
        assert answer.status_code == 200, answer.text
        environment: dict[str, Any] = answer.json()["environment"]
        return environment

    def containers(self, environment_id: str) -> list[str]:
        """Names of the environment's containers."""
        return leftovers.containers(environment_id)


def stack_environment(state_dir: Path) -> dict[str, str]:
    """The environment of a stack in `state_dir`, with none of this machine's own settings."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("DESKTOP_", "TEMPORAL_"))
    }
    return kept | {"DESKTOP_STATE_DIR": str(state_dir), "DESKTOP_DEFAULT_IMAGE": IMAGE}


@contextmanager
def running_stack(state_dir: Path, **more: str) -> Iterator[Stack]:
    """A stack for as long as the context lasts; nothing of it is left after.

    Args:
        more: environment variables of its own.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "up", "--json"],
        env=stack_environment(state_dir) | more,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    up: dict[str, Any] = {}
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"`desktopctl up` did not come up; see {state_dir / 'logs'}"
        up = json.loads(line)
        assert up["ready"], line
        token = (state_dir / "admin-token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=up["api_url"], headers=headers, timeout=120, trust_env=False) as http:
            yield Stack(state_dir, up, process, http, more)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        leftovers.remove_installation(state_dir, up.get("host_id"))
