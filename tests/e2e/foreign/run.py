"""A node and a desktop written from the protocol page alone, behaving as the reference node was seen to behave.

It shares no code with this project's own: it reads the names of protocol section 8.2, sends no `capability.ready` and
no presence, adds its takeover URL to the label, advertises more than it is asked for, and ends with code 13 when the
gateway answers a handshake with anything but the two strict results.
"""

import asyncio
import base64
import http.server
import json
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

from nacl.signing import SigningKey
from websockets import ConnectionClosed, connect

HOME = Path(os.environ["TYRUM_HOME"])
DESKTOP = ["screenshot", "snapshot", "query", "act", "mouse", "keyboard", "wait-for"]
FS = ["read", "write", "edit", "apply-patch", "bash", "glob", "grep"]


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def serve_desktop() -> None:
    Path("/etc/foreign-was-here").write_text("a writable root\n")
    subprocess.Popen(
        ["Xtigervnc", ":0", "-rfbport", "5900", "-SecurityTypes", "None", "-geometry", "800x600"]
    )
    pages = partial(http.server.SimpleHTTPRequestHandler, directory="/usr/share/novnc")
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 6080), pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()


async def node(token: str, identity: dict) -> None:
    key = SigningKey(unb64url(identity["privateKey"])[-32:])
    capabilities = [f"tyrum.desktop.{name}" for name in DESKTOP] + [f"tyrum.fs.{name}" for name in FS]
    device = {
        "device_id": identity["deviceId"],
        "pubkey": identity["publicKey"],
        "label": os.environ["TYRUM_NODE_LABEL"]
        + " (takeover: http://localhost:6080/vnc.html?autoconnect=true)",
        "platform": "linux",
        "version": "0.1.0",
        "mode": os.environ["TYRUM_NODE_MODE"],
    }
    offered = ["tyrum-v1", f"tyrum-auth.{b64url(token.encode())}"]
    async with connect(os.environ["TYRUM_GATEWAY_WS_URL"], subprotocols=offered) as socket:
        if socket.subprotocol != "tyrum-v1":
            sys.exit(13)

        async def ask(kind: str, payload: dict, keys: set) -> dict:
            await socket.send(json.dumps({"request_id": kind, "type": kind, "payload": payload}))
            answer = json.loads(await socket.recv())
            if answer.get("ok") is not True or set(answer["result"]) != keys:
                sys.exit(13)
            return answer["result"]

        described = [{"id": name, "version": "1.0.0"} for name in capabilities]
        init = {"protocol_rev": 2, "role": "node", "device": device, "capabilities": described}
        issued = await ask("connect.init", init, {"connection_id", "challenge"})
        transcript = (
            "tyrum-connect-proof\nprotocol_rev=2\nrole=node\n"
            f"device_id={identity['deviceId']}\nconnection_id={issued['connection_id']}\n"
            f"challenge={issued['challenge']}\n"
        )
        proof = {
            "connection_id": issued["connection_id"],
            "proof": b64url(key.sign(transcript.encode()).signature),
        }
        await ask("connect.proof", proof, {"client_id", "device_id", "role"})
        print("foreign node proven", flush=True)
        async for frame in socket:
            message = json.loads(frame)
            if message["type"] != "task.execute" or "ok" in message:
                continue
            args = message["payload"]["action"]["args"]
            answer = {"request_id": message["request_id"], "type": "task.execute", "ok": True}
            evidence = {"type": args["op"], "uid": os.getuid(), "timestamp": "2026-01-01T00:00:00.000Z"}
            await socket.send(json.dumps(answer | {"result": {"evidence": evidence}}))


if __name__ == "__main__":
    serve_desktop()
    try:
        token = Path(os.environ["TYRUM_GATEWAY_TOKEN_PATH"]).read_text().strip()
        asyncio.run(node(token, json.loads((HOME / "desktop-node" / "device-identity.json").read_text())))
    except ConnectionClosed as closed:
        print(f"closed: {closed}", flush=True)
    sys.exit(13)
