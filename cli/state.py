"""What `desktopctl up` keeps in the state directory, and how the other commands find it there.

admin-token                             the operator's bearer token, 0600
endpoints.json                          addresses of the stack, reused on the next start, 0600
runtime-state/desktop-runtime-host-id   stable id of this machine as a runtime host
logs/<part>.log                         output of each part
up.lock                                 held by a running `desktopctl up`
temporal.db, inventory.db               workflow histories; their projection
"""

import base64
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from uuid import uuid4

from cli.exits import CliError, ExitCode
from models.identifiers import is_host_id, new_host_id

ADMIN_TOKEN = "admin-token"  # noqa: S105 - the name of a file
ENDPOINTS = "endpoints.json"
HOST_ID = "runtime-state/desktop-runtime-host-id"
LOCK = "up.lock"


@dataclass(frozen=True)
class Endpoints:
    """Where the parts of one stack listen.

    `node_host` and `node_port` are baked into every container's environment, so they stay as they are.
    """

    temporal_port: int
    temporal_ui_port: int
    temporal_http_port: int
    admin_host: str
    admin_port: int
    node_host: str
    node_port: int

    @property
    def api_url(self) -> str:
        """Origin of the admin listener."""
        return f"http://{bracketed(self.admin_host)}:{self.admin_port}"

    @property
    def docs_url(self) -> str:
        """The API's own documentation."""
        return f"{self.api_url}/docs"

    @property
    def node_url(self) -> str:
        """Origin of the node listener."""
        return f"http://{bracketed(self.node_host)}:{self.node_port}"

    @property
    def temporal_address(self) -> str:
        """`TEMPORAL_ADDRESS` of this stack."""
        return f"127.0.0.1:{self.temporal_port}"

    @property
    def temporal_ui_url(self) -> str:
        """The Temporal Web UI."""
        return f"http://127.0.0.1:{self.temporal_ui_port}"


def bracketed(host: str) -> str:
    """`host` as it is written in a URL."""
    return f"[{host}]" if ":" in host else host


def prepare(state_dir: Path) -> None:
    """Have the state directory and its log directory, 0700.

    Raises:
        CliError: it cannot be made, or is somebody else's.
    """
    try:
        for directory in (state_dir, state_dir / "logs", (state_dir / HOST_ID).parent):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if directory.stat().st_mode & 0o077:
                directory.chmod(0o700)
    except OSError as error:
        raise CliError(
            f"cannot use the state directory {state_dir}: {error.strerror}; set DESKTOP_STATE_DIR",
            ExitCode.USAGE,
        ) from None


@contextmanager
def exclusive(state_dir: Path) -> Iterator[None]:
    """Hold the state directory for one `up`.

    Raises:
        CliError: another `up` holds it.
    """
    descriptor = os.open(state_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise CliError(
                f"another `desktopctl up` (process {holder}) already runs on {state_dir}: "
                "stop it, or set DESKTOP_STATE_DIR for a second stack",
                ExitCode.CONFLICT,
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def write_private(path: Path, text: str) -> None:
    """Replace a file as a whole, 0600 from its first byte on."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def read_text(path: Path) -> str | None:
    """Stripped content of a small file, or None where there is none or it may not be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def read_endpoints(state_dir: Path) -> Endpoints | None:
    """The remembered addresses, or None where there are none that make sense."""
    text = read_text(state_dir / ENDPOINTS)
    if text is None:
        return None
    try:
        stored = json.loads(text)
        values = {field.name: stored[field.name] for field in fields(Endpoints)}
    except (ValueError, KeyError, TypeError):
        return None
    for name, value in values.items():
        sound = isinstance(value, str) and value if name.endswith("_host") else _is_port(value)
        if not sound:
            return None
    return Endpoints(**values)


def write_endpoints(state_dir: Path, endpoints: Endpoints) -> None:
    """Remember the addresses."""
    write_private(state_dir / ENDPOINTS, json.dumps(asdict(endpoints), indent=2) + "\n")


def new_admin_token() -> str:
    """A fresh admin token (protocol section 7.1)."""
    secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
    return f"tyrum-token.v1.{uuid4()}.{secret}"


def ensure_admin_token(state_dir: Path) -> str:
    """The admin token of this state directory, made when absent; the file is 0600."""
    path = state_dir / ADMIN_TOKEN
    token = read_text(path)
    if not token:
        token = new_admin_token()
        write_private(path, token + "\n")
    elif path.stat().st_mode & 0o077:
        path.chmod(0o600)
    return token


def ensure_host_id(state_dir: Path) -> str:
    """The stable host id of this state directory, made when absent (protocol section 11.1).

    Raises:
        CliError: the file holds something that cannot be a host id.
    """
    path = state_dir / HOST_ID
    host_id = read_text(path)
    if not host_id:
        host_id = new_host_id()
        write_private(path, host_id + "\n")
    if not is_host_id(host_id):
        raise CliError(f"{path} does not hold a host id: restore it, or set DESKTOP_HOST_ID", ExitCode.USAGE)
    return host_id


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535
