"""Adds reconciliation: freeze and freshness of scopes, runs, and the drifts they found.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add two columns to the scopes, and two tables."""
    # Plain SQL, with the CHECK on the column: SQLite can then add and drop the column without rebuilding the table. A
    # rebuild would have to repeat every other constraint here, or lose it.
    op.execute(
        "ALTER TABLE scopes ADD COLUMN frozen BIGINT DEFAULT 0 NOT NULL "
        "CONSTRAINT ck_scopes_frozen CHECK (frozen IN (0, 1))"
    )
    op.execute("ALTER TABLE scopes ADD COLUMN fresh_until_us BIGINT")
    _create_reconciliations()
    _create_drifts()


def _create_reconciliations() -> None:
    op.create_table(
        "reconciliations",
        sa.Column("id", KEY, sa.Identity(), nullable=False),
        sa.Column("portfolio", sa.Text(), nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("started_us", sa.BigInteger(), nullable=False),
        sa.Column("finished_us", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("fetched", sa.Text(), nullable=False),
        sa.Column("found", sa.Text(), nullable=False),
        sa.CheckConstraint("outcome IN ('good', 'partial', 'failed')", name=op.f("ck_reconciliations_outcome")),
        sa.CheckConstraint("finished_us >= started_us", name=op.f("ck_reconciliations_finished")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reconciliations")),
    )
    op.create_index("ix_reconciliations_portfolio", "reconciliations", ["portfolio", "id"])


def _create_drifts() -> None:
    op.create_table(
        "drifts",
        sa.Column("id", KEY, sa.Identity(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("portfolio", "venue", "account", "subject", "side")),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("kind", "state", "policy")),
        sa.Column("sightings", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.Text()) for name in ("ledger_quantity", "venue_quantity", "excess", "price")),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("requested", sa.Text(), nullable=True),
        sa.Column("frozen_scope", sa.Text(), nullable=True),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("first_run", "last_run", "opened_us", "updated_us")
        ),
        sa.Column("ended_us", sa.BigInteger(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint("state IN ('open', 'confirmed', 'acknowledged', 'resolved')", name=op.f("ck_drifts_state")),
        sa.CheckConstraint("(state = 'resolved') = (ended_us IS NOT NULL)", name=op.f("ck_drifts_ended")),
        sa.CheckConstraint(
            "state <> 'acknowledged' OR (actor IS NOT NULL AND reason IS NOT NULL)",
            name=op.f("ck_drifts_acknowledged"),
        ),
        sa.CheckConstraint("sightings >= 1", name=op.f("ck_drifts_sightings")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_drifts")),
    )
    op.create_index(
        "uq_drifts_live",
        "drifts",
        ["portfolio", "venue", "account", "subject", "side", "kind"],
        unique=True,
        postgresql_where=sa.text("state <> 'resolved'"),
        sqlite_where=sa.text("state <> 'resolved'"),
    )


def downgrade() -> None:
    """Remove the runs, the drifts, and the scopes' freeze and freshness."""
    op.drop_table("drifts")
    op.drop_table("reconciliations")
    op.execute("ALTER TABLE scopes DROP COLUMN fresh_until_us")
    op.execute("ALTER TABLE scopes DROP COLUMN frozen")
