"""Adds manifests of archive files, and the facets by which history finds rare decisions.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# A row may be deleted only if a manifest covers it.
DECISION_ARCHIVED = """EXISTS (SELECT 1 FROM archives a WHERE a.portfolio_id = OLD.portfolio_id
    AND OLD.seq BETWEEN a.from_seq AND a.to_seq)"""
POSITION_ARCHIVED = """OLD.state IN ('closed', 'released', 'expired') AND EXISTS (
    SELECT 1 FROM archives a WHERE a.portfolio_id = OLD.portfolio_id
    AND OLD.updated_seq BETWEEN a.from_seq AND a.to_seq)"""
# A manifest continues the one before and ends at an existing decision. Without decisions up to there, it is accepted
# too: a copy of a ledger inserts the manifests first.
MANIFEST_CONTINUES = """NEW.from_seq = 1 + COALESCE(
        (SELECT max(a.to_seq) FROM archives a WHERE a.portfolio_id = NEW.portfolio_id), 0)
    AND (EXISTS (SELECT 1 FROM decisions d
            WHERE d.portfolio_id = NEW.portfolio_id AND d.seq = NEW.to_seq AND d.hash = NEW.last_hash)
        OR NOT EXISTS (SELECT 1 FROM decisions d WHERE d.portfolio_id = NEW.portfolio_id AND d.seq <= NEW.to_seq))"""

NOTE_FACETS = """
INSERT INTO facets (portfolio_id, tags, command, outcome, reason)
    SELECT DISTINCT portfolio_id, tags, command, outcome, COALESCE(reason, '') FROM decisions
    WHERE {rows} ON CONFLICT DO NOTHING;
INSERT INTO facet_blocks (facet_id, block)
    SELECT f.id, d.block FROM (
        SELECT DISTINCT portfolio_id, tags, command, outcome, COALESCE(reason, '') AS reason, {block} AS block
        FROM decisions WHERE {rows}
    ) d JOIN facets f ON f.portfolio_id = d.portfolio_id AND f.tags = d.tags AND f.command = d.command
        AND f.outcome = d.outcome AND f.reason = d.reason
    WHERE true ON CONFLICT DO NOTHING;
"""
LAST_BLOCK = {
    "rows": "portfolio_id = NEW.portfolio_id AND seq > NEW.seq - 1024 AND seq <= NEW.seq",
    "block": "NEW.seq / 1024",
}
# An archive may end within a block. The first part of that block is then deleted before the block is full.
ARCHIVED_PART = {
    "rows": "portfolio_id = NEW.portfolio_id AND seq > NEW.to_seq / 1024 * 1024 AND seq <= NEW.to_seq",
    "block": "NEW.to_seq / 1024 + 1",
}
EVERY_FULL_BLOCK = {
    "rows": "seq <= (SELECT p.last_seq / 1024 * 1024 FROM portfolios p WHERE p.id = decisions.portfolio_id)",
    "block": "(seq + 1023) / 1024",
}

POSTGRESQL = f"""
CREATE FUNCTION ledger_note_facets() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN {NOTE_FACETS.format(**LAST_BLOCK)} RETURN NULL; END $$;
CREATE TRIGGER decisions_facets AFTER INSERT ON decisions
    FOR EACH ROW WHEN (NEW.seq % 1024 = 0) EXECUTE FUNCTION ledger_note_facets();
CREATE FUNCTION ledger_note_archived_facets() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN {NOTE_FACETS.format(**ARCHIVED_PART)} RETURN NULL; END $$;
CREATE TRIGGER archives_facets AFTER INSERT ON archives
    FOR EACH ROW EXECUTE FUNCTION ledger_note_archived_facets();
CREATE FUNCTION ledger_refuse_unarchived_decision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF {DECISION_ARCHIVED} THEN RETURN OLD; END IF;
    RAISE EXCEPTION 'DELETE on decisions refused: decisions are append-only' USING ERRCODE = 'restrict_violation';
END $$;
CREATE FUNCTION ledger_refuse_unarchived_position() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF {POSITION_ARCHIVED} THEN RETURN OLD; END IF;
    RAISE EXCEPTION 'DELETE on positions refused: positions are kept' USING ERRCODE = 'restrict_violation';
END $$;
CREATE FUNCTION ledger_refuse_loose_archive() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT ({MANIFEST_CONTINUES}) THEN
        RAISE EXCEPTION 'INSERT on archives refused: an archive continues the one before and ends at a decision'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
DROP TRIGGER decisions_append_only ON decisions;
CREATE TRIGGER decisions_append_only BEFORE UPDATE ON decisions
    FOR EACH ROW EXECUTE FUNCTION ledger_refuse_change('decisions are append-only');
CREATE TRIGGER decisions_no_delete BEFORE DELETE ON decisions
    FOR EACH ROW EXECUTE FUNCTION ledger_refuse_unarchived_decision();
DROP TRIGGER positions_kept ON positions;
CREATE TRIGGER positions_kept BEFORE DELETE ON positions
    FOR EACH ROW EXECUTE FUNCTION ledger_refuse_unarchived_position();
CREATE TRIGGER archives_continue BEFORE INSERT ON archives
    FOR EACH ROW EXECUTE FUNCTION ledger_refuse_loose_archive();
CREATE TRIGGER archives_final BEFORE UPDATE OR DELETE ON archives
    FOR EACH ROW EXECUTE FUNCTION ledger_refuse_change('archives are final');
