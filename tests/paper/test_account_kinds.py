"""Tests what accounts hold besides plain positions and coins, as the real ccxt client reads it from each exchange."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import ccxt
import pytest
from pydantic import SecretStr

from ledger_sizer.paper import PaperControl, PaperServer
from tests.support.paper_clients import PERP, SPOT, VENUES, trader_at

D = Decimal
INVERSE, DATED = "BTC/USD:BTC", "BTC/USDT:USDT-301227"
COIN_MARGINED: dict[str, dict[str, str]] = {"bybit": {"subType": "inverse"}, "binance": {"subType": "inverse"}}
OPTIONS: dict[str, tuple[str, dict[str, str]]] = {
    "bybit": ("BTC-27DEC30-60000-C", {"type": "option"}),
    "binance": ("BTC-301227-60000-C", {"method": "option"}),
    "okx": ("BTC-USD-301227-60000-C", {"instType": "OPTION"}),
}


@pytest.fixture
def server() -> Iterator[PaperServer]:
    with PaperServer(spot_fee_rate=D("0.001"), swap_fee_rate=D("0.0005")) as running:
        yield running


class Place:
    """One venue: its controls and a bot's ccxt client."""

    def __init__(self, server: PaperServer, venue: str, api_key: str = "paper") -> None:
        self.venue = venue
        self.control = PaperControl(server.url, venue, api_key)
        self.client: Any = trader_at(venue, server.url, api_key=SecretStr(api_key))
        self.client.load_markets()

    def positions(self, parameters: dict[str, str] | None = None) -> list[tuple[str, str, Decimal]]:
        """Return each row: symbol, side, base units (USD of a coin-margined market)."""
        rows = self.client.fetch_positions(None, parameters or {})
        return [(row["symbol"], row["side"], D(row["contracts"]) * D(row["contractSize"] or 1)) for row in rows]

    def total(self, asset: str, parameters: dict[str, str] | None = None) -> Decimal:
        return D(self.client.fetch_balance(parameters or {})["total"].get(asset, "0"))


@pytest.fixture(params=VENUES)
def place(server: PaperServer, request: pytest.FixtureRequest) -> Place:
    return Place(server, request.param)


def test_positions_when_a_market_is_coin_margined_then_it_is_apart_and_pays_in_its_coin(place: Place) -> None:
    wallet = "delivery" if place.venue == "binance" else "spot"
    place.control.deposit("BTC", D(1), wallet)
    place.control.open(INVERSE, "short", D(1000))
    place.control.open(DATED, "long", D("0.02"))
    listed = place.positions()
    assert (DATED, "long", D("0.02")) in listed
    assert ((INVERSE, "short", D(1000)) in listed) == (place.venue == "okx")
    assert (INVERSE, "short", D(1000)) in place.positions(COIN_MARGINED.get(place.venue))
    place.control.price("BTC", D(40_000))
    place.control.close(INVERSE)
    assert place.control.state()["accounts"]["paper"]["wallets"][wallet]["BTC"] == "1.005"


def test_positions_when_one_is_isolated_then_it_is_a_row_of_its_own(place: Place) -> None:
    place.control.open(PERP, "short", D("0.02"))
    place.control.open(PERP, "short", D("0.01"), margin="isolated")
    assert place.positions() == [(PERP, "short", D("0.02")), (PERP, "short", D("0.01"))]
    modes = [row["marginMode"] for row in place.client.fetch_positions()]
    assert modes == ([None, None] if place.venue == "bybit" else ["cross", "isolated"])
    place.control.deleverage(PERP, D("0.004"), margin="isolated")
    assert place.positions()[1] == (PERP, "short", D("0.006"))


def test_positions_when_coins_were_bought_on_margin_at_okx_then_the_row_has_a_spot_symbol(server: PaperServer) -> None:
    okx = Place(server, "okx")
    okx.control.open(SPOT, "long", D("0.5"), margin="isolated")
    assert okx.positions() == [(SPOT, "long", D("0.5"))]
    with pytest.raises(ValueError, match="no perpetual"):
        okx.control.open(SPOT, "long", D("0.5"))


def test_positions_when_options_are_held_then_their_rows_come_where_options_are_asked_for(place: Place) -> None:
    name, parameters = OPTIONS[place.venue]
    place.control.option(name, D(2))
    (row,) = place.client.fetch_positions(None, parameters)
    assert (row["info"].get("instId", row["info"].get("symbol")), row["side"], row["contracts"]) == (name, "long", "2")
    assert (place.positions() != []) == (place.venue == "okx"), "only OKX lists them with all others"


def test_positions_when_a_hedge_mode_side_is_empty_then_bybit_lists_it_with_blank_fields(server: PaperServer) -> None:
    PaperControl(server.url, "bybit", "hedged").open_account(hedged=True)
    bybit = Place(server, "bybit", "hedged")
    bybit.control.open(PERP, "short", D("0.02"))
    bybit.control.blank_sides()
    held, empty = bybit.client.fetch_positions()
    assert (held["side"], held["contracts"]) == ("short", "0.02")
    assert (empty["side"], empty["info"]["size"], empty["info"]["side"]) == ("long", "", "")


def test_balance_when_coins_are_lent_then_binance_lists_them_under_their_earn_name(place: Place) -> None:
    place.control.deposit("BTC", D(1))
    place.control.lend("BTC", D("0.5"))
    place.control.interest(D("0.01"))
    assert place.total("BTC") == D("0.5")
    assert place.total("LDBTC") == (D("0.505") if place.venue == "binance" else 0)
    with pytest.raises(ValueError, match=r"only 0\.5 BTC"):
        place.control.lend("BTC", D(1))


