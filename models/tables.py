"""SQLModel tables of the inventory (design sections 2 and 3). Never imported by workflows.

Everything about an environment here is the projection of its workflow (design decision 1); nodes, pairings, takeover
sessions and admin tokens are the gateway's own.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Index,
    Integer,
    TypeDecorator,
    UniqueConstraint,
    false,
)
from sqlmodel import Field, SQLModel


class UTCDateTime(TypeDecorator[datetime]):
    """A point in time, stored in UTC; SQLite keeps no zone, so it is put back on the way out.

    Raises:
        ValueError: a naive datetime is bound.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive datetime {value!r}: every time in the inventory carries its zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class HostRow(SQLModel, table=True):
    """A runtime host and its health as recorded."""

    __tablename__ = "desktop_environment_hosts"

    host_id: str = Field(primary_key=True, max_length=100)
    label: str
    version: str | None = None
    docker_available: bool = False
    healthy: bool = False
    takeover_origin: str = "http://127.0.0.1"
    last_error: str | None = None
    last_seen_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    max_limits: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    revision: int = Field(default=0, sa_type=BigInteger)
    created_at: datetime = Field(sa_type=UTCDateTime)
    updated_at: datetime = Field(sa_type=UTCDateTime)


class EnvironmentRow(SQLModel, table=True):
    """An environment; `revision` is the workflow's, and an older one never overwrites a newer.

    `error_logs` is the log tail of `last_error`, kept apart so that a list needs not read it.
    """

    __tablename__ = "desktop_environments"

    environment_id: str = Field(primary_key=True, max_length=36)
    host_id: str = Field(foreign_key="desktop_environment_hosts.host_id", index=True, max_length=100)
    label: str | None = Field(default=None, index=True)
    image_ref: str
    managed_kind: str = "docker"
    status: str = Field(index=True)
    desired_running: bool = False
    generation: int = 0
    revision: int = Field(default=0, sa_type=BigInteger)
    node_id: str | None = Field(default=None, index=True)
    rfb_port: int | None = None
    novnc_port: int | None = None
    security_profile: str = "hardened"
    limits: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    last_error: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    recovery: str = "none"
    restarts: int = 0
    next_retry_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    phases: dict[str, float] = Field(default_factory=dict, sa_type=JSON)
    created_at: datetime = Field(sa_type=UTCDateTime)
    updated_at: datetime = Field(index=True, sa_type=UTCDateTime)
    last_seen_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    deleted_at: datetime | None = Field(default=None, index=True, sa_type=UTCDateTime)
    # Last, because SQLite reads through a long column to reach those behind it.
    logs: list[str] = Field(default_factory=list, sa_type=JSON)
    error_logs: list[str] = Field(default_factory=list, sa_type=JSON)


