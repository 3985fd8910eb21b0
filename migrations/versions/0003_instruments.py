"""Adds instrument rules with their history.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table of market rules."""
    op.create_table(
        "instruments",
        sa.Column("venue", sa.Text(), nullable=False),
        sa.Column("symbol", sa.Text(), nullable=False),
        sa.Column("since_us", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("until_us", sa.BigInteger(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("rules", sa.Text(), nullable=True),
        sa.Column("refused", sa.Text(), nullable=True),
        sa.CheckConstraint("kind IN ('spot', 'swap')", name=op.f("ck_instruments_kind")),
        sa.CheckConstraint("(rules IS NULL) = (refused IS NOT NULL)", name=op.f("ck_instruments_refused")),
        sa.CheckConstraint("until_us IS NULL OR until_us > since_us", name=op.f("ck_instruments_until")),
        sa.PrimaryKeyConstraint("venue", "symbol", "since_us", name=op.f("pk_instruments")),
    )
    op.create_index(
        "uq_instruments_present",
        "instruments",
        ["venue", "symbol"],
        unique=True,
        postgresql_where=sa.text("until_us IS NULL"),
        sqlite_where=sa.text("until_us IS NULL"),
    )


def downgrade() -> None:
    """Remove the rules. They can be loaded from the exchanges again, but their history is lost."""
    op.drop_index("uq_instruments_present", table_name="instruments")
    op.drop_table("instruments")
