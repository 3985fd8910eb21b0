"""Alembic's entry point. Migrates the database named by the caller, by `-x url=...`, or by LEDGER_DATABASE_URL."""

from logging.config import fileConfig
from typing import Any

from alembic import context
from sqlalchemy import text
from sqlalchemy.engine import URL

import ledger_sizer.storage.tables  # noqa: F401 - it declares them
from ledger_sizer.config import LedgerSettings
from ledger_sizer.storage.database import database_url, is_sqlite, make_engine, sqlite_path
from ledger_sizer.storage.sqlite_start import create_file
from ledger_sizer.storage.table_base import Base

config = context.config
if config.config_file_name is not None and config.attributes.get("url") is None:
    fileConfig(config.config_file_name, disable_existing_loggers=False)

MIGRATION_LOCK = 0x6C65_6467
"""Key of the advisory lock that migrations take on PostgreSQL: any number that nobody else uses."""

OPTIONS: dict[str, Any] = {
    "target_metadata": Base.metadata,
    "compare_type": True,
    "render_as_batch": True,
}


def _url() -> URL:
    given = config.attributes.get("url")
    if isinstance(given, URL):
        return given
    return database_url(given or context.get_x_argument(as_dictionary=True).get("url") or LedgerSettings().database_url)


def run_offline() -> None:
    """Print the SQL instead of running it (`alembic upgrade head --sql`)."""
    context.configure(url=_url(), literal_binds=True, dialect_opts={"paramstyle": "named"}, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


def run_online() -> None:
    """Migrate over the caller's connection, or over a new one."""
    given = config.attributes.get("connection")
    if given is not None:
        context.configure(connection=given, **OPTIONS)
        with context.begin_transaction():
            context.run_migrations()
        return
    url = _url()
    if is_sqlite(url):
        create_file(sqlite_path(url))
    engine = make_engine(url, config.attributes.get("settings"), bounded=False)
    try:
        with engine.connect() as connection:
            # One transaction for all steps, begun before the version is read. If two processes migrate at once, one
            # waits and then finds nothing left to do. On SQLite, Alembic itself would begin a transaction per step, and
            # another process could get in between. SQLite's BEGIN IMMEDIATE waits; PostgreSQL needs an advisory lock.
            connection.begin()
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
            context.configure(connection=connection, **OPTIONS)
            with context.begin_transaction():
                context.run_migrations()
            connection.commit()
    finally:
        engine.dispose()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
