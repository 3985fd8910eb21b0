"""Reads of a portfolio that nobody used yet: empty, or an error where portfolios are declared."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import AppSettings, DynamicSizingSettings, InvalidRequest, Ledger, LedgerSettings, NotFound

D = Decimal


def _reads(ledger: Ledger) -> list[Any]:
    return [ledger.exposure, ledger.exposure_page, ledger.history, ledger.positions, ledger.net, ledger.export]


@pytest.mark.settings(AppSettings(sizing=DynamicSizingSettings(max_portfolio_exposure=D(70))))
@pytest.mark.parametrize("portfolio", ["main", "nobody"])
def test_read_when_nobody_used_the_portfolio_yet_then_it_is_empty(ledger: Ledger, portfolio: str) -> None:
    found = ledger.exposure(portfolio)
    assert (found.seq, found.cap, found.headroom, found.held, found.open, found.status) == (0, 70, 70, 0, 0, "active")
    assert ledger.exposure(portfolio, as_of=datetime(2026, 1, 1, tzinfo=UTC)) == found
    assert ledger.exposure_page(portfolio).exposure == found
    assert [len(read(portfolio)) for read in (ledger.history, ledger.positions)] == [0, 0]
    assert b"".join(ledger.export(portfolio)) == b""
    assert ledger.net(portfolio).assets == ()
    assert ledger.portfolios() == [], "a read begins none"
    missing = [
        lambda: ledger.exposure(portfolio, as_of=1), lambda: ledger.decision(1, portfolio),
        lambda: ledger.explain(1, portfolio), lambda: ledger.position(f"{portfolio}-1"),
        lambda: ledger.verify(portfolio), lambda: ledger.heads(portfolio), lambda: ledger.sweep(portfolio),
    ]  # fmt: skip
    for read in missing:
        with pytest.raises(NotFound, match=portfolio):
            read()


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("as_of", [datetime(2020, 1, 1), "2020", 1.5])  # noqa: DTZ001 - it has no time zone
def test_read_as_of_when_it_is_no_moment_then_it_is_refused(ledger: Ledger, used: bool, as_of: Any) -> None:
    if used:
        ledger.set_cap(key="1", cap=D(7))
    with pytest.raises(InvalidRequest, match="as_of"):
        ledger.exposure(as_of=as_of)


@pytest.mark.settings(AppSettings(ledger=LedgerSettings(portfolios="declared")))
def test_read_when_portfolios_are_declared_then_another_name_is_an_error(ledger: Ledger) -> None:
    ledger.set_cap(key="1", cap=D(7))
    assert ledger.exposure().cap == 7
    for read in _reads(ledger):
        with pytest.raises(NotFound, match="no portfolio 'mian'"):
            list(read("mian"))
    assert ledger.lookup("1", "mian") is None
