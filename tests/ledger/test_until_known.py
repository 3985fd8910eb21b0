"""A hold whose order's fate is not known: time alone never frees it. A fill, a release or reconciliation ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger_sizer import Adopt, InvalidRequest, Ledger, LegPlan, Reserve
from ledger_sizer.client import LedgerClient
from ledger_sizer.model.command_base import TTL_SECONDS_MAX
from ledger_sizer.service.api_keys import create_key
from ledger_sizer.storage.database import make_engine
from tests.support.clock import FakeClock
from tests.support.ledgers import BTC_PERP, TAGS, assert_verified, figures, position_of
from tests.support.services import served

D = Decimal
YEARS = 40 * 365 * 24 * 3600


def kept(ledger: Ledger, key: str = "1", **request: Any) -> str:
    """Hold with an order of unknown fate, and return the position's name."""
    arguments = {"tags": TAGS, **request}
    name = position_of(ledger.reserve(key=key, **arguments))
    granted = ledger.extend(key=f"{key}/lost", position_id=name, until_known=True)
    assert (granted.outcome, granted.until_known, granted.expires_at) == ("granted", True, None)
    return name


# --- time --------------------------------------------------------------------------------------------------------


def test_hold_until_known_when_forty_years_pass_then_it_is_held_still(ledger: Ledger, clock: FakeClock) -> None:
    name = kept(ledger)
    from_the_start = position_of(ledger.reserve(key="2", until_known=True))
    ledger.reserve(key="3", ttl_seconds=TTL_SECONDS_MAX)
    clock.advance(YEARS)
    assert ledger.sweep() == 1, "the one with a time"
    ledger.reserve(key="4", ttl_seconds=1)  # a batch of its own frees what is due, too
    for one in (name, from_the_start):
        position = ledger.position(one)
        assert (position.state, position.until_known, position.expires_at, position.pending) == (
            "held", True, None, True
        )  # fmt: skip
    assert_verified(ledger)


def test_extend_when_it_is_until_known_already_then_no_time_shortens_it(ledger: Ledger, clock: FakeClock) -> None:
    name = kept(ledger)
    again = ledger.extend(key="2", position_id=name, ttl_seconds=5)
    assert (again.outcome, again.until_known) == ("granted", True)
    assert ledger.extend(key="3", position_id=name).until_known
    clock.advance(YEARS)
    ledger.sweep()
    assert ledger.position(name).until_known


def test_ask_more_when_the_position_is_until_known_then_a_time_does_not_shorten_it(
    ledger: Ledger, clock: FakeClock
) -> None:
    growth: dict[str, Any] = {"legs": [LegPlan(BTC_PERP, "buy")], "price": D(50_000), "amount_usd": D(400)}
    name = kept(ledger, **growth)
    ledger.reserve(key="2", position_id=name, ttl_seconds=5, **growth)
    clock.advance(YEARS)
    ledger.sweep()
    assert (ledger.position(name).until_known, figures(ledger)) == (True, (800, 0))
    ledger.reserve(key="3", tags={"symbol": "BTC"}, ttl_seconds=50, position_id=None)
    assert_verified(ledger)


@pytest.mark.parametrize("verb", ["reserve", "extend"])
@pytest.mark.parametrize("ttl_seconds", [1, D("0.5"), TTL_SECONDS_MAX])
def test_ask_until_known_when_a_time_is_given_too_then_it_is_refused(
    ledger: Ledger, verb: str, ttl_seconds: Any
) -> None:
    name = kept(ledger)
    position = {"position_id": name} if verb == "extend" else {}
    with pytest.raises(InvalidRequest, match="give until_known or ttl_seconds, not both") as refused:
        getattr(ledger, verb)(key="x", until_known=True, ttl_seconds=ttl_seconds, **position)
    assert refused.value.field == "ttl_seconds"
    with pytest.raises(InvalidRequest, match="until_known must be True or False"):
        getattr(ledger, verb)(key="x", until_known="yes", **position)
    assert len(ledger.history()) == 2, "nothing was recorded"
    assert ledger.lookup("x") is None, "the key is unused"


def test_ask_until_known_when_it_is_false_then_it_is_the_same_request_as_without(ledger: Ledger) -> None:
    first = ledger.reserve(key="1", until_known=False, ttl_seconds=60)
    assert first.expires_at is not None
    assert ledger.reserve(key="1", ttl_seconds=60).replayed


# --- what ends it ------------------------------------------------------------------------------------------------

