"""The built image, in real containers: its contract with the control plane."""

import asyncio
import base64
import json
import struct
import urllib.error
import urllib.request
import zlib
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.sandbox.conftest import TOKEN, Sandboxes, eventually
from tests.sandbox.probe_gateway import ConnectedNode, ProbeGateway, task
from tests.sandbox.test_node import CHALLENGE, CONNECTION_ID, DEVICE_ID, IDENTITY_FILE

pytestmark = pytest.mark.docker

# node-protocol-vectors.json: positive ok-rfc8032-test1.
PROOF = "LLMOWvAve2ahcxqPWGCgBoSOqAZq_n8D6v8bzoWRCqxlj3Uuu_uriFcpg4g0AtG8ydF21csfJTAKBouaYmCkBg"


async def rfb_banner(port: int) -> bytes:
    """What the VNC server says first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    banner = await asyncio.wait_for(reader.read(12), 30)
    writer.close()
    return banner


async def fetch(url: str) -> tuple[int, bytes, str]:
    """Status, body and content type of a GET."""

    def get() -> tuple[int, bytes, str]:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - the test's own URL
                return answer.status, answer.read(), answer.headers["Content-Type"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), error.headers["Content-Type"]

    return await asyncio.to_thread(get)


def pixels_of(response: dict[str, Any]) -> tuple[int, int, list[bytes]]:
    """Width, height and rows of RGB bytes of a screenshot response."""
    assert response["ok"], response
    evidence = response["result"]["evidence"]
    assert set(evidence) == {"type", "mime", "width", "height", "bytesBase64", "timestamp"}
    assert (evidence["type"], evidence["mime"]) == ("screenshot", "image/png")
    data = base64.b64decode(evidence["bytesBase64"], validate=True)
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (evidence["width"], evidence["height"])
    start = data.index(b"IDAT")
    rows = zlib.decompress(data[start + 4 : start + 4 + int.from_bytes(data[start - 4 : start], "big")])
    stride = width * 3 + 1
    return width, height, [rows[line * stride + 1 : (line + 1) * stride] for line in range(height)]


async def terminal_ready(node: ConnectedNode) -> None:
    """Wait until the terminal is painted and has the keyboard."""

    async def shows_terminal() -> bool:
        _, _, rows = pixels_of(await node.execute(op="screenshot", display="primary"))
        return rows[300][400 * 3 : 400 * 3 + 3] == bytes.fromhex("1b2430")

    for _ in range(200):
        if await shows_terminal():
            await node.execute(op="mouse", action="click", x=400, y=300)
            # The shell behind the window needs a moment more, but what is typed before waits for it.
            return
        await asyncio.sleep(0.02)
    raise AssertionError("no terminal")


@pytest.mark.parametrize("hardened", [True, False], ids=["hardened", "plain"])
@pytest.mark.parametrize("uid", [1000, 4711])
async def test_boots_and_connects(
    sandboxes: Sandboxes, gateway: ProbeGateway, uid: int, hardened: bool
) -> None:
    gateway.connection_id, gateway.challenge = CONNECTION_ID, CHALLENGE
    sandbox = await sandboxes.start(uid=uid, hardened=hardened, identity=IDENTITY_FILE)
    node = await gateway.node()
    assert node.init["device"] == {
        "device_id": DEVICE_ID, "pubkey": node.init["device"]["pubkey"], "label": "a test",
        "platform": "linux", "version": "0.1.0", "mode": "desktop-sandbox",
    }  # fmt: skip
    assert [capability["id"] for capability in node.init["capabilities"]] == [
        "tyrum.desktop.screenshot", "tyrum.desktop.mouse", "tyrum.desktop.keyboard",
    ]  # fmt: skip
    assert node.proof == PROOF
    assert node.token == TOKEN
    for _ in range(12):  # a server that counted these as attacks would refuse the last ones
        assert await rfb_banner(sandbox.port(5900)) == b"RFB 003.008\n"
    base = f"http://127.0.0.1:{sandbox.port(6080)}"
    status, body, kind = await fetch(f"{base}/vnc.html?autoconnect=true")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert b"noVNC" in body
    assert (await fetch(f"{base}/app/ui.js"))[2] == "text/javascript; charset=utf-8"
    assert (await fetch(f"{base}/%2e%2e/%2e%2e/%2e%2e/etc/passwd"))[0] == 404
    async with connect(f"ws{base[4:]}/websockify", subprotocols=[Subprotocol("binary")]) as viewer:
        assert await asyncio.wait_for(viewer.recv(), 30) == b"RFB 003.008\n"
    await terminal_ready(node)
    await node.execute(op="keyboard", action="type", text="id -u > ~/uid\n")
    path = sandbox.home / "home" / "uid"
    await eventually(lambda: path.exists() and path.read_text() == f"{uid}\n")
    assert TOKEN not in sandbox.logs()
    assert gateway.failures == []


async def test_types_text_that_the_keyboard_lacks(sandboxes: Sandboxes, gateway: ProbeGateway) -> None:
    sandbox = await sandboxes.start()
    node = await gateway.node()
    await terminal_ready(node)
    rare = "".join(chr(code) for code in range(0x410, 0x450)) + "".join(
        chr(code) for code in range(0x3B1, 0x3CA)
    )
    rare += "".join(chr(code) for code in range(0x4E00, 0x4E00 + 120)) + "€ß😀\\|@~^`ĞŐ"
    answer = await node.execute(op="keyboard", action="type", text=f"cat > ~/text <<'END'\n{rare}\nEND\n")
    assert answer["ok"], answer
    path = sandbox.home / "home" / "text"
    await eventually(lambda: path.exists() and path.read_text() != "")
    assert path.read_text() == f"{rare}\n"
    typed = "the quick brown fox -- THE LAZY DOG 0123456789 !?;:'\"" * 20
    await node.execute(op="keyboard", action="type", text=f"cat > ~/long <<'END'\n{typed}\nEND\n")
    path = sandbox.home / "home" / "long"
    await eventually(lambda: path.exists() and path.read_text() == f"{typed}\n")


async def test_keys_mouse_and_errors(sandboxes: Sandboxes, gateway: ProbeGateway) -> None:
    sandbox = await sandboxes.start(environment={"DESKTOP_GEOMETRY": "1024x768"})
    node = await gateway.node()
    await terminal_ready(node)
    await node.execute(op="keyboard", action="type", text="touch ~/pressed-b")
    for key in ("Backspace", "A", "Enter"):
        answer = await node.execute(op="keyboard", action="press", key=key)
        assert answer["result"]["evidence"] | {"timestamp": ""} == {
            "type": "keyboard", "action": "press", "key": key, "timestamp": "",
        }  # fmt: skip
    await eventually((sandbox.home / "home" / "pressed-a").exists)
    width, height, before = pixels_of(await node.execute(op="screenshot", display="all", format="jpeg"))
    assert (width, height) == (1024, 768)
    await node.execute(op="mouse", action="move", x=400, y=40)
    answer = await node.execute(op="mouse", action="drag", x=420, y=190, duration_ms=100)
    assert answer["result"]["evidence"]["action"] == "drag"

    async def moved() -> bool:
        _, _, after = pixels_of(await node.execute(op="screenshot", display="primary"))
        return after[100] != before[100]

    for _ in range(100):
        if await moved():
            break
        await asyncio.sleep(0.02)
    else:
        raise AssertionError("the window did not move")
    for args, message in (
        ({"op": "mouse", "action": "click", "x": 5000, "y": 1}, "outside the screen"),
        ({"op": "mouse", "action": "click", "x": "1", "y": 1}, "x must be a number"),
        ({"op": "keyboard", "action": "press", "key": "Bogus"}, "no key named"),
        ({"op": "keyboard", "action": "type"}, "missing text"),
        ({"op": "keyboard", "action": "type", "text": "\x00"}, "cannot be typed"),
        ({"op": "screenshot"}, "display must be"),
        ({"op": "snapshot"}, "no provider for capability"),
        ({}, "no provider for capability"),
    ):
        answer = await node.execute(**args)
        assert answer["ok"] is False
        assert answer["error"]["code"] == "task_failed"
        assert message in answer["error"]["message"]
    await node.send({"request_id": "bad", "type": "task.execute", "payload": {"action": {}}})
    answer = await node.answer()
    assert answer["error"]["code"] == "invalid_request"
    assert answer["error"]["details"]["issues"]
    await node.send({"request_id": "ping-1", "type": "ping", "payload": {}})
    assert await node.answer() == {"request_id": "ping-1", "type": "ping", "ok": True}


async def test_a_gateway_restart(sandboxes: Sandboxes, gateway: ProbeGateway) -> None:
    sandbox = await sandboxes.start()
    node = await gateway.node()
    first = await node.execute("task-repeated", op="mouse", action="move", x=5, y=5)
    identity = node.init["device"]["device_id"]
    await gateway.stop()
    await asyncio.sleep(0.5)
    await gateway.start()
    again = await gateway.node()
    assert again.init["device"]["device_id"] == identity
    await again.send(task("task-repeated", op="keyboard", action="type", text="not again"))
    assert await again.answer() == first
    document = json.loads((sandbox.home / "desktop-node" / "device-identity.json").read_text())
    assert document["deviceId"] == identity
    assert (sandbox.home / "desktop-node" / "device-identity.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("code", [4001, 4005, 4006, 4007, 4008])
async def test_stop_codes_end_the_container(sandboxes: Sandboxes, gateway: ProbeGateway, code: int) -> None:
    gateway.close_with = code
    sandbox = await sandboxes.start()
    assert await sandbox.exit_code() == 13
    assert gateway.upgrades == 1
    assert "node died (exit code 13)" in sandbox.logs().splitlines()[-1]


async def test_a_wrong_handshake_ends_the_container(sandboxes: Sandboxes, gateway: ProbeGateway) -> None:
    gateway.spoil = lambda result: {**result, "extra": True}
    sandbox = await sandboxes.start()
    assert await sandbox.exit_code() == 13


@pytest.mark.parametrize("code", [1013, 4002, 4003])
async def test_other_codes_mean_come_back(sandboxes: Sandboxes, gateway: ProbeGateway, code: int) -> None:
    gateway.close_with = code
    await sandboxes.start()
    await eventually(lambda: gateway.upgrades >= 2)
    gateway.close_with = None
    await gateway.node()


@pytest.mark.parametrize(
    ("victim", "named"),
    [("Xtigervnc", "display (X and VNC server)"), ("novnc", "novnc (web server)"), ("node", "node")],
)
async def test_the_death_of_a_part_ends_the_container(
    sandboxes: Sandboxes, gateway: ProbeGateway, victim: str, named: str
) -> None:
    sandbox = await sandboxes.start()
    await gateway.node()
    # The Python parts share a command line and are told apart by the name each one gave itself.
    sandbox.run(
        f'for p in /proc/[1-9]*; do read n < $p/comm; [ "$n" = "{victim}" ] && kill -9 ${{p#/proc/}}; done'
    )
    assert await sandbox.exit_code() == 137
    assert f"{named} died (signal SIGKILL)" in sandbox.logs().splitlines()[-1]


async def test_terminal_and_window_manager_come_back(sandboxes: Sandboxes, gateway: ProbeGateway) -> None:
    sandbox = await sandboxes.start()
    node = await gateway.node()
    await terminal_ready(node)
    await node.execute(op="keyboard", action="type", text="exit\n")
    sandbox.kill("pekwm")
    await eventually(lambda: sandbox.logs().count("ended; it is started again") >= 2)
    await terminal_ready(node)
    # Orphans are reaped: nothing is left in state Z.
    sandbox.run("(sleep 0.1 &)")
    await asyncio.sleep(0.3)
    await eventually(lambda: "Z" not in sandbox.run("cut -d')' -f2 /proc/[0-9]*/stat | cut -c2"))


async def test_stops_fast_and_cleanly(sandboxes: Sandboxes, gateway: ProbeGateway) -> None:
    sandbox = await sandboxes.start()
    node = await gateway.node()
    await asyncio.to_thread(sandbox.container.stop)
    # Docker kills what has not ended within its grace time, and that is no 0.
    assert await sandbox.exit_code() == 0
    assert node.socket.close_code == 1000
    # The same container again, with the lock file of its last X server lying about.
    await asyncio.to_thread(sandbox.container.start)
    again = await gateway.node()
    await terminal_ready(again)


async def test_an_unusable_configuration_is_said(sandboxes: Sandboxes) -> None:
    sandbox = await sandboxes.start(environment={"DESKTOP_DEPTH": "7"})
    assert await sandbox.exit_code() == 2
    assert "DESKTOP_DEPTH" in sandbox.logs()


async def test_sixteen_bits(sandboxes: Sandboxes, gateway: ProbeGateway) -> None:
    await sandboxes.start(environment={"DESKTOP_DEPTH": "16"}, hardened=False)
    node = await gateway.node()
    for _ in range(100):
        _, _, rows = pixels_of(await node.execute(op="screenshot", display={"id": "0"}))
        if abs(rows[700][3] - 0x2F) < 9 and abs(rows[700][4] - 0x48) < 5 and abs(rows[700][5] - 0x58) < 9:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the wallpaper has another colour")