def test_balance_when_coins_are_borrowed_then_the_debt_grows_by_its_interest(place: Place) -> None:
    place.control.deposit("ETH", D(-2), "margin")
    place.control.interest(D("0.01"), "ETH")
    if place.venue == "binance":
        assert D(place.client.fetch_balance({"type": "margin"})["debt"]["ETH"]) == D("2.02")
    else:
        assert place.total("ETH") == D("-2.02")


def test_balance_when_it_is_in_the_funding_wallet_then_only_that_wallet_shows_it(place: Place) -> None:
    place.control.deposit("USDC", D(7), "funding")
    assert (place.total("USDC"), place.total("USDC", {"type": "funding"})) == (0, 7)
    with pytest.raises(ValueError, match="no wallet 'fund'"):
        place.control.deposit("USDC", D(7), "fund")


def test_balance_when_a_position_gains_then_each_exchange_includes_its_profit_or_not(place: Place) -> None:
    place.control.open(PERP, "short", D("0.02"))
    place.control.price("BTC", D(40_000))
    assert place.total("USDT", {"type": "swap"}) == (100_000 if place.venue == "bybit" else 100_200)


@pytest.mark.parametrize("symbol", [SPOT, PERP])
def test_order_when_fees_are_paid_in_a_coin_then_they_leave_its_stock_while_it_lasts(
    server: PaperServer, symbol: str
) -> None:
    binance = Place(server, "binance")
    with pytest.raises(ValueError, match="no price"):
        binance.control.fee_asset("BNB")
    binance.control.list_market("BNB/USDT", "BNBUSDT", D(500), D("0.001"))
    binance.control.fee_asset("BNB")
    wallet = "spot" if symbol == SPOT else "swap"
    binance.control.deposit("BNB", D("0.003"), wallet)
    binance.client.create_order(symbol, "market", "buy", "0.02")
    fee = D("0.002") if symbol == SPOT else D("0.001")
    wallets = binance.control.state()["accounts"]["paper"]["wallets"][wallet]
    assert (D(wallets["BNB"]), D(wallets["USDT"])) == (D("0.003") - fee, 99_000 if symbol == SPOT else 100_000)
    assert symbol == PERP or D(wallets["BTC"]) == D("0.02")
    for _ in range(3):
        binance.client.create_order(symbol, "market", "buy", "0.02")
    assert binance.total("BNB", {"type": wallet}) == D("0.003") % fee, "it is never overdrawn"
    after = binance.total("BTC" if symbol == SPOT else "USDT", {"type": wallet})
    assert after < (D("0.08") if symbol == SPOT else 100_000), "the last ones paid in the usual asset"


def test_market_when_it_is_delisted_then_its_row_and_coins_stay_without_market_and_price(place: Place) -> None:
    place.control.deposit("SOL", D(3))
    place.control.open("SOL/USDT:USDT", "short", D(30))
    for symbol in ("SOL/USDT", "SOL/USDT:USDT"):
        place.control.delist(symbol)
    place.client.load_markets(True)
    assert not {"SOL/USDT", "SOL/USDT:USDT"} & {*place.client.markets, *place.client.fetch_tickers()}
    (row,) = place.client.fetch_positions()
    assert row["symbol"] == {"okx": "SOL-USDT-SWAP"}.get(place.venue, "SOLUSDT")
    assert place.total("SOL") == 3
    place.control.close("SOL/USDT:USDT")
    assert place.positions() == []


def test_market_when_its_contract_size_changes_then_positions_keep_their_base_units(server: PaperServer) -> None:
    okx = Place(server, "okx")
    okx.control.open(PERP, "short", D("0.02"))
    okx.control.contract_size(PERP, D("0.001"))
    assert okx.positions() == [(PERP, "short", D("0.2"))], "read with the old size"
    okx.client.load_markets(True)
    assert okx.positions() == [(PERP, "short", D("0.02"))]
    with pytest.raises(ValueError, match="base units"):
        PaperControl(server.url, "bybit").contract_size(PERP, D("0.001"))


def test_market_when_its_coin_is_renamed_then_coins_and_positions_move_and_the_worth_stays(place: Place) -> None:
    place.control.deposit("SOL", D(3))
    place.control.open("SOL/USDT:USDT", "short", D(30))
    place.control.rename("SOL", "NEWSOL", D(1000))
    place.client.load_markets(True)
    assert place.positions() == [("NEWSOL/USDT:USDT", "short", D(30_000))]
    assert (place.total("SOL"), place.total("NEWSOL")) == (0, 3000)
    assert D(place.client.fetch_ticker("NEWSOL/USDT")["last"]) == D("0.15")
    assert "SOL/USDT" not in place.client.markets


def test_maintenance_when_it_is_on_then_private_calls_get_the_exchanges_own_error(place: Place) -> None:
    place.control.maintenance()
    error = ccxt.ExchangeError if place.venue == "bybit" else ccxt.OnMaintenance
    for call in (place.client.fetch_balance, place.client.fetch_positions):
        with pytest.raises(error, match=r"(?i)maintenance|unavailable"):
            call()
    assert place.client.fetch_tickers() != {}
    place.control.maintenance(on=False)
    assert place.total("USDT") == 100_000