CREATE TRIGGER archives_no_truncate BEFORE TRUNCATE ON archives
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change('archives are final');
"""
POSTGRESQL_BACK = """
DROP TRIGGER decisions_facets ON decisions;
DROP TRIGGER decisions_no_delete ON decisions;
DROP TRIGGER decisions_append_only ON decisions;
CREATE TRIGGER decisions_append_only BEFORE UPDATE OR DELETE ON decisions
    FOR EACH ROW EXECUTE FUNCTION ledger_refuse_change('decisions are append-only');
DROP TRIGGER positions_kept ON positions;
CREATE TRIGGER positions_kept BEFORE DELETE ON positions
    FOR EACH ROW EXECUTE FUNCTION ledger_refuse_change('positions are kept');
"""
POSTGRESQL_FUNCTIONS = (
    "ledger_note_facets",
    "ledger_note_archived_facets",
    "ledger_refuse_unarchived_decision",
    "ledger_refuse_unarchived_position",
    "ledger_refuse_loose_archive",
)
SQLITE_GUARDS = [
    ("decisions_no_delete", f"DELETE ON decisions WHEN NOT ({DECISION_ARCHIVED})", "decisions are append-only"),
    ("positions_kept", f"DELETE ON positions WHEN NOT ({POSITION_ARCHIVED})", "positions are kept"),
    ("archives_continue", f"INSERT ON archives WHEN NOT ({MANIFEST_CONTINUES})",
     "an archive continues the one before and ends at a decision"),
    ("archives_no_update", "UPDATE ON archives", "archives are final"),
    ("archives_no_delete", "DELETE ON archives", "archives are final"),
]  # fmt: skip


def upgrade() -> None:
    """Create the tables of manifests and facets, and allow deleting the rows that a manifest covers."""
    _create_archives()
    _create_facets()
    for statement in NOTE_FACETS.format(**EVERY_FULL_BLOCK).split(";")[:2]:
        op.execute(statement)
    if op.get_context().dialect.name == "postgresql":
        op.execute(POSTGRESQL)
        return
    op.execute("DROP TRIGGER decisions_no_delete")
    op.execute("DROP TRIGGER positions_kept")
    for name, when, why in SQLITE_GUARDS:
        op.execute(f"CREATE TRIGGER {name} BEFORE {when} BEGIN SELECT RAISE(ABORT, 'refused: {why}'); END")
    op.execute(
        "CREATE TRIGGER decisions_facets AFTER INSERT ON decisions WHEN NEW.seq % 1024 = 0 "
        f"BEGIN {NOTE_FACETS.format(**LAST_BLOCK)} END"
    )
    op.execute(
        f"CREATE TRIGGER archives_facets AFTER INSERT ON archives BEGIN {NOTE_FACETS.format(**ARCHIVED_PART)} END"
    )


def _create_archives() -> None:
    op.create_table(
        "archives",
        sa.Column("portfolio_id", KEY, autoincrement=False, nullable=False),
        sa.Column("from_seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("to_seq", sa.BigInteger(), nullable=False),
        sa.Column("from_us", sa.BigInteger(), nullable=False),
        sa.Column("to_us", sa.BigInteger(), nullable=False),
        sa.Column("last_hash", sa.Text(), nullable=False),
        sa.Column("positions", sa.BigInteger(), nullable=False),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("from_seq >= 1 AND to_seq >= from_seq", name=op.f("ck_archives_range")),
        sa.CheckConstraint("to_us >= from_us", name=op.f("ck_archives_times")),
        sa.CheckConstraint("positions >= 0", name=op.f("ck_archives_positions")),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_archives_sha256")),
        sa.PrimaryKeyConstraint("portfolio_id", "from_seq", name=op.f("pk_archives")),
    )


def _create_facets() -> None:
    op.create_table(
        "facets",
        sa.Column("id", KEY, sa.Identity(), nullable=False),
        sa.Column("portfolio_id", KEY, nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("command", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_facets")),
    )
    op.create_index(
        "uq_facets_portfolio_id_tags_command_outcome_reason",
        "facets",
        ["portfolio_id", "tags", "command", "outcome", "reason"],
        unique=True,
    )
    op.create_table(
        "facet_blocks",
        sa.Column("facet_id", KEY, autoincrement=False, nullable=False),
        sa.Column("block", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.CheckConstraint("block >= 1", name=op.f("ck_facet_blocks_block")),
        sa.PrimaryKeyConstraint("facet_id", "block", name=op.f("pk_facet_blocks")),
    )


def downgrade() -> None:
    """Remove them. Refused if history was archived: the older version could not find it any more."""
    if not op.get_context().as_sql and op.get_bind().execute(sa.text("SELECT count(*) FROM archives")).scalar():
        raise CommandError("history was archived, and only version 0005 and later know where it is")
    if op.get_context().dialect.name == "postgresql":
        op.execute(POSTGRESQL_BACK)
    else:
        for name in ("decisions_facets", "decisions_no_delete", "positions_kept"):
            op.execute(f"DROP TRIGGER {name}")
        for name, table, why in (
            ("decisions_no_delete", "decisions", "decisions are append-only"),
            ("positions_kept", "positions", "positions are kept"),
        ):
            op.execute(
                f"CREATE TRIGGER {name} BEFORE DELETE ON {table} BEGIN SELECT RAISE(ABORT, 'refused: {why}'); END"
            )
    for table in ("facet_blocks", "facets", "archives"):
        op.drop_table(table)
    if op.get_context().dialect.name == "postgresql":
        for name in POSTGRESQL_FUNCTIONS:
            op.execute(f"DROP FUNCTION {name}()")
