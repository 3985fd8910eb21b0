"""Records who sent each command, lets history find it, and adds the desk: a chain about all portfolios.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

GENESIS_HASH = "0" * 64
DECISION_COLUMNS = ("actor", "client", "reference")

# As in 0005, with the actor.
NOTE_FACETS = """
INSERT INTO facets (portfolio_id, tags, command, outcome, reason{actor})
    SELECT DISTINCT portfolio_id, tags, command, outcome, COALESCE(reason, ''){value} FROM decisions
    WHERE {rows} ON CONFLICT DO NOTHING;
INSERT INTO facet_blocks (facet_id, block)
    SELECT f.id, d.block FROM (
        SELECT DISTINCT portfolio_id, tags, command, outcome, COALESCE(reason, '') AS reason{named}, {block} AS block
        FROM decisions WHERE {rows}
    ) d JOIN facets f ON f.portfolio_id = d.portfolio_id AND f.tags = d.tags AND f.command = d.command
        AND f.outcome = d.outcome AND f.reason = d.reason{equal}
    WHERE true ON CONFLICT DO NOTHING;
"""
WITH_ACTOR = {
    "actor": ", actor",
    "value": ", COALESCE(actor, '')",
    "named": ", COALESCE(actor, '') AS actor",
    "equal": " AND f.actor = d.actor",
}
WITHOUT_ACTOR = dict.fromkeys(WITH_ACTOR, "")
TRIGGERS = {
    # An archive may end within a block. The first part of that block is then deleted before the block is full.
    "archives_facets": ("ledger_note_archived_facets", "AFTER INSERT ON archives", {
        "rows": "portfolio_id = NEW.portfolio_id AND seq > NEW.to_seq / 1024 * 1024 AND seq <= NEW.to_seq",
        "block": "NEW.to_seq / 1024 + 1",
    }),
    "decisions_facets": ("ledger_note_facets", "AFTER INSERT ON decisions WHEN NEW.seq % 1024 = 0", {
        "rows": "portfolio_id = NEW.portfolio_id AND seq > NEW.seq - 1024 AND seq <= NEW.seq",
        "block": "NEW.seq / 1024",
    }),
}  # fmt: skip
FACET_INDEX = ("portfolio_id", "tags", "command", "outcome", "reason")

# A process of an older version would not see that the desk is halted, so it may not write any more. A copy of a ledger
# inserts old decisions, which are older than the desk's row.
TOO_OLD = (
    "this process is older than the database, which names an actor in every decision: restart it as the new version"
)
OLD_FORM = "NEW.actor IS NULL AND NEW.decided_us >= (SELECT created_us FROM portfolios WHERE id = 0)"
POSTGRESQL = f"""
CREATE FUNCTION ledger_refuse_old_form() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF {OLD_FORM} THEN RAISE EXCEPTION 'refused: {TOO_OLD}' USING ERRCODE = 'restrict_violation'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER decisions_form BEFORE INSERT ON decisions
    FOR EACH ROW WHEN (NEW.actor IS NULL) EXECUTE FUNCTION ledger_refuse_old_form();
CREATE FUNCTION ledger_desk_status() RETURNS text LANGUAGE plpgsql AS $$
DECLARE found text;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1818584164);
    SELECT status INTO found FROM scopes WHERE portfolio_id = 0 AND scope = 'portfolio';
    RETURN found;
END $$;
"""
"""A grant calls `ledger_desk_status` in the statement that writes it. Each query in it sees what is committed by then,
and who changes the desk holds the same lock exclusively: so no grant commits after such a change."""


def upgrade() -> None:
    """Add the columns, the desk and its guards."""
    for column in DECISION_COLUMNS:
        op.add_column("decisions", sa.Column(column, sa.Text(), nullable=True))
    op.add_column("api_keys", sa.Column("client", sa.Text(), nullable=True))
    op.add_column("facets", sa.Column("actor", sa.Text(), nullable=False, server_default=""))
    _index_facets([*FACET_INDEX, "actor"], FACET_INDEX)
    _replace_facet_triggers(WITH_ACTOR)
    _create_desk()
    if op.get_context().dialect.name == "postgresql":
        op.execute(POSTGRESQL)
    else:
        op.execute(
            f"CREATE TRIGGER decisions_form BEFORE INSERT ON decisions WHEN {OLD_FORM} "
            f"BEGIN SELECT RAISE(ABORT, 'refused: {TOO_OLD}'); END"
        )


def _create_desk() -> None:
    postgresql = op.get_context().dialect.name == "postgresql"
    now = (
        "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint" if postgresql else "strftime('%s', 'now') * 1000000"
    )
    op.execute(
        "INSERT INTO portfolios (id, name, last_seq, last_hash, last_us, created_us) "
        f"VALUES (0, '*', 0, '{GENESIS_HASH}', 0, {now})"
    )
    op.execute(
        "INSERT INTO scopes (portfolio_id, scope, cap_e8, held_e8, open_e8, overage_e8, status, frozen) "
        "VALUES (0, 'portfolio', 0, 0, 0, 0, 'active', 0)"
    )


def _index_facets(columns: list[str], before: tuple[str, ...] | list[str]) -> None:
    op.drop_index("uq_facets_" + "_".join(before), "facets")
    op.create_index("uq_facets_" + "_".join(columns), "facets", columns, unique=True)


def _replace_facet_triggers(form: dict[str, str]) -> None:
    for trigger, (function, when, rows) in TRIGGERS.items():
        body = NOTE_FACETS.format(**form, **rows)
        if op.get_context().dialect.name == "postgresql":
            op.execute(
                f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$\n"
                f"BEGIN {body} RETURN NULL; END $$"
            )
        else:
            op.execute(f"DROP TRIGGER {trigger}")
            op.execute(f"CREATE TRIGGER {trigger} {when} BEGIN {body} END")


def downgrade() -> None:
    """Remove them. Refused where they are in use: the older version could not verify the chain any more.

    Down to base everything is removed, so there it is not refused.
    """
    if not op.get_context().as_sql and context.get_revision_argument() is not None:
        _require_unused()
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP TRIGGER decisions_form ON decisions")
        op.execute("DROP FUNCTION ledger_refuse_old_form()")
        op.execute("DROP FUNCTION ledger_desk_status()")
    else:
        op.execute("DROP TRIGGER decisions_form")
    op.execute("DELETE FROM scopes WHERE portfolio_id = 0")
    op.execute("DELETE FROM portfolios WHERE id = 0")
    _replace_facet_triggers(WITHOUT_ACTOR)
    _index_facets([*FACET_INDEX], [*FACET_INDEX, "actor"])
    op.drop_column("facets", "actor")
    op.drop_column("api_keys", "client")
    for column in DECISION_COLUMNS:
        op.drop_column("decisions", column)


def _require_unused() -> None:
    for query, what in (
        ("SELECT count(*) FROM decisions WHERE actor IS NOT NULL", "decisions name their actor"),
        ("SELECT count(*) FROM api_keys WHERE client IS NOT NULL", "API keys name their client"),
    ):
        if count := op.get_bind().execute(sa.text(query)).scalar():
            raise CommandError(
                f"{count} {what}, which only version 0010 and later can read; restore a backup from before the upgrade"
            )
