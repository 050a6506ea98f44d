"""`python -m api` as a process: configuration, addresses in use, both listeners, logs, and a quick end."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from api.server import bind, node_address
from tests.api.stack import ADMIN_TOKEN, BEARER, fresh_inventory
from tests.support.waiting import eventually


def free_port() -> int:
    """A port nobody listens on now."""
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def environment(state: Path, **settings: str) -> dict[str, str]:
    """What the process is started with."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "VIRTUAL_ENV") if name in os.environ}
    known = {
        "DESKTOP_STATE_DIR": str(state),
        "DESKTOP_ADMIN_TOKEN": ADMIN_TOKEN,
        "DESKTOP_ADMIN_PORT": str(free_port()),
        "DESKTOP_NODE_HOST": "127.0.0.1",
        "DESKTOP_NODE_PORT": str(free_port()),
        "TEMPORAL_ADDRESS": "127.0.0.1:1",
    }
    return kept | known | settings


@asynccontextmanager
async def process(settings: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m api`, killed at the end if it still runs."""
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api"),
        env=settings,
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()


async def outcome(settings: dict[str, str]) -> tuple[int, str]:
    """Exit code and standard error of a process that ends by itself."""
    async with process(settings) as running:
        _, err = await asyncio.wait_for(running.communicate(), 60)
        assert running.returncode is not None
        return running.returncode, err.decode()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DESKTOP_ADMIN_PORT", "many"),
        ("DESKTOP_NODE_PORT", "70000"),
        ("DESKTOP_ADMIN_TOKEN", "short"),
        ("DESKTOP_LOG_LEVEL", "loud"),
        ("DESKTOP_TAKEOVER_TTL_SECONDS", "0"),
        ("DESKTOP_DATABASE_URL", "mysql://x"),
    ],
)
async def test_bad_configuration_is_one_line(tmp_path: Path, name: str, value: str) -> None:
    code, err = await outcome(environment(tmp_path, **{name: value}))
    assert code == 2 and err.count("\n") == 1 and name in err and "Traceback" not in err


async def test_bad_temporal_configuration_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "temporal.toml"
    broken.write_text("not = = toml")
    for wrong in ({"TEMPORAL_CONFIG_FILE": str(broken)}, {"TEMPORAL_ADDRESS": ":: no address ::"}):
        code, err = await outcome(environment(tmp_path, **wrong))
        assert code == 2 and err.count("\n") == 1 and "TEMPORAL_" in err, err


@pytest.mark.parametrize("which", ["ADMIN", "NODE"])
async def test_an_address_in_use_is_one_line(tmp_path: Path, which: str) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, err = await outcome(environment(tmp_path, **{f"DESKTOP_{which}_PORT": str(port)}))
    assert code == 1 and "Traceback" not in err
    assert err.count("\n") == 1 and f"127.0.0.1:{port}" in err and f"DESKTOP_{which}_PORT" in err


def test_node_address_is_this_machines_own() -> None:
    bind("NODE", node_address(), 0).close()


def test_answers_are_not_held_back_by_the_socket() -> None:
    # asyncio switches Nagle's algorithm off only where the protocol is named.
    with bind("ADMIN", "127.0.0.1", 0) as sock:
        assert sock.proto == socket.IPPROTO_TCP


async def test_both_listeners_and_a_quick_end(tmp_path: Path) -> None:
    fresh_inventory(tmp_path).dispose()
    settings = environment(tmp_path, DESKTOP_LOG_LEVEL="DEBUG")
    admin = f"http://127.0.0.1:{settings['DESKTOP_ADMIN_PORT']}"
    node = f"http://127.0.0.1:{settings['DESKTOP_NODE_PORT']}"
    secret = "S" * 42 + "A"
    async with process(settings) as running, httpx.AsyncClient(trust_env=False, timeout=20) as http:

        async def up() -> bool:
            assert running.returncode is None
            try:
                return (await http.get(f"{node}/healthz")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(up, "the process answers")
        assert (await http.get(f"{admin}/healthz")).status_code == 200
        ready = await http.get(f"{admin}/readyz")
        assert ready.status_code == 503 and ready.json()["parts"]["inventory"]["ok"], ready.text
        assert (await http.get(f"{admin}/desktop-environments", headers=BEARER)).json()["environments"] == []
        # A sandbox cannot even knock at the admin API.
        for path in (
            "/desktop-environments",
            "/docs",
            "/openapi.json",
            f"/desktop-takeover/s/{secret}/vnc.html",
        ):
            assert (await http.get(node + path, headers=BEARER)).status_code == 404, path
        assert (await http.get(f"{admin}/desktop-takeover/s/{secret}/vnc.html?path=x")).status_code == 404
        address = f"{admin.replace('http', 'ws', 1)}/desktop-takeover/s/{secret}/websockify"
        with pytest.raises(InvalidStatus):
            async with connect(address, subprotocols=["tyrum-auth.c2VjcmV0LXRva2Vu"], proxy=None):  # type: ignore[list-item] # NewType of str
                pass
        node_ws = node.replace("http", "ws", 1) + "/ws"
        async with connect(node_ws, subprotocols=["tyrum-v1"], proxy=None) as held:  # type: ignore[list-item] # NewType of str
            running.send_signal(signal.SIGTERM)
            _, err = await asyncio.wait_for(running.communicate(), 20)
            await held.wait_closed()
        assert running.returncode == 0, err.decode()
    log = err.decode()
    assert "Traceback" not in log and secret not in log and "c2VjcmV0" not in log and ADMIN_TOKEN not in log
    assert "desktop-takeover/s/…/vnc.html" in log
