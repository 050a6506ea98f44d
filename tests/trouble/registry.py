"""A registry that gives an image away very slowly (OCI distribution, pull only)."""

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class SlowRegistry:
    """Serves one image whose layer does not come before `go`.

    Attributes:
        image: its name. asked: set when its layer is asked for. go: set it, and the layer comes.
    """

    def __init__(self) -> None:
        self.asked, self.go = threading.Event(), threading.Event()
        self._closed = False
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            entry = tarfile.TarInfo("filler")
            entry.size = 32
            archive.addfile(entry, io.BytesIO(uuid4().bytes * 2))
        self._layer = layer.getvalue()
        self._config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["/x"]},
                "rootfs": {"type": "layers", "diff_ids": [_digest(self._layer)]},
            }
        ).encode()
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry._serve(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.image = f"127.0.0.1:{self._server.server_address[1]}/slow-{uuid4().hex[:8]}:1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop serving. A pull that still waits gets nothing: it would leave an image behind."""
        self._closed = True
        self.go.set()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.rsplit("/", 1)[-1]
        if "/manifests/" in request.path:
            self._answer(request, self._manifest(), _MANIFEST)
        elif name == _digest(self._layer):
            self.asked.set()
            self.go.wait(60)
            if not self._closed:
                self._answer(request, self._layer)
        elif name == _digest(self._config):
            self._answer(request, self._config)
        else:
            self._answer(request, b"{}")

    def _manifest(self) -> bytes:
        def described(kind: str, blob: bytes) -> dict[str, Any]:
            return {"mediaType": kind, "size": len(blob), "digest": _digest(blob)}

        config = described("application/vnd.docker.container.image.v1+json", self._config)
        layer = described("application/vnd.docker.image.rootfs.diff.tar", self._layer)
        parts = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": [layer]}
        return json.dumps(parts).encode()

    def _answer(
        self, request: BaseHTTPRequestHandler, body: bytes, kind: str = "application/octet-stream"
    ) -> None:
        try:
            request.send_response(200)
            request.send_header("Content-Type", kind)
            request.send_header("Content-Length", str(len(body)))
            request.send_header("Docker-Content-Digest", _digest(body))
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(body)
        except OSError:
            # The pull was given up.
            return


@contextmanager
def slow_registry() -> Iterator[SlowRegistry]:
    """A registry for as long as the context lasts."""
    registry = SlowRegistry()
    try:
        yield registry
    finally:
        registry.close()


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"
