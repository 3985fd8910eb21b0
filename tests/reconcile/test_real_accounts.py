"""An account as a desk has it, at each paper venue: what is not the bots' stops nothing, and what is wrong is told."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest
from pydantic import SecretStr

from ledger_sizer import Leg
from ledger_sizer.model.reconciliation import Report
from ledger_sizer.paper import PaperControl, PaperServer
from tests.support.accounts import Desk, NewDesk
from tests.support.ledgers import BTC_PRICE
from tests.support.paper_clients import PERP, VENUES, account_at

D = Decimal
OPTIONS = {"bybit": "BTC-27DEC30-60000-C", "binance": "BTC-301227-60000-C", "okx": "BTC-USD-301227-60000-C"}


@pytest.fixture
def server() -> Iterator[PaperServer]:
    with PaperServer() as running:
        yield running


@pytest.fixture(params=VENUES)
def control(server: PaperServer, request: pytest.FixtureRequest) -> PaperControl:
    control = PaperControl(server.url, request.param, f"key-{request.node.name}")
    control.open_account(balances={"USDT": D(10_000)})
    return control


@pytest.fixture
def desk(new_desk: NewDesk, server: PaperServer, control: PaperControl) -> Iterator[Desk]:
    """A desk with 0.02 BTC, hedged, in an account with much that is not the bots'."""
    account = account_at(control.venue, server.url, api_key=SecretStr(control.api_key))
    desk = new_desk([account], confirmations=1, assets={"*/*/XRP": "fees"})
    desk.ledger.set_cap(key="cap", cap=D(100_000))
    tags = {"venue": control.venue, "strategy": "carry", "symbol": "BTC"}
    legs = [
        Leg(control.venue, "BTC/USDT", "spot", "buy", D("0.02"), BTC_PRICE),
        Leg(control.venue, PERP, "swap", "sell", D("0.02"), BTC_PRICE),
    ]
    desk.ledger.adopt(key="a", quantity=D("0.02"), price=BTC_PRICE, tags=tags, legs=legs)
    control.deposit("BTC", D("0.02"))
    control.open(PERP, "short", D("0.012"))
    control.open(PERP, "short", D("0.008"), margin="isolated")
    for coin, units in {"XRP": "50", "OLDCOIN": "0.0004", "LUNC": "12", "FDUSD": "700"}.items():
        control.deposit(coin, D(units))
    if control.venue == "binance":
        control.lend("BTC", D("0.01"))
        control.deposit("USDT", D(3000), "earn")
    if control.venue == "okx":
        control.open("ETH/USDT", "long", D(1), margin="isolated")
    control.option(OPTIONS[control.venue], D(2))
    yield desk
    account.close()


def told(report: Report) -> set[str]:
    """Return the kinds of drifts that are live."""
    return {drift.kind for drift in report.live}


def granted(desk: Desk, key: str) -> bool:
    """Whether a reservation would be granted now."""
    return desk.ledger.reserve(key=key, tags={"venue": desk.account.venue, "symbol": "ETH"}, dry_run=True).granted


@pytest.mark.one_engine
def test_reconcile_when_an_account_has_much_that_is_not_the_bots_then_only_rows_that_nobody_reads_are_told(
    desk: Desk, control: PaperControl
) -> None:
    report = desk.run(2)
    assert (report.run.outcome, told(report)) == ("good", {"unreadable"}), report.live
    assert desk.ledger.exposure().open == 1000
    assert granted(desk, "at first")
    for coin in ("XRP", "BTC"):  # fees are paid, and lent coins earn
        control.deposit("XRP", D("-0.3"))
        control.interest(D("0.001"), coin)
    report = desk.run(2)
    assert (told(report), desk.ledger.exposure().open) == ({"unreadable"}, 1000), report.live
    assert granted(desk, "a day later")


@pytest.mark.one_engine
def test_reconcile_when_the_exchange_deleverages_one_row_then_it_is_told_and_stays_through_maintenance(
    desk: Desk, control: PaperControl
) -> None:
    assert told(desk.run(2)) == {"unreadable"}
    control.deleverage(PERP, D("0.008"), margin="isolated")
    report = desk.run(2)
    (drift,) = [one for one in report.live if one.kind == "quantity_differs"]
    assert (drift.subject, drift.ledger_quantity, drift.venue_quantity) == (PERP, D("0.02"), D("0.012"))
    assert not granted(desk, "frozen")
    control.maintenance()
    report = desk.run()
    assert (report.run.outcome, told(report) >= {"fetch_failed", "quantity_differs"}) == ("failed", True)
    control.maintenance(on=False)
    control.open(PERP, "short", D("0.008"))
    report = desk.run()
    assert (told(report), granted(desk, "agreed again")) == ({"unreadable"}, True)


@pytest.mark.one_engine
def test_reconcile_when_a_coin_is_bought_by_hand_then_it_counts_at_the_exchanges_ticker_at_once(
    desk: Desk, control: PaperControl
) -> None:
    desk.run()
    control.deposit("ETH", D(1))
    desk.run()
    assert desk.ledger.exposure().open == 1000 + 2500


@pytest.mark.one_engine
def test_reconcile_when_a_market_ends_while_a_position_is_there_then_it_is_unknown_and_the_others_are_judged(
    desk: Desk, control: PaperControl
) -> None:
    assert told(desk.run(2)) == {"unreadable"}
    control.delist(PERP)
    desk.account._client.load_markets(True)
    report = desk.run(2)
    unread = {drift.subject for drift in report.live if drift.kind == "unreadable"}
    assert (told(report), PERP in unread, desk.ledger.exposure().open) == ({"unreadable"}, True, 1000), report.live
    control.open("ETH/USDT:USDT", "long", D("0.4"))
    report = desk.run(2)
    assert "ETH/USDT:USDT" in {drift.subject for drift in report.live if drift.kind == "unknown_position"}
