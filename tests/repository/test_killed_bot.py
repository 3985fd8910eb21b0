"""The example bots are killed before each of its calls: the second life loses and doubles nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Ledger
from ledger_sizer.paper import PaperControl, PaperServer
from tests.conftest import NewDatabase
from tests.support import killed_bot
from tests.support.processes import ROOT
from tests.support.services import served

pytestmark = pytest.mark.slow

COMMANDS = {"set_cap applied", "reserve granted", "reserve denied", "confirm applied", "release applied"}


def lives_of(url: str, paper: PaperServer, shape: str) -> list[dict[str, Any]]:
    """Kill the bot at each step. Return how its lives ended, by portfolio."""
    command = [sys.executable, "-m", "tests.support.killed_bot", url, paper.url, shape]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600)
    lives = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["second"] for one in lives} == {0}, done.stderr[-2000:]
    assert [one["first"] for one in lives] == [-signal.SIGKILL] * (len(lives) - 1) + [0]
    return lives


def shown_at(paper: PaperServer, shape: str, account: str) -> dict[tuple[str, str], Decimal]:
    """Return what an account has in each market, coins, below zero for shorts."""
    shown: dict[tuple[str, str], Decimal] = {}
    for venue in killed_bot.VENUES[shape]:
        state = PaperControl(paper.url, venue, account).state()["accounts"][account]
        spot = {f"{coin}/USDT": units for coin, units in state["wallets"]["spot"].items() if coin != "USDT"}
        perps = {one["symbol"]: one["quantity"] for one in state["positions"]}
        shown |= {(venue, symbol): Decimal(coins) for symbol, coins in {**spot, **perps}.items() if Decimal(coins)}
    return shown


def require_exact(ledger: Ledger, portfolio: str, shown: dict[tuple[str, str], Decimal]) -> Counter[str]:
    """Check that the ledger counts what the venue shows, each leg hedged, each wish once. Return the decisions."""
    live = ledger.positions(portfolio, state="live").items
    counted = {
        (leg.venue, leg.symbol): leg.quantity if leg.side == "buy" else -leg.quantity
        for position in live
        for leg in position.legs
    }
    assert counted == shown
    assert sum(shown.values()) == 0
    exposure = ledger.exposure(portfolio)
    assert (exposure.held, exposure.open) == (0, sum((position.open for position in live), Decimal(0)))
    decisions = list(ledger.history(portfolio, limit=1000, ascending=True))
    asked = Counter(decision.key for decision in decisions if decision.command == "reserve")
    assert set(asked.values()) == {1}
    return Counter(f"{decision.command} {decision.outcome}" for decision in decisions)


def require_all_exact(ledger: Ledger, lives: list[dict[str, Any]], paper: PaperServer, shape: str) -> None:
    seen: Counter[str] = Counter()
    for one in lives:
        seen += require_exact(ledger, one["name"], shown_at(paper, shape, one["name"]))
    assert len(lives) > 30, "this tests the whole cycle"
    assert set(seen) == COMMANDS
    assert {symbol for _, symbol in shown_at(paper, shape, lives[-1]["name"])} <= {"SOL/USDT", "SOL/USDT:USDT"}
    assert ledger.verify().ok


def test_restart_when_killed_at_each_step_on_sqlite_then_ledger_and_venue_agree(new_database: NewDatabase) -> None:
    url = new_database("sqlite")
    with PaperServer() as paper:
        lives = lives_of(url, paper, "spot_perp")
        with Ledger.open(url, client="bot") as ledger:
            require_all_exact(ledger, lives, paper, "spot_perp")


def test_restart_when_killed_at_each_step_over_http_then_ledger_and_venues_agree(new_database: NewDatabase) -> None:
    with PaperServer() as paper, served(new_database("postgresql"), settings=killed_bot.settings()) as service:
        lives = lives_of(service.url, paper, "perp_perp")
        require_all_exact(service.ledger, lives, paper, "perp_perp")
