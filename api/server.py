"""The api process: two listeners in one event loop (design section 2).

The admin listener serves operators, the node listener sandboxes and nothing else. Both share one gateway.
"""

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator

import uvicorn
from sqlalchemy import Engine
from starlette.types import ASGIApp

from activities.bridge import bridge_address
from api import temporal
from api.app import create_admin_app
from api.credentials import AdminCredentials
from api.dependencies import Services
from api.gateway import UVICORN_SETTINGS, Gateway
from api.node_app import create_node_app
from inventory.engine import make_engine
from models import keyring
from models.codec_address import hide_capability
from models.settings import ApiSettings, ConfigurationError, load

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 2
"""How long open requests may take to end once the process is told to."""
LOOPBACK = "127.0.0.1"

_TAKEOVER_TOKEN = re.compile(r"(desktop-takeover(?:/|%2F)s(?:/|%2F))[^/%?&\s\"]+", re.IGNORECASE)

FAILED, BAD_CONFIGURATION = 1, 2
"""Exit codes."""


class ListenError(Exception):
    """A listener's address cannot be used; the message is one line for the operator."""


class RedactingFilter(logging.Filter):
    """Takes out of every line the credentials that stand in paths: takeover tokens, the codec endpoint's capability."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record, redacted."""
        text = record.getMessage()
        redacted = hide_capability(_TAKEOVER_TOKEN.sub(r"\1…", text))
        if redacted != text:
            record.msg, record.args = redacted, None
        return True


class Listener(uvicorn.Server):
    """A server that leaves the process's signals to `serve`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def main() -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    try:
        settings = load(ApiSettings)
        configure_logging(settings.log_level)
        engine = make_engine(settings.inventory_url)
    except ConfigurationError as error:
        print(f"api: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    try:
        asyncio.run(serve(settings, engine))
    except ConfigurationError as error:
        print(f"api: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    except ListenError as error:
        print(f"api: {error}", file=sys.stderr)
        return FAILED
    finally:
        engine.dispose()
        # Temporal's runtime aborts an interpreter that exits right after the last call (sdk-python#300).
        time.sleep(0.05)
    return 0


async def serve(settings: ApiSettings, engine: Engine) -> None:
    """Serve both listeners until a signal says to stop.

    Raises:
        ListenError: an address is in use or cannot be used.
    """
    node_host = settings.node_host or await asyncio.to_thread(node_address)
    with contextlib.ExitStack() as sockets:
        admin_socket = sockets.enter_context(bind("ADMIN", settings.admin_host, settings.admin_port))
        node_socket = sockets.enter_context(bind("NODE", node_host, settings.node_port))
        workflows = await temporal.connect(keyring.configured(settings.codec_keys_file))
        services = make_services(settings, engine, workflows)
        gateway = services.gateway
        admin_app, node_app = create_admin_app(services), create_node_app(services)
        admin, node = make_listener(admin_app), make_listener(node_app)
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        logger.info("admin API at %s", settings.admin_url)
        logger.info("node listener at http://%s:%d", node_host, node_socket.getsockname()[1])
        running = [
            asyncio.create_task(admin.serve([admin_socket]), name="admin"),
            asyncio.create_task(node.serve([node_socket]), name="node"),
        ]
        await gateway.start()
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait([stop, *running], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        logger.info("stopping")
        await asyncio.gather(
            gateway.close(), admin_app.state.takeover.aclose(), admin_app.state.feed.aclose()
        )
        admin.should_exit = node.should_exit = True
        await asyncio.gather(*running)


def make_services(settings: ApiSettings, engine: Engine, workflows: temporal.Workflows) -> Services:
    """The parts of one api process, wired."""
    admin = AdminCredentials(settings.admin_token, engine)
    gateway = Gateway(engine, verify_admin=admin.operator_name, presence_listener=workflows.node_presence)
    return Services(settings, engine, admin, workflows, gateway)


def node_address() -> str:
    """Where the node listener listens unless told otherwise: Docker's bridge, which sandboxes reach.

    The loopback address where there is none, for machines that run no sandbox.
    """
    address = bridge_address()
    if address is None:
        logger.warning(
            "there is no Docker bridge here: the node listener is on %s, where sandboxes cannot reach it; "
            "set DESKTOP_NODE_HOST",
            LOOPBACK,
        )
    return address or LOOPBACK


def configure_logging(level: str) -> None:
    """One log on standard error, without credentials.

    Libraries that log whole addresses or headers, which hold tokens, stay at warnings whatever the level.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(RedactingFilter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("httpx", "httpcore", "websockets", "docker", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # At DEBUG uvicorn's WebSocket protocol logs every header, Sec-WebSocket-Protocol with its token too.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(max(logging.getLevelName(level), logging.INFO))


def make_listener(app: ASGIApp) -> Listener:
    """A server for one of the applications; both heartbeat their WebSockets as the protocol says."""
    settings = UVICORN_SETTINGS | {"timeout_graceful_shutdown": SHUTDOWN_SECONDS}
    return Listener(
        uvicorn.Config(
            app, log_config=None, lifespan="off", ws="websockets-sansio", server_header=False, **settings
        )
    )


def bind(which: str, host: str, port: int) -> socket.socket:
    """A listening socket.

    Args:
        which: `ADMIN` or `NODE`, to name the variables to look at.

    Raises:
        ListenError: the address is in use, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, or asyncio does not switch Nagle's algorithm off: 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        names = f"DESKTOP_{which}_HOST, DESKTOP_{which}_PORT"
        raise ListenError(f"cannot listen on {host}:{port}: {reason} (see {names})") from None
    return listener
