"""Known traps: each of these once lost money or digits in some program, without an error. None may happen here."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import ROUND_UP, Decimal, getcontext, localcontext
from typing import Any

import pytest
from sqlalchemy import BigInteger, Boolean, Integer, Text, inspect, text
from sqlalchemy.exc import OperationalError

import ledger_sizer.storage.tables  # noqa: F401 - it declares them
from ledger_sizer import AppSettings, Busy, InstrumentInfo, Ledger, LedgerSettings, Leg, TradingSettings
from ledger_sizer.storage.database import make_engine
from ledger_sizer.storage.table_base import Base
from tests.conftest import NewDatabase
from tests.support.clock import FakeClock
from tests.support.ledgers import TAGS, Intruder, assert_verified, figures, opened, position_of

D = Decimal
LONG = D("12345678901.123456789")


@pytest.fixture
def ledger(database_url: str, clock: FakeClock) -> Iterator[Ledger]:
    """Flat sizing: 1000 USD a position, cap 5000."""
    with opened(database_url, clock) as ledger:
        yield ledger


# --- read, then write --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ledgers", [1, 8])
def test_race_when_eight_threads_want_800_of_500_then_exactly_500_are_granted_and_stored(
    database_url: str, clock: FakeClock, ledgers: int
) -> None:
    """Trap: 800 accepted, 101 stored, no error. Tested with one ledger for all threads, and with one for each."""
    settings = AppSettings(trading=TradingSettings(max_position_size_usd=D(1)), ledger=LedgerSettings(retries_max=100))
    desks = [Ledger.open(database_url, settings=settings, clock=clock) for _ in range(ledgers)]
    desks[0].set_cap(key="cap", cap=D(500))
    start = threading.Barrier(8)

    def bot(number: int) -> int:
        start.wait()
        desk = desks[number % ledgers]
        return sum(desk.reserve(key=f"{number}/{n}", tags=TAGS, ttl_seconds=900).granted for n in range(100))

    with ThreadPoolExecutor(8) as pool:
        granted = sum(pool.map(bot, range(8)))
    assert granted == 500
    exposure = desks[0].exposure()
    assert (exposure.held, exposure.headroom, exposure.overage, exposure.seq) == (500, 0, 0, 801)
    assert exposure.scope("venue=bybit").held == 500
    with Intruder(database_url) as intruder:
        assert intruder.rows("SELECT count(*) FROM positions WHERE state = 'held'") == [(500,)]
        assert intruder.rows("SELECT count(*) FROM decisions WHERE outcome = 'denied'") == [(300,)]
    assert_verified(desks[0])
    for desk in desks:
        desk.close()


def test_begin_when_another_writer_is_inside_then_sqlite_does_not_even_read(new_database: NewDatabase) -> None:
    """Trap: two deferred transactions read the same headroom. On SQLite, `with_for_update` silently does nothing."""
    url = new_database("sqlite")
    first, second = (make_engine(url, LedgerSettings(busy_timeout_seconds=1)) for _ in range(2))
    read = text("SELECT count(*) FROM decisions")
    with first.begin() as inside:
        inside.execute(read)
        with pytest.raises(OperationalError, match="locked"), second.begin() as outside:
            outside.execute(read)
    with second.begin() as outside:
        assert outside.execute(read).scalar() == 0
    for engine in (first, second):
        engine.dispose()


def test_reserve_when_another_transaction_has_the_portfolio_then_it_waits_and_then_is_busy(
    new_database: NewDatabase, clock: FakeClock
) -> None:
    """Trap: under READ COMMITTED, SELECT then INSERT grants 14 where 10 fit. Locking the portfolio's row avoids it."""
    url = new_database("postgresql")
    settings = AppSettings(ledger=LedgerSettings(busy_timeout_seconds=1, retries_max=0))
    engine = make_engine(url)
    with opened(url, clock, settings) as ledger, ThreadPoolExecutor(1) as pool:
        ledger.reserve(key="1")
        with engine.begin() as other:
            other.execute(text("SELECT id FROM portfolios WHERE name = 'main' FOR UPDATE"))
            with pytest.raises(Busy, match="nothing was recorded"):
                ledger.reserve(key="2")
            waiting = pool.submit(ledger.reserve, key="3")
            time.sleep(0.2)
            assert not waiting.done()
        assert waiting.result().granted
        assert ledger.reserve(key="2").replayed is False
        assert ledger.exposure().held == 3000
        assert_verified(ledger)
    engine.dispose()


