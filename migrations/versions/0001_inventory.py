"""The inventory's tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """From nothing."""
    op.create_table(
        "admin_tokens",
        sa.Column("token_id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("salt", sa.String(), nullable=False),
        sa.Column("token_hash", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("token_id"),
    )
    op.create_table(
        "desktop_environment_defaults",
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("default_image_ref", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("reverted_from_revision", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("revision"),
    )
    op.create_table(
        "desktop_environment_hosts",
        sa.Column("host_id", sa.String(100), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=True),
        sa.Column("docker_available", sa.Boolean(), nullable=False),
        sa.Column("healthy", sa.Boolean(), nullable=False),
        sa.Column("takeover_origin", sa.String(), nullable=False),
        sa.Column("last_error", sa.String(), nullable=True),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("host_id"),
    )
    op.create_table(
        "nodes",
        sa.Column("node_id", sa.String(64), nullable=False),
        sa.Column("public_key", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=True),
        sa.Column("platform", sa.String(), nullable=True),
        sa.Column("version", sa.String(), nullable=True),
        sa.Column("mode", sa.String(), nullable=True),
        sa.Column("device", sa.JSON(), nullable=False),
        sa.Column("capabilities", sa.JSON(), nullable=False),
        sa.Column("connected", sa.Boolean(), nullable=False),
        sa.Column("connection_id", sa.String(), nullable=True),
        sa.Column("remote_ip", sa.String(), nullable=True),
        sa.Column("environment_id", sa.String(36), nullable=True),
        sa.Column("generation", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("node_id"),
    )
    op.create_index("ix_nodes_environment_id", "nodes", ["environment_id"])
    op.create_table(
        "desktop_environments",
        sa.Column("environment_id", sa.String(36), nullable=False),
        sa.Column("host_id", sa.String(100), nullable=False),
        sa.Column("label", sa.String(), nullable=True),
        sa.Column("image_ref", sa.String(), nullable=False),
        sa.Column("managed_kind", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("desired_running", sa.Boolean(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("node_id", sa.String(), nullable=True),
        sa.Column("rfb_port", sa.Integer(), nullable=True),
        sa.Column("novnc_port", sa.Integer(), nullable=True),
        sa.Column("security_profile", sa.String(), nullable=False),
        sa.Column("limits", sa.JSON(), nullable=False),
        sa.Column("last_error", sa.JSON(), nullable=True),
        sa.Column("recovery", sa.String(), nullable=False),
        sa.Column("restarts", sa.Integer(), nullable=False),
        sa.Column("next_retry_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("phases", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("logs", sa.JSON(), nullable=False),
        sa.Column("error_logs", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["host_id"], ["desktop_environment_hosts.host_id"]),
        sa.PrimaryKeyConstraint("environment_id"),
    )
    op.create_index("ix_desktop_environments_deleted_at", "desktop_environments", ["deleted_at"])
    op.create_index("ix_desktop_environments_host_id", "desktop_environments", ["host_id"])
    op.create_index("ix_desktop_environments_label", "desktop_environments", ["label"])
    op.create_index("ix_desktop_environments_node_id", "desktop_environments", ["node_id"])
    op.create_index("ix_desktop_environments_status", "desktop_environments", ["status"])
    op.create_index("ix_desktop_environments_updated_at", "desktop_environments", ["updated_at"])
    op.create_table(
        "node_pairings",
        sa.Column("pairing_id", sa.Integer(), nullable=False),
        sa.Column("node_id", sa.String(64), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("trust_level", sa.String(), nullable=False),
        sa.Column("motivation", sa.String(), nullable=False),
        sa.Column("capability_allowlist", sa.JSON(), nullable=False),
        sa.Column("environment_id", sa.String(36), nullable=True),
        sa.Column("scoped_token_sha256", sa.String(64), nullable=True),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reviews", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"]),
        sa.PrimaryKeyConstraint("pairing_id"),
        sa.UniqueConstraint("node_id"),
    )
    op.create_index("ix_node_pairings_environment_id", "node_pairings", ["environment_id"])
    op.create_index("ix_node_pairings_scoped_token_sha256", "node_pairings", ["scoped_token_sha256"])
    op.create_index("ix_node_pairings_status", "node_pairings", ["status"])
    op.create_table(
        "environment_events",
        sa.Column("event_id", sa.Integer(), nullable=False),
        sa.Column("environment_id", sa.String(36), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("actor", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("message", sa.String(), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["environment_id"], ["desktop_environments.environment_id"]),
        sa.PrimaryKeyConstraint("event_id"),
        sa.UniqueConstraint("environment_id", "sequence", name="uq_environment_events_sequence"),
    )
    op.create_index("ix_environment_events_environment_at", "environment_events", ["environment_id", "at"])
    op.create_table(
        "node_tokens",
        sa.Column("token_id", sa.String(36), nullable=False),
        sa.Column("environment_id", sa.String(36), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.String(64), nullable=False),
        sa.Column("token_sha256", sa.String(64), nullable=False),
        sa.Column("issued_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoke_reason", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["environment_id"], ["desktop_environments.environment_id"]),
        sa.PrimaryKeyConstraint("token_id"),
        sa.UniqueConstraint("token_sha256"),
    )
    op.create_index("ix_node_tokens_environment_id", "node_tokens", ["environment_id"])
    op.create_table(
        "takeover_sessions",
        sa.Column("session_id", sa.String(36), nullable=False),
        sa.Column("token_sha256", sa.String(64), nullable=False),
        sa.Column("environment_id", sa.String(36), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["environment_id"], ["desktop_environments.environment_id"]),
        sa.PrimaryKeyConstraint("session_id"),
        sa.UniqueConstraint("token_sha256"),
    )
    op.create_index("ix_takeover_sessions_environment_id", "takeover_sessions", ["environment_id"])


def downgrade() -> None:
    """To nothing: everything recorded is lost."""
    op.drop_table("takeover_sessions")
    op.drop_table("node_tokens")
    op.drop_table("environment_events")
    op.drop_table("node_pairings")
    op.drop_table("desktop_environments")
    op.drop_table("nodes")
    op.drop_table("desktop_environment_hosts")
    op.drop_table("desktop_environment_defaults")
    op.drop_table("admin_tokens")
