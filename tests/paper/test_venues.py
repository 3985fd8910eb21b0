"""Tests the paper venue: signatures, orders and fills, and the controls."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import ccxt
import httpx
import pytest
from pydantic import SecretStr

from ledger_sizer.paper import PaperControl, PaperServer, ccxt_config
from tests.support.paper_clients import PERP, SPOT, VENUES, contracts, filled, trader_at

D = Decimal


@pytest.fixture(scope="module")
def server() -> Iterator[PaperServer]:
    with PaperServer(spot_fee_rate=D("0.001"), swap_fee_rate=D("0.0005")) as running:
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
    control.price("BTC", D(50_000))
    control.fills(at_once=True)
    control.clear_faults()


@pytest.fixture
def trader(server: PaperServer, venue: str, control: PaperControl) -> Any:
    client = trader_at(venue, server.url, api_key=SecretStr(control.api_key))
    client.load_markets()
    return client


def held(control: PaperControl) -> dict[str, Any]:
    """Return the account's true state."""
    found: dict[str, Any] = control.state()["accounts"][control.api_key]
    return found


def units(control: PaperControl, asset: str, wallet: str = "spot") -> Decimal:
    return D(held(control)["wallets"][wallet].get(asset, "0"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_secret": SecretStr("wrong")},
        {"api_key": SecretStr("nobody")},
        {"api_secret": SecretStr("paper-secret ")},
    ],
    ids=["secret", "key", "space"],
)
def test_call_when_the_signature_is_wrong_then_the_exchanges_own_error_comes_and_nothing_happens(
    server: PaperServer, venue: str, control: PaperControl, wrong: dict[str, SecretStr]
) -> None:
    client = trader_at(venue, server.url, **({"api_key": SecretStr(control.api_key)} | wrong))
    with pytest.raises(ccxt.AuthenticationError):
        client.create_order(SPOT, "market", "buy", "0.01")
    assert units(control, "BTC") == 0


def test_call_when_okx_gets_a_wrong_passphrase_then_it_is_refused(server: PaperServer) -> None:
    client = trader_at("okx", server.url, password=SecretStr("wrong"))
    with pytest.raises(ccxt.AuthenticationError, match="50105"):
        client.fetch_balance()


def test_call_when_its_time_is_long_past_then_it_is_refused(trader: Any) -> None:
    trader.nonce = lambda: 1_600_000_000_000
    with pytest.raises((ccxt.InvalidNonce, ccxt.AuthenticationError)):
        trader.fetch_balance()


def test_call_when_the_body_was_changed_on_the_way_then_its_signature_no_longer_fits(
    trader: Any, control: PaperControl
) -> None:
    sign = trader.sign

    def tampered(*args: Any, **kwargs: Any) -> Any:
        request = sign(*args, **kwargs)
        if request["method"] == "POST":
            request["body"] = request["body"].replace("0.01", "0.09")
        return request

    trader.sign = tampered
    with pytest.raises(ccxt.AuthenticationError):
        trader.create_order(SPOT, "limit", "buy", "0.01", "40000")
    assert held(control)["open_orders"] == []


def test_order_when_spot_is_bought_then_the_fee_is_taken_from_what_was_bought(
    trader: Any, control: PaperControl
) -> None:
    order = filled(trader, SPOT, trader.create_order(SPOT, "market", "buy", "0.02"))
    assert (order["status"], D(order["filled"]), D(order["average"]), D(order["cost"])) == (
        "closed", D("0.02"), D(50_000), D(1_000)
    )  # fmt: skip
    assert units(control, "BTC") == D("0.02") * D("0.999")
    assert units(control, "USDT") == 99_000
    trader.create_order(SPOT, "market", "sell", "0.01")
    assert units(control, "USDT") == 99_000 + 500 * D("0.999")


def test_order_when_a_perpetual_is_sold_and_bought_back_then_the_profit_is_paid(
    trader: Any, control: PaperControl
) -> None:
    amount = contracts(trader, PERP, D("0.02"))
    trader.create_order(PERP, "market", "sell", amount)
    assert held(control)["positions"] == [
        {"symbol": PERP, "slot": "net", "quantity": "-0.02", "entry_price": "50000"}
    ]  # fmt: skip
    control.price("BTC", D(45_000))
    trader.create_order(PERP, "market", "buy", amount, None, {"reduceOnly": True})
    assert held(control)["positions"] == []
    fees = (1_000 + 900) * D("0.0005")
    assert units(control, "USDT", "swap") == 100_000 + 100 - fees


