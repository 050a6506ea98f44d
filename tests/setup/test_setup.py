"""The set-up scripts: they use what is there, change nothing the second time, and fail in one line."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker.errors import ImageNotFound

from scripts import apt_sources, engine, images, sandbox_image
from scripts.apt_sources import mirrors
from scripts.console import SetupError
from scripts.machine import ROOT, content_hash


def setup(*parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.setup", *parts],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


# --- Python ---------------------------------------------------------------------------------------------------------


@pytest.mark.xdist_group("bootstrap")
def test_the_python_environment_is_left_alone_when_it_is_as_it_should_be() -> None:
    stamp = ROOT / ".venv" / ".stamp"
    if not stamp.exists():
        pytest.skip("this environment was not made by scripts/bootstrap.sh")
    os.utime(ROOT / "requirements" / "dev.txt")
    before = stamp.stat().st_mtime_ns
    answer = subprocess.run(
        ["scripts/bootstrap.sh"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "up to date" in answer.stdout
    assert stamp.stat().st_mtime_ns == before


def test_a_python_that_is_too_old_is_one_clear_line(tmp_path: Path) -> None:
    """On a machine whose only Python is an old one; a copy, so that the real environment is not touched."""
    for name in ("scripts", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "dirname", "mkdir", "id", "flock", "cat", "sha256sum", "cut", "date"):
        found = shutil.which(name)
        assert found
        (programs / name).symlink_to(found)
    old = programs / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    script = (tmp_path / "scripts" / "bootstrap.sh").read_text().replace(" /usr/bin/python3", "")
    answer = subprocess.run(
        ["sh", "-s"],
        input=script.replace('cd "$(dirname "$0")/.."', f"cd '{tmp_path}'"),
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert answer.stderr.strip().splitlines() == [
        "error: Python 3.11 or newer is needed: install it, or name it with PYTHON=/path/to/python"
    ]


# --- Docker Engine --------------------------------------------------------------------------------------------------


def test_an_engine_that_was_named_and_does_not_answer_is_one_clear_line(tmp_path: Path) -> None:
    answer = setup("docker", DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1
    assert "no Docker Engine answers at DOCKER_HOST=" in answer.stderr


def test_without_the_right_to_install_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(engine, "version", lambda: None)
    monkeypatch.setattr(engine, "SOCKET", tmp_path / "none.sock")
    monkeypatch.setattr(engine, "can_install_packages", lambda: False)
    with pytest.raises(SetupError, match=r"apt-get install docker\.io"):
        engine.ensure()


STAND_IN = """#!{python}
import http.server, os, socketserver, sys, time
from pathlib import Path

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{{"Version": "stand-in", "ApiVersion": "1.41"}}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self):
        return "unix"

folder = Path({folder!r})
if (folder / "docker.pid").exists():
    sys.exit("process with PID in docker.pid is still running")
(folder / "docker.pid").write_text(str(os.getpid()))
time.sleep(0.3)
socketserver.UnixStreamServer(str(folder / "docker.sock"), Handler).serve_forever()
"""


@pytest.fixture
def daemon() -> Iterator[engine.Daemon]:
    """A stand-in for `dockerd`, by its name; a second real one would take the first one's bridge away."""
    folder = Path(tempfile.mkdtemp(prefix="dockerd-", dir="/tmp"))  # a socket's path must be short
    program = folder / "dockerd"
    program.write_text(STAND_IN.format(python=sys.executable, folder=str(folder)))
    program.chmod(0o755)
    url = f"unix://{folder}/docker.sock"
    made = engine.Daemon(
        [str(program)], url, folder / "docker.pid", folder / "started.pid", folder / "dockerd.log"
    )
    yield made
    engine.stop(made)
    shutil.rmtree(folder, ignore_errors=True)


def test_an_engine_is_started_once_waited_for_and_stopped(daemon: engine.Daemon) -> None:
    # Left by a crash: the id belongs to another process today.
    daemon.pid_file.write_text(str(os.getpid()))
    engine.start(daemon)
    assert engine.version(daemon.url) == "stand-in"
    pid = daemon.started.read_text().strip()
    engine.start(daemon)
    assert daemon.started.read_text().strip() == pid == daemon.pid_file.read_text()
    engine.stop(daemon)
    assert engine.version(daemon.url) is None
    assert not daemon.started.exists()


def test_an_engine_that_ends_at_once_is_one_clear_error(
    daemon: engine.Daemon, capfd: pytest.CaptureFixture[str]
) -> None:
    program = ["sh", "-c", "echo no such storage driver >&2; exit 3"]
    broken = engine.Daemon(program, daemon.url, daemon.pid_file, daemon.started, daemon.log)
    with pytest.raises(SetupError, match="dockerd ended with exit code 3"):
        engine.start(broken)
    assert "no such storage driver" in capfd.readouterr().err
    assert not daemon.started.exists()


def test_only_what_was_started_is_stopped(daemon: engine.Daemon) -> None:
    # An id that meanwhile belongs to something else, here to this test.
    daemon.started.write_text(str(os.getpid()))
    engine.stop(daemon)
    assert not daemon.started.exists()


