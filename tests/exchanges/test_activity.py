"""What an account tells of its fills, liquidations, transfers and funding: the real ccxt client at the paper venues."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest
from pydantic import SecretStr

from ledger_sizer.exchanges.accounts import ExchangeAccount
from ledger_sizer.model.account_activity import AccountEvent, Activity
from ledger_sizer.paper import PaperControl, PaperServer
from tests.support.paper_clients import PERP, SPOT, VENUES, account_at, now_us, trader_at

D = Decimal


@pytest.fixture(scope="module")
def server() -> Iterator[PaperServer]:
    with PaperServer() as running:
        yield running


@pytest.fixture(params=VENUES)
def venue(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def control(server: PaperServer, venue: str, request: pytest.FixtureRequest) -> Iterator[PaperControl]:
    control = PaperControl(server.url, venue, f"key-{request.node.name}")
    control.open_account()
    yield control
    control.clear_faults()


@pytest.fixture
def account(server: PaperServer, venue: str, control: PaperControl) -> Iterator[ExchangeAccount]:
    account = account_at(venue, server.url, api_key=SecretStr(control.api_key), timeout_seconds=2)
    yield account
    account.close()


def told(account: ExchangeAccount, subject: str, since_us: int) -> Activity:
    return account.activity(since_us, now_us(), subject)


def shown(events: tuple[AccountEvent, ...]) -> list[tuple[str, str, str, Decimal, Decimal | None]]:
    return [(one.kind, one.subject, one.side, one.quantity, one.price) for one in events]


def test_activity_when_a_market_was_traded_liquidated_and_paid_funding_then_each_is_told_in_coins(
    account: ExchangeAccount, control: PaperControl, server: PaperServer, venue: str
) -> None:
    begun_us = now_us()
    trader = trader_at(venue, server.url, api_key=SecretStr(control.api_key))
    trader.load_markets()
    size = D(trader.market(PERP)["contractSize"] or 1)
    order = trader.create_order(PERP, "market", "sell", f"{D('0.02') / size:f}")
    control.close(PERP, D("0.005"))
    control.funding(PERP, D("-1.25"))
    control.deleverage(PERP, D("0.005"))
    control.liquidate(PERP)
    control.open("ETH/USDT:USDT", "long", D(1))
    found = told(account, PERP, begun_us)
    assert found.problems == ()
    assert sorted(shown(found.events)) == [
        ("fill", PERP, "buy", D("0.005"), D(50_000)),
        ("fill", PERP, "buy", D("0.005"), D(50_000)),
        ("fill", PERP, "sell", D("0.02"), D(50_000)),
        ("funding", "USDT", "out", D("1.25"), None),
        ("liquidation", PERP, "buy", D("0.01"), D(50_000)),
    ], "each once, though Binance lists a liquidation among the trades too"
    assert [one.order for one in found.events if one.side == "sell"] == [order["id"]]
    forced = [one.detail for one in found.events if one.kind == "fill" and one.detail]
    assert forced == ([] if venue == "binance" else ["deleveraged by the exchange"])
    assert told(account, PERP, now_us() + 2_000_000).events == ()


def test_activity_when_a_coin_was_traded_moved_and_withdrawn_then_each_is_told(
    account: ExchangeAccount, control: PaperControl, server: PaperServer, venue: str
) -> None:
    begun_us = now_us()
    trader_at(venue, server.url, api_key=SecretStr(control.api_key)).create_order(SPOT, "market", "buy", "0.01")
    control.deposit("BTC", D(2))
    control.transfer("BTC", D("0.5"), "spot", "funding")
    control.deposit("BTC", D("-0.25"))
    found = told(account, "BTC", begun_us)
    assert found.problems == ()
    assert sorted(shown(found.events)) == [
        ("deposit", "BTC", "in", D(2), None),
        ("fill", SPOT, "buy", D("0.01"), D(50_000)),
        ("transfer", "BTC", "out", D("0.5"), None),
        ("withdrawal", "BTC", "out", D("0.25"), None),
    ]
    elsewhere = {one.kind for one in found.events if one.elsewhere}
    assert elsewhere == ({"deposit", "withdrawal"} if venue == "okx" else set()), "OKX keeps them in the funding wallet"


def test_activity_when_a_fee_is_paid_in_the_coin_then_the_change_is_less_by_it(venue: str) -> None:
    with PaperServer(spot_fee_rate=D("0.001")) as server:
        trader_at(venue, server.url).create_order(SPOT, "market", "buy", "0.01")
        account = account_at(venue, server.url)
        (event,) = told(account, "BTC", now_us() - 60_000_000).events
        assert event.change("BTC") == D("0.00999")
        account.close()


def test_activity_when_the_key_may_not_read_it_or_it_breaks_then_that_is_told_and_the_rest_stands(
    account: ExchangeAccount, control: PaperControl, venue: str
) -> None:
    begun_us = now_us()
    control.deposit("BTC", D(1))
    paths = {"bybit": "inter-transfer", "binance": "asset/transfer", "okx": "bills"}
    control.fault("forbidden", paths[venue], times=None)
    control.fault("outage", "withdraw", times=None)
    found = told(account, "BTC", begun_us)
    assert [one.kind for one in found.events] == ["deposit"]
    forbidden, broken = found.problems
    assert forbidden == f"{venue} main: transfers: not permitted for this key"
    assert broken.startswith(f"{venue} main: withdrawals: not read: ")


def test_activity_when_nothing_answers_then_it_says_so_and_never_raises() -> None:
    account = account_at("okx", "http://127.0.0.1:9", timeout_seconds=1)
    found = told(account, PERP, now_us() - 30 * 86_400_000_000)
    assert found.events == ()
    assert found.problems[0].startswith("okx main: nothing was read: ")
    account.close()