def test_open_sqlite_when_writing_then_an_acknowledged_commit_is_on_the_disk(new_database: NewDatabase) -> None:
    engine = make_engine(new_database("sqlite"))
    with engine.connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "query_only")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "query_only": 0}
    engine.dispose()


@pytest.mark.parametrize("statement", ["DELETE FROM scopes", "UPDATE scopes SET cap_e8 = 1", "CREATE TABLE x (y TEXT)"])
def test_read_connection_when_told_to_write_then_the_database_refuses(database_url: str, statement: str) -> None:
    engine = make_engine(database_url, read_only=True)
    with pytest.raises(Exception, match=r"read-?only"), engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


# --- digits ------------------------------------------------------------------------------------------------------


def test_store_numbers_when_they_are_long_then_they_come_back_to_the_last_digit(
    database_url: str, clock: FakeClock
) -> None:
    """Trap: through `Numeric`, SQLite returned 12345678901.12345695."""
    tiny = D("0.000000000000000000000000000001234567")
    settings = AppSettings(trading=TradingSettings(max_position_size_usd=D("89999999999.12345678")))
    leg = Leg("bybit", "X", "spot", "buy", D("1.123456789"), LONG)
    with opened(database_url, clock, settings) as ledger:
        ledger.set_cap(key="cap", cap=D("92233720368.54775807"))
        held = ledger.reserve(key="1", available_balance=LONG, price=LONG)
        assert held.budget == D("12345678901.12345678"), "rounded down to 1e-8 USD, the unit of every database column"
        ledger.confirm(key="2", position_id=position_of(held), quantity=D("1.123456789"), price=LONG, legs=[leg])
        ledger.adopt(key="3", quantity=tiny, price=D("98765432109876543210.123456789012"))
    with opened(database_url, clock) as ledger:
        assert ledger.exposure().cap == D("92233720368.54775807")
        position, adopted = ledger.position(position_of(held)), ledger.position("main-4")
        assert (str(position.price), str(position.quantity)) == ("12345678901.123456789", "1.123456789")
        assert position.legs == (leg,)
        assert (adopted.quantity, adopted.price) == (tiny, D("98765432109876543210.123456789012"))
        # 1.123456789 x 12345678901.123456789 = 13869836776.1232121..., counted upwards
        with localcontext() as context:
            context.prec = 60
            exact = D("1.123456789") * LONG
        assert D(0) <= position.open - exact < D("0.00000001")
        assert f'"price":"{LONG}"' in ledger.decision(2).request
        assert_verified(ledger)


def test_list_columns_when_read_from_models_or_database_then_no_number_is_a_float(database_url: str) -> None:
    for table in Base.metadata.tables.values():
        for column in table.columns:
            assert isinstance(column.type, BigInteger | Integer | Text | Boolean), f"{table.name}.{column.name}"
            if column.name.endswith(("_e8", "_us")):
                assert isinstance(column.type, BigInteger), f"{table.name}.{column.name}"
    engine = make_engine(database_url)
    found = inspect(engine)
    for name in found.get_table_names():
        for reflected in found.get_columns(name):
            kind = str(reflected["type"]).partition("(")[0]
            assert kind in ("BIGINT", "INTEGER", "TEXT", "VARCHAR", "BOOLEAN"), f"{name}.{reflected['name']} is {kind}"
    engine.dispose()


