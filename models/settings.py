"""Every environment variable the processes read, with its default: the configuration table of the README.

Temporal's connection is configured by Temporal's own variables (`TEMPORAL_ADDRESS`, `TEMPORAL_NAMESPACE`, …), which
the `temporal` command reads too.
"""

import os
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.identifiers import is_host_id
from models.messages import LEAST_LIMITS, Limits

S = TypeVar("S", bound="Settings")


class ConfigurationError(Exception):
    """An environment variable holds what it cannot; the message is one line for the operator."""


def default_state_dir() -> Path:
    """Where state is kept unless told otherwise: the XDG state directory."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "desktop-environments"


def _memory_mb(share: float) -> int:
    """A share of this machine's memory, MiB; of a container's machine too, whose limit is its own affair."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**2
    return max(int(total * share), LEAST_LIMITS.memory_mb)


class Settings(BaseSettings):
    """What every process reads.

    Attributes:
        state_dir: directory of everything this machine keeps; 0700.
        database_url: SQLAlchemy URL of the inventory; empty for SQLite in the state directory.
        log_level: `DEBUG`, `INFO`, `WARNING` or `ERROR`.
        codec_keys_file: key ring to encrypt Temporal payloads with; empty to leave them readable. The same for every
            process of an installation.
    """

    model_config = SettingsConfigDict(env_prefix="DESKTOP_", extra="ignore")

    state_dir: Path = Field(default_factory=default_state_dir)
    database_url: str = ""
    log_level: str = "INFO"
    codec_keys_file: str = ""

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        level = value.upper()
        if level not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
        return level

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def inventory_url(self) -> str:
        """SQLAlchemy URL of the inventory."""
        return self.database_url or f"sqlite:///{self.state_dir / 'inventory.db'}"


class ApiSettings(Settings):
    """What the api process reads.

    Attributes:
        admin_host, admin_port: the admin listener.
        node_host, node_port: the node listener; an empty host is the Docker bridge's address.
        public_url: origin operators reach the admin listener under; empty for its own address.
        admin_token: accepted beside the tokens in the inventory; at least 16 characters where given.
        takeover_ttl_seconds: life of a takeover session, seconds.
        codec_origins: origins of Temporal Web UIs that may ask the codec endpoint, separated by commas.
        default_image: image of environments that name none, until `/config/…/defaults` says otherwise.
    """

    admin_host: str = "127.0.0.1"
    admin_port: int = Field(default=8787, ge=1, le=65535)
    node_host: str = ""
    node_port: int = Field(default=8788, ge=1, le=65535)
    public_url: str = ""
    admin_token: str = ""
    takeover_ttl_seconds: int = Field(default=1800, ge=10, le=86400)
    codec_origins: str = "http://127.0.0.1:8233,http://localhost:8233"
    default_image: str = "desktop-sandbox:dev"

    @field_validator("admin_token")
    @classmethod
    def _long_enough(cls, value: str) -> str:
        if value and len(value) < 16:
            raise ValueError("must be at least 16 characters, or absent")
        return value

    @property
    def admin_url(self) -> str:
        """Origin of the admin listener."""
        return self.public_url.rstrip("/") or f"http://{self.admin_host}:{self.admin_port}"


class HostSettings(Settings):
    """What the host worker reads.

    Attributes:
        host_id: stable id of this runtime host; empty to make one and keep it in the state directory.
        host_label: name for people; empty for `desktop-runtime:<hostname>`.
        gateway_url: origin of the node listener as this host reaches it.
        gateway_ws_url: the gateway's `/ws` as containers reach it (protocol section 8.2).
        takeover_origin: origin, without a port, under which published ports are reached.
        network: Docker network of the sandboxes, made when absent.
        max_activities: host activities at once; each is a thread that mostly waits. With every one taken the host
            looks unreachable to the next environment.
        max_cpus, max_memory_mb, max_pids, max_shm_mb: the most one environment may have: cores, MiB, processes and
            threads, MiB. By default this machine's cores, 75 % and 25 % of its memory.
    """

    host_id: str = ""
    host_label: str = ""
    gateway_url: str = ""
    gateway_ws_url: str = "ws://host.containers.internal:8788/ws"
    takeover_origin: str = "http://127.0.0.1"
    network: str = "desktop-environments"
    max_activities: int = Field(default=256, ge=4, le=1000)
    max_cpus: float = Field(
        default_factory=lambda: float(os.cpu_count() or 1), ge=LEAST_LIMITS.cpus, allow_inf_nan=False
    )
    max_memory_mb: int = Field(default_factory=lambda: _memory_mb(0.75), ge=LEAST_LIMITS.memory_mb)
    max_pids: int = Field(default=4096, ge=LEAST_LIMITS.pids)
    max_shm_mb: int = Field(default_factory=lambda: _memory_mb(0.25), ge=LEAST_LIMITS.shm_mb)

    @property
    def max_limits(self) -> Limits:
        """The most one environment may have."""
        return Limits(
            cpus=self.max_cpus, memory_mb=self.max_memory_mb, pids=self.max_pids, shm_mb=self.max_shm_mb
        )

    @field_validator("host_id")
    @classmethod
    def _usable(cls, value: str) -> str:
        if value and not is_host_id(value):
            raise ValueError("may hold letters, digits, '_', '.' and '-' only, at most 100")
        return value


class MigrateSettings(Settings):
    """What `python -m inventory.migrate` reads.

    Attributes:
        migrate_wait: how long to wait for the database to answer, seconds.
    """

    migrate_wait: int = Field(default=30, ge=0, le=3600)


class ControlSettings(Settings):
    """What the control worker reads.

    Attributes:
        max_cached_workflows: workflows kept in memory; 0 replays each from its history on every task.
    """

    max_cached_workflows: int = Field(default=1000, ge=0)


def load(kind: type[S]) -> S:
    """Read the settings of one process from the environment.

    Raises:
        ConfigurationError: a variable does not hold what it should; names it.
    """
    try:
        return kind()
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        raise ConfigurationError(f"DESKTOP_{name}: {first['msg'].removeprefix('Value error, ')}") from None
