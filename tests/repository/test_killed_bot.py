"""The example bot is killed at each step of its cycles, before and after each call: its second life loses nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger_sizer import Ledger
from tests.conftest import NewDatabase
from tests.support import killed_bot
from tests.support.processes import ROOT
from tests.support.services import served

pytestmark = pytest.mark.slow


def lives_of(url: str, folder: Path) -> list[dict[str, Any]]:
    """Kill the bot at each step. Return how its lives ended, by portfolio."""
    command = [sys.executable, "-m", "tests.support.killed_bot", url, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600)
    lives = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["second"] for one in lives} == {0}, done.stderr[-2000:]
    assert [one["first"] for one in lives] == [-signal.SIGKILL] * (len(lives) - 1) + [0]
    return lives


def require_exact(ledger: Ledger, portfolio: str, folder: Path) -> Counter[str]:
    """Check that the ledger counts what the venue shows, each wish once. Return how many decisions of each kind."""
    venue = killed_bot.Venue(folder, portfolio)
    live = ledger.positions(portfolio, state="live").items
    counted = {position.tags["symbol"]: position.quantity for position in live}
    assert len(counted) == len(live), "a pair is held twice"
    shown = {pair: max(venue.holdings[pair, "spot"], -venue.holdings[pair, "perp"]) for pair in killed_bot.PRICES}
    assert counted == {pair: quantity for pair, quantity in shown.items() if quantity}
    exposure = ledger.exposure(portfolio)
    assert (exposure.held, exposure.open) == (0, sum((position.open for position in live), Decimal(0)))
    decisions = list(ledger.history(portfolio, limit=1000, ascending=True))
    asked = Counter(decision.key for decision in decisions if decision.command == "reserve")
    assert set(asked.values()) == {1}
    granted = sum(decision.granted for decision in decisions)
    ended = Counter(position.state for position in ledger.positions(portfolio, limit=1000))
    assert sum(ended.values()) == granted == ended["open"] + ended["closed"] + ended["released"]
    return Counter(f"{decision.command} {decision.outcome}" for decision in decisions)


def require_all_exact(ledger: Ledger, lives: list[dict[str, Any]], folder: Path) -> None:
    seen: Counter[str] = Counter()
    for one in lives:
        seen += require_exact(ledger, one["name"], folder)
    assert len(lives) > 50, "this tests the whole cycle"
    assert set(seen) == {"reserve granted", "reserve denied", "confirm applied", "release applied"}
    assert ledger.verify().ok


def test_restart_when_killed_at_each_step_on_sqlite_then_each_wish_is_held_once(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    url = new_database("sqlite")
    lives = lives_of(url, tmp_path)
    with Ledger.open(url, client="bot") as ledger:
        require_all_exact(ledger, lives, tmp_path)


def test_restart_when_killed_at_each_step_over_http_then_each_wish_is_held_once(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    with served(new_database("postgresql"), settings=killed_bot.settings()) as service:
        lives = lives_of(service.url, tmp_path)
        require_all_exact(service.ledger, lives, tmp_path)
