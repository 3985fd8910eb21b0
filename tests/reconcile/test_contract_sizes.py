"""A contract size that changed is no drift: the markets are loaded again before a new difference is judged."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest
from pydantic import SecretStr

from ledger_sizer import Leg
from ledger_sizer.exchanges.accounts import ExchangeAccount
from ledger_sizer.paper import PaperControl, PaperServer
from tests.support.accounts import Desk, NewDesk
from tests.support.ledgers import BTC_PRICE, TAGS, position_of
from tests.support.paper_clients import PERP, account_at

D = Decimal


class CountingAccount(ExchangeAccount):
    """Counts how often the markets are loaded."""

    loads = 0

    def _load_markets(self) -> object:
        self.loads += 1
        return super()._load_markets()


@pytest.fixture(scope="module")
def server() -> Iterator[PaperServer]:
    with PaperServer() as running:
        yield running


@pytest.fixture
def control(server: PaperServer, request: pytest.FixtureRequest) -> PaperControl:
    control = PaperControl(server.url, "okx", f"key-{request.node.name}")
    control.open_account(balances={"USDT": D(10_000), "BTC": D("0.02")})
    return control


@pytest.fixture
def desk(new_desk: NewDesk, server: PaperServer, control: PaperControl) -> Iterator[Desk]:
    """A desk with a hedged position of 0.02 BTC, which the account shows too, after one run."""
    account = account_at("okx", server.url, api_key=SecretStr(control.api_key))
    account.__class__ = CountingAccount
    account._positions._reload = account._load_markets
    desk = new_desk([account], confirmations=1)
    desk.ledger.set_cap(key="cap", cap=D(100_000))
    legs = [
        Leg("okx", "BTC/USDT", "spot", "buy", D("0.02"), BTC_PRICE),
        Leg("okx", PERP, "swap", "sell", D("0.02"), BTC_PRICE),
    ]
    tags = {**TAGS, "venue": "okx"}
    position_of(desk.ledger.adopt(key="a", quantity=D("0.02"), price=BTC_PRICE, tags=tags, legs=legs))
    control.open(PERP, "short", D("0.02"))
    assert desk.run().live == ()
    assert account.loads == 1
    yield desk
    account.close()


@pytest.mark.parametrize("factor", [10, D("0.1")])
def test_run_when_a_contract_size_changed_then_no_difference_is_seen(
    desk: Desk, control: PaperControl, server: PaperServer, factor: Decimal
) -> None:
    size = server.venues.dialects["okx"].exchange.markets[PERP].contract_size
    control.contract_size(PERP, size * factor)
    try:
        report = desk.run()
        assert (report.run.outcome, report.live, report.confirmed) == ("good", (), ())
        assert desk.account.loads == 2
        assert desk.run().live == ()
        assert desk.account.loads == 2, "it agrees now, so nothing is loaded again"
    finally:
        control.contract_size(PERP, size)


def test_run_when_a_position_differs_then_the_markets_are_loaded_once_for_it_and_it_is_told(
    desk: Desk, control: PaperControl
) -> None:
    control.open(PERP, "short", D("0.03"))
    for _ in range(3):
        (drift,) = [one for one in desk.run().live if one.subject == PERP]
        assert (drift.kind, drift.ledger_quantity, drift.venue_quantity) == ("quantity_differs", D("0.02"), D("0.05"))
        assert desk.account.loads == 2


def test_run_when_the_markets_cannot_be_loaded_again_then_the_difference_is_unknown_and_not_judged(
    desk: Desk, control: PaperControl
) -> None:
    control.open(PERP, "short", D("0.03"))
    control.fault("outage", "public/instruments", seconds=60)
    report = desk.run()
    control.clear_faults()
    assert (report.run.outcome, [one.kind for one in report.live]) == ("partial", ["fetch_failed"])
    assert [one.kind for one in desk.run().live if one.subject == PERP] == ["quantity_differs"]
