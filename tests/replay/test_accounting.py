"""Tests the replay's book: arithmetic checked by hand, and detection of a wrong ledger."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Confirm, Decision, DynamicSizingSettings, Ledger, Release, Reserve
from ledger_sizer.config import AppSettings
from ledger_sizer.exchanges.known_markets import MARKETS
from ledger_sizer.replay.accounting import Book, Fill, Order
from ledger_sizer.replay.strategy import strategies
from tests.support.clock import FakeClock
from tests.support.market_histories import quiet_bars

(BAR,) = quiet_bars(["0.0003"])
(QUOTE,) = BAR.quotes
MARKET = MARKETS["binance", "BTC"]
(BOT,) = strategies(1)
ORDER = Order("cycle/BTC", BOT, MARKET, QUOTE, Decimal("0.9"))
FILL = Fill(Decimal("0.018"), Decimal("50100"), Decimal("50000"))


@pytest.fixture
def book() -> Book:
    return Book("main", scored=True, cap=Decimal(5000), venue_cap=Decimal(2000))


class Desk:
    """A real ledger, called as the replay calls it."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def reserve(self, key: str = "r", **changes: Any) -> Decision:
        request: dict[str, Any] = {"tags": {"venue": "binance"}, "signal_score": Decimal("0.9"), "ttl_seconds": 60}
        return self.ledger.run(Reserve(key=key, **(request | changes)))

    def confirm(self, position_id: str, fill: Fill = FILL) -> Decision:
        command = Confirm(key=f"{position_id}/fill", position_id=position_id, quantity=fill.quantity,
                          price=fill.perp_price, spot_price=fill.spot_price)  # fmt: skip
        return self.ledger.run(command)

    def release(self, position_id: str, quantity: Decimal | None = None) -> Decision:
        return self.ledger.run(Release(key=f"{position_id}/{quantity}", position_id=position_id, quantity=quantity))


@pytest.fixture
def desk(new_database: Any, clock: FakeClock) -> Any:
    settings = AppSettings(sizing=DynamicSizingSettings(enabled=True))
    with Ledger.open(new_database("sqlite"), settings=settings, clock=clock) as ledger:
        yield Desk(ledger)


def open_position(book: Book, desk: Desk) -> str:
    granted = desk.reserve()
    book.record_grant(ORDER, granted)
    assert granted.position_id is not None
    book.record_fill(ORDER, FILL, desk.confirm(granted.position_id))
    return granted.position_id


def test_book_a_whole_life_when_ledger_is_right_then_every_figure_is_as_by_hand(book: Book, desk: Desk) -> None:
    granted = desk.reserve()
    book.record_grant(ORDER, granted)
    assert (book.held_e8, book.open_e8) == (930_00000000, 0)
    assert book.is_busy(BOT, MARKET.key)
    assert granted.position_id is not None
    book.record_fill(ORDER, FILL, desk.confirm(granted.position_id))
    assert (book.held_e8, book.open_e8) == (0, 901_80000000)  # 0.018 x 50100
    book.collect_funding({QUOTE.key: QUOTE})
    assert book.figures.funding == Decimal("0.27")  # 0.0003 x 0.018 x 50000
    half = Fill(Decimal("0.009"), Decimal("50500"), Decimal("50450"))
    book.record_close(half, desk.release(granted.position_id, half.quantity))
    assert book.open_e8 == 450_90000000
    assert book.figures.exits == 0
    book.collect_funding({QUOTE.key: QUOTE})
    book.record_close(half, desk.release(granted.position_id))
    figures = book.figures
    assert (book.exposure_e8, figures.exits, figures.entries) == (0, 1, 1)
    assert not book.is_busy(BOT, MARKET.key)
    assert figures.funding == Decimal("0.405")
    # Spot made 0.018 x 450, the short perpetual lost 0.018 x 400.
    assert figures.basis == Decimal("0.9")
    # 0.018 x (50100 + 50000) in, 0.018 x (50500 + 50450) out.
    assert figures.turnover == Decimal("1801.8") + Decimal("1817.1")
    assert (figures.open_sum_e8, figures.open_samples) == (901_80000000 + 450_90000000, 2)
    bucket = figures.buckets[4]
    assert (bucket.grants, bucket.formula_e8, bucket.granted_e8) == (1, 930_00000000, 930_00000000)
    assert (bucket.fills, bucket.filled_e8, bucket.funding) == (1, 901_80000000, Decimal("0.405"))
    assert figures.violations == []


