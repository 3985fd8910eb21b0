"""Migrated ledgers with the campaign's caps, made once and copied for each round."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import psycopg

from campaign.postgresql import PostgreSQL
from campaign.processes import checked_command
from ledger_sizer import AppSettings, Ledger

E8 = 100_000_000
PORTFOLIOS = ("main", "alt")
CAPS_USD = {"portfolio": 5_000, "venue=okx": 2_000}
CAPS = {scope: usd * E8 for scope, usd in CAPS_USD.items()}
"""The caps that the auditor holds every grant against, 1e-8 USD, the same in each portfolio."""


class Templates:
    """Makes each template when it is first asked for, in `folder`."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self._programs = programs
        self._sqlite: Path | None = None
        self._postgresql: Path | None = None

    def copy_sqlite(self, path: Path) -> str:
        """Make a ledger in a new SQLite file. Returns its URL."""
        if self._sqlite is None:
            made = self.folder / "made.db"
            _prepare(f"sqlite:///{made}", self.folder)
            self._sqlite = self.folder / "template.db"
            with closing(sqlite3.connect(made)) as source, closing(sqlite3.connect(self._sqlite)) as target:
                source.backup(target)
        shutil.copyfile(self._sqlite, path)
        return f"sqlite:///{path}"

    def copy_postgresql(self, server: PostgreSQL) -> PostgreSQL:
        """Make a server with a ledger, not yet running."""
        if self._postgresql is None:
            first = PostgreSQL(self.folder / "pg", self._programs).create()
            first.start()
            try:
                self.prepare_new(first.port, first.url)
                first.stop()
            finally:
                first.end()
            self._postgresql = first.data
        return server.create_like(self._postgresql)

    def prepare_new(self, port: int, url: str) -> None:
        """Create the database, schema and caps on a running server. url: how the ledger reaches it."""
        with psycopg.connect(PostgreSQL.url_at(port, database="postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE ledger")
        _prepare(url, self.folder)


def _prepare(url: str, folder: Path) -> None:
    checked_command("db", "upgrade", "--database-url", url, folder=folder)
    with Ledger.open(url, settings=AppSettings()) as ledger:
        for portfolio in PORTFOLIOS:
            for scope, usd in CAPS_USD.items():
                ledger.set_cap(key=f"campaign/{scope}", portfolio=portfolio, scope=scope, cap=Decimal(usd))
