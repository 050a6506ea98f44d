"""The one gateway route the host uses, `GET /nodes/self`, answering as a test says."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class FakeGateway:
    """Set `answer(connected, approved)` or `status`; read `tokens` and `waits`."""

    def __init__(self) -> None:
        self.status = 200
        self.body: dict[str, Any] = {"status": "ok", "node": None, "pairing": None}
        self.tokens: list[str] = []
        self.waits: list[str] = []
        self._changed = threading.Condition()
        self._generation = 0
        self.answer(connected=False, approved=False)
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner._serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "FakeGateway":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._generation += 1
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, *, connected: bool, approved: bool, status: str = "queued") -> None:
        """From now on the node is connected and approved, or not; requests held back are answered."""
        with self._changed:
            self.body = {
                "status": "ok",
                "node": {"node_id": "dev_test"} if connected else None,
                "pairing": {"pairing_id": 7, "status": "approved" if approved else status}
                if connected
                else None,
                "connected": connected,
                "approved": approved,
            }
            self._generation += 1
            self._changed.notify_all()

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        wait = parse_qs(url.query).get("wait", ["0"])[0]
        with self._changed:
            self.tokens.append(request.headers.get("Authorization", ""))
            self.waits.append(wait)
            seen = self._generation
            if self.status == 200 and not self.body["approved"]:
                self._changed.wait_for(lambda: self._generation != seen, timeout=float(wait))
            status, body = self.status, dict(self.body)
        raw = json.dumps(body if status == 200 else {"error": "unauthorized", "message": "no"}).encode()
        try:
            request.send_response(status if url.path == "/nodes/self" else 404)
            request.send_header("Content-Length", str(len(raw)))
            request.end_headers()
            request.wfile.write(raw)
        except OSError:
            # The host gave up waiting, as it may.
            return
