"""The most an environment on a host may have."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """From 0002."""
    op.add_column("desktop_environment_hosts", sa.Column("max_limits", sa.JSON(), nullable=True))


def downgrade() -> None:
    """To 0002."""
    op.drop_column("desktop_environment_hosts", "max_limits")