def test_order_when_a_limit_is_not_reached_then_it_rests_until_the_price_comes(
    trader: Any, control: PaperControl
) -> None:
    order = trader.create_order(SPOT, "limit", "buy", "0.02", "48000")
    assert filled(trader, SPOT, order)["status"] == "open"
    control.price("BTC", D(47_000))
    after = filled(trader, SPOT, order)
    assert (after["status"], D(after["average"])) == ("closed", D(47_000))


def test_order_when_it_is_cancelled_then_it_never_fills(trader: Any, control: PaperControl) -> None:
    order = trader.create_order(PERP, "limit", "sell", contracts(trader, PERP, D("0.02")), "60000")
    trader.cancel_order(order["id"], PERP)
    control.price("BTC", D(70_000))
    assert filled(trader, PERP, order)["status"] == "canceled"
    assert held(control)["positions"] == []
    with pytest.raises(ccxt.OrderNotFound):
        trader.cancel_order(order["id"], PERP)


def test_order_when_fills_are_held_back_then_it_fills_late_and_in_parts(trader: Any, control: PaperControl) -> None:
    control.fills(at_once=False)
    order = trader.create_order(PERP, "market", "sell", contracts(trader, PERP, D("0.04")))
    assert held(control)["positions"] == []
    control.fill(order["id"], D("0.01"))
    part = filled(trader, PERP, order)
    assert part["status"] == "open"
    assert D(part["filled"]) == D(contracts(trader, PERP, D("0.01")))
    control.fills(at_once=True)
    assert filled(trader, PERP, order)["status"] == "closed"
    assert held(control)["positions"][0]["quantity"] == "-0.04"


def test_order_when_the_answer_is_lost_then_it_was_filled_all_the_same(trader: Any, control: PaperControl) -> None:
    trader.fetch_balance()
    control.fault("lost_answer", "order", seconds=0)
    with pytest.raises(ccxt.NetworkError):
        trader.create_order(PERP, "market", "sell", contracts(trader, PERP, D("0.02")))
    assert held(control)["positions"][0]["quantity"] == "-0.02"


@pytest.mark.parametrize(
    ("symbol", "kind", "quantity", "price", "error"),
    [
        (SPOT, "market", "9", None, ccxt.InsufficientFunds),
        # ccxt maps the error codes of Binance's futures by host, which is a different one here.
        (PERP, "limit", "99", "50000", ccxt.ExchangeError),
        (SPOT, "limit", "5000", "50000", ccxt.ExchangeError),
        ("LUNA/USDT", "limit", "1000000", "0.0001", ccxt.ExchangeError),
    ],
    ids=["funds", "margin", "maximum", "inactive"],
)
def test_order_when_the_venue_cannot_take_it_then_the_exchanges_own_error_comes_and_nothing_happens(
    trader: Any, control: PaperControl, symbol: str, kind: str, quantity: str, price: str | None, error: type[Exception]
) -> None:
    with pytest.raises(error) as refused:
        trader.create_order(symbol, kind, "buy", contracts(trader, symbol, D(quantity)), price)
    assert not isinstance(refused.value, ccxt.NetworkError)
    assert held(control)["open_orders"] == []
    assert (units(control, "BTC"), held(control)["positions"]) == (0, [])


def test_order_when_there_is_nothing_to_reduce_then_it_is_refused(trader: Any) -> None:
    with pytest.raises(ccxt.ExchangeError):
        trader.create_order(PERP, "market", "buy", contracts(trader, PERP, D("0.02")), None, {"reduceOnly": True})


@pytest.mark.parametrize("side", ["long", "short"])
def test_control_when_a_position_is_opened_flipped_closed_then_the_owner_sees_it(
    trader: Any, control: PaperControl, side: str
) -> None:
    other = "short" if side == "long" else "long"

    def seen() -> list[tuple[str, Decimal]]:
        size = D(trader.market(PERP)["contractSize"])
        return [(p["side"], D(p["contracts"]) * size) for p in trader.fetch_positions() if D(p["contracts"])]

    control.open(PERP, side, D("0.05"))
    assert seen() == [(side, D("0.05"))]
    control.flip(PERP)
    assert seen() == [(other, D("0.05"))]
    control.close(PERP, D("0.02"))
    assert seen() == [(other, D("0.03"))]
    control.close(PERP)
    assert seen() == []


def test_control_when_a_position_is_liquidated_then_its_margin_is_gone(trader: Any, control: PaperControl) -> None:
    trader.create_order(PERP, "market", "sell", contracts(trader, PERP, D("0.02")))
    before = units(control, "USDT", "swap")
    control.liquidate(PERP)
    assert held(control)["positions"] == []
    assert units(control, "USDT", "swap") == before - 100


