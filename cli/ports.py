"""Which addresses the stack listens on: the remembered ones, else the usual ones, else free ones."""

import fcntl
import os
import random
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.exits import CliError, ExitCode
from cli.state import Endpoints

USUAL_TEMPORAL = 7233
USUAL_TEMPORAL_UI = 8233
USUAL_TEMPORAL_HTTP = 7243

_FREE_RANGE = range(20000, 30000)
"""Below Linux' ephemeral ports, so that no outgoing connection takes a remembered port meanwhile."""


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose old connections are in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def choose(host: str, wanted: list[int], taken: set[int], patience: float = 0.0) -> int:
    """The first wanted port that is free, else a free one; adds it to `taken`.

    Args:
        host: address to listen on.
        wanted: ports in order of preference; the first gets `patience`.
        taken: ports already given to other parts.
        patience: seconds to wait for the first: the last stack may just be letting go of it.

    Raises:
        CliError: the address is not this machine's, or no port is free.
    """
    if not is_free(host, 0):
        raise CliError(f"{host} is not an address of this machine that can be listened on", ExitCode.USAGE)
    deadline = time.monotonic() + patience
    while wanted and wanted[0] not in taken and not is_free(host, wanted[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for port in [*wanted, *random.sample(_FREE_RANGE, 200)]:
        if port not in taken and is_free(host, port):
            taken.add(port)
            return port
    raise CliError(f"no free port found on {host}", ExitCode.FAILED)


@contextmanager
def nobody_else_chooses() -> Iterator[None]:
    """Keep other `up`s of this user from choosing ports until the context ends; they wait."""
    path = Path(tempfile.gettempdir()) / f"desktopctl-ports-{os.getuid()}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def plan(
    remembered: Endpoints | None,
    *,
    admin_host: str,
    admin_port: int,
    node_host: str,
    node_port: int,
    fixed: frozenset[str] = frozenset(),
    patience: float = 2.0,
) -> Endpoints:
    """Choose every address of the stack.

    Args:
        remembered: what the last start used.
        admin_host, admin_port, node_host, node_port: as configured; `node_host` must be known by now.
        fixed: `admin_port`, `node_port`: named by the operator, so another one will not do.
        patience: seconds a remembered port is waited for.

    Raises:
        CliError: a fixed port is taken, or an address cannot be listened on.
    """
    taken: set[int] = set()
    loopback = "127.0.0.1"

    def pick(host: str, usual: int, before: int | None, name: str = "") -> int:
        if name in fixed:
            if usual in taken or choose(host, [usual], set(), patience) != usual:
                raise CliError(
                    f"port {usual} of {host} (DESKTOP_{name.upper()}) is taken: stop what listens there, "
                    "or choose another",
                    ExitCode.CONFLICT,
                )
            taken.add(usual)
            return usual
        wanted = [before, usual] if before else [usual]
        return choose(host, wanted, taken, patience if before else 0.0)

    last = remembered
    same_node_host = last is not None and last.node_host == node_host
    return Endpoints(
        admin_host=admin_host,
        admin_port=pick(admin_host, admin_port, last.admin_port if last else None, "admin_port"),
        node_host=node_host,
        node_port=pick(
            node_host, node_port, last.node_port if last and same_node_host else None, "node_port"
        ),
        temporal_port=pick(loopback, USUAL_TEMPORAL, last.temporal_port if last else None),
        temporal_ui_port=pick(loopback, USUAL_TEMPORAL_UI, last.temporal_ui_port if last else None),
        temporal_http_port=pick(loopback, USUAL_TEMPORAL_HTTP, last.temporal_http_port if last else None),
    )
