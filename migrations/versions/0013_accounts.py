"""Gives scopes a share of the equity and why they are frozen, accounts a free balance, and assets a policy.

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

NUMBERS = ("cap_e8", "fresh_until_us", "guarantee_e8", "max_position_e8")
NEW_NUMBERS = ("share_e8", "since_seq", "free_e8", "margin_e8")
COUNTERS = ("held_e8", "open_e8", "overage_e8")
SHARED_BEFORE = "guarantee_e8 IS NOT NULL OR scope LIKE '%=*'"
SHARED = f"{SHARED_BEFORE} OR since_seq IS NOT NULL"


def upgrade() -> None:
    """Add the columns, the table, and the index that finds the accounts of a portfolio too."""
    # Plain SQL, as in 0004: SQLite adds and drops such columns without rebuilding the table.
    for column, check in (
        ("share_e8", "share_e8 IS NULL OR share_e8 > 0"), ("since_seq", None), ("free_e8", None),
        ("margin_e8", "margin_e8 IS NULL OR margin_e8 >= 0"),
        ("promised_e8", "promised_e8 IS NULL OR promised_e8 >= 0"),
    ):  # fmt: skip
        constraint = f" CONSTRAINT ck_scopes_{column.removesuffix('_e8')} CHECK ({check})" if check else ""
        op.execute(f"ALTER TABLE scopes ADD COLUMN {column} BIGINT{constraint}")
    op.execute("ALTER TABLE scopes ADD COLUMN frozen_note TEXT")
    _index(SHARED)
    _check_types((*NUMBERS, *NEW_NUMBERS), ("frozen_note",), (*COUNTERS, "promised_e8"))
    op.create_table(
        "asset_policies",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), sa.Identity(), nullable=False),
        sa.Column("portfolio", sa.Text(), nullable=False),
        sa.Column("pattern", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("decided_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_asset_policies"),
        sa.CheckConstraint("policy IN ('position', 'cash', 'fees', 'ignore')", name=op.f("ck_asset_policies_policy")),
    )
    op.create_index("uq_asset_policies_portfolio_pattern", "asset_policies", ["portfolio", "pattern"], unique=True)


def downgrade() -> None:
    """Remove them. Refused where they are in use: the older version would ignore them.

    Down to base everything is removed, so there it is not refused.
    """
    if not op.get_context().as_sql and context.get_revision_argument() is not None:
        _require_unused()
    op.drop_index("uq_asset_policies_portfolio_pattern", "asset_policies")
    op.drop_table("asset_policies")
    _check_types(NUMBERS, (), COUNTERS)
    _index(SHARED_BEFORE)
    for column in ("frozen_note", "promised_e8", *reversed(NEW_NUMBERS)):
        op.execute(f"ALTER TABLE scopes DROP COLUMN {column}")


def _index(condition: str) -> None:
    op.execute("DROP INDEX ix_scopes_shared")
    op.execute(f"CREATE INDEX ix_scopes_shared ON scopes (portfolio_id) WHERE {condition}")


def _check_types(numbers: tuple[str, ...], texts: tuple[str, ...], counters: tuple[str, ...]) -> None:
    """Make SQLite refuse anything but whole numbers, and texts, in these settings, as migration 0008 does.

    Counters, which every batch changes, are checked only where a row is new.
    """
    if op.get_context().dialect.name != "sqlite":
        return
    for name, when, checked in (
        ("scopes_types", "INSERT", (*numbers, *counters)),
        ("scopes_types_kept", f"UPDATE OF {', '.join((*numbers, *texts))}, scope", numbers),
    ):
        wrong = [f"typeof(NEW.{column}) NOT IN ('integer', 'null')" for column in checked]
        wrong += [f"typeof(NEW.{column}) NOT IN ('text', 'null')" for column in (*texts, "scope")]
        op.execute(f"DROP TRIGGER {name}")
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {when} ON scopes WHEN {' OR '.join(wrong)} "
            "BEGIN SELECT RAISE(ABORT, 'refused: a value of scopes is not of its column''s type'); END"
        )


def _require_unused() -> None:
    bind = op.get_bind()
    for what, query in (
        ("scopes have a cap that follows the equity", "SELECT count(*) FROM scopes WHERE share_e8 IS NOT NULL"),
        ("accounts bound reservations by their balance", "SELECT count(*) FROM scopes WHERE since_seq IS NOT NULL"),
        ("assets have a policy", "SELECT count(*) FROM asset_policies"),
    ):
        found = bind.execute(sa.text(query)).scalar()
        if found:
            raise CommandError(
                f"{found} {what}, which only version 0013 and later know; give the scopes a cap, remove the accounts "
                "and the policies, or go on with the present version"
            )