def test_control_when_answers_are_stale_then_the_owner_sees_the_past_until_it_ends(
    trader: Any, control: PaperControl
) -> None:
    control.open(PERP, "long", D("0.05"))
    control.stale()
    control.close(PERP)
    control.deposit("ETH", D(3))
    assert len(trader.fetch_positions()) == 1
    assert "ETH" not in trader.fetch_balance()["total"]
    control.stale(stale=False)
    assert trader.fetch_positions() == []
    assert D(trader.fetch_balance()["total"]["ETH"]) == 3


@pytest.mark.parametrize(
    ("action", "form", "told"),
    [
        ("open", {"symbol": "BTC/USDT", "side": "long", "quantity": "1"}, "no perpetual here; there are BTC/USDT:USDT"),
        ("open", {"symbol": PERP, "side": "up", "quantity": "1"}, "side must be long or short"),
        ("open", {"symbol": PERP, "side": "long"}, "parameter quantity is missing"),
        ("price", {"asset": "DOGE", "price": "1"}, "known asset"),
        ("price", {"asset": "BTC", "price": "NaN"}, "no number"),
        ("close", {"symbol": PERP}, "there is no position"),
        ("list", {"symbol": "BTCUSD", "id": "x", "price": "1", "step": "1"}, "is no spot, perpetual or dated market"),
        ("list", {"symbol": PERP, "id": "x", "price": "1", "step": "0"}, "must be above 0"),
        ("fault", {"kind": "flood"}, "no fault 'flood'; there are rate_limit"),
        ("deposit", {"api_key": "nobody", "quantity": "1"}, "no account with the key 'nobody'"),
        ("account", {"api_key": "paper"}, "has an account with the key"),
    ],
)
def test_control_when_it_is_asked_nonsense_then_it_says_what_is_wrong(
    server: PaperServer, action: str, form: dict[str, str], told: str
) -> None:
    answer = httpx.post(f"{server.url}/paper/bybit/{action}", json=form)
    assert answer.status_code == 422
    assert told in answer.json()["error"]


def test_run_when_started_as_a_module_then_it_prints_where_it_is_and_answers() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ledger_sizer.paper", "--port", "0", "--balance-usdt", "5"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split(" at ")[1].strip()
        overview = httpx.get(f"{url}/paper").json()
        assert list(overview) == list(VENUES)
        assert overview["okx"]["accounts"]["paper"]["wallets"]["spot"] == {"USDT": "5"}
        assert httpx.get(f"{url}/nowhere").status_code == 404
    finally:
        process.terminate()
        process.wait(10)
        process.stdout and process.stdout.close()


def test_control_when_a_market_is_listed_then_it_is_traded_and_shown_as_the_exchange_does(
    trader: Any, control: PaperControl
) -> None:
    symbol = "BTC/USDC:USDC"
    name = {"bybit": "BTCPERP", "binance": "BTCUSDC", "okx": "BTC-USDC-SWAP"}[control.venue]
    control.list_market(symbol, name, D(50_000), D("0.01"), contract_size=D("0.1" if control.venue == "okx" else "1"))
    trader.load_markets(True)
    assert (trader.market(symbol)["settle"], trader.market(symbol)["quote"]) == ("USDC", "USDC")
    trader.create_order(symbol, "market", "sell", contracts(trader, symbol, D("0.05")))
    assert held(control)["positions"] == [
        {"symbol": symbol, "slot": "net", "quantity": "-0.05", "entry_price": "50000"}
    ]  # fmt: skip
    parameters = {"settleCoin": "USDC"} if control.venue == "bybit" else {}
    (shown,) = trader.fetch_positions(None, parameters)
    assert (shown["symbol"], shown["side"]) == (symbol, "short")
    with pytest.raises(ccxt.ExchangeError):
        trader.create_order(symbol, "market", "sell", contracts(trader, symbol, D("0.005")))


def test_ccxt_config_when_it_is_asked_for_by_http_then_it_is_what_python_gives(server: PaperServer, venue: str) -> None:
    given = httpx.get(f"{server.url}/paper/{venue}/ccxt-config", trust_env=False).json()
    assert given == ccxt_config(venue, server.url)
    client = getattr(ccxt, venue)(given)
    assert client.fetch_ticker(SPOT)["last"] == 50_000
    assert httpx.get(f"{server.url}/paper/kraken/ccxt-config", trust_env=False).status_code == 404
