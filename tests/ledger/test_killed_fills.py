"""A bot that tells fills one by one is killed before and after every call; restarted it tells the same again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from ledger_sizer import Ledger
from tests.conftest import NewDatabase
from tests.lockstep.auditor import Auditor
from tests.support import killed_fills
from tests.support.programs import settings_of
from tests.support.services import served

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = 2 * (2 + 2 * len(killed_fills.PARTS))
COST = sum(
    (Fraction(q) * Fraction(p) for q, p in zip(killed_fills.PARTS, killed_fills.PRICES, strict=True)), Fraction()
)
SETTINGS = settings_of(killed_fills.CAP_USD, client="bot")


def kill_at_every_step(url: str) -> list[str]:
    """Return the portfolios of the killed bots."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_fills", url], cwd=ROOT, capture_output=True, text=True,
        timeout=300, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["first"] for line in lines] == [-signal.SIGKILL] * STEPS + [0]
    assert [line["second"] for line in lines] == [0] * (STEPS + 1)
    return [line["name"] for line in lines]


def require_each_fill_once(ledger: Ledger, portfolio: str) -> None:
    parts, so_far = sorted(ledger.positions(portfolio), key=lambda one: one.number)
    for one in (parts, so_far):
        assert (one.state, one.quantity, one.filled, one.unfilled) == ("open", 1, 1, 0)
        assert (one.held, one.until_known) == (0, False), "once the granted quantity is filled nothing is held"
    assert Fraction(parts.cost) == COST
    assert abs(Fraction(so_far.cost) - COST) < Fraction(1, 10**18), "the average price told has 28 digits"
    Auditor(portfolio, killed_fills.CAP_USD).check(ledger)


@pytest.mark.slow
def test_kill_when_fills_are_told_one_by_one_then_each_counts_once_in_an_embedded_ledger(database_url: str) -> None:
    names = kill_at_every_step(database_url)
    with Ledger.open(database_url, settings=SETTINGS) as ledger:
        for name in names:
            require_each_fill_once(ledger, name)
        assert ledger.verify().findings == ()
        assert ledger.exposure("p1").open < Decimal("200.1")


@pytest.mark.slow
def test_kill_when_fills_are_told_over_http_then_each_counts_once(new_database: NewDatabase) -> None:
    with served(new_database("postgresql"), settings=SETTINGS) as service:
        for name in kill_at_every_step(service.url):
            require_each_fill_once(service.ledger, name)
        assert service.ledger.verify().findings == ()
