"""Helpers to open ledgers on a test's clock and to reserve, two BTC markets, a drift, and direct SQL access."""

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
from ledger_sizer.model.reconciliation import Drift
from tests.support.clock import FakeClock

BTC_SPOT = InstrumentInfo("BTC/USDT", Decimal("0.0001"), Decimal(100), Decimal("0.0001"), Decimal(10))
BTC_PERP = InstrumentInfo("BTC/USDT:USDT", Decimal("0.001"), Decimal(50), Decimal("0.001"), Decimal(5))
BTC_PRICE = Decimal(50000)
steady = hypothesis_settings(deadline=None)
"""For property tests: no deadline, because the time of one example varies on a busy machine."""

TAGS = {"venue": "bybit", "symbol": "BTC", "strategy": "funding"}


def dynamic_settings(**sizing: Any) -> AppSettings:
    """Return settings with dynamic sizing: maximum 1000 USD, fractions 0.3 to 1.0, cap 5000 USD. `sizing` overrides."""
    return AppSettings(
        sizing=DynamicSizingSettings(enabled=True, **sizing), trading=TradingSettings(), ledger=LedgerSettings()
    )


@contextmanager
def opened(url: str, clock: FakeClock, settings: AppSettings | None = None) -> Iterator[Ledger]:
    """Open a ledger on `clock`, and close it at the end. By default flat sizing: 1000 USD a position, cap 5000 USD."""
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
    """Return the position id of a decision. Fails if it has none."""
    assert decision.position_id is not None, f"{decision!r} has no position"
    return decision.position_id


def figures(ledger: Ledger, scope: str = "portfolio", portfolio: str = "main") -> tuple[Any, Any]:
    """Return (held, open) of one scope, USD."""
    row = ledger.exposure(portfolio).scope(scope)
    return row.held, row.open


def assert_verified(ledger: Ledger) -> None:
    """Fail if `verify` has findings."""
    report = ledger.verify()
    assert report.ok, report.findings


def seconds_between(later: datetime, earlier: datetime) -> Decimal:
    """Return the exact difference of two times, seconds."""
    delta = later - earlier
    return Decimal(delta.days * 86_400 + delta.seconds) + Decimal(delta.microseconds).scaleb(-6)


class Intruder:
    """An attacker with a database client: runs SQL beside the ledger, and can remove every guard of the schema."""

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
        """Run one statement in its own transaction, and return how many rows it changed."""
        with self._engine.begin() as connection:
            changed = connection.execute(text(statement), values)
            return int(changed.rowcount)

    def rows(self, query: str, **values: Any) -> list[Any]:
        """Return the rows of a query."""
        with self._engine.begin() as connection:
            return list(connection.execute(text(query), values).all())

    def take_guards_down(self) -> None:
        """Drop every trigger, unique index, CHECK and foreign key, so that the database accepts any change.

        The triggers that maintain `facets` stay: they refuse nothing.
        """
        self._unguarded = True
        with self._engine.begin() as connection:
            if self.dialect == "sqlite":
                _drop_sqlite_guards(connection)
            else:
                _drop_postgresql_guards(connection)
        self._engine.dispose()

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _drop_sqlite_guards(connection: Connection) -> None:
    """Drop triggers and unique indexes. SQLite cannot drop CHECKs and foreign keys: `_on_connect` switches them off."""
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


DRIFT = Drift(
    id=3, portfolio="main", venue="bybit", account="a", subject="BTC/USDT:USDT", side="long", kind="unknown_position",
    state="resolved", policy="freeze", sightings=2, ledger_quantity=Decimal(1), venue_quantity=Decimal("1.5"),
    excess=Decimal("0.50"), price=Decimal(7), detail="what", position=17, revision=1, requested="close",
    frozen_scope="venue=bybit", first_run=1, last_run=2, opened_us=1_767_225_600_000_001,
    updated_us=1_767_225_600_000_001, ended_us=1_767_225_600_000_001, actor="ops", reason="why",
)  # fmt: skip
"""A drift with a value in every field."""


def lend_out(ledger: Ledger) -> None:
    """Make pools of which two lack 400 USD, because others use it, a default cap and a largest position."""
    usd = Decimal
    ledger.set_cap(key="1", portfolio="main", cap=usd(5_000))
    ledger.set_cap(key="2", portfolio="main", scope="venue=*", cap=usd(3_000))
    ledger.set_cap(key="3", portfolio="main", scope="venue=okx", cap=usd(900))
    ledger.reserve(key="4", amount_usd=usd(900), tags={"bot": "c", "venue": "bybit"})
    ledger.set_cap(key="5", portfolio="main", scope="bot=a", guarantee=usd(2_000), max_position_usd=usd(600))
    ledger.set_cap(key="6", portfolio="main", scope="bot=b", guarantee=usd(1_500))
    ledger.reserve(key="7", amount_usd=usd(500), tags={"bot": "a"})
    ledger.adopt(key="8", quantity=usd(1), price=usd(1_000), tags={"bot": "d"})