class NodeTokenRow(SQLModel, table=True):
    """A managed node token: its hash, whom and what it is for. One live per environment (design decision 7)."""

    __tablename__ = "node_tokens"

    token_id: str = Field(primary_key=True, max_length=36)
    environment_id: str = Field(foreign_key="desktop_environments.environment_id", index=True, max_length=36)
    generation: int
    device_id: str = Field(max_length=64)
    token_sha256: str = Field(unique=True, max_length=64)
    issued_at: datetime = Field(sa_type=UTCDateTime)
    expires_at: datetime = Field(sa_type=UTCDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    revoke_reason: str | None = None


class NodeRow(SQLModel, table=True):
    """A node that has proven its key at least once, and its presence as last seen."""

    __tablename__ = "nodes"

    node_id: str = Field(primary_key=True, max_length=64)
    public_key: str
    label: str | None = None
    platform: str | None = None
    version: str | None = None
    mode: str | None = None
    device: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    capabilities: list[dict[str, str]] = Field(default_factory=list, sa_type=JSON)
    connected: bool = False
    connection_id: str | None = None
    remote_ip: str | None = None
    environment_id: str | None = Field(default=None, index=True, max_length=36)
    generation: int | None = None
    created_at: datetime = Field(sa_type=UTCDateTime)
    last_seen_at: datetime = Field(sa_type=UTCDateTime)


class PairingRow(SQLModel, table=True):
    """The pairing of one node (protocol sections 4.3 and 10)."""

    __tablename__ = "node_pairings"

    pairing_id: int | None = Field(default=None, primary_key=True)
    node_id: str = Field(foreign_key="nodes.node_id", unique=True, max_length=64)
    status: str = Field(index=True)
    trust_level: str = "remote"
    motivation: str
    capability_allowlist: list[dict[str, str]] = Field(default_factory=list, sa_type=JSON)
    environment_id: str | None = Field(default=None, index=True, max_length=36)
    scoped_token_sha256: str | None = Field(default=None, index=True, max_length=64)
    requested_at: datetime = Field(sa_type=UTCDateTime)
    updated_at: datetime = Field(sa_type=UTCDateTime)
    reviews: list[dict[str, Any]] = Field(default_factory=list, sa_type=JSON)


class TakeoverSessionRow(SQLModel, table=True):
    """A takeover session: its token's hash and what it opens (protocol section 9.1)."""

    __tablename__ = "takeover_sessions"

    session_id: str = Field(primary_key=True, max_length=36)
    token_sha256: str = Field(unique=True, max_length=64)
    environment_id: str = Field(foreign_key="desktop_environments.environment_id", index=True, max_length=36)
    generation: int
    created_by: str
    created_at: datetime = Field(sa_type=UTCDateTime)
    expires_at: datetime = Field(sa_type=UTCDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    view_only: bool = Field(default=False, sa_column_kwargs={"server_default": false()})


class EnvironmentEventRow(SQLModel, table=True):
    """One line of an environment's timeline; kept after deletion."""

    __tablename__ = "environment_events"
    __table_args__ = (
        UniqueConstraint("environment_id", "sequence", name="uq_environment_events_sequence"),
        Index("ix_environment_events_environment_at", "environment_id", "at"),
    )

    event_id: int | None = Field(default=None, primary_key=True)
    environment_id: str = Field(foreign_key="desktop_environments.environment_id", max_length=36)
    sequence: int
    at: datetime = Field(sa_type=UTCDateTime)
    kind: str
    name: str
    status: str
    generation: int = 0
    actor: str | None = None
    reason: str | None = None
    message: str | None = None
    detail: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)


class AuditRow(SQLModel, table=True):
    """One line of the audit: who, from where, what, when, outcome. Append-only by triggers; kept after deletion.

    `environment_id` is no foreign key: what was asked about an environment that never was is kept too.
    """

    __tablename__ = "audit"
    __table_args__ = (
        Index("ix_audit_environment", "environment_id", "audit_id"),
        Index("ix_audit_actor", "actor", "audit_id"),
        Index("ix_audit_action", "action", "audit_id"),
        Index("ix_audit_at", "at"),
    )

    # SQLite numbers rows by itself only where the type is INTEGER, which there has 64 bits.
    audit_id: int | None = Field(
        default=None, primary_key=True, sa_type=BigInteger().with_variant(Integer(), "sqlite")
    )
    at: datetime = Field(sa_type=UTCDateTime)
    actor_kind: str = Field(max_length=20)
    actor: str = Field(max_length=120)
    source: str | None = Field(default=None, max_length=64)
    action: str = Field(max_length=60)
    outcome: str = Field(max_length=20)
    code: str | None = Field(default=None, max_length=60)
    environment_id: str | None = Field(default=None, max_length=36)
    generation: int | None = None
    target: str | None = Field(default=None, max_length=200)
    detail: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)


class AdminTokenRow(SQLModel, table=True):
    """An operator's bearer token at rest (protocol section 7.1): salt and scrypt hash."""

    __tablename__ = "admin_tokens"

    token_id: str = Field(primary_key=True, max_length=36)
    name: str = Field(max_length=120)
    salt: str
    token_hash: str
    created_at: datetime = Field(sa_type=UTCDateTime)
    expires_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UTCDateTime)


class DefaultsRow(SQLModel, table=True):
    """One revision of the installation's defaults (protocol section 9, `/config/desktop-environments/defaults`)."""

    __tablename__ = "desktop_environment_defaults"

    revision: int | None = Field(default=None, primary_key=True)
    default_image_ref: str
    created_at: datetime = Field(sa_type=UTCDateTime)
    created_by: str
    reason: str | None = None
    reverted_from_revision: int | None = None
