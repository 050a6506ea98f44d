"""Images on the real engine: present, missing, of another platform, not a sandbox; and pull progress."""

import hashlib
import io
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import docker
import pytest
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import ActivityEnvironment

from activities.images import _progress
from models.messages import EnsureImage, ImageReady, Prepared, PrepareIdentity
from tests.activities.conftest import Desk

pytestmark = pytest.mark.docker


def ensure(desk: Desk, image_ref: str) -> ImageReady:
    request = EnsureImage(environment_id=desk.id, generation=1, image_ref=image_ref)
    ready = desk.run(desk.host.ensure_image, request)
    assert isinstance(ready, ImageReady)
    return ready


def refused(desk: Desk, image_ref: str) -> ApplicationError:
    with pytest.raises(ApplicationError) as caught:
        ensure(desk, image_ref)
    return caught.value


def test_present(desk: Desk, image: str, engine: docker.APIClient) -> None:
    ready = ensure(desk, image)
    assert ready.image_id in {found["Id"] for found in engine.images(image)}
    assert (ready.user, ready.pulled, ready.pull_ms) == ("", False, 0)


def test_a_start_finds_out_whether_its_image_needs_anything(
    desk: Desk, image: str, make_image: Callable[..., str]
) -> None:
    def found(image_ref: str) -> ImageReady | None:
        request = PrepareIdentity(environment_id=desk.id, generation=1, image_ref=image_ref)
        prepared = desk.run(desk.host.prepare_identity, request)
        assert isinstance(prepared, Prepared) and prepared.token is None
        return prepared.image

    assert found(image) == ensure(desk, image)
    for other in ("127.0.0.1:9/nothing:1", "Not A Reference", "", make_image()):
        assert found(other) is None, "`ensure_image` pulls it, or says what is wrong with it"


def test_user_is_reported(desk: Desk, make_image: Callable[..., str]) -> None:
    assert ensure(desk, make_image("USER agent", 'CMD ["/bin/desktop"]')).user == "agent"
    assert ensure(desk, make_image("USER root:root", 'CMD ["/bin/desktop"]')).user == ""


@pytest.mark.parametrize("image_ref", ["127.0.0.1:9/nothing:1", "Not A Reference", "no/such@sha256:zz", ""])
def test_missing_is_image_not_found_once(desk: Desk, image_ref: str) -> None:
    error = refused(desk, image_ref)
    assert error.type == "image_not_found" and error.non_retryable
    assert "docker login" in str(error)
    assert error.details[0]["phase"] == "ensure_image"


def test_without_a_command_it_is_no_sandbox(desk: Desk, make_image: Callable[..., str]) -> None:
    error = refused(desk, make_image())
    assert error.type == "image_mismatch" and error.non_retryable


