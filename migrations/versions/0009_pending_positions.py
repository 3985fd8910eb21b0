"""Lets an open position hold more: what may still fill is a hold with an expiry, no longer only the state `held`.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

HELD = "held_e8 >= 0 AND (held_e8 = 0 OR (state IN ('held', 'open') AND expires_us IS NOT NULL))"
PENDING = "state IN ('held', 'open') AND expires_us IS NOT NULL"
HELD_BEFORE = "held_e8 >= 0 AND (held_e8 > 0) = (state = 'held')"
PENDING_BEFORE = "state = 'held'"

# SQLite cannot change a CHECK. The table is made anew, with its other constraints, indexes and triggers as they were.
SQLITE_TABLE = """CREATE TABLE positions_new (
    portfolio_id INTEGER NOT NULL,
    number BIGINT NOT NULL,
    state TEXT NOT NULL,
    tags TEXT NOT NULL,
    held_e8 BIGINT NOT NULL,
    open_e8 BIGINT NOT NULL,
    quantity TEXT,
    price TEXT,
    legs TEXT NOT NULL,
    expires_us BIGINT,
    opened_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL,
    updated_seq BIGINT NOT NULL,
    origin BIGINT,
    CONSTRAINT pk_positions PRIMARY KEY (portfolio_id, number),
    CONSTRAINT ck_positions_state CHECK (state IN ('held', 'open', 'closed', 'released', 'expired')),
    CONSTRAINT ck_positions_held CHECK ({held}),
    CONSTRAINT ck_positions_open CHECK (open_e8 >= 0 AND (open_e8 > 0) = (state = 'open')),
    CONSTRAINT ck_positions_expires CHECK (state <> 'held' OR expires_us IS NOT NULL),
    CONSTRAINT ck_positions_filled CHECK (state <> 'open' OR (quantity IS NOT NULL AND price IS NOT NULL))
)"""
SQLITE_REST = (
    "INSERT INTO positions_new SELECT * FROM positions",
    "DROP TABLE positions",
    "ALTER TABLE positions_new RENAME TO positions",
    "CREATE INDEX ix_positions_open ON positions (portfolio_id, number) WHERE state = 'open'",
    "CREATE INDEX ix_positions_expiry ON positions (portfolio_id, expires_us) WHERE {pending}",
    "CREATE INDEX ix_positions_ended ON positions (portfolio_id, updated_us) WHERE state IN ('closed', 'expired')",
    "CREATE UNIQUE INDEX uq_positions_origin ON positions (portfolio_id, origin) WHERE origin IS NOT NULL",
    "CREATE TRIGGER positions_final BEFORE UPDATE ON positions WHEN OLD.state IN ('closed', 'released', 'expired') "
    "BEGIN SELECT RAISE(ABORT, 'refused: the position is final'); END",
    "CREATE TRIGGER positions_kept BEFORE DELETE ON positions WHEN NOT ("
    "OLD.state IN ('closed', 'released', 'expired') AND EXISTS (SELECT 1 FROM archives a "
    "WHERE a.portfolio_id = OLD.portfolio_id AND OLD.updated_seq BETWEEN a.from_seq AND a.to_seq)) "
    "BEGIN SELECT RAISE(ABORT, 'refused: positions are kept'); END",
    "CREATE TRIGGER positions_no_replace BEFORE INSERT ON positions WHEN EXISTS (SELECT 1 FROM positions p "
    "WHERE p.portfolio_id = NEW.portfolio_id AND p.number = NEW.number "
    "AND p.state IN ('closed', 'released', 'expired')) "
    "BEGIN SELECT RAISE(ABORT, 'refused: the position is final'); END",
)
POSTGRESQL = (
    "ALTER TABLE positions DROP CONSTRAINT ck_positions_held, ADD CONSTRAINT ck_positions_held CHECK ({held})",
    "DROP INDEX ix_positions_expiry",
    "CREATE INDEX ix_positions_expiry ON positions (portfolio_id, expires_us) WHERE {pending}",
)


def upgrade() -> None:
    """Allow a hold beside what is open, and index the expiry of both."""
    _change(HELD, PENDING)


def downgrade() -> None:
    """Go back to holds as a state. Refused while an open position holds more: the older version would never free it."""
    new = "(state = 'open' AND expires_us IS NOT NULL) OR (state = 'held' AND held_e8 = 0)"
    query = sa.text(f"SELECT count(*) FROM positions WHERE {new}")
    if not op.get_context().as_sql and (count := op.get_bind().execute(query).scalar()):
        raise CommandError(f"{count} positions hold as only version 0009 and later can; release these holds first")
    _change(HELD_BEFORE, PENDING_BEFORE)


def _change(held: str, pending: str) -> None:
    sqlite = op.get_context().dialect.name == "sqlite"
    for statement in (SQLITE_TABLE, *SQLITE_REST) if sqlite else POSTGRESQL:
        op.execute(statement.format(held=held, pending=pending))
