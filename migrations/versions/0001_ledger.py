"""Creates the ledger: portfolios, scopes, positions, decisions.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

POSTGRESQL_GUARDS = """
CREATE FUNCTION ledger_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on % refused: %', TG_OP, TG_TABLE_NAME, TG_ARGV[0] USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER decisions_append_only BEFORE UPDATE OR DELETE ON decisions
    FOR EACH ROW EXECUTE FUNCTION ledger_refuse_change('decisions are append-only');
CREATE TRIGGER decisions_no_truncate BEFORE TRUNCATE ON decisions
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change('decisions are append-only');
CREATE TRIGGER positions_final BEFORE UPDATE ON positions
    FOR EACH ROW WHEN (OLD.state IN ('closed', 'released', 'expired'))
    EXECUTE FUNCTION ledger_refuse_change('the position is final');
CREATE TRIGGER positions_kept BEFORE DELETE ON positions
    FOR EACH ROW EXECUTE FUNCTION ledger_refuse_change('positions are kept');
CREATE TRIGGER positions_no_truncate BEFORE TRUNCATE ON positions
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change('positions are kept');
"""

SQLITE_GUARDS = [
    ("decisions_no_update", "UPDATE ON decisions", "decisions are append-only"),
    ("decisions_no_delete", "DELETE ON decisions", "decisions are append-only"),
    (
        "positions_final",
        "UPDATE ON positions WHEN OLD.state IN ('closed', 'released', 'expired')",
        "the position is final",
    ),
    ("positions_kept", "DELETE ON positions", "positions are kept"),
    # INSERT OR REPLACE deletes rows without running their DELETE triggers.
    (
        "decisions_no_replace",
        "INSERT ON decisions WHEN EXISTS (SELECT 1 FROM decisions d WHERE d.portfolio_id = NEW.portfolio_id"
        " AND (d.seq = NEW.seq OR d.key = NEW.key))",
        "decisions are append-only, seq and key are unique",
    ),
    (
        "positions_no_replace",
        "INSERT ON positions WHEN EXISTS (SELECT 1 FROM positions p WHERE p.portfolio_id = NEW.portfolio_id"
        " AND p.number = NEW.number AND p.state IN ('closed', 'released', 'expired'))",
        "the position is final",
    ),
]


def upgrade() -> None:
    """Create the tables, and the triggers by which the database itself refuses changes to what is final."""
    _create_portfolios_and_scopes()
    _create_positions()
    _create_decisions()
    if op.get_context().dialect.name == "postgresql":
        op.execute(POSTGRESQL_GUARDS)
        # Every batch updates these rows. With free space in their pages, the updates need not touch the indexes.
        op.execute("ALTER TABLE portfolios SET (fillfactor = 50)")
        op.execute("ALTER TABLE scopes SET (fillfactor = 50)")
    else:
        for name, when, why in SQLITE_GUARDS:
            op.execute(f"CREATE TRIGGER {name} BEFORE {when} BEGIN SELECT RAISE(ABORT, 'refused: {why}'); END")


def _create_portfolios_and_scopes() -> None:
    op.create_table(
        "portfolios",
        sa.Column("id", KEY, sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_hash", sa.Text(), nullable=False),
        sa.Column("last_us", sa.BigInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("last_seq >= 0", name=op.f("ck_portfolios_last_seq")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_portfolios")),
        sa.UniqueConstraint("name", name=op.f("uq_portfolios_name")),
    )
    op.create_table(
        "scopes",
        sa.Column("portfolio_id", KEY, nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("cap_e8", sa.BigInteger(), nullable=True),
        sa.Column("held_e8", sa.BigInteger(), nullable=False),
        sa.Column("open_e8", sa.BigInteger(), nullable=False),
        sa.Column("overage_e8", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.CheckConstraint("held_e8 >= 0", name=op.f("ck_scopes_held")),
        sa.CheckConstraint("open_e8 >= 0", name=op.f("ck_scopes_open")),
        sa.CheckConstraint("cap_e8 IS NULL OR cap_e8 >= 0", name=op.f("ck_scopes_cap")),
        sa.CheckConstraint("overage_e8 >= 0", name=op.f("ck_scopes_overage")),
        sa.CheckConstraint(
            "cap_e8 IS NULL OR held_e8 + open_e8 <= cap_e8 + overage_e8", name=op.f("ck_scopes_within_cap")
        ),
        sa.CheckConstraint("cap_e8 IS NOT NULL OR scope <> 'portfolio'", name=op.f("ck_scopes_portfolio_capped")),
        sa.CheckConstraint("status IN ('active', 'reducing', 'halted')", name=op.f("ck_scopes_status")),
        sa.ForeignKeyConstraint(["portfolio_id"], ["portfolios.id"], name=op.f("fk_scopes_portfolios")),
        sa.PrimaryKeyConstraint("portfolio_id", "scope", name=op.f("pk_scopes")),
    )


def _create_positions() -> None:
    op.create_table(
        "positions",
        sa.Column("portfolio_id", KEY, autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("held_e8", sa.BigInteger(), nullable=False),
        sa.Column("open_e8", sa.BigInteger(), nullable=False),
        sa.Column("quantity", sa.Text(), nullable=True),
        sa.Column("price", sa.Text(), nullable=True),
        sa.Column("legs", sa.Text(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=True),
        sa.Column("opened_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_seq", sa.BigInteger(), nullable=False),
        sa.Column("origin", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "state IN ('held', 'open', 'closed', 'released', 'expired')", name=op.f("ck_positions_state")
        ),
        sa.CheckConstraint("held_e8 >= 0 AND (held_e8 > 0) = (state = 'held')", name=op.f("ck_positions_held")),
        sa.CheckConstraint("open_e8 >= 0 AND (open_e8 > 0) = (state = 'open')", name=op.f("ck_positions_open")),
        sa.CheckConstraint("state <> 'held' OR expires_us IS NOT NULL", name=op.f("ck_positions_expires")),
        sa.CheckConstraint(
            "state <> 'open' OR (quantity IS NOT NULL AND price IS NOT NULL)", name=op.f("ck_positions_filled")
        ),
        sa.PrimaryKeyConstraint("portfolio_id", "number", name=op.f("pk_positions")),
    )
    _partial_index("ix_positions_open", ["portfolio_id", "number"], "state = 'open'")
    _partial_index("ix_positions_expiry", ["portfolio_id", "expires_us"], "state = 'held'")
    _partial_index("uq_positions_origin", ["portfolio_id", "origin"], "origin IS NOT NULL", unique=True)


def _partial_index(name: str, columns: list[str], where: str, *, unique: bool = False) -> None:
    op.create_index(
        name, "positions", columns, unique=unique, postgresql_where=sa.text(where), sqlite_where=sa.text(where)
    )


def _create_decisions() -> None:
    op.create_table(
        "decisions",
        sa.Column("portfolio_id", KEY, autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("command", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("budget_e8", sa.BigInteger(), nullable=True),
        sa.Column("quantity", sa.Text(), nullable=True),
        sa.Column("fraction", sa.Text(), nullable=True),
        sa.Column("raw_budget", sa.Text(), nullable=True),
        sa.Column("held_delta_e8", sa.BigInteger(), nullable=False),
        sa.Column("open_delta_e8", sa.BigInteger(), nullable=False),
        sa.Column("headroom_e8", sa.BigInteger(), nullable=True),
        sa.Column("exposure_e8", sa.BigInteger(), nullable=False),
        sa.Column("binding", sa.Text(), nullable=True),
        sa.Column("expires_us", sa.BigInteger(), nullable=True),
        sa.Column("decided_us", sa.BigInteger(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("trace", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.CheckConstraint("seq >= 1", name=op.f("ck_decisions_seq")),
        sa.CheckConstraint("outcome IN ('granted', 'denied', 'applied')", name=op.f("ck_decisions_outcome")),
        sa.CheckConstraint("(outcome = 'denied') = (reason IS NOT NULL)", name=op.f("ck_decisions_reason")),
        sa.PrimaryKeyConstraint("portfolio_id", "seq", name=op.f("pk_decisions")),
    )
    op.create_index("uq_decisions_portfolio_id_key", "decisions", ["portfolio_id", "key"], unique=True)


def downgrade() -> None:
    """Remove the ledger and everything it recorded."""
    for table in ("decisions", "positions", "scopes", "portfolios"):
        op.drop_table(table)
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION ledger_refuse_change()")
