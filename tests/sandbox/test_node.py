"""The node's modules, without a desktop."""

import json
import uuid
import zlib
from pathlib import Path
from typing import Any

import pytest

from sandbox.node import envelopes, handshake, identity, reconnect, tasks
from sandbox.node.config import ConfigurationError, NodeConfig, read_token
from sandbox.node.dedupe import RecentIds, TaskCache
from sandbox.node.desktop import arguments, keynames, pixels, png
from sandbox.node.protocol import Execute, NodeProtocol, Note, Proven, Send
from sandbox.settings import DesktopSettings, SettingsError

# node-protocol-vectors.json: keypair rfc8032-test1, positive ok-rfc8032-test1.
SPKI = "MCowBQYDK2VwAyEA11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
PKCS8 = "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v_VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g"
DEVICE_ID = "dev_a3r73d62fg5wbk2zkv66mhw3blwnwiyrgs7dbz23ivpy4g3zf6uq"
CONNECTION_ID = "88f1dcb0-e214-4e20-9197-b461d72bb494"
CHALLENGE = "TfTQOU1WDuSzJiZlrQ3FL_EoNGzLeeM5QDd26sII1LU"
IDENTITY_FILE = json.dumps({"deviceId": DEVICE_ID, "publicKey": SPKI, "privateKey": PKCS8})


def connected(monkeypatch: pytest.MonkeyPatch, cache: TaskCache | None = None) -> NodeProtocol:
    """A protocol that has proven its key."""
    monkeypatch.setattr(identity.Identity, "sign", lambda _self, _message: b"\0" * 64)
    node = identity.parse(IDENTITY_FILE)
    protocol = NodeProtocol(node, "label", None, ["a.b"], cache or TaskCache(), RecentIds())
    init = json.loads(protocol.opening())
    [effect] = protocol.receive(reply(init, {"connection_id": "c", "challenge": "x"}))
    assert isinstance(effect, Send)
    result = {"client_id": "c", "device_id": DEVICE_ID, "role": "node"}
    assert protocol.receive(reply(json.loads(effect.frame), result)) == [Proven()]
    return protocol


def reply(request: dict[str, Any], result: Any) -> str:
    """The gateway's answer."""
    message = {"request_id": request["request_id"], "type": request["type"], "ok": True, "result": result}
    return json.dumps(message)


class TestIdentity:
    def test_reads_the_vector(self) -> None:
        node = identity.parse(IDENTITY_FILE)
        assert (node.device_id, node.public_key) == (DEVICE_ID, SPKI)
        assert node.seed.hex().startswith("9d61b19deffd5a60")
        assert "9d61" not in repr(node)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("deviceId", "dev_x"), ("publicKey", SPKI + "="), ("privateKey", PKCS8[:-4]), ("privateKey", 7)],
    )
    def test_refuses_an_inconsistent_file(self, key: str, value: Any) -> None:
        with pytest.raises(identity.IdentityError):
            identity.parse(json.dumps({**json.loads(IDENTITY_FILE), key: value}))

    def test_transcript_is_byte_exact(self) -> None:
        transcript = handshake.transcript(DEVICE_ID, CONNECTION_ID, CHALLENGE)
        assert transcript == (
            b"tyrum-connect-proof\nprotocol_rev=2\nrole=node\n"
            b"device_id=dev_a3r73d62fg5wbk2zkv66mhw3blwnwiyrgs7dbz23ivpy4g3zf6uq\n"
            b"connection_id=88f1dcb0-e214-4e20-9197-b461d72bb494\n"
            b"challenge=TfTQOU1WDuSzJiZlrQ3FL_EoNGzLeeM5QDd26sII1LU\n"
        )
        assert len(transcript) == 217


