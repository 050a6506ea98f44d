"""The state directory: private files, one `up` at a time, addresses remembered."""

import os
import re
import socket
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cli import ports, state, up
from cli.exits import CliError, ExitCode
from cli.state import Endpoints
from models.identifiers import is_host_id
from tests.cli.support_cli import process

LOOPBACK = "127.0.0.1"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def listening(port: int = 0) -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((LOOPBACK, port))
    server.listen()
    return server


def plan(remembered: Endpoints | None, admin_port: int, node_port: int, **options: object) -> Endpoints:
    options = {"patience": 0.0} | options
    return ports.plan(
        remembered,
        admin_host=LOOPBACK,
        admin_port=admin_port,
        node_host=LOOPBACK,
        node_port=node_port,
        **options,  # type: ignore[arg-type]  # each test names a few
    )


def a_port() -> int:
    return ports.choose(LOOPBACK, [], set())


def test_everything_kept_is_private(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "state"
    old = os.umask(0)
    try:
        state.prepare(directory)
        token = state.ensure_admin_token(directory)
        state.ensure_host_id(directory)
        state.write_endpoints(directory, plan(None, a_port(), a_port()))
    finally:
        os.umask(old)
    assert re.fullmatch(r"tyrum-token\.v1\.[0-9a-f-]{36}\.[A-Za-z0-9_-]{43}", token)
    assert mode(directory) == mode(directory / "logs") == 0o700
    assert {mode(path) for path in directory.iterdir() if path.is_file()} == {0o600}


def test_token_and_host_id_stay(tmp_path: Path) -> None:
    state.prepare(tmp_path)
    token, host_id = state.ensure_admin_token(tmp_path), state.ensure_host_id(tmp_path)
    (tmp_path / state.ADMIN_TOKEN).chmod(0o644)
    assert state.ensure_admin_token(tmp_path) == token
    assert mode(tmp_path / state.ADMIN_TOKEN) == 0o600
    assert state.ensure_host_id(tmp_path) == host_id
    assert is_host_id(host_id)


def test_an_unusable_host_id_is_told(tmp_path: Path) -> None:
    state.prepare(tmp_path)
    (tmp_path / state.HOST_ID).write_text("../etc\n")
    with pytest.raises(CliError, match="does not hold a host id"):
        state.ensure_host_id(tmp_path)


def test_an_open_state_directory_is_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    state.prepare(tmp_path)
    assert mode(tmp_path) == 0o700


def test_an_unusable_state_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CliError, match="cannot use the state directory") as refused:
        state.prepare(tmp_path / "file")
    assert refused.value.exit_code is ExitCode.USAGE


def test_one_up_at_a_time(tmp_path: Path) -> None:
    code = f"""
import sys
from dataclasses import replace
from pathlib import Path
from cli import state
with state.exclusive(Path({str(tmp_path)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    with process(sys.executable, "-c", code, stdin=-1) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        told = rf"process {holder.pid}\) already runs on {tmp_path}"
        with pytest.raises(CliError, match=told) as refused, state.exclusive(tmp_path):
            pytest.fail("two at once")
        assert refused.value.exit_code is ExitCode.CONFLICT
    with state.exclusive(tmp_path):
        pass


def test_usual_ports_then_free_ones(tmp_path: Path) -> None:
    usual = a_port()
    assert plan(None, usual, a_port()).admin_port == usual
    with listening(usual):
        chosen = plan(None, usual, a_port())
        assert chosen.admin_port != usual
        assert ports.is_free(LOOPBACK, chosen.admin_port)


def test_all_ports_of_a_stack_differ() -> None:
    usual = a_port()
    chosen = plan(None, usual, usual)
    numbers = [
        chosen.admin_port,
        chosen.node_port,
        chosen.temporal_port,
        chosen.temporal_ui_port,
        chosen.temporal_http_port,
    ]
    assert len(set(numbers)) == len(numbers)


def test_chosen_ports_are_remembered(tmp_path: Path) -> None:
    usual = a_port()
    with listening(usual):
        chosen = plan(None, usual, a_port())
        state.write_endpoints(tmp_path, chosen)
    remembered = state.read_endpoints(tmp_path)
    assert remembered == chosen
    again = plan(remembered, usual, a_port())
    assert (again.admin_port, again.node_port) == (chosen.admin_port, chosen.node_port)


def test_a_remembered_port_that_was_taken_is_replaced(tmp_path: Path) -> None:
    chosen = plan(None, a_port(), a_port())
    with listening(chosen.node_port):
        assert plan(chosen, chosen.admin_port, chosen.node_port).node_port != chosen.node_port


def test_a_port_the_operator_named_is_not_replaced() -> None:
    usual = a_port()
    with listening(usual), pytest.raises(CliError, match="DESKTOP_ADMIN_PORT") as refused:
        plan(None, usual, a_port(), fixed=frozenset({"admin_port"}))
    assert refused.value.exit_code is ExitCode.CONFLICT


def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(CliError, match="not an address of this machine"):
        ports.choose("203.0.113.7", [8787], set())


@pytest.mark.parametrize(
    "content",
    ["", "nonsense", "[]", "{}", '{"admin_port": 1}', '{"admin_port": "x", "admin_host": 3}', "\x00\xff"],
)
def test_damaged_endpoints_are_as_good_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / state.ENDPOINTS).write_bytes(content.encode("latin-1"))
    assert state.read_endpoints(tmp_path) is None


def test_without_a_bridge_the_remembered_address_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("DESKTOP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DESKTOP_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(up, "_BRIDGE_PATIENCE", 0.0)
    monkeypatch.setattr(up, "bridge_address", lambda: None)
    state.prepare(tmp_path)
    first = up.prepare(tmp_path)
    assert first.problem is not None
    assert first.endpoints.node_host == LOOPBACK

    before = replace(first.endpoints, node_host="203.0.113.7", node_port=8788)
    state.write_endpoints(tmp_path, before)
    again = up.prepare(tmp_path)
    assert again.problem is not None
    assert again.endpoints.node_host == LOOPBACK
    assert state.read_endpoints(tmp_path) == replace(again.endpoints, node_host="203.0.113.7", node_port=8788)

    monkeypatch.setattr(up, "bridge_address", lambda: "127.0.0.2")
    moved = up.prepare(tmp_path)
    assert moved.problem is None
    assert moved.note is not None
    assert "http://203.0.113.7:8788" in moved.note
    assert moved.admin_token == first.admin_token
    assert moved.host_id == first.host_id
