"""Tests the example bots on ccxt at the paper venues: ledger and exchange must agree, and no leg stays naked."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import ccxt
import pytest

from ledger_sizer import Ledger
from ledger_sizer.client import AsyncLedgerClient
from ledger_sizer.paper import PaperControl, PaperServer
from tests.support.clock import FakeClock
from tests.support.interfaces import SETTINGS

pytestmark = pytest.mark.one_engine

D = Decimal
EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
SCRIPTS = ("spot_perp", "perp_perp")
SPOT, PERP = "BTC/USDT", "BTC/USDT:USDT"


@pytest.fixture
def server() -> Iterator[PaperServer]:
    with PaperServer() as running:
        yield running


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `hedge_bot`, imported from its own folder, as it is run."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("hedge_bot")


@pytest.fixture
def ledger(database_url: str, clock: FakeClock) -> Iterator[Ledger]:
    with Ledger.open(database_url, settings=SETTINGS, clock=clock) as opened:
        yield opened


@pytest.fixture
async def bot(example: Any, server: PaperServer, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.setattr(example, "LOOK_SECONDS", 0.02)
    exchange = await importlib.import_module("running").open_exchange("bybit", server.url)
    yield example.HedgeBot(ledger, {"bybit": exchange}, {"bot": "a"}, 0.2)
    await exchange.close()


async def _enter(bot: Any, wish: str = "p1/BTC") -> Any:
    legs = [await bot.plan("bybit", SPOT, "buy"), await bot.plan("bybit", PERP, "sell")]
    return await bot.enter(wish, "BTC", D(300), legs)


def _coins(server: PaperServer) -> tuple[Decimal, Decimal]:
    """Return the coins of the account, spot and perpetual."""
    account = PaperControl(server.url, "bybit").state()["accounts"]["paper"]
    return D(account["wallets"]["spot"].get("BTC", "0")), sum(
        (D(one["quantity"]) for one in account["positions"]), D(0)
    )


async def test_enter_when_a_leg_fills_partly_then_the_excess_of_the_other_is_traded_back(
    bot: Any, server: PaperServer, ledger: Ledger
) -> None:
    control, exchange = PaperControl(server.url, "bybit"), bot.exchanges["bybit"]
    orders = server.venues.dialects["bybit"].exchange.accounts["paper"].orders
    control.fills(at_once=False)
    entering = asyncio.create_task(_enter(bot))
    while len(orders) < 2:
        await asyncio.sleep(0.01)
    spot, perp = sorted(orders.values(), key=lambda order: order.market.symbol)
    control.fill(perp.id, D("0.004"))
    await exchange.cancel_order(perp.id, PERP)
    control.fill(spot.id)
    control.fills(at_once=True)
    await entering
    assert _coins(server) == (D("0.004"), D("-0.004"))
    assert (ledger.exposure().held, ledger.exposure().open) == (0, 200)


async def test_enter_when_the_fate_of_its_orders_is_unknown_then_no_time_frees_the_money_and_resume_completes_it(
    bot: Any, server: PaperServer, ledger: Ledger, clock: FakeClock
) -> None:
    control = PaperControl(server.url, "bybit")
    control.fault("lost_answer", "order/create", times=2, seconds=0.05)
    control.fault("outage", "order/", times=2)
    with pytest.raises(ccxt.BaseError):
        await _enter(bot)
    assert _coins(server) == (D("0.006"), D("-0.006")), "both legs filled"
    clock.advance(24 * 3600)
    assert ledger.sweep() == 0
    assert ledger.exposure().held == 300
    assert [one.tags["symbol"] for one in ledger.positions(state="until_known")] == ["BTC"]
    (position,) = await bot.resume()
    assert (position.quantity, ledger.exposure().held) == (D("0.006"), 0)


async def test_leave_when_one_leg_closed_before_a_crash_then_a_new_start_closes_the_other(
    bot: Any, example: Any, server: PaperServer, ledger: Ledger
) -> None:
    await _enter(bot)
    (position,) = await bot.resume()
    await bot._trade_back(f"{position.reference}/exit/0", position.legs[0], position.legs[0].quantity)
    assert _coins(server) == (0, D("-0.006"))
    again = example.HedgeBot(ledger, bot.exchanges, bot.tags, 0.05)
    assert await again.resume() == []
    assert _coins(server) == (0, 0)
    assert ledger.exposure().exposure == 0


async def test_enter_when_a_wish_was_asked_before_then_it_is_not_placed_again(
    bot: Any, server: PaperServer, ledger: Ledger
) -> None:
    first = await _enter(bot)
    PaperControl(server.url, "bybit").price("BTC", D(50100))
    again = await _enter(bot)
    assert again.position_id == first.position_id
    assert _coins(server) == (D("0.006"), D("-0.006"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_run_script_when_funding_pays_and_ceases_then_it_enters_and_leaves(
    script: str, server: PaperServer, tmp_path: Path
) -> None:
    paying = PaperControl(server.url, "binance" if script == "perp_perp" else "bybit")
    others = {"bybit", "binance"} - {paying.venue}
    for venue in others:
        PaperControl(server.url, venue).funding_rate(PERP, D(0))
    exposures = []
    for rate in ("0.0003", "0"):
        paying.funding_rate(PERP, D(rate))
        command = [
            sys.executable, str(EXAMPLES / f"{script}.py"), "--paper", server.url, "--coins", "BTC", "--cycles", "1",
            "--seconds", "0", "--window", "0.1",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env={**os.environ})
        with Ledger.open(f"sqlite:///{tmp_path / script.replace('_', '-')}.db") as ledger:
            exposures.append(ledger.exposure().open)
            assert ledger.exposure().held == 0, done.stdout
    assert exposures == [300, 0]


def test_read_examples_when_counted_then_each_is_read_in_one_sitting() -> None:
    lines = {path.stem: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert lines["hedge_bot"] < 230
    assert all(lines[script] < 60 for script in SCRIPTS)


def test_compare_faces_when_the_example_uses_a_method_then_both_have_it() -> None:
    used = {name for name in dir(Ledger) if f"ledger.{name}(" in (EXAMPLES / "hedge_bot.py").read_text()}
    assert used >= {"reserve_async", "confirm_async", "release_async", "lookup", "positions", "decision"}
    assert [name for name in used if not hasattr(AsyncLedgerClient, name)] == []
