"""Adds an index of closed and expired positions. Reconciliation reads the recent ones besides the live positions.

Released holds, the most frequent end, are not in it: they never were at the exchange.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ENDED = sa.text("state IN ('closed', 'expired')")


def upgrade() -> None:
    """Create the index."""
    op.create_index(
        "ix_positions_ended", "positions", ["portfolio_id", "updated_us"], postgresql_where=ENDED, sqlite_where=ENDED
    )


def downgrade() -> None:
    """Remove the index."""
    op.drop_index("ix_positions_ended", "positions")
