"""A desk for tests: two markets, settings with the contract's figures, and ledgers opened on a clock of the test's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any, Self

from hypothesis import settings as hypothesis_settings
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text

from ledger_sizer import (
    AppSettings,
    Decision,
    DynamicSizingSettings,
    InstrumentInfo,
    Ledger,
    LedgerSettings,
    TradingSettings,
)
from tests.support.clock import FakeClock

BTC_SPOT = InstrumentInfo("BTC/USDT", Decimal("0.0001"), Decimal(100), Decimal("0.0001"), Decimal(10))
BTC_PERP = InstrumentInfo("BTC/USDT:USDT", Decimal("0.001"), Decimal(50), Decimal("0.001"), Decimal(5))
BTC_PRICE = Decimal(50000)
steady = hypothesis_settings(deadline=None)
"""For properties: on a busy machine one example may take longer than the next, which says nothing about the code."""

TAGS = {"venue": "bybit", "symbol": "BTC", "strategy": "funding"}


def dynamic_settings(**sizing: Any) -> AppSettings:
    """Settings with dynamic sizing on: maximum 1000, fractions 0.3 to 1.0, cap 5000; `sizing` changes the latter."""
    return AppSettings(
        sizing=DynamicSizingSettings(enabled=True, **sizing), trading=TradingSettings(), ledger=LedgerSettings()
    )


@contextmanager
def opened(url: str, clock: FakeClock, settings: AppSettings | None = None) -> Iterator[Ledger]:
    """A ledger on `clock`, closed at the end. Flat sizing (1000 USD a position, cap 5000) unless `settings` differ."""
    with Ledger.open(url, settings=settings, clock=clock) as ledger:
        yield ledger


def reserve_btc(ledger: Ledger, key: str, **request: Any) -> Decision:
    """Reserve with the two BTC markets at 50,000 USD and the usual tags; `request` changes or adds arguments."""
    arguments: dict[str, Any] = {
        "tags": TAGS,
        "price": BTC_PRICE,
        "spot_instrument": BTC_SPOT,
        "perp_instrument": BTC_PERP,
    }
    return ledger.reserve(key=key, **(arguments | request))


def position_of(decision: Decision) -> str:
    """The id of the position a decision is about, which it must have."""
    assert decision.position_id is not None, f"{decision!r} has no position"
    return decision.position_id


def figures(ledger: Ledger, scope: str = "portfolio", portfolio: str = "main") -> tuple[Any, Any]:
    """(held, open) of one scope, USD."""
    row = ledger.exposure(portfolio).scope(scope)
    return row.held, row.open


def assert_verified(ledger: Ledger) -> None:
    """The audit finds nothing wrong."""
    report = ledger.verify()
    assert report.ok, report.findings


def seconds_between(later: datetime, earlier: datetime) -> Decimal:
    """The exact distance of two times in seconds."""
    delta = later - earlier
    return Decimal(delta.days * 86_400 + delta.seconds) + Decimal(delta.microseconds).scaleb(-6)


class Intruder:
    """Someone with a database client: runs SQL beside the ledger, if asked to with every guard taken down first."""

    def __init__(self, url: str) -> None:
        self._engine: Engine = create_engine(make_url(url))
        self._unguarded = False
        self.dialect = self._engine.dialect.name
        if self.dialect == "sqlite":
            event.listen(self._engine, "connect", self._on_connect)

    def _on_connect(self, connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA ignore_check_constraints = {'ON' if self._unguarded else 'OFF'}")
        connection.execute(f"PRAGMA foreign_keys = {'OFF' if self._unguarded else 'ON'}")

    def run(self, statement: str, **values: Any) -> int:
        """Run one statement in a transaction of its own. Returns how many rows it changed."""
        with self._engine.begin() as connection:
            changed = connection.execute(text(statement), values)
            return int(changed.rowcount)

    def rows(self, query: str, **values: Any) -> list[Any]:
        """What a query finds."""
        with self._engine.begin() as connection:
            return list(connection.execute(text(query), values).all())

    def take_guards_down(self) -> None:
        """Drop every trigger, unique index, CHECK and foreign key: nothing is left to refuse a change.

        What notes facets stays: it refuses nothing.
        """
        self._unguarded = True
        with self._engine.begin() as connection:
            if self.dialect == "sqlite":
                _drop_sqlite_guards(connection)
            else:
                _drop_postgresql_guards(connection)
        self._engine.dispose()

    def close(self) -> None:
        """End its connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _drop_sqlite_guards(connection: Connection) -> None:
    """CHECKs and foreign keys cannot be dropped there; they are switched off on each connection instead."""
    query = (
        "SELECT type, name FROM sqlite_master WHERE type = 'trigger' AND name NOT LIKE '%facets' "
        "OR sql LIKE 'CREATE UNIQUE%' AND tbl_name <> 'facets'"
    )
    for kind, name in connection.execute(text(query)).all():
        connection.exec_driver_sql(f"DROP {kind} {name}")


def _drop_postgresql_guards(connection: Connection) -> None:
    triggers = (
        "SELECT tgname, tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal AND tgname NOT LIKE '%facets'"
    )
    for name, table in connection.execute(text(triggers)).all():
        connection.exec_driver_sql(f"DROP TRIGGER {name} ON {table}")
    constraints = (
        "SELECT conname, conrelid::regclass::text FROM pg_constraint "
        "WHERE contype IN ('c', 'f', 'u') AND connamespace = 'public'::regnamespace"
    )
    for name, table in connection.execute(text(constraints)).all():
        connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    indexes = (
        "SELECT indexname FROM pg_indexes "
        "WHERE schemaname = 'public' AND indexname LIKE 'uq\\_%' AND tablename <> 'facets'"
    )
    for (name,) in connection.execute(text(indexes)).all():
        connection.exec_driver_sql(f"DROP INDEX {name}")