class TestConfiguration:
    def test_token_subprotocol(self) -> None:
        assert handshake.subprotocols("b5177f35") == ["tyrum-v1", "tyrum-auth.YjUxNzdmMzU"]
        assert handshake.subprotocols(None) == ["tyrum-v1"]

    def test_blank_means_absent(self) -> None:
        config = NodeConfig.from_environment({"TYRUM_NODE_LABEL": "  ", "TYRUM_NODE_MODE": ""})
        assert (config.label, config.mode, config.token_path) == ("tyrum-desktop-sandbox", None, None)

    def test_token_is_trimmed_and_awaited_and_never_shown(self, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text(" secret\n")
        assert read_token(str(path)) == "secret"
        path.write_bytes(b"secret\xff")
        with pytest.raises(ConfigurationError) as caught:
            read_token(str(path))
        assert "secret" not in repr(caught.value)
        path.write_text("\n")
        with pytest.raises(ConfigurationError, match="no gateway token"):
            read_token(str(path), patience=0.05)

    @pytest.mark.parametrize(
        "environment",
        [{"DISPLAY": "host:0"}, {"DESKTOP_GEOMETRY": "wide"}, {"DESKTOP_DEPTH": "8"}, {"VNC_PORT": "0"}],
    )
    def test_bad_desktop_settings(self, environment: dict[str, str]) -> None:
        with pytest.raises(SettingsError):
            DesktopSettings.from_environment(environment)

    def test_geometry_may_carry_the_depth(self) -> None:
        settings = DesktopSettings.from_environment({"DESKTOP_GEOMETRY": "800x600x16"})
        assert (settings.width, settings.height, settings.depth) == (800, 600, 16)


class TestEnvelopes:
    @pytest.mark.parametrize(
        "text",
        [
            "nonsense", "[]", "{}", '{"request_id":"1","type":"ping"}',
            '{"request_id":"","type":"ping","payload":null}',
            '{"request_id":"1","type":"ping","payload":{},"extra":1}',
            '{"request_id":"1","type":"ping","payload":NaN}',
            '{"request_id":"1","type":"ping","ok":true,"error":null}',
            '{"request_id":"1","type":"ping","ok":1}',
            '{"request_id":"1","type":"ping","ok":false,"error":{"code":"x"}}',
            '{"event_id":"1","type":"error","occurred_at":"2026-01-01T00:00:00+00:00","payload":{}}',
            '{"event_id":"1","type":"error","occurred_at":"2026-01-01T00:00:00Z","payload":{},"scope":null}',
        ],
    )  # fmt: skip
    def test_invalid_frames(self, text: str) -> None:
        with pytest.raises(envelopes.EnvelopeError):
            envelopes.parse(text)

    def test_shapes(self) -> None:
        assert json.loads(envelopes.success("1", "ping")) == {"request_id": "1", "type": "ping", "ok": True}
        assert json.loads(envelopes.failure("1", "t", "task_failed", "m", {})) == {
            "request_id": "1", "type": "t", "ok": False,
            "error": {"code": "task_failed", "message": "m", "details": {}},
        }  # fmt: skip


class TestProtocol:
    @pytest.mark.parametrize("extra", [{"more": 1}, {"challenge": ""}])
    def test_a_wrong_handshake_result_is_final(
        self, extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(identity.Identity, "sign", lambda _self, _message: b"")
        node = identity.parse(IDENTITY_FILE)
        protocol = NodeProtocol(node, "l", None, [], TaskCache(), RecentIds())
        init = json.loads(protocol.opening())
        assert protocol.receive("not json") == []
        with pytest.raises(handshake.HandshakeError):
            protocol.receive(reply(init, {"connection_id": "c", "challenge": "x", **extra}))

    def test_ping_and_unknown_requests(self, monkeypatch: pytest.MonkeyPatch) -> None:
        protocol = connected(monkeypatch)
        ping = protocol.receive(envelopes.request("7", "ping", {}))
        assert ping == [Send('{"request_id":"7","type":"ping","ok":true}')]
        assert protocol.receive(envelopes.request("8", "who.knows", {})) == []
        [refused] = protocol.receive(envelopes.request("9", "connect.init", {}))
        assert isinstance(refused, Send)
        assert json.loads(refused.frame)["error"]["code"] == "unexpected_connect"

    def test_a_task_runs_once_even_across_connections(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = TaskCache()
        first = connected(monkeypatch, cache)
        frame = envelopes.request("task-1", "task.execute", {"n": 1})
        assert first.receive(frame) == [Execute("task-1", {"n": 1})]
        assert first.receive(frame) == []
        first.finish("task-1", "the answer")
        second = connected(monkeypatch, cache)
        assert second.receive(envelopes.request("task-1", "task.execute", {"n": 2})) == [Send("the answer")]

    def test_events_are_noted_once_and_without_their_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        protocol = connected(monkeypatch)
        payload = {"pairing": {"status": "approved"}, "scoped_token": "hush"}
        event = {"event_id": "e", "type": "pairing.updated", "occurred_at": "2026-01-01T00:00:00.1Z"}
        frame = json.dumps({**event, "payload": payload})
        assert protocol.receive(frame) == [Note("pairing approved")]
        assert protocol.receive(frame) == []


class TestCaches:
    def test_the_oldest_answers_are_forgotten(self) -> None:
        cache = TaskCache()
        for number in range(1001):
            assert cache.begin(str(number))
            cache.finish(str(number), "x")
        assert cache.answer("0") is None
        assert cache.answer("1") == "x"

    def test_large_answers_have_a_budget_and_small_ones_outlive_them(self) -> None:
        cache = TaskCache(large_budget=250_000)
        cache.begin("click")
        cache.finish("click", "small")
        for number in range(3):
            cache.begin(f"shot-{number}")
            cache.finish(f"shot-{number}", "x" * 100_000)
        assert cache.answer("shot-0") is None
        assert cache.answer("shot-2") is not None
        assert cache.answer("click") == "small"


class TestReconnect:
    def test_delays_grow_to_the_reference_s_ceiling_and_start_over(self) -> None:
        backoff = reconnect.Backoff(uniform=lambda _low, high: high)
        delays = [backoff.next_delay() for _ in range(9)]
        assert delays == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]
        backoff.reset()
        assert backoff.next_delay() == 0.25

    @pytest.mark.parametrize(
        ("code", "stops"),
        [(1000, False), (1001, False), (1006, False), (1013, False), (4001, True), (4002, False),
         (4003, False), (4004, False), (4005, True), (4006, True), (4007, True), (4008, True)],
    )  # fmt: skip
    def test_stop_codes(self, code: int, stops: bool) -> None:
        assert (reconnect.stop_reason(code, has_token=True) is not None) is stops

    def test_unauthorized_without_a_token_is_no_reason_to_stop(self) -> None:
        assert reconnect.stop_reason(4001, has_token=False) is None


class TestTasks:
    @pytest.mark.parametrize(
        "change",
        [{"dispatch_id": "x"}, {"turn_id": None}, {"action": None}, {"extra": 1},
         {"action": {"type": "", "args": {}}}, {"action": {"type": "Desktop", "args": []}},
         {"action": {"type": "Desktop", "idempotency_key": None}}],
    )  # fmt: skip
    def test_invalid_payloads(self, change: dict[str, Any]) -> None:
        payload = {"dispatch_id": str(uuid.uuid4()), "action": {"type": "Desktop", "args": {}}, **change}
        with pytest.raises(tasks.InvalidRequest) as caught:
            tasks.parse_action(payload)
        assert caught.value.issues

    def test_routing(self) -> None:
        payload = {"dispatch_id": str(uuid.uuid4()), "turn_id": str(uuid.UUID(int=0)), "action": {
            "type": "Desktop", "args": {"op": "mouse", "x": 1}, "whatever": None}}  # fmt: skip
        action = tasks.parse_action(payload)
        assert tasks.carry_out(action, {"mouse": lambda args: {"x": args["x"]}}) == {"evidence": {"x": 1}}
        for refused in (tasks.Action("Web", {"op": "mouse"}), tasks.Action("Desktop", {"op": ["mouse"]})):
            with pytest.raises(tasks.TaskFailed, match="no provider for capability"):
                tasks.carry_out(refused, {"mouse": lambda args: args})


class TestDesktopArguments:
    @pytest.mark.parametrize(
        "args",
        [{}, {"action": "click", "x": 1}, {"action": "fly", "x": 1, "y": 1},
         {"action": "move", "x": True, "y": 1}, {"action": "move", "x": float("inf"), "y": 1},
         {"action": "move", "x": 1280, "y": 1}, {"action": "move", "x": 1, "y": -1},
         {"action": "click", "x": 1, "y": 1, "button": "fourth"},
         {"action": "move", "x": 1, "y": 1, "duration_ms": -1}],
    )  # fmt: skip
    def test_bad_mouse(self, args: dict[str, Any]) -> None:
        with pytest.raises(tasks.TaskFailed, match="invalid args"):
            arguments.parse_mouse(args, 1280, 720)

    def test_mouse(self) -> None:
        wanted = arguments.parse_mouse({"action": "click", "x": 10.4, "y": 719.4, "more": 1}, 1280, 720)
        assert (wanted.x, wanted.y, wanted.button, wanted.duration) == (10, 719, "left", 0)

    @pytest.mark.parametrize(
        "args", [{"action": "type"}, {"action": "press", "text": "x"}, {"action": "type", "text": 1}]
    )
    def test_bad_keyboard(self, args: dict[str, Any]) -> None:
        with pytest.raises(tasks.TaskFailed):
            arguments.parse_keyboard(args)

    @pytest.mark.parametrize(
        "args",
        [{}, {"display": "other"}, {"display": "all", "format": "gif"}, {"display": {"id": 1}},
         {"display": "all", "max_width": 0}],
    )  # fmt: skip
    def test_bad_screenshot(self, args: dict[str, Any]) -> None:
        with pytest.raises(tasks.TaskFailed, match="invalid args"):
            arguments.check_screenshot(args)


class TestKeys:
    @pytest.mark.parametrize(
        ("name", "keysym"),
        [("Enter", 0xFF0D), ("Tab", 0xFF09), ("A", 0x61), ("LeftControl", 0xFFE3), ("F1", 0xFFBE),
         ("F24", 0xFFD5), ("Up", 0xFF52), ("Num7", 0x37), ("NumPad7", 0xFFB7), ("space", 0x20)],
    )  # fmt: skip
    def test_names(self, name: str, keysym: int) -> None:
        assert keynames.keysym_of_name(name) == keysym

    @pytest.mark.parametrize("name", ["", "Bogus", "ctrl+c"])
    def test_unknown_names(self, name: str) -> None:
        with pytest.raises(keynames.UnknownKey):
            keynames.keysym_of_name(name)

    def test_text(self) -> None:
        assert keynames.keysyms_of_text("aß\r\n\t") == [0x61, 0xDF, 0xFF0D, 0xFF09]
        assert keynames.keysyms_of_text("€😀") == [0x010020AC, 0x0101F600]

    @pytest.mark.parametrize("text", ["\0", "\x85", "\ud800"])
    def test_what_cannot_be_typed(self, text: str) -> None:
        with pytest.raises(keynames.UnknownKey):
            keynames.keysyms_of_text(text)


class TestPictures:
    def test_24_bits(self) -> None:
        assert pixels.to_rgb(bytes([3, 2, 1, 0, 6, 5, 4, 0]), 24, 2, 1) == bytes([1, 2, 3, 4, 5, 6])

    def test_16_bits_with_padded_rows(self) -> None:
        red, green, blue = (value.to_bytes(2, "little") for value in (0xF800, 0x07E0, 0x001F))
        rgb = pixels.to_rgb(red + b"\0\0" + green + b"\0\0" + blue + b"\0\0", 16, 1, 3)
        assert rgb == bytes([255, 0, 0, 0, 255, 0, 0, 0, 255])

    def test_png(self) -> None:
        data = png.encode(2, 2, bytes(range(12)))
        assert data.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\2\0\0\0\2\x08\2")
        start = data.index(b"IDAT")
        length = int.from_bytes(data[start - 4 : start], "big")
        rows = zlib.decompress(data[start + 4 : start + 4 + length])
        assert rows == b"\0" + bytes(range(6)) + b"\0" + bytes(range(6, 12))