@pytest.mark.parametrize(
    ("step_a", "step_b", "quantity"), [("0.3", "0.2", "0.6"), ("0.2", "0.3", "0.6"), ("0.004", "0.006", "0.996")]
)
def test_reserve_when_the_legs_steps_differ_then_the_quantity_is_a_multiple_of_both(
    ledger: Ledger, step_a: str, step_b: str, quantity: str
) -> None:
    """Trap: with `max(step_a, step_b)` a raw 1.0 becomes 0.9, which 0.2 does not divide."""
    spot, perp = (InstrumentInfo("X", D(0), D(100), D(step)) for step in (step_a, step_b))
    decision = ledger.reserve(key="1", price=D(1000), spot_instrument=spot, perp_instrument=perp)
    assert decision.quantity == D(quantity)


def test_reserve_when_the_quotient_has_more_than_28_digits_then_it_is_exact(
    database_url: str, clock: FakeClock
) -> None:
    """Trap: `Decimal //` raises past the context's 28 digits."""
    settings = AppSettings(trading=TradingSettings(max_position_size_usd=D("80000000000")))
    fine = InstrumentInfo("X", D(0), D("1E+29"), D("1E-18"))
    with opened(database_url, clock, settings) as ledger:
        ledger.set_cap(key="cap", cap=D("90000000000"))
        decision = ledger.reserve(key="1", price=D("0.000003"), spot_instrument=fine, perp_instrument=fine)
        assert decision.quantity == D("26666666666666666.666666666666666666")
        assert_verified(ledger)


def _awkward_figures(ledger: Ledger, portfolio: str) -> list[Any]:
    """Run a few commands with awkward figures. Returns the figures, without the portfolio's name."""
    spot = InstrumentInfo("S", D("0.0001"), D(100), D("0.0001"), D("5.01"))
    perp = InstrumentInfo("P", D("0.1"), D(500), D("0.1"), contract_size=D("0.01"))
    ledger.set_cap(key="1", portfolio=portfolio, cap=D("4321.123456789"))
    common: dict[str, Any] = {"price": D("51234.5678"), "spot_instrument": spot, "perp_instrument": perp}
    dry = ledger.reserve(key="2", portfolio=portfolio, available_balance=D("987.654321"), dry_run=True, **common)
    held = ledger.reserve(
        key="2", portfolio=portfolio, available_balance=D("987.654321"), ttl_seconds=D("59.999999"), **common
    )
    ledger.confirm(key="3", position_id=position_of(held), quantity=D("0.0179999"), price=D("51236.00001"))
    ledger.release(key="4", position_id=position_of(held), quantity=D("0.0012345"))
    exposure = ledger.exposure(portfolio)
    position = ledger.position(position_of(held))
    return [
        dry.budget, dry.quantity, held.budget, held.quantity, held.expires_at, exposure.open, exposure.headroom,
        position.quantity, position.open, position.legs, ledger.verify(portfolio).ok,
        ledger.explain(2, portfolio).data["match"], [decision.request for decision in ledger.history(portfolio)][-2:],
    ]  # fmt: skip


def test_trade_when_the_threads_decimal_context_was_changed_then_every_figure_is_the_same(ledger: Ledger) -> None:
    """Trap: a library changes precision and rounding of the thread's decimal context, and leaves them so."""
    expected = _awkward_figures(ledger, "plain")
    with localcontext():
        getcontext().prec = 3
        getcontext().rounding = ROUND_UP
        changed = _awkward_figures(ledger, "changed")
        assert [str(figure) for figure in changed] == [str(figure) for figure in expected]


def test_trade_when_ccxt_has_rounded_in_the_same_thread_then_every_figure_is_the_same(ledger: Ledger) -> None:
    """A real case: ccxt's `decimal_to_precision` changes the thread's decimal context and leaves it so."""
    rounding = pytest.importorskip("ccxt.base.decimal_to_precision", reason="the extra `exchanges` is not installed")
    expected = _awkward_figures(ledger, "plain")

    def trade() -> list[Any]:
        before = getcontext().rounding
        rounding.decimal_to_precision("1.23456789", rounding.TRUNCATE, 3, rounding.DECIMAL_PLACES)
        assert getcontext().rounding != before, "ccxt behaves by now; this test has lost its point"
        return _awkward_figures(ledger, "after-ccxt")

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(trade).result() == expected
    assert figures(ledger, portfolio="plain") == figures(ledger, portfolio="after-ccxt")