ENDS: dict[str, tuple[Callable[[Ledger, str], Any], str]] = {
    "confirm": (lambda ledger, name: ledger.confirm(key="x", position_id=name, quantity=D(1), price=D(90)), "open"),
    "fill": (
        lambda ledger, name: ledger.fill(
            key="x", position_id=name, filled_quantity=D(1), price=D(90), rest="free"
        ),
        "open",
    ),
    "release": (lambda ledger, name: ledger.release(key="x", position_id=name), "released"),
    "release of the hold": (lambda ledger, name: ledger.release(key="x", position_id=name, held_only=True), "released"),
    "release of all": (lambda ledger, _: ledger.release_all(key="x", tags=TAGS, unknown=True), "released"),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_end_hold_until_known_when_its_fate_is_known_then_it_has_ended(ledger: Ledger, end: str) -> None:
    name = kept(ledger)
    act, state = ENDS[end]
    act(ledger, name)
    position = ledger.position(name)
    assert (position.state, position.until_known, position.held, position.pending) == (state, False, 0, False)
    assert not ledger.positions(state="until_known").items
    assert figures(ledger) == (0, 90 if state == "open" else 0)
    assert_verified(ledger)


def test_fill_hold_until_known_when_a_part_is_told_then_the_rest_stays_so(ledger: Ledger, clock: FakeClock) -> None:
    name = kept(ledger)
    ledger.confirm(key="2", position_id=name, quantity=D(1), price=D(90), rest="hold")
    clock.advance(YEARS)
    ledger.sweep()
    assert (ledger.position(name).state, ledger.position(name).until_known) == ("open", True)
    assert figures(ledger) == (910, 90)
    ledger.release(key="3", position_id=name)
    assert (ledger.position(name).state, figures(ledger)) == ("closed", (0, 0))
    assert_verified(ledger)


# --- whatever the status -----------------------------------------------------------------------------------------

STOPS: dict[str, Callable[[Ledger], Any]] = {
    "portfolio halted": lambda ledger: ledger.halt(key="stop"),
    "portfolio reducing": lambda ledger: ledger.halt(key="stop", mode="reducing"),
    "scope halted": lambda ledger: ledger.halt(key="stop", scope="venue=bybit"),
    "desk halted": lambda ledger: ledger.halt(key="stop", portfolio="*"),
    "frozen": lambda ledger: ledger.freeze(key="stop"),
    "not trusted": lambda ledger: ledger.reconciled(key="stop", fresh_until=ledger.decision(1).decided_at),
    "over its cap": lambda ledger: ledger.set_cap(key="stop", cap=D(1)),
}


@pytest.mark.parametrize("stop", STOPS)
def test_extend_until_known_when_new_risk_is_stopped_then_it_passes_and_its_facts_too(
    ledger: Ledger, stop: str
) -> None:
    """That an order is out is a fact, which no status denies."""
    name = position_of(ledger.reserve(key="1", tags=TAGS))
    STOPS[stop](ledger)
    longer = ledger.extend(key="longer", position_id=name, ttl_seconds=600)
    assert (longer.outcome == "denied") == (stop in ("portfolio halted", "scope halted", "desk halted"))
    assert not ledger.reserve(key="more", tags=TAGS, until_known=True).granted, "a new hold is new risk all the same"
    assert ledger.extend(key="lost", position_id=name, until_known=True).until_known
    assert ledger.confirm(key="part", position_id=name, quantity=D(1), price=D(90), rest="hold").outcome == "applied"
    assert ledger.fill(key="more/part", position_id=name, filled_quantity=D(2), price=D(90)).outcome == "applied"
    assert [one.outcome for one in ledger.release_all(key="end", tags=TAGS, unknown=True)] == ["applied"]
    assert figures(ledger) == (0, 180)
    assert_verified(ledger)


# --- restarts, archives, listings --------------------------------------------------------------------------------


def test_open_again_when_an_order_is_unknown_then_it_is_held_and_listed_as_before(
    database_url: str, clock: FakeClock
) -> None:
    with Ledger.open(database_url, clock=clock) as ledger:
        name = kept(ledger)
        before = ledger.position(name)
    clock.advance(YEARS)
    with Ledger.open(database_url, clock=clock) as ledger:
        ledger.reserve(key="other")
        assert ledger.positions(state="until_known").items == (before,)
        assert ledger.extend(key="1/lost", position_id=name, until_known=True).replayed
        assert_verified(ledger)


def test_archive_when_an_order_is_unknown_then_it_stays_live_and_can_be_decided(
    database_url: str, clock: FakeClock, tmp_path: Path
) -> None:
    with Ledger.open(database_url, clock=clock) as ledger:
        name = kept(ledger)
        for number in range(5):
            ended = position_of(ledger.reserve(key=f"r{number}", ttl_seconds=60))
            ledger.release(key=f"e{number}", position_id=ended)
        clock.advance(100 * 24 * 3600)
        ledger.reserve(key="now")
        ledger.archive(clock.now() - timedelta(days=50), tmp_path)
        assert [one.position_id for one in ledger.positions(state="until_known")] == [name]
        assert ledger.exposure(as_of=2).held == 1000
        assert_verified(ledger)
        ledger.fill(key="x", position_id=name, filled_quantity=D(1), price=D(90), rest="free")
        assert ledger.position(name).state == "open"
        assert_verified(ledger)


def test_list_when_some_are_until_known_then_exactly_these_are_found_in_order(ledger: Ledger) -> None:
    ledger.set_cap(key="cap", cap=D(10**6))
    names = [kept(ledger, f"{n}", tags={"bot": "ab"[n % 2]}, amount_usd=D(10)) for n in range(7)]
    ledger.confirm(key="part", position_id=names[3], quantity=D(1), price=D(1), rest="hold")
    ledger.release(key="gone", position_id=names[5])
    ledger.submit([Reserve(key=f"h{n}", amount_usd=D(10)) for n in range(20)])
    ledger.submit([Adopt(key=f"a{n}", quantity=D(1), price=D(1)) for n in range(20)])
    ledger.reserve(key="elsewhere", portfolio="other", until_known=True)
    live = [name for name in names if name != names[5]]

    def listed(**filters: Any) -> list[str]:
        found: list[str] = []
        cursor = None
        while True:
            page = ledger.positions(state="until_known", cursor=cursor, limit=2, **filters)
            found += [position.position_id for position in page]
            cursor = page.cursor
            if cursor is None:
                return found

    assert listed(portfolio="main") == live
    assert listed() == [*live, "other-1"]
    assert listed(portfolio="main", tags={"bot": "b"}) == [names[1], names[3]]
    assert [one.position_id for one in ledger.positions("main", state="until_known", key="3/lost")] == [names[3]]
    with pytest.raises(InvalidRequest, match="live or until_known, got 'unknown'"):
        ledger.positions(state="unknown")


# --- a trading bot's key -----------------------------------------------------------------------------------------


@pytest.fixture
def bot(database_url: str, clock: FakeClock) -> Iterator[LedgerClient]:
    """Return a client with a key of the role `trade`."""
    with Ledger.open(database_url, clock=clock):
        engine = make_engine(database_url)
        token = create_key(engine, "bot", "trade").token
        engine.dispose()
    with served(database_url, clock=clock) as service, LedgerClient(service.url, api_key=token) as client:
        yield client


def test_fill_late_when_the_bot_may_only_trade_then_expired_and_released_holds_take_it(
    bot: LedgerClient, clock: FakeClock
) -> None:
    expired = position_of(bot.reserve(key="a", available_balance=D(50), ttl_seconds=5))
    clock.advance(6)
    fill: dict[str, Any] = {"quantity": D(50), "price": D(1)}
    assert bot.confirm(key="a/f", position_id=expired, **fill).outcome == "applied"
    released = position_of(bot.reserve(key="b", available_balance=D(50)))
    bot.release(key="b/r", position_id=released)
    assert bot.confirm(key="b/f", position_id=released, **fill).outcome == "applied"
    assert bot.adopt(key="b/a", **fill).outcome == "applied"
    assert bot.exposure().open == 150


def test_hold_when_the_exchange_timed_out_then_the_bot_can_tell_the_fill_that_follows(
    bot: LedgerClient, clock: FakeClock
) -> None:
    with pytest.raises(TimeoutError), bot.hold(key="c", available_balance=D(50)) as hold:
        raise TimeoutError("the exchange did not answer: filled or not is not known")
    clock.advance(YEARS)
    bot.sweep()
    assert (bot.position(hold.position_id).state, bot.position(hold.position_id).until_known) == ("held", True)
    assert [one.position_id for one in bot.positions(state="until_known")] == [hold.position_id]
    filled = bot.confirm(key="c/f", position_id=hold.position_id, quantity=D(50), price=D(1))
    assert (filled.outcome, filled.position_id) == ("applied", hold.position_id)
    assert not bot.positions(state="until_known").items


def test_reserve_until_known_when_asked_over_http_then_the_grant_is_understood(bot: LedgerClient) -> None:
    granted = bot.reserve(key="1", until_known=True)
    assert (granted.until_known, granted.expires_at) == (True, None)
    assert bot.reserve(key="2", until_known=True, dry_run=True).until_known
    assert bot.release_all(key="x", tags={}) == []