class Registry:
    """A registry of one image (OCI distribution, pull only), slow on demand."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.architecture = "amd64"
        self.missing = False
        self.asked: list[str] = []
        self._closed = False
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner._serve(self)

            def do_HEAD(self) -> None:
                owner._serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        # A pull that still waits gets no more: it would leave an image behind.
        self._closed = True
        self._server.shutdown()
        self._server.server_close()

    def _contents(self) -> tuple[bytes, bytes, bytes]:
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            entry = tarfile.TarInfo("filler")
            content = hashlib.sha256(self.address.encode()).digest() * 20000
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        raw = layer.getvalue()
        config = json.dumps(
            {
                "architecture": self.architecture,
                "os": "linux",
                "config": {"Cmd": ["/x"]},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(raw).hexdigest()}"]},
            }
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "config": {
                    "mediaType": "application/vnd.docker.container.image.v1+json",
                    "size": len(config),
                    "digest": f"sha256:{hashlib.sha256(config).hexdigest()}",
                },
                "layers": [
                    {
                        "mediaType": "application/vnd.docker.image.rootfs.diff.tar",
                        "size": len(raw),
                        "digest": f"sha256:{hashlib.sha256(raw).hexdigest()}",
                    }
                ],
            }
        ).encode()
        return raw, config, manifest

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        raw, config, manifest = self._contents()
        blobs = {f"sha256:{hashlib.sha256(blob).hexdigest()}": blob for blob in (raw, config)}
        name = request.path.rsplit("/", 1)[-1]
        if request.path == "/v2/":
            self._answer(request, 200, b"{}", "application/json")
        elif self.missing:
            error = b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}'
            self._answer(request, 404, error, "application/json")
        elif "/manifests/" in request.path:
            self._answer(request, 200, manifest, "application/vnd.docker.distribution.manifest.v2+json")
        elif name in blobs:
            self._answer(request, 200, blobs[name], "application/octet-stream", slow=blobs[name] is raw)
        else:
            self._answer(request, 404, b"{}", "application/json")

    def _answer(
        self, request: BaseHTTPRequestHandler, status: int, body: bytes, kind: str, *, slow: bool = False
    ) -> None:
        try:
            request.send_response(status)
            request.send_header("Content-Type", kind)
            request.send_header("Content-Length", str(len(body)))
            request.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(body).hexdigest()}")
            request.end_headers()
            if request.command == "HEAD":
                return
            pieces = 20 if slow and self.delay else 1
            size = -(-len(body) // pieces)
            for start in range(0, len(body), size):
                if pieces > 1:
                    time.sleep(self.delay / pieces)
                if self._closed:
                    return
                request.wfile.write(body[start : start + size])
                request.wfile.flush()
        except OSError:
            # The pull was given up.
            return


@pytest.fixture
def registry(engine: docker.APIClient) -> Iterator[Registry]:
    server = Registry()
    yield server
    server.close()
    for image in engine.images():
        for tag in image["RepoTags"] or []:
            if tag.startswith(f"{server.address}/"):
                engine.remove_image(tag, force=True)


def test_pulled_with_progress_for_people(desk: Desk, registry: Registry) -> None:
    registry.delay = 1.0
    env, told = ActivityEnvironment(), []
    env.on_heartbeat = lambda *details: told.append(details[0])
    request = EnsureImage(environment_id=desk.id, generation=1, image_ref=f"{registry.address}/desk:1")
    ready = env.run(desk.host.ensure_image, request)
    assert ready.pulled and ready.pull_ms > 0
    assert any("%" in str(text) for text in told), told
    assert not ensure(desk, request.image_ref).pulled


def test_missing_at_a_registry_that_answers(desk: Desk, registry: Registry) -> None:
    registry.missing = True
    error = refused(desk, f"{registry.address}/desk:1")
    assert error.type == "image_not_found" and error.non_retryable


def test_other_platform_is_a_mismatch(desk: Desk, registry: Registry) -> None:
    registry.architecture = "s390x"
    error = refused(desk, f"{registry.address}/desk:{uuid4().hex[:8]}")
    assert error.type == "image_mismatch" and error.non_retryable, error


def test_a_slow_pull_is_given_up_promptly_and_delays_nobody(
    desk: Desk, registry: Registry, image: str
) -> None:
    registry.delay = 20
    env = ActivityEnvironment()
    outcome: list[BaseException] = []

    def pull() -> None:
        request = EnsureImage(environment_id=desk.id, generation=1, image_ref=f"{registry.address}/desk:1")
        try:
            env.run(desk.host.ensure_image, request)
        except (CancelledError, ApplicationError) as error:
            outcome.append(error)

    thread = threading.Thread(target=pull)
    thread.start()
    deadline = time.monotonic() + 10
    while not any("blobs" in path for path in registry.asked) and time.monotonic() < deadline:
        time.sleep(0.02)
    ensure(desk, image)
    desk.start()
    assert thread.is_alive()
    env.cancel()
    thread.join(5)
    assert not thread.is_alive()
    assert isinstance(outcome[0], CancelledError)


def test_progress_is_one_readable_line() -> None:
    layers: dict[str, tuple[int, int]] = {}
    _progress("i", layers, {"status": "Pulling from i", "id": "1"})
    line = {
        "id": "a",
        "status": "Downloading",
        "progressDetail": {"current": 25_000_000, "total": 100_000_000},
    }
    assert _progress("i", layers, line) == "pulling i: 25 % of 100 MB"
    assert _progress("i", layers, {"id": "a", "status": "Pull complete"}) == "pulling i: 100 % of 100 MB"
