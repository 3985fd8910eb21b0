"""Tests the example orchestrator on its paper venue: ledger and venue must agree."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger_sizer import Decision, Ledger
from ledger_sizer.client import AsyncLedgerClient
from tests.conftest import NewDatabase
from tests.support.clock import FakeClock
from tests.support.interfaces import SETTINGS, opened

CYCLES = 12
EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `orchestrator`, imported from its own folder, as it is run."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("orchestrator")


def _bot(example: Any, ledger: Any, **venue: Any) -> Any:
    return example.Orchestrator(ledger, example.PaperVenue(delay_seconds=0.001, **venue))


async def _traded(bot: Any, cycles: int = CYCLES) -> Any:
    for _ in range(cycles):
        await bot.cycle()
        _require_agreement(bot)
        bot.venue.next_period()
    return bot


def _require_agreement(bot: Any) -> None:
    """Check that each trade counts the larger leg at the venue, and that nothing else is held there."""
    larger = {}
    for (pair, _), quantity in bot.venue.holdings.items():
        larger[pair] = max(abs(quantity), larger.get(pair, Decimal(0)))
    counted = {trade.pair: trade.counted for trade in bot.trades.values()}
    assert counted == {pair: quantity for pair, quantity in larger.items() if quantity}


def _require_counted(bot: Any, ledger: Ledger) -> None:
    """Check that the ledger counts each open trade, and nothing else."""
    live = {position.position_id: position for position in ledger.positions(state="live")}
    assert {trade.position_id for trade in bot.trades.values()} == set(live)
    for trade in bot.trades.values():
        assert (live[trade.position_id].state, live[trade.position_id].quantity) == ("open", trade.counted)


def _reservations(ledger: Ledger) -> list[Decision]:
    return list(ledger.history(command="reserve", ascending=True, limit=1000))


@pytest.mark.parametrize("interface", ["embedded", "async_client"])
async def test_trade_when_orders_fail_and_fill_partly_then_ledger_and_venue_agree(
    example: Any, interface: str, database_url: str
) -> None:
    async with opened(interface, database_url, None) as opened_ledger:
        ledger = opened_ledger.behind
        ledger.set_cap(key="cap", cap=Decimal(2_500))
        bot = await _traded(_bot(example, opened_ledger.raw))
        _require_counted(bot, ledger)
        happened = set(bot.events)
        assert happened >= {"entered", "left", "left partly", "order refused", "released unfilled", "reserve denied"}
        assert all(decision.exposure_after <= 2_500 for decision in _reservations(ledger) if decision.granted)
        assert ledger.verify().ok


async def test_trade_when_only_the_face_differs_then_the_same_capital_is_granted(
    example: Any, new_database: NewDatabase
) -> None:
    granted = []
    for interface in ("embedded", "async_client"):
        async with opened(interface, new_database("sqlite"), None) as ledger:
            bot = await _traded(_bot(example, ledger.raw))
            granted.append([(d.key, d.outcome, d.budget, d.quantity) for d in _reservations(ledger.behind)])
            granted.append(bot.events)
    assert granted[:2] == granted[2:]


async def _embedded(example: Any, url: str, clock: FakeClock | None = None, **venue: Any) -> tuple[Any, Ledger]:
    ledger = Ledger.open(url, settings=SETTINGS, clock=clock)
    return _bot(example, ledger, **venue), ledger


async def test_enter_when_capital_is_short_then_the_best_pairs_get_it(example: Any, database_url: str) -> None:
    bot, ledger = await _embedded(example, database_url, rejected_percent=0)
    with ledger:
        ledger.set_cap(key="cap", cap=Decimal(1_200))
        quotes = sorted(await bot.venue.quotes(), key=lambda quote: -quote.funding_rate)
        await bot.cycle()
        asked = _reservations(ledger)
        paying = [quote.pair for quote in quotes if quote.funding_rate >= example.ENTRY_RATE]
        assert [decision.key.partition("/")[2] for decision in asked] == paying
        assert len(asked) > 2
        assert asked[0].granted
        assert asked[-1].reason == "cap_exceeded"


async def test_enter_when_the_venue_refuses_every_order_then_every_hold_is_released(
    example: Any, database_url: str
) -> None:
    bot, ledger = await _embedded(example, database_url, rejected_percent=100)
    with ledger:
        await bot.cycle()
        assert bot.events["released unfilled"] == bot.events["reserve granted"] > 0
        assert ledger.exposure().exposure == 0


async def test_enter_when_an_orders_outcome_is_unknown_then_the_hold_stays_until_it_expires(
    example: Any, database_url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot, ledger = await _embedded(example, database_url, clock)

    async def lost(*_: Any) -> None:
        raise ConnectionError("the venue hung up")

    with ledger:
        monkeypatch.setattr(bot.venue, "place", lost)
        with pytest.raises(ConnectionError):
            await bot.cycle()
        assert ledger.exposure().held > 0, "the order may live: its capital is not free"
        clock.advance(31)
        assert ledger.sweep() == bot.events["reserve granted"]
        assert ledger.exposure().held == 0


async def test_leave_when_an_exit_fills_late_then_the_capital_is_freed_by_the_fill_and_not_before(
    example: Any, database_url: str
) -> None:
    bot, ledger = await _embedded(example, database_url, rejected_percent=0, partial_percent=0)
    with ledger:
        await bot.cycle()
        trade = next(iter(bot.trades.values()))
        before = ledger.exposure().open
        seen = []
        place = bot.venue.place

        async def watched(*order: Any) -> Any:
            seen.append(ledger.exposure().open)
            fill = await place(*order)
            seen.append(ledger.exposure().open)
            return fill

        bot.venue.place = watched
        await bot.leave(trade)
        assert seen == [before] * 4
        assert ledger.exposure().open < before
        assert ledger.position(trade.position_id).state == "closed"


async def test_restart_when_a_hold_expired_meanwhile_then_what_was_ordered_counts_and_nothing_new_is_ordered(
    example: Any, database_url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot, ledger = await _embedded(example, database_url, clock, rejected_percent=0)
    place = bot.venue.place

    async def killed(order_id: str, pair: str, market: str, *order: Any) -> Any:
        if pair == "BTC" and market == "perp":
            raise ConnectionError("killed before the order was sent")
        await place(order_id, pair, market, *order)
        raise ConnectionError("killed before the answer was read")

    with ledger:
        ledger.set_cap(key="cap", cap=Decimal(9_000))
        monkeypatch.setattr(bot.venue, "_draw", lambda below, *parts: below - 1 if "rate" in parts else below // 2)
        monkeypatch.setattr(bot.venue, "place", killed)
        with pytest.raises(ConnectionError):
            await bot.cycle()
        await asyncio.sleep(0.1)  # the others' orders are on their way
        monkeypatch.setattr(bot.venue, "place", place)
        clock.advance(31)
        ledger.sweep()
        assert ledger.exposure().exposure == 0
        again = example.Orchestrator(ledger, bot.venue)
        await again.recover()
        await again.cycle()
        assert len(again.trades) == 4, "of five pairs one was half ordered"
        assert not again.venue.holdings["BTC", "spot"], "it was unwound"
        _require_agreement(again)
        _require_counted(again, ledger)
        assert ledger.verify().ok


def _script(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLES / "orchestrator.py"), "--cycles", "6", *more]
    environment = {**os.environ, "SIZING_ENABLED": "true"}
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env=environment)


def test_run_script_when_killed_and_run_again_then_ledger_and_venue_agree(example: Any, tmp_path: Path) -> None:
    for lines in (2, 5, 9):
        killed = _script(tmp_path)
        assert killed.stdout is not None
        for _ in range(lines):
            killed.stdout.readline()
        killed.kill()
        killed.communicate()
    last = _script(tmp_path)
    told, _ = last.communicate()
    assert last.returncode == 0, told
    with Ledger.open(f"sqlite:///{tmp_path / 'orchestrator.db'}") as ledger:
        bot = _bot(example, ledger, file=tmp_path / "paper-venue.jsonl")
        asyncio.run(bot.recover())
        assert bot.trades
        _require_agreement(bot)
        _require_counted(bot, ledger)
        assert ledger.verify().ok


def test_read_orchestrator_when_counted_then_it_is_read_in_one_sitting() -> None:
    assert len((EXAMPLES / "orchestrator.py").read_text().splitlines()) < 230


def test_compare_faces_when_the_example_uses_a_method_then_both_have_it(example: Any) -> None:
    used = {name for name in dir(Ledger) if f"ledger.{name}(" in (EXAMPLES / "orchestrator.py").read_text()}
    assert used >= {"reserve_async", "confirm_async", "release_async", "lookup", "positions"}
    assert [name for name in used - {"open"} if not hasattr(AsyncLedgerClient, name)] == []
