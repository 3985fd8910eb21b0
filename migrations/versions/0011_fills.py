"""Gives positions room for fills told one by one and for the caller's reference, and lets dated futures be listed.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

ORIGIN = "origin IS NOT NULL"
LIVE_ORIGIN = "origin IS NOT NULL AND state IN ('held', 'open')"
VERBS = "('fill', 'retag', 'reprice')"
KINDS = "kind IN ('spot', 'swap', 'future')"
KINDS_BEFORE = "kind IN ('spot', 'swap')"

# SQLite cannot change a CHECK. The table is made anew, as it was otherwise.
SQLITE_INSTRUMENTS = (
    "CREATE TABLE instruments_new (venue TEXT NOT NULL, symbol TEXT NOT NULL, since_us BIGINT NOT NULL, "
    "until_us BIGINT, kind TEXT NOT NULL, active BOOLEAN NOT NULL, rules TEXT, refused TEXT, "
    "CONSTRAINT pk_instruments PRIMARY KEY (venue, symbol, since_us), CONSTRAINT ck_instruments_kind CHECK ({kinds}), "
    "CONSTRAINT ck_instruments_refused CHECK ((rules IS NULL) = (refused IS NOT NULL)), "
    "CONSTRAINT ck_instruments_until CHECK (until_us IS NULL OR until_us > since_us))",
    "INSERT INTO instruments_new SELECT venue, symbol, since_us, until_us, kind, active, rules, refused "
    "FROM instruments",
    "DROP TABLE instruments",
    "ALTER TABLE instruments_new RENAME TO instruments",
    "CREATE UNIQUE INDEX uq_instruments_present ON instruments (venue, symbol) WHERE until_us IS NULL",
)
# A position that had ended gets its reference too, which its guard would refuse.
REFERENCES = (
    "UPDATE positions SET reference = told.reference FROM (SELECT d.portfolio_id, d.position, d.reference "
    "FROM decisions d JOIN (SELECT portfolio_id, max(seq) AS seq FROM decisions WHERE reference IS NOT NULL "
    "AND position IS NOT NULL AND outcome <> 'denied' GROUP BY portfolio_id, position) last "
    "ON last.portfolio_id = d.portfolio_id AND last.seq = d.seq) told "
    "WHERE told.portfolio_id = positions.portfolio_id AND told.position = positions.number"
)
SQLITE_UNGUARDED = (
    "DROP TRIGGER positions_final",
    REFERENCES,
    "CREATE TRIGGER positions_final BEFORE UPDATE ON positions WHEN OLD.state IN ('closed', 'released', 'expired') "
    "BEGIN SELECT RAISE(ABORT, 'refused: the position is final'); END",
)
POSTGRESQL_UNGUARDED = (
    "ALTER TABLE positions DISABLE TRIGGER positions_final",
    REFERENCES,
    "ALTER TABLE positions ENABLE TRIGGER positions_final",
)
POSTGRESQL_INSTRUMENTS = (
    "ALTER TABLE instruments DROP CONSTRAINT ck_instruments_kind, ADD CONSTRAINT ck_instruments_kind CHECK ({kinds})",
)


def upgrade() -> None:
    """Add the columns. A position may get several late fills; one of them at most is live.

    Decisions of migration 0010 have references: each position gets the last of its own.
    """
    op.add_column("positions", sa.Column("fills", sa.Text(), nullable=True))
    op.add_column("positions", sa.Column("reference", sa.Text(), nullable=True))
    for statement in SQLITE_UNGUARDED if op.get_context().dialect.name == "sqlite" else POSTGRESQL_UNGUARDED:
        op.execute(statement)
    op.execute("DROP INDEX uq_positions_origin")
    op.execute(f"CREATE INDEX ix_positions_origin ON positions (portfolio_id, origin) WHERE {ORIGIN}")
    op.execute(f"CREATE UNIQUE INDEX uq_positions_live_origin ON positions (portfolio_id, origin) WHERE {LIVE_ORIGIN}")
    _list_kinds(KINDS)


def downgrade() -> None:
    """Remove them. Refused where they are in use: the older version would count such positions wrongly.

    Down to base everything is removed, so there it is not refused.
    """
    if not op.get_context().as_sql and context.get_revision_argument() is not None:
        _require_unused()
    op.execute("DROP INDEX uq_positions_live_origin")
    op.execute("DROP INDEX ix_positions_origin")
    op.execute(f"CREATE UNIQUE INDEX uq_positions_origin ON positions (portfolio_id, origin) WHERE {ORIGIN}")
    op.drop_column("positions", "reference")
    op.drop_column("positions", "fills")
    op.execute("DELETE FROM instruments WHERE kind = 'future'")
    _list_kinds(KINDS_BEFORE)


def _list_kinds(kinds: str) -> None:
    sqlite = op.get_context().dialect.name == "sqlite"
    for statement in SQLITE_INSTRUMENTS if sqlite else POSTGRESQL_INSTRUMENTS:
        op.execute(statement.format(kinds=kinds))


def _require_unused() -> None:
    # That a position was filled and closed (`filled` alone) the older version tells from its decisions.
    used = """fills NOT LIKE '{"filled":%' OR fills LIKE '%,%' OR reference IS NOT NULL OR tags LIKE '%[%'"""
    told = "SELECT position FROM decisions WHERE portfolio_id = positions.portfolio_id AND command IN {verbs}"
    query = f"SELECT count(*) FROM positions WHERE {used} OR number IN ({told.format(verbs=VERBS)})"
    count = op.get_bind().execute(sa.text(query)).scalar()
    if count:
        raise CommandError(
            f"{count} positions have several fills, a reference, other tags or another price than at first, which only "
            "version 0011 and later can read; go on with the present version, or restore a backup"
        )
