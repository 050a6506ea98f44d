"""`desktopctl up` with the real parts: ready, found by the other commands, stopped without a trace."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from activities.bridge import bridge_address
from cli import ports, state
from cli.exits import ExitCode
from cli.state import Endpoints
from tests.cli.support_cli import DEADLINE, eventually, is_alive, process

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]


def environment(state_dir: Path) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("DESKTOP_", "TEMPORAL_"))
    }
    return kept | {"DESKTOP_STATE_DIR": str(state_dir), "COLUMNS": "200"}


def desktopctl(state_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        env=environment(state_dir),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def up(state_dir: Path) -> Any:
    return process(sys.executable, "-m", "cli.main", "up", "--json", env=environment(state_dir))


def ready(stack: subprocess.Popen[str]) -> dict[str, Any]:
    """The line `up --json` prints when it is ready."""
    assert stack.stdout is not None
    assert stack.stderr is not None
    line = stack.stdout.readline()
    if not line:
        pytest.fail(f"up ended: {stack.stderr.read()}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    return [int(child) for child in text.split()]


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A state directory whose ports were chosen by an earlier start: several tests may run at once."""
    directory = tmp_path / "state"
    state.prepare(directory)
    taken: set[int] = set()
    host = bridge_address() or "127.0.0.1"
    numbers = [ports.choose(host, [], taken) for _ in range(5)]
    endpoints = Endpoints(
        temporal_port=numbers[0],
        temporal_ui_port=numbers[1],
        temporal_http_port=numbers[2],
        admin_host="127.0.0.1",
        admin_port=numbers[3],
        node_host=host,
        node_port=numbers[4],
    )
    state.write_endpoints(directory, endpoints)
    return directory


def test_up_runs_the_stack_and_leaves_nothing(state_dir: Path) -> None:
    before = state.read_endpoints(state_dir)
    with up(state_dir) as stack:
        answer = ready(stack)
        parts = children(stack.pid)
        try:
            assert answer["ready"], answer["notes"]
            assert state.read_endpoints(state_dir) == before
            assert set(answer["parts"]) == {"temporal", "inventory", "api", "control-worker", "host-worker"}
            assert len(parts) == 4

            hosts = json.loads(desktopctl(state_dir, "hosts", "--json").stdout)
            assert [host["host_id"] for host in hosts] == [answer["host_id"]]
            assert json.loads(desktopctl(state_dir, "list", "--json").stdout) == []
            missing = desktopctl(state_dir, "show", "11111111-1111-4111-8111-111111111111")
            assert missing.returncode == ExitCode.NOT_FOUND

            second = desktopctl(state_dir, "up")
            assert second.returncode == ExitCode.CONFLICT
            assert f"process {stack.pid}) already runs" in second.stderr

            token = (state_dir / state.ADMIN_TOKEN).read_text().strip()
            for part in parts:
                arguments = Path(f"/proc/{part}/cmdline").read_bytes()
                assert token.encode() not in arguments
            logs = b"".join(path.read_bytes() for path in (state_dir / "logs").iterdir())
            assert token.encode() not in logs

            stack.send_signal(signal.SIGTERM)
            _, told = stack.communicate(timeout=60)
            assert stack.returncode == 0, told
            assert not any(is_alive(part) for part in parts)
        finally:
            for part in filter(is_alive, parts):
                os.kill(part, signal.SIGKILL)
    gone = desktopctl(state_dir, "list")
    assert gone.returncode == ExitCode.UNAVAILABLE
    assert "desktopctl up" in gone.stderr


def test_the_stack_dies_with_up_and_comes_back_where_it_was(state_dir: Path) -> None:
    with up(state_dir) as stack:
        first = ready(stack)
        parts = children(stack.pid)
        stack.send_signal(signal.SIGKILL)
        assert eventually(lambda: not any(is_alive(part) for part in parts), DEADLINE)
    with up(state_dir) as stack:
        again = ready(stack)
        stack.send_signal(signal.SIGINT)
        stack.communicate(timeout=60)
        assert stack.returncode == 0
    for name in ("api_url", "node_url", "temporal_address", "host_id"):
        assert again[name] == first[name]


def test_a_bad_setting_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "up"],
        env=environment(tmp_path / "state") | {"DESKTOP_ADMIN_PORT": "many"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith("error: DESKTOP_ADMIN_PORT: ")
    assert done.stderr.count("\n") == 1
