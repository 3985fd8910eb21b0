"""A bot declares its book, and the ledger is brought to match: level-triggered, in one locked batch."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Decision, InstrumentInfo, InvalidRequest, Ledger, Leg, LegPlan, NotFound
from ledger_sizer.model.units import exact_arithmetic
from tests.support.clock import FakeClock
from tests.support.decimal_contexts import HOSTILE, hostile
from tests.support.ledgers import assert_verified, figures, position_of

D = Decimal
BOT = {"bot": "a"}
AT_BYBIT = {"bot": "a", "venue": "bybit"}
BTC, ETH = "BTC/USDT", "ETH/USDT"


def hold(ledger: Ledger, key: str, symbol: str = BTC, usd: int = 100, **request: Any) -> str:
    request = {"tags": {**BOT, "symbol": symbol}, "amount_usd": D(usd), "ttl_seconds": 600, **request}
    return position_of(ledger.reserve(key=key, **request))


def settle(ledger: Ledger, book: dict[str, tuple[Any, ...]], *resting: str, **more: Any) -> list[tuple[str, str]]:
    """Settle, and return verb and key of each decision. Asked again at once it must change nothing."""
    made = ledger.settle(BOT, book, resting, **more)
    assert all(one.record.outcome != "denied" for one in made)
    assert ledger.settle(BOT, book, resting, **more) == [], "a second call changes nothing"
    assert_verified(ledger)
    return [(one.command, one.key) for one in made]


def open_of(ledger: Ledger) -> dict[str, tuple[Decimal | None, Decimal | None]]:
    return {one.position_id: (one.quantity, one.price) for one in ledger.positions(state="open")}


def test_settle_when_an_order_filled_that_nobody_told_then_its_hold_is_filled_and_the_rest_kept(
    ledger: Ledger, clock: FakeClock
) -> None:
    held = hold(ledger, "1")
    assert settle(ledger, {BTC: (D("0.001"), D(50000))}) == [("confirm", "ledger:settle:1:1:0.001")]
    assert figures(ledger) == (50, 50), "the hold is younger than a book may be: its rest may fill yet"
    clock.advance(61)
    assert settle(ledger, {BTC: (D("0.001"), D(50000))}) == [("release", "ledger:settle:1:2:held_only")]
    assert figures(ledger) == (0, 50)
    assert open_of(ledger) == {held: (D("0.001"), D(50000))}


def test_settle_when_the_fill_cost_more_than_the_budget_then_one_position_has_it_all(ledger: Ledger) -> None:
    held = hold(ledger, "1")
    settle(ledger, {BTC: (D("0.0021"), D(50000))})
    assert open_of(ledger) == {held: (D("0.0021"), D(50000))}


def test_settle_when_nothing_explains_a_holding_then_it_is_adopted_with_the_tags(ledger: Ledger) -> None:
    assert settle(ledger, {BTC: (D("0.5"), D(60000))}) == [("adopt", "ledger:settle:1:0:0.5")]
    (position,) = ledger.positions()
    assert dict(position.tags) == {"bot": "a", "symbol": BTC}
    assert ledger.exposure().overage == D(25000)


def test_settle_when_the_venue_is_known_then_the_position_says_its_leg(ledger: Ledger) -> None:
    ledger.settle(AT_BYBIT, {"BTC/USDT:USDT": (D(2), D(100), "sell")})
    (position,) = ledger.positions()
    assert position.legs == (Leg("bybit", "BTC/USDT:USDT", "swap", "sell", D(2), D(100)),)
    assert ledger.settle(AT_BYBIT, {"BTC/USDT:USDT": (D(2), D(100), "sell")}) == []


def test_settle_when_the_book_has_less_then_holds_end_before_and_the_oldest_closes_first(
    ledger: Ledger, clock: FakeClock
) -> None:
    first, second = hold(ledger, "1"), hold(ledger, "2")
    for name in (first, second):
        ledger.confirm(key=f"{name}/fill", position_id=name, quantity=D(1), price=D(100))
    hold(ledger, "3")
    clock.advance(61)
    assert settle(ledger, {BTC: (D("0.75"), D(100))}) == [
        ("release", "ledger:settle:5:5:held_only"),
        ("release", "ledger:settle:1:3:0"),
        ("release", "ledger:settle:2:4:0.75"),
    ]
    assert figures(ledger) == (0, 75)


def test_settle_when_a_market_is_absent_then_it_is_flat_and_other_bots_are_left_alone(
    ledger: Ledger, clock: FakeClock
) -> None:
    mine = hold(ledger, "1")
    others = hold(ledger, "2", tags={"bot": "b", "symbol": BTC})
    several = hold(ledger, "3", tags={"bot": ["a", "b"], "symbol": ETH})
    for name in (mine, others, several):
        ledger.confirm(key=f"{name}/fill", position_id=name, quantity=D(1), price=D(100))
    assert [key for _, key in settle(ledger, {})] == ["ledger:settle:1:4:0", "ledger:settle:3:6:0"]
    assert list(open_of(ledger)) == [others]


def test_settle_when_the_position_was_found_by_reconciliation_then_it_is_left_alone(ledger: Ledger) -> None:
    ledger.adopt(key="x", tags={**BOT, "external": "yes", "symbol": BTC}, quantity=D(1), price=D(100))
    assert settle(ledger, {}) == []
    assert figures(ledger) == (0, 100)


def test_settle_when_an_order_rests_then_its_hold_never_ends_by_time_until_it_does_not_rest(
    ledger: Ledger, clock: FakeClock
) -> None:
    held = hold(ledger, "1", ttl_seconds=30)
    assert settle(ledger, {}, BTC) == [("extend", "ledger:settle:1:1:until_known")]
    clock.advance(10_000)
    assert ledger.sweep() == 0
    assert ledger.position(held).until_known
    assert settle(ledger, {}, BTC) == []
    assert settle(ledger, {}) == [("release", "ledger:settle:1:2:held_only")]
    assert figures(ledger) == (0, 0)


def test_settle_when_the_book_is_older_than_a_grant_then_the_grant_stays(ledger: Ledger, clock: FakeClock) -> None:
    old = hold(ledger, "1")
    clock.advance(5)
    read_at = clock.now()
    clock.advance(1)
    new = hold(ledger, "2", ETH)
    ledger.confirm(key="fill", position_id=new, quantity=D(1), price=D(60), rest="hold")
    assert settle(ledger, {}, as_of=read_at) == [("release", "ledger:settle:1:1:held_only")]
    assert ledger.position(old).state == "released"
    assert figures(ledger) == (40, 60)
    clock.advance(61)
    assert settle(ledger, {}, as_of=clock.now()) == [
        ("release", "ledger:settle:2:3:held_only"), ("release", "ledger:settle:2:5:0")
    ]  # fmt: skip


def test_settle_when_a_position_grew_lately_then_its_hold_is_young(ledger: Ledger, clock: FakeClock) -> None:
    name = hold(ledger, "1")
    ledger.confirm(key="fill", position_id=name, quantity=D(1), price=D(100))
    clock.advance(120)
    ledger.reserve(key="more", position_id=name, amount_usd=D(50), ttl_seconds=600)
    ledger.confirm(key="part", position_id=name, quantity=D("0.1"), price=D(100), rest="hold")
    assert settle(ledger, {BTC: (D("1.1"), D(100))}) == []
    assert figures(ledger) == (40, 110)
    clock.advance(61)
    ledger.confirm(key="part 2", position_id=name, quantity=D("0.1"), price=D(100), rest="hold")
    assert settle(ledger, {BTC: (D("1.2"), D(100))}) == [("release", "ledger:settle:1:5:held_only")]


def test_settle_when_a_hold_was_extended_lately_then_its_order_may_be_on_the_way(
    ledger: Ledger, clock: FakeClock
) -> None:
    name = hold(ledger, "1", ttl_seconds=90)
    clock.advance(80)
    ledger.extend(key="same wish", position_id=name, ttl_seconds=90)
    assert settle(ledger, {}) == []
    clock.advance(60)
    assert settle(ledger, {}, BTC) == [("extend", "ledger:settle:1:2:until_known")]
    clock.advance(31)
    assert settle(ledger, {}) == [("release", "ledger:settle:1:3:held_only")], "what settle extended is no newer"


def test_settle_when_the_average_price_is_the_bots_then_what_is_added_brings_the_cost_to_it(ledger: Ledger) -> None:
    name = hold(ledger, "1", usd=400)
    ledger.confirm(key="fill", position_id=name, quantity=D(1), price=D(100), rest="hold")
    settle(ledger, {BTC: (D(3), D(120))})
    assert open_of(ledger) == {name: (D(3), D(120))}
    settle(ledger, {BTC: (D(4), D(9))})
    assert figures(ledger)[1] == 360 + 9, "no price can make the average of these"


def hedge(ledger: Ledger, key: str) -> Decision:
    legs = [
        LegPlan(InstrumentInfo(f"{venue}:BTC/USDT:USDT", D("0.001"), D(100), D("0.001"), kind="swap"), side)
        for venue, side in (("bybit", "buy"), ("okx", "sell"))
    ]
    return ledger.reserve(key=key, tags=BOT, price=D(50000), amount_usd=D(500), legs=legs, ttl_seconds=600)  # type: ignore[arg-type]


def test_settle_when_a_position_has_several_legs_then_the_book_names_its_id(ledger: Ledger, clock: FakeClock) -> None:
    first, second = (position_of(hedge(ledger, key)) for key in "12")
    assert settle(ledger, {first: (D("0.01"), D(50000)), second: (D("0.004"), D(50000))}) == [
        ("fill", "ledger:settle:1:1:0.01"), ("fill", "ledger:settle:2:2:0.004")
    ]  # fmt: skip
    assert [leg.quantity for leg in ledger.position(first).legs] == [D("0.01"), D("0.01")]
    clock.advance(61)
    assert settle(ledger, {second: (D("0.003"), D(50000))}) == [
        ("release", "ledger:settle:2:4:held_only"),
        ("release", "ledger:settle:2:5:0.003"),
        ("release", "ledger:settle:1:3:0"),
    ]


def test_settle_when_an_ended_hold_filled_after_all_then_its_late_position_follows_the_book(
    ledger: Ledger, clock: FakeClock
) -> None:
    name = position_of(hedge(ledger, "1"))
    clock.advance(601)
    ledger.sweep()
    assert settle(ledger, {name: (D("0.01"), D(50000))}) == [("fill", "ledger:settle:1:2:0.01")]
    assert settle(ledger, {name: (D("0.004"), D(50000))}) == [("release", "ledger:settle:3:3:0.004")]
    assert settle(ledger, {name: (D("0.006"), D(50000))}) == [("fill", "ledger:settle:1:2:0.012")]
    assert settle(ledger, {}) == [("release", "ledger:settle:3:5:0")]
    assert settle(ledger, {name: (D("0.001"), D(50000))}) == [("fill", "ledger:settle:1:2:0.013")]


def test_settle_when_halted_and_unreconciled_then_it_passes(ledger: Ledger, clock: FakeClock) -> None:
    hold(ledger, "1")
    ledger.halt(key="halt")
    ledger.freeze(key="freeze")
    assert len(settle(ledger, {BTC: (D("0.001"), D(50000))}, BTC)) == 2
    clock.advance(61)
    assert len(settle(ledger, {})) == 2


def test_settle_when_nobody_used_the_portfolio_then_an_empty_book_creates_none(ledger: Ledger) -> None:
    assert ledger.settle(BOT, {}, portfolio="new") == []
    assert ledger.settle(BOT, {BTC: (D(0), None)}, portfolio="new") == []
    assert "new" not in ledger.portfolios()
    ledger.settle(BOT, {BTC: (D(1), D(1))}, portfolio="new")
    assert ledger.exposure("new").open == 1


@pytest.mark.parametrize(
    ("tags", "book", "resting", "says"),
    [
        ({}, {}, (), "tags is empty"),
        (BOT, {BTC: (D(-1), D(1))}, (), "BTC/USDT.quantity must be 0 or above"),
        (BOT, {BTC: (D(1), D(0))}, (), "BTC/USDT.price must be above 0"),
        (BOT, {BTC: (1.5, D(1))}, (), "write Decimal"),
        (BOT, {BTC: D(1)}, (), r"must be \(quantity, price\)"),
        (BOT, {BTC: (D(1), D(1), "long")}, (), "'buy' or 'sell'"),
        (BOT, [BTC], (), "book must be a mapping"),
        (BOT, {}, BTC, "resting must be a list"),
        (BOT, {"main-2": (D(1), D(1))}, (), "has the tags"),
    ],
)
def test_settle_when_the_request_is_wrong_then_it_says_so_and_records_nothing(
    ledger: Ledger, tags: Any, book: Any, resting: Any, says: str
) -> None:
    hold(ledger, "1")
    hold(ledger, "2", tags={"bot": "b"})
    with pytest.raises(InvalidRequest, match=says):
        ledger.settle(tags, book, resting)
    assert ledger.exposure().seq == 2


def test_settle_when_the_book_names_a_position_that_there_is_not_then_nothing_is_recorded(ledger: Ledger) -> None:
    hold(ledger, "1")
    with pytest.raises(NotFound, match="main-7"):
        ledger.settle(BOT, {"main-7": (D(1), D(1)), BTC: (D(1), D(1))})
    assert ledger.exposure().seq == 1


def test_settle_when_one_market_is_refused_then_the_others_are_settled(ledger: Ledger) -> None:
    with pytest.raises(InvalidRequest, match="does not fit"):
        ledger.settle(BOT, {BTC: (D("1e15"), D("1e12")), ETH: (D(1), D(10))})
    assert ledger.exposure().open == 10


async def test_settle_async_when_awaited_then_it_is_the_same(ledger: Ledger, clock: FakeClock) -> None:
    as_of = clock.now() - timedelta(seconds=1)
    (made,) = await ledger.settle_async(BOT, {BTC: (D(1), D(10))}, as_of=as_of, reference="loop 7")
    assert made.reference == "loop 7"
    assert await ledger.settle_async(BOT, {BTC: (D(1), D(10))}) == []


@pytest.mark.parametrize("context", HOSTILE)
def test_settle_when_the_thread_has_another_decimal_context_then_the_figures_are_exact(
    ledger: Ledger, clock: FakeClock, context: str
) -> None:
    first, second = hold(ledger, "1"), hold(ledger, "2")
    ledger.confirm(key="fill", position_id=first, quantity=D("0.12345678"), price=D("100.25"), rest="hold")
    pair = position_of(hedge(ledger, "3"))
    more, pairs = D("0.123456789012345678901234567891"), D("0.0123456789")
    with hostile(context):
        ledger.settle(BOT, {BTC: (more, D("100.25")), pair: (pairs, D("50000.123"))})
    with exact_arithmetic():
        assert sum(quantity or 0 for name, (quantity, _) in open_of(ledger).items() if name != pair) == more
    assert open_of(ledger)[pair] == (pairs, D("50000.123"))
    clock.advance(61)
    with hostile(context):
        ledger.settle(BOT, {BTC: (D("0.02345678"), D("100.25")), pair: (D("0.0023456789"), D("50000.123"))})
    assert (ledger.position(first).quantity, ledger.position(second).state) == (D("0.02345678"), "released")
    assert open_of(ledger)[pair][0] == D("0.0023456789")
    assert_verified(ledger)
