"""Many callers at positions of several legs: caps of two venues, growth, other tags, fills beside the expiry.

Each test checks from outside that no grant went over a cap, and that the ledger verifies.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from ledger_sizer import Decision, InstrumentInfo, Ledger, LedgerError, LegPlan
from tests.lockstep.auditor import Auditor
from tests.support.clock import FakeClock
from tests.support.processes import Fleet
from tests.support.programs import LEGS_AT_TWO_VENUES as LEGS
from tests.support.programs import settings_of

D = Decimal
TEN = D(10)


def audited(ledger: Ledger, cap: Decimal) -> Auditor:
    auditor = Auditor("main", cap)
    auditor.check(ledger)
    assert ledger.verify().findings == ()
    return auditor


async def test_reserve_when_500_callers_have_legs_at_two_venues_then_both_caps_are_filled_exactly(
    database_url: str,
) -> None:
    with Ledger.open(database_url, settings=settings_of(5000)) as ledger:
        ledger.set_cap(key="bybit", scope="venue=bybit", cap=D(500))
        ledger.set_cap(key="okx", scope="venue=okx", cap=D(500))
        with ledger_beside(database_url) as second:
            asked = [
                (ledger, second)[number % 2].reserve_async(
                    key=f"key-{number}", price=D(100), legs=LEGS, amount_usd=TEN, ttl_seconds=3600
                )
                for number in range(500)
            ]
            answers = await asyncio.gather(*asked)
        assert Counter(one.reason for one in answers) == {None: 50, "cap_exceeded": 450}
        exposure = ledger.exposure()
        assert [exposure.scope(f"venue={venue}").exposure for venue in ("bybit", "okx")] == [D(500), D(500)]
        assert exposure.exposure == D(500), "a hedge counts once"
        audited(ledger, D(5000))


def ledger_beside(url: str) -> Ledger:
    return Ledger.open(url, settings=settings_of(5000))


@pytest.mark.slow
def test_reserve_when_processes_have_legs_at_two_venues_then_the_smaller_cap_is_filled_exactly(
    database_url: str,
) -> None:
    with ledger_beside(database_url) as ledger:
        ledger.set_cap(key="bybit", scope="venue=bybit", cap=D(300))
        ledger.set_cap(key="okx", scope="venue=okx", cap=D(400))
        given = [{"name": f"bot-{number}", "count": 125} for number in range(4)]
        with Fleet("reserve_legs", database_url, given) as fleet:
            answers = fleet.run()
        reasons = Counter((one["outcome"], one["reason"]) for one in answers)
        assert reasons == {("granted", None): 30, ("denied", "cap_exceeded"): 470}
        assert ledger.exposure().scope("venue=okx").exposure == D(300)
        audited(ledger, D(5000))


def test_reserve_when_growth_and_new_positions_race_then_the_cap_is_filled_exactly(database_url: str) -> None:
    with ledger_beside(database_url) as ledger, ledger_beside(database_url) as other, ThreadPoolExecutor(8) as threads:
        ledger.set_cap(key="cap", cap=D(500))
        first = ledger.reserve(key="first", price=D(100), legs=LEGS, amount_usd=TEN, ttl_seconds=3600)
        ledger.confirm(key="fill", position_id=first.position_id, quantity=D("0.05"), price=D(100), rest="hold")

        def ask(number: int) -> Decision:
            own = (ledger, other)[number % 2]
            grows = first.position_id if number % 3 else None
            return own.reserve(
                key=f"{number}", price=D(100), legs=LEGS, amount_usd=TEN, position_id=grows, ttl_seconds=3600
            )

        answers = list(threads.map(ask, range(150)))
        assert Counter(one.granted for one in answers) == {True: 49, False: 101}
        assert ledger.exposure().exposure == D(500)
        grown = sum(one.granted for one in answers if one.position_id == first.position_id)
        position = ledger.position(first.position_id or "")
        assert (position.open, position.held) == (D(5), D(5) + TEN * grown)
        audited(ledger, D(5000))


def test_retag_when_it_races_with_reserves_into_a_full_scope_then_its_cap_holds(database_url: str) -> None:
    with ledger_beside(database_url) as ledger, ledger_beside(database_url) as other, ThreadPoolExecutor(8) as threads:
        ledger.set_cap(key="cap", scope="strategy=b", cap=D(100))
        movers = [
            ledger.reserve(key=f"m{number}", tags={"strategy": "a"}, amount_usd=TEN, ttl_seconds=3600).position_id
            for number in range(20)
        ]

        def ask(number: int) -> Decision:
            own = (ledger, other)[number % 2]
            if number % 2:
                return own.reserve(key=f"{number}", tags={"strategy": ["b", "c"]}, amount_usd=TEN, ttl_seconds=3600)
            return own.retag(key=f"{number}", position_id=movers[number // 2] or "", tags={"strategy": "b"})

        answers = list(threads.map(ask, range(40)))
        assert Counter(one.granted for one in answers) == {True: 10, False: 30}
        assert {one.binding for one in answers if not one.granted} == {"strategy=b"}
        exposure = ledger.exposure()
        moved = sum(one.granted for one in answers if one.command == "retag")
        assert exposure.scope("strategy=b").exposure == D(100)
        assert exposure.scope("strategy=a").exposure == D(200) - TEN * moved
        audited(ledger, D(5000))


def test_confirm_when_fills_race_with_the_expiry_of_the_rest_then_every_fill_counts_once(database_url: str) -> None:
    clock = FakeClock()
    with (
        Ledger.open(database_url, settings=settings_of(5000), clock=clock) as ledger,
        Ledger.open(database_url, settings=settings_of(5000), clock=clock) as other,
        ThreadPoolExecutor(6) as threads,
    ):
        ids = [
            ledger.reserve(key=f"r{n}", price=D(100), legs=LEGS, amount_usd=D(100), ttl_seconds=10).position_id or ""
            for n in range(6)
        ]

        def fill_one_by_one(number: int) -> None:
            for part in range(10):
                if part == 5:
                    clock.advance(3)
                own = (ledger, other)[(number + part) % 2]
                own.confirm(
                    key=f"{number}/{part}", position_id=ids[number], quantity=D("0.1"), price=D(100), rest="hold"
                )
                own.sweep()

        list(threads.map(fill_one_by_one, range(6)))
        clock.advance(60)
        ledger.sweep()
        assert (ledger.exposure().open, ledger.exposure().held) == (D(600), 0)
        entries = [one for one in ledger.positions() if one.state == "open"]
        by_origin = Counter[int]()
        for one in entries:
            by_origin[one.origin or one.number] += int((one.filled or 0) * 10)
        assert set(by_origin.values()) == {10}
        audited(ledger, D(5000))


def test_read_when_a_cached_position_is_open_and_its_rest_expires_then_the_next_grant_sees_it(
    database_url: str,
) -> None:
    clock = FakeClock()
    with Ledger.open(database_url, settings=settings_of(100), clock=clock) as ledger:
        first = ledger.reserve(key="1", amount_usd=D(100), ttl_seconds=10)
        ledger.confirm(key="2", position_id=first.position_id, quantity=D(1), price=D(30), rest="hold")
        assert ledger.reserve(key="3", amount_usd=D(70)).reason == "cap_exceeded"
        clock.advance(11)  # nobody sweeps: the cached state has the rest, which is overdue
        again = ledger.reserve(key="4", amount_usd=D(70), ttl_seconds=10)
        assert (again.granted, again.exposure_before) == (True, D(30))
        # What filled after that is a fact above the cap.
        late = ledger.confirm(key="5", position_id=first.position_id, quantity=D(1), price=D(40), rest="hold")
        assert (late.position_id, ledger.exposure().open, ledger.exposure().overage) == (
            first.position_id, D(70), D(40),
        )  # fmt: skip
        audited(ledger, D(100))


def test_reserve_when_the_desk_is_halted_beside_then_growth_stops_and_fills_go_on(database_url: str) -> None:
    with ledger_beside(database_url) as ledger, ledger_beside(database_url) as other:
        first = ledger.reserve(key="1", price=D(100), legs=LEGS, amount_usd=D(100))
        ledger.confirm(key="2", position_id=first.position_id, quantity=D("0.5"), price=D(100), rest="hold")
        other.halt(key="all", portfolio="*")
        more = ledger.reserve(key="3", price=D(100), legs=LEGS, amount_usd=TEN, position_id=first.position_id)
        assert (more.reason, more.binding) == ("halted", "desk")
        moved = ledger.retag(key="4", position_id=first.position_id, tags={"strategy": "x"})
        assert (moved.reason, moved.binding) == ("halted", "desk")
        assert ledger.extend(key="5", position_id=first.position_id, until_known=True).granted
        filled = ledger.fill(key="6", position_id=first.position_id, filled_quantity=D(1), price=D(100))
        assert (filled.outcome, filled.quantity, ledger.exposure().open) == ("applied", D("0.5"), D(100))
        audited(ledger, D(5000))


def test_grow_when_the_legs_are_at_another_venue_then_it_is_refused_and_names_both(ledger: Ledger) -> None:
    """The same symbols elsewhere are other legs."""
    first = ledger.reserve(key="1", price=D(100), legs=LEGS, amount_usd=D(100))
    rules = [plan.instrument for plan in LEGS]
    assert all(isinstance(one, InstrumentInfo) for one in rules)
    elsewhere = [LEGS[0], LegPlan(InstrumentInfo("BTC/USDT:USDT", D("0.01"), D(100), D("0.01"), venue="gate"), "sell")]
    for legs in (elsewhere, LEGS[:1]):
        with pytest.raises(LedgerError, match=r"the legs are not those|tags .* are not those") as refused:
            ledger.reserve(key="2", price=D(100), legs=legs, amount_usd=TEN, position_id=first.position_id)
        assert refused.value.code == "invalid_request"
    assert ledger.exposure().exposure == D(100)
