"""Ledgers as older versions left them: decisions without actor, client and reference, tags whose value is `*`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, text

from ledger_sizer.model.decisions import GENESIS_HASH, canonical_text, chain_hash
from ledger_sizer.storage.database import downgrade, make_engine
from ledger_sizer.storage.write_store import DECISION_COLUMNS, record_from_row


def forget_callers(url: str) -> None:
    """Rewrite the decisions of all portfolios in the form of before migration 0010, each with the hash it then had."""
    engine = make_engine(url)
    with engine.begin() as connection, _without_triggers(connection):
        connection.execute(text("UPDATE decisions SET actor = NULL, client = NULL, reference = NULL"))
        connection.execute(text("UPDATE facets SET actor = ''"))
        for portfolio_id, name in connection.execute(text("SELECT id, name FROM portfolios WHERE last_seq > 0")).all():
            _rewrite_chain(connection, portfolio_id, name)
    engine.dispose()


def rename_value(url: str, before: str) -> None:
    """Give a tag's value the name `*`, which older versions took. before: its name so far, which is nothing else."""
    texts = {
        "decisions": ("tags", "request", "trace", "binding"), "positions": ("tags",), "scopes": ("scope",),
        "facets": ("tags",),
    }  # fmt: skip
    engine = make_engine(url)
    with engine.begin() as connection, _without_triggers(connection):
        for table, columns in texts.items():
            changes = ", ".join(f"{column} = replace({column}, :before, '*')" for column in columns)
            connection.execute(text(f"UPDATE {table} SET {changes}"), {"before": before})
        for portfolio_id, name in connection.execute(text("SELECT id, name FROM portfolios WHERE last_seq > 0")).all():
            _rewrite_chain(connection, portfolio_id, name)
    engine.dispose()


def downgrade_as_old(url: str, revision: str) -> None:
    """Make the ledger one of an older version, at that version's migration."""
    forget_callers(url)
    downgrade(url, revision)


def _rewrite_chain(connection: Connection, portfolio_id: int, name: str) -> None:
    columns = ", ".join(DECISION_COLUMNS)
    query = text(f"SELECT {columns} FROM decisions WHERE portfolio_id = :id ORDER BY seq")
    previous = GENESIS_HASH
    for row in connection.execute(query, {"id": portfolio_id}).all():
        previous = chain_hash(previous, canonical_text(record_from_row(name, row)))
        values = {"hash": previous, "id": portfolio_id, "seq": row.seq}
        connection.execute(text("UPDATE decisions SET hash = :hash WHERE portfolio_id = :id AND seq = :seq"), values)
    connection.execute(
        text("UPDATE portfolios SET last_hash = :hash WHERE id = :id"), {"hash": previous, "id": portfolio_id}
    )


@contextmanager
def _without_triggers(connection: Connection) -> Iterator[None]:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        yield
        return
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
    triggers = connection.execute(text(query)).all()
    for name, _ in triggers:
        connection.exec_driver_sql(f"DROP TRIGGER {name}")
    yield
    for _, definition in triggers:
        connection.exec_driver_sql(definition)