# --- The sandbox image ----------------------------------------------------------------------------------------------


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small image's folder; its base is any image that set-up has left on the engine."""
    tag = f"desktop-setup-test:{uuid.uuid4().hex[:12]}"
    monkeypatch.setenv("DESKTOP_SANDBOX_BASE_IMAGE", sandbox_image.tag())
    monkeypatch.setenv("DESKTOP_SANDBOX_IMAGE", tag)
    (tmp_path / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nCOPY file /tmp/file\n")
    (tmp_path / "file").write_text(tag)
    yield tmp_path
    with engine.client() as api, contextlib.suppress(ImageNotFound):
        api.remove_image(tag)


def image_id() -> str:
    with engine.client() as api:
        return str(api.inspect_image(sandbox_image.tag())["Id"])  # type: ignore[no-untyped-call]


@pytest.mark.docker
def test_the_image_is_built_again_only_when_the_content_changed(context: Path) -> None:
    assert sandbox_image.ensure(context) is True
    first = image_id()
    assert sandbox_image.ensure(context) is False
    os.utime(context / "file")
    (context / "__pycache__").mkdir()
    (context / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert sandbox_image.ensure(context) is False
    assert image_id() == first
    (context / "file").write_text("changed")
    assert sandbox_image.ensure(context) is True
    second = image_id()
    assert second != first
    with engine.client() as api:
        assert not images.exists(api, first), "what has no name and no use any more goes"
        used = api.create_container(sandbox_image.tag())["Id"]
        try:
            (context / "file").write_text("changed again")
            assert sandbox_image.ensure(context) is True
            assert images.exists(api, second), "a desktop that runs keeps its image"
        finally:
            api.remove_container(used, force=True)
            api.remove_image(second)


@pytest.mark.docker
def test_of_several_runs_at_once_one_builds(context: Path) -> None:
    program = f"""
from pathlib import Path
from scripts.sandbox_image import ensure
print("BUILT", ensure(Path({str(context)!r})))
"""
    runs = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [run.communicate(timeout=100)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert sum("BUILT True" in output for output in outputs) == 1


@pytest.mark.docker
def test_a_build_that_fails_is_one_clear_error(context: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (context / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nCOPY absent /tmp/absent\n")
    with pytest.raises(SetupError, match=r"building desktop-setup-test:.* failed"):
        sandbox_image.ensure(context)
    assert "COPY absent" in capfd.readouterr().err


@pytest.mark.docker
def test_the_image_in_use_is_what_the_folder_says() -> None:
    with engine.client() as api:
        assert images.label(api, sandbox_image.tag(), images.CONTENT_LABEL) == content_hash(ROOT / "sandbox")


def test_names_and_executable_bits_are_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    hashes = {content_hash(tmp_path)}
    (tmp_path / "a").chmod(0o755)
    hashes.add(content_hash(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    hashes.add(content_hash(tmp_path))
    assert len(hashes) == 3


# --- The machine's package sources ----------------------------------------------------------------------------------


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(apt_sources, "os_release", lambda: {"ID": "debian", "VERSION_CODENAME": "bookworm"})
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_only_debians_own_sources_of_this_release_are_taken(apt: Path, tmp_path: Path) -> None:
    (apt / "sources.list").write_text(
        "# deb http://old.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k/debian-archive-keyring.gpg] http://mirror.example/debian bookworm main contrib\n"
        "deb http://vendor.example/apt vendor-bookworm main\n"
        "deb [signed-by=/k/vendor.asc] http://vendor.example/debian bookworm main\n"
        "deb-src http://mirror.example/debian bookworm main\n"
    )
    (apt / "sources.list.d" / "debian.sources").write_text(
        "Types: deb deb-src\nURIs: http://mirror.example/security\nSuites: bookworm-security\n"
        "# a comment\nComponents: main\n non-free\nSigned-By: /k/debian-archive-keyring.gpg\n\n"
        "Types: deb\nEnabled: no\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n"
    )
    found = mirrors("bookworm", tmp_path, apt)
    assert found.mirrors == [
        "deb http://mirror.example/debian bookworm main contrib",
        "deb http://mirror.example/security bookworm-security main non-free",
    ]
    assert found.options == []


def test_https_sources_bring_certificates(apt: Path, tmp_path: Path) -> None:
    (apt / "sources.list").write_text("deb https://mirror.example/debian bookworm main\n")
    assert "--include=ca-certificates" in mirrors("bookworm", tmp_path, apt).options


def test_another_release_has_nothing_to_give(apt: Path, tmp_path: Path) -> None:
    (apt / "sources.list").write_text("deb http://mirror.example/debian bookworm main\n")
    assert not mirrors("trixie", tmp_path, apt)


# --- Whole parts ----------------------------------------------------------------------------------------------------


@pytest.mark.docker
def test_a_second_run_changes_nothing() -> None:
    """`make test` has just run it, so this one is the second."""
    before = image_id()
    answer = setup()
    assert answer.returncode == 0, answer.stderr
    assert "up to date" in answer.stdout
    assert image_id() == before


def test_an_unknown_part_is_refused() -> None:
    answer = setup("kubernetes")
    assert answer.returncode == 2
    assert "no such part: kubernetes" in answer.stderr
