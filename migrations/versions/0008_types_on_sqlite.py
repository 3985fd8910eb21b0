"""Adds type checks on SQLite, which otherwise stores text, bytes and fractions in a column of whole numbers.

Updates of what every batch changes, the counters and the head, are not checked. A trigger for each of those rows costs
a single caller 3 to 5 % of a reserve and release, and `verify` finds wrong values in them. PostgreSQL's columns have
types.

Revision ID: 0008
Revises: 0007
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

GUARDS = [
    # name, table, when, columns of whole numbers, of text
    ("scopes_types", "scopes", "INSERT", ["cap_e8", "held_e8", "open_e8", "overage_e8", "fresh_until_us"], ["scope"]),
    ("scopes_types_kept", "scopes", "UPDATE OF cap_e8, fresh_until_us, scope", ["cap_e8", "fresh_until_us"], ["scope"]),
    ("portfolios_types", "portfolios", "INSERT", ["last_seq", "last_us", "created_us"], ["name", "last_hash"]),
    ("portfolios_types_kept", "portfolios", "UPDATE OF name, created_us", ["created_us"], ["name"]),
]


def upgrade() -> None:
    """Make SQLite refuse a value that is not of its column's type."""
    if op.get_context().dialect.name != "sqlite":
        return
    for name, table, when, numbers, texts in GUARDS:
        # NULL passes here; NOT NULL constraints refuse it where needed.
        wrong = " OR ".join(
            f"typeof(NEW.{column}) NOT IN ('{kind}', 'null')"
            for kind, columns in (("integer", numbers), ("text", texts))
            for column in columns
        )
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {when} ON {table} WHEN {wrong} "
            f"BEGIN SELECT RAISE(ABORT, 'refused: a value of {table} is not of its column''s type'); END"
        )


def downgrade() -> None:
    """Remove the checks."""
    if op.get_context().dialect.name == "sqlite":
        for name, *_ in GUARDS:
            op.execute(f"DROP TRIGGER {name}")
