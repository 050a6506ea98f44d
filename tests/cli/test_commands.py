"""Every command against a served API: what it prints, what it sends, and its exit code."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from cli import ports, render
from cli.commands.reading import after
from cli.exits import ExitCode, of_http_status
from tests.cli.conftest import Desktopctl
from tests.cli.fake_api import HOST, PNG, TOKEN, Fake, now
from tests.cli.support_cli import process

ONE = "11111111-1111-4111-8111-111111111111"
TWO = "11112222-2222-4222-8222-222222222222"


def parsed(text: str) -> Any:
    return json.loads(text)


def test_create_waits_and_shows_the_phases(desktopctl: Desktopctl, fake: Fake) -> None:
    result = desktopctl("create", "--label", "build agent", "--wait")
    assert result.exit_code == 0, result.output
    assert "container_started  180 ms" in result.stdout
    assert "paired  912 ms" in result.stdout
    assert "is running" in result.stdout
    assert fake.requests[0][2] == {
        "host_id": HOST["host_id"],
        "desired_running": True,
        "label": "build agent",
    }


def test_create_without_waiting_answers_at_once(desktopctl: Desktopctl, fake: Fake) -> None:
    fake.takes = 600
    result = desktopctl(
        "create", "--no-start", "--image", "x:1", "--security-profile", "compatible", "--json"
    )
    assert result.exit_code == 0
    assert parsed(result.stdout)["status"] == "pending"
    body = fake.requests[0][2]
    assert (body["desired_running"], body["image_ref"], body["security_profile"]) == (
        False,
        "x:1",
        "compatible",
    )


@pytest.mark.parametrize(
    ("command", "status"), [("start", "running"), ("stop", "stopped"), ("reset", "stopped")]
)
def test_commands_wait_for_the_outcome(desktopctl: Desktopctl, fake: Fake, command: str, status: str) -> None:
    fake.add(ONE)
    result = desktopctl(command, "1111", "--wait", "--reason", "because", "--json")
    assert result.exit_code == 0, result.output
    assert parsed(result.stdout)["status"] == status
    assert fake.requests == [("POST", command, {"reason": "because"})]


def test_reset_can_rotate_the_identity(desktopctl: Desktopctl, fake: Fake) -> None:
    fake.add(ONE)
    assert desktopctl("reset", ONE, "--rotate-identity").exit_code == 0
    assert fake.requests == [("POST", "reset", {"rotate_identity": True})]


def test_an_environment_that_ends_in_error_fails_the_command(desktopctl: Desktopctl, fake: Fake) -> None:
    fake.add(ONE)
    fake.fails_with = "image_not_found"
    result = desktopctl("start", ONE, "--wait")
    assert result.exit_code == ExitCode.FAILED
    assert f"environment {ONE} ended in error image_not_found: no such image" in result.stderr
    assert "desktopctl timeline 11111111" in result.stderr
    machine = desktopctl("start", ONE, "--wait", "--json")
    assert parsed(machine.stdout)["status"] == "error"
    assert parsed(machine.stderr)["error"] == "image_not_found"


def test_waiting_too_long_has_its_own_exit_code(desktopctl: Desktopctl, fake: Fake) -> None:
    fake.add(ONE)
    fake.takes = 600
    result = desktopctl("start", ONE, "--wait", "--timeout", "0.5")
    assert result.exit_code == ExitCode.TIMED_OUT
    assert "still starting after 0.5 s" in result.stderr


def test_delete(desktopctl: Desktopctl, fake: Fake) -> None:
    fake.add(ONE)
    fake.add(TWO, label="two")
    result = desktopctl("delete", "two", ONE, "--yes", "--wait", "--json")
    assert result.exit_code == 0, result.output
    assert parsed(result.stdout) == [
        {"environment_id": TWO, "deleted": True},
        {"environment_id": ONE, "deleted": True},
    ]
    assert fake.environments == {}


def test_delete_asks_on_a_terminal(
    desktopctl: Desktopctl, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.add(ONE)
    monkeypatch.setattr("cli.commands.lifecycle.is_terminal", lambda: True)
    assert desktopctl("delete", ONE, input="n\n").exit_code == ExitCode.FAILED
    assert ONE in fake.environments
    assert desktopctl("delete", ONE, input="y\n").exit_code == 0
    assert ONE not in fake.environments


def test_list_filters_and_pages(desktopctl: Desktopctl, fake: Fake) -> None:
    fake.add(ONE, label="one", status="running")
    for _ in range(4):
        fake.add(label="others")
    assert [e["environment_id"] for e in parsed(desktopctl("list", "--label", "one", "--json").stdout)] == [
        ONE
    ]
    assert len(parsed(desktopctl("list", "--status", "stopped", "--json").stdout)) == 4
    assert len(parsed(desktopctl("list", "--limit", "2", "--all", "--json").stdout)) == 5
    first = desktopctl("list", "--limit", "2", "--host", "desktop-host")
    assert "--all" in first.stderr
    assert first.stdout.count("desktop-sandbox:dev") == 2


def test_show_by_prefix_label_and_id(desktopctl: Desktopctl, fake: Fake) -> None:
    fake.add(ONE, label="one")
    fake.add(
        TWO, label="two", last_error={"code": "sandbox_exited", "message": "x", "phase": "run", "at": None}
    )
    assert parsed(desktopctl("show", "one", "--json").stdout)["environment_id"] == ONE
    assert parsed(desktopctl("show", ONE[:8], "--json").stdout)["environment_id"] == ONE
    assert "sandbox_exited in run" in desktopctl("show", TWO).stdout


def test_an_ambiguous_name_lists_the_candidates(desktopctl: Desktopctl, fake: Fake) -> None:
    fake.add(ONE, label="one")
    fake.add(TWO)
    result = desktopctl("show", "1111")
    assert result.exit_code == ExitCode.USAGE
    assert f"{ONE} (one)" in result.stderr
    assert f"{TWO} (no label)" in result.stderr


@pytest.mark.parametrize("name", ["nothing", "", "../hosts", "é", "%2e%2e", "x" * 300])
def test_an_unknown_name_is_not_found(desktopctl: Desktopctl, name: str) -> None:
    result = desktopctl("show", name)
    assert result.exit_code == ExitCode.NOT_FOUND
    assert "desktopctl list" in result.stderr


def test_logs_cannot_drive_the_terminal(desktopctl: Desktopctl, fake: Fake) -> None:
    fake.add(ONE)
    result = desktopctl("logs", ONE, "--refresh")
    assert result.stdout.splitlines()[0] == "first line"
    assert "\x1b" not in result.stdout
    assert fake.requests == [("GET", "logs", {"refresh": True})]
    assert parsed(desktopctl("logs", ONE, "--json").stdout)["logs"] == fake.logs


def test_followed_logs_show_each_line_once() -> None:
    assert after([], ["a", "b"]) == ["a", "b"]
    assert after(["a", "b"], ["a", "b"]) == []
    assert after(["a", "b"], ["b", "c"]) == ["c"]
    assert after(["a", "b"], ["x"]) == ["x"]


def test_timeline_reads_every_page(desktopctl: Desktopctl, fake: Fake) -> None:
    fake.add(ONE)
    assert [e["sequence"] for e in parsed(desktopctl("timeline", ONE, "--json").stdout)] == [0, 1, 2, 3, 4]
    assert "command entry3" in desktopctl("timeline", ONE).stdout


def test_takeover_prints_the_address(desktopctl: Desktopctl, fake: Fake) -> None:
    fake.add(ONE, status="running")
    fake.add(TWO)
    assert desktopctl("takeover", ONE).stdout == f"{fake.url}/desktop-takeover/s/x/vnc.html\n"
    assert set(parsed(desktopctl("takeover", ONE, "--json").stdout)) == {
        "session_id",
        "entry_url",
        "expires_at",
    }
    refused = desktopctl("takeover", TWO)
    assert refused.exit_code == ExitCode.CONFLICT
    assert f"environment {TWO}: takeover unavailable" in refused.stderr


def test_takeover_of_a_kind(desktopctl: Desktopctl, fake: Fake) -> None:
    fake.add(ONE, status="running")
    assert desktopctl("takeover", ONE, "--view-only", "--ttl", "60").exit_code == 0
    assert fake.requests[-1] == ("POST", "takeover-token", {"view_only": True, "ttl_seconds": 60})
    assert desktopctl("takeover", ONE, "--ttl", "5").exit_code == ExitCode.USAGE


def test_takeover_sessions(desktopctl: Desktopctl, fake: Fake) -> None:
    fake.add(ONE, status="running")
    common = {"environment_id": ONE, "generation": 1, "created_by": "ann", "created_at": now()}
    common |= {"expires_at": now(), "revoked_at": None}
    fake.takeover_sessions += [
        common | {"session_id": "aaaa-1", "view_only": True},
        common | {"session_id": "aabb-2", "view_only": False},
    ]
    assert parsed(desktopctl("takeover-sessions", "list", ONE, "--json").stdout) == fake.takeover_sessions
    listed = desktopctl("takeover-sessions", "list", ONE).stdout
    assert "aaaa-1" in listed and "ann" in listed and "none" in listed
    assert (
        parsed(desktopctl("takeover-sessions", "revoke", ONE, "aaa", "--json").stdout)["session_id"]
        == "aaaa-1"
    )
    assert fake.requests[-1] == ("POST", "revoke", {})
    extended = desktopctl("takeover-sessions", "extend", ONE, "aabb-2", "--ttl", "90")
    assert extended.exit_code == 0 and "takeover session aabb-2: lives until" in extended.stdout
    assert fake.requests[-1] == ("POST", "extend", {"ttl_seconds": 90})
    assert desktopctl("takeover-sessions", "revoke", ONE, "aa").exit_code == ExitCode.USAGE
    assert desktopctl("takeover-sessions", "revoke", ONE, "zz/../x").exit_code == ExitCode.NOT_FOUND
    assert desktopctl("takeover-sessions", "extend", ONE, "aaaa-1", "--ttl", "9").exit_code == ExitCode.USAGE
    assert desktopctl("takeover-sessions", "extend", ONE, "aaaa-1").exit_code == 0
    assert fake.requests[-1] == ("POST", "extend", {})


def test_screenshot(
    desktopctl: Desktopctl, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fake.add(ONE, status="running")
    fake.add(TWO)
    file = tmp_path / "shot.png"
    result = desktopctl("screenshot", ONE, "-o", str(file), "--json")
    assert result.exit_code == 0, result.output
    assert file.read_bytes() == PNG
    assert parsed(result.stdout)["width"] == 8
    assert fake.requests[-1][2]["capability"] == "tyrum.desktop.screenshot"
    assert desktopctl("screenshot", ONE).exit_code == 0
    assert len(list(tmp_path.glob("desktop-11111111-*.png"))) == 1
    assert desktopctl("screenshot", TWO).exit_code == ExitCode.CONFLICT
    assert desktopctl("screenshot", ONE, "-o", str(tmp_path / "no" / "x.png")).exit_code == ExitCode.USAGE


def test_screenshot_without_an_image(desktopctl: Desktopctl, fake: Fake) -> None:
    fake.add(ONE, status="running")
    path = "/nodes/dev_abc/dispatch"
    fake.answers[path] = 200, {"status": "ok", "evidence": {"bytesBase64": "%%"}}
    assert desktopctl("screenshot", ONE).exit_code == ExitCode.FAILED
    error = {"code": "dispatch_timeout", "message": "the node did not answer", "retryable": True}
    fake.answers[path] = 200, {"status": "ok", "evidence": None, "error": error}
    result = desktopctl("screenshot", ONE)
    assert result.exit_code == ExitCode.FAILED
    assert "dispatch_timeout: the node did not answer" in result.stderr


def test_hosts_and_nodes(desktopctl: Desktopctl, fake: Fake) -> None:
    assert parsed(desktopctl("hosts", "--json").stdout) == [HOST]
    assert "desktop-runtime:here" in desktopctl("hosts").stdout
    assert parsed(desktopctl("nodes", "--json").stdout)[0]["node_id"] == "dev_abc"
    assert "approved" in desktopctl("nodes").stdout


def test_create_needs_a_host_it_can_name(desktopctl: Desktopctl, fake: Fake) -> None:
    fake.hosts = []
    assert desktopctl("create").exit_code == ExitCode.CONFLICT
    fake.hosts = [HOST, HOST | {"host_id": "desktop-host-2"}]
    several = desktopctl("create")
    assert several.exit_code == ExitCode.USAGE
    assert "desktop-host-2" in several.stderr
    assert desktopctl("create", "--host", "desktop-host-2").exit_code == 0
    assert desktopctl("create", "--host", "elsewhere").exit_code == ExitCode.NOT_FOUND


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, ExitCode.USAGE),
        (401, ExitCode.UNAUTHORIZED),
        (403, ExitCode.UNAUTHORIZED),
        (404, ExitCode.NOT_FOUND),
        (409, ExitCode.CONFLICT),
        (503, ExitCode.UNAVAILABLE),
        (500, ExitCode.FAILED),
    ],
)
def test_each_refusal_has_its_exit_code(
    desktopctl: Desktopctl, fake: Fake, status: int, code: ExitCode
) -> None:
    assert of_http_status(status) is code
    fake.answers[f"/desktop-environments/{ONE}"] = status, {"error": "some_code", "message": "that is\nwhy"}
    result = desktopctl("show", ONE)
    assert result.exit_code == code
    assert result.stderr.startswith(f"error: environment {ONE}: that is why")
    assert result.stderr.count("\n") == 1
    assert parsed(desktopctl("show", ONE, "--json").stderr)["error"] == "some_code"


def test_a_wrong_token_says_where_it_came_from(
    desktopctl: Desktopctl, fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DESKTOP_ADMIN_TOKEN", "not the one"[:3] * 8)
    result = desktopctl("list")
    assert result.exit_code == ExitCode.UNAUTHORIZED
    assert "DESKTOP_ADMIN_TOKEN" in result.stderr
    monkeypatch.setenv("DESKTOP_ADMIN_TOKEN", "")
    result = desktopctl("list")
    assert result.exit_code == ExitCode.UNAUTHORIZED
    assert str(tmp_path / "state" / "admin-token") in result.stderr
    monkeypatch.setenv("DESKTOP_ADMIN_TOKEN", "two words")
    assert desktopctl("list").exit_code == ExitCode.UNAUTHORIZED


def test_the_local_token_is_not_sent_elsewhere(
    desktopctl: Desktopctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "admin-token").write_text("local-token-of-this-machine\n")
    monkeypatch.delenv("DESKTOP_ADMIN_TOKEN")
    assert desktopctl("list").exit_code == ExitCode.UNAUTHORIZED
    elsewhere = desktopctl("list", api_url="http://api.example.invalid")
    assert elsewhere.exit_code == ExitCode.UNAUTHORIZED
    assert "no admin token for http://api.example.invalid" in elsewhere.stderr


def test_no_api_says_what_to_do(desktopctl: Desktopctl) -> None:
    nobody = f"http://127.0.0.1:{ports.choose('127.0.0.1', [], set())}"
    result = desktopctl("list", api_url=nobody)
    assert result.exit_code == ExitCode.UNAVAILABLE
    message = f"no API at {nobody}: start it with `desktopctl up`, or set DESKTOP_API_URL"
    assert result.stderr == f"error: {message}\n"
    machine = desktopctl("list", "--json", api_url=nobody)
    assert parsed(machine.stderr) == {"error": "unavailable", "message": message}


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://", "http://a:99999", "http://[::", "//x"])
def test_a_bad_address_is_told(desktopctl: Desktopctl, url: str) -> None:
    result = desktopctl("list", api_url=url)
    assert result.exit_code == ExitCode.USAGE
    assert "not an address of an API" in result.stderr


def test_something_else_listening_there_is_told(desktopctl: Desktopctl, fake: Fake) -> None:
    fake.answers["/desktop-environments"] = 200, "<html>"
    result = desktopctl("list")
    assert result.exit_code == ExitCode.UNAVAILABLE
    assert "not as this API does" in result.stderr
    fake.answers["/desktop-environments"] = 200, {"status": "ok"}
    assert desktopctl("list").exit_code == ExitCode.UNAVAILABLE


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["list", "--status", "tired"],
        ["list", "--limit", "0"],
        ["show"],
        ["start", "x", "--timeout", "-1"],
    ],
)
def test_wrong_usage(desktopctl: Desktopctl, arguments: list[str]) -> None:
    assert desktopctl(*arguments).exit_code == ExitCode.USAGE


def test_version(desktopctl: Desktopctl) -> None:
    assert desktopctl("version").stdout.startswith("desktopctl 0.")
    assert set(parsed(desktopctl("version", "--json").stdout)) == {"version"}


def test_no_colour_when_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(force_terminal=True, width=80)
    with console.capture() as capture:
        console.print(render.status("running"))
    assert "\x1b[3" not in capture.get()


def test_relative_times() -> None:
    at = render.parse_time("2026-11-23T12:00:00.000Z")
    assert at is not None
    for text, shown in [
        ("2026-11-23T11:59:59.500Z", "now"),
        ("2026-11-23T11:59:00.000Z", "60 s ago"),
        ("2026-11-23T09:00:00.000Z", "3 h ago"),
        ("2026-11-13T12:00:00.000Z", "10 d ago"),
        ("2026-11-23T12:00:05.000Z", "in 5 s"),
        ("", "-"),
    ]:
        assert render.ago(text, at) == shown
    assert render.ago(None) == "-"


@pytest.mark.parametrize(("command", "shown"), [("timeline", "command entry4"), ("logs", "first line")])
def test_following_ends_with_ctrl_c(fake: Fake, tmp_path: Path, command: str, shown: str) -> None:
    fake.add(ONE)
    environment = os.environ | {
        "DESKTOP_STATE_DIR": str(tmp_path),
        "DESKTOP_ADMIN_TOKEN": TOKEN,
        "DESKTOP_API_URL": fake.url,
        "PYTHONUNBUFFERED": "1",
    }
    with process(sys.executable, "-m", "cli.main", command, ONE, "--follow", env=environment) as follower:
        assert follower.stdout is not None
        assert any(shown in line for line in follower.stdout)
        follower.send_signal(signal.SIGINT)
        _, told = follower.communicate(timeout=30)
        assert follower.returncode == ExitCode.INTERRUPTED
        assert told == ""


def test_a_reader_that_goes_away_is_no_error(fake: Fake, tmp_path: Path) -> None:
    fake.add(ONE)
    fake.logs = [f"line {number} {'x' * 200}" for number in range(2000)]
    environment = os.environ | {
        "DESKTOP_STATE_DIR": str(tmp_path),
        "DESKTOP_ADMIN_TOKEN": TOKEN,
        "DESKTOP_API_URL": fake.url,
    }
    with process(sys.executable, "-m", "cli.main", "logs", ONE, env=environment) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        assert writer.stdout.readline().startswith("line 0")
        writer.stdout.close()
        assert writer.stderr.read() == ""
        assert writer.wait(30) == 0