def test_book_funding_when_rate_is_negative_then_the_short_pays(book: Book, desk: Desk) -> None:
    open_position(book, desk)
    book.collect_funding({QUOTE.key: replace(QUOTE, rate=Decimal("-0.001"))})
    assert book.figures.funding == Decimal("-0.9")


def test_book_funding_when_market_has_no_quote_then_nothing_is_collected(book: Book, desk: Desk) -> None:
    open_position(book, desk)
    book.collect_funding({})
    assert book.figures.funding == 0
    assert book.figures.open_sum_e8 == 901_80000000


def test_book_late_fill_when_hold_expired_then_it_is_a_position_of_its_own(
    book: Book, desk: Desk, clock: FakeClock
) -> None:
    granted = desk.reserve()
    book.record_grant(ORDER, granted)
    assert granted.position_id is not None
    book.expire(clock.advance(59))
    assert book.held_e8 == 930_00000000
    book.expire(clock.advance(1))
    assert book.held_e8 == 0
    late = desk.confirm(granted.position_id)
    book.record_fill(ORDER, FILL, late)
    assert late.position_id != granted.position_id
    assert (book.figures.expired, book.figures.late_fills) == (1, 1)
    assert book.figures.violations == []


def test_book_fill_when_it_lands_above_a_cap_then_overage_has_its_cause(desk: Desk, clock: FakeClock) -> None:
    book = Book("main", scored=True, cap=Decimal(5000), venue_cap=Decimal(900))
    desk.ledger.set_cap(key="cap", scope="venue=binance", cap=Decimal(900))
    granted = desk.reserve()
    assert granted.budget == 900
    book.record_grant(ORDER, granted)
    assert granted.position_id is not None
    book.record_fill(ORDER, FILL, desk.confirm(granted.position_id))
    assert book.figures.overages == {"fill price": 1}
    assert book.figures.venue_peak_granted_e8["binance"] == 900_00000000
    assert book.figures.venue_peak_e8["binance"] == 901_80000000
    assert book.figures.violations == [], "a fill above the cap is a fact, not a breach"


def test_book_mark_when_positions_are_open_then_basis_is_valued_at_the_close(book: Book, desk: Desk) -> None:
    open_position(book, desk)
    book.mark_to_market({QUOTE.key: QUOTE})  # spot and perpetual close at 50000
    assert book.figures.basis == Decimal("1.8")


def test_book_decision_when_ledger_counts_something_else_too_then_it_is_noticed(book: Book, desk: Desk) -> None:
    desk.reserve(key="unseen")
    book.record_grant(ORDER, desk.reserve())
    assert book.figures.violations == ["main: seq 2: exposure after it is 1860, by the desk's own book 930"]


@pytest.mark.parametrize(("cap", "venue_cap", "scope"), [(929, 2000, "portfolio"), (5000, 929, "venue=binance")])
def test_book_grant_when_it_breaches_a_cap_then_it_is_noticed(desk: Desk, cap: int, venue_cap: int, scope: str) -> None:
    book = Book("main", scored=True, cap=Decimal(cap), venue_cap=Decimal(venue_cap))
    book.record_grant(ORDER, desk.reserve())  # the ledger knows nothing of these caps
    assert book.figures.violations == [f"main: seq 1: the grant leaves {scope} at 930 of its cap 929"]


def test_book_retry_when_answer_is_another_then_it_is_noticed(book: Book, desk: Desk) -> None:
    first = desk.reserve()
    again = desk.reserve()
    assert again.replayed
    book.record_replay(again, first)
    assert (book.figures.retries, book.figures.violations) == (1, [])
    book.record_replay(desk.reserve(key="another"), first)
    assert book.figures.violations == ["main: another: answered granted at first, granted when asked again"]


def test_book_hold_when_it_is_extended_then_it_expires_later(book: Book, desk: Desk, clock: FakeClock) -> None:
    granted = desk.reserve()
    book.record_grant(ORDER, granted)
    assert granted.position_id is not None
    book.record_extension(desk.ledger.extend(key="x", position_id=granted.position_id, ttl_seconds=300))
    book.expire(clock.now() + timedelta(seconds=299))
    assert book.holds
    book.expire(clock.now() + timedelta(seconds=300))
    assert not book.holds
    assert book.figures.decisions["expire", "applied", None, None] == 1


@pytest.mark.parametrize(
    ("score", "bucket"), [("0", 0), ("0.1999", 0), ("0.2", 1), ("0.7999", 3), ("0.8", 4), ("1", 4)]
)
def test_sort_order_when_score_stands_at_an_edge_then_it_counts_in_the_upper_bucket(score: str, bucket: int) -> None:
    assert replace(ORDER, score=Decimal(score)).bucket == bucket
