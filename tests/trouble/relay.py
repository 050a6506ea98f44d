"""A socket in front of the Docker engine's that hangs up, hangs, slows down, or holds a single request."""

import contextlib
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import mkdtemp

ENGINE = "/var/run/docker.sock"
_VERBS = (b"GET ", b"POST ", b"PUT ", b"DELETE ", b"HEAD ")


class Hold:
    """One kind of request that is not passed on until released.

    Attributes:
        came: how many have come.
    """

    def __init__(self, pattern: str, *, answer: bool) -> None:
        self.pattern = re.compile(pattern)
        self.answer = answer
        self.came = 0
        self._released = threading.Event()

    def stop_here(self) -> None:
        """Called by the connection's thread."""
        self.came += 1
        self._released.wait(60)

    def release(self) -> None:
        """Let it and all that follow pass."""
        self._released.set()


class Relay:
    """Where a host worker finds its engine: `DOCKER_HOST` is `url`.

    Attributes:
        hang: what connects is accepted and never answered. delay: seconds added to each request.
        requests: how many have come. lines: their first lines.
    """

    def __init__(self) -> None:
        self._directory = mkdtemp(prefix="trouble-relay-")
        self.path = os.path.join(self._directory, "docker.sock")
        self.url = f"unix://{self.path}"
        self.hang = False
        self.delay = 0.0
        self.requests = 0
        self.lines: list[str] = []
        self._holds: list[Hold] = []
        self._server: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.up()

    def up(self) -> None:
        """Accept connections (again)."""
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.path)
        self._server.listen(128)
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def cut(self) -> None:
        """Every connection breaks, new ones are refused."""
        server, self._server = self._server, None
        if server is None:
            return
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        os.unlink(self.path)
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End everything."""
        self.hang = False
        for hold in self._holds:
            hold.release()
        self.cut()
        shutil.rmtree(self._directory, ignore_errors=True)

    @contextmanager
    def holding(self, pattern: str, *, answer: bool = False) -> Iterator[Hold]:
        """Requests whose first line matches `pattern` are held; with `answer` they are carried out and their answer is
        held.
        """
        hold = Hold(pattern, answer=answer)
        self._holds.append(hold)
        try:
            yield hold
        finally:
            self._holds.remove(hold)
            hold.release()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        engine = socket.socket(socket.AF_UNIX)
        engine.connect(ENGINE)
        with self._lock:
            self._open |= {client, engine}
        held: list[Hold] = []
        back = threading.Thread(target=self._pass, args=(engine, client, held, False), daemon=True)
        back.start()
        self._pass(client, engine, held, True)
        back.join()
        with self._lock:
            self._open -= {client, engine}
        client.close()
        engine.close()

    def _pass(self, source: socket.socket, target: socket.socket, held: list[Hold], asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if asks and data.startswith(_VERBS):
                    self._on_request(data.split(b"\r\n", 1)[0].decode("latin-1"), held)
                while held and not asks:
                    held.pop().stop_here()
                while self.hang:
                    time.sleep(0.02)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _on_request(self, line: str, held: list[Hold]) -> None:
        self.requests += 1
        self.lines.append(line)
        if self.delay:
            time.sleep(self.delay)
        for hold in list(self._holds):
            if not hold.pattern.search(line):
                continue
            if hold.answer:
                held.append(hold)
            else:
                hold.stop_here()
