"""Tests the paper venue's tickers through the real ccxt client."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import ccxt
import pytest

from ledger_sizer.paper import PaperControl, PaperServer
from tests.support.paper_clients import PERP, SPOT, VENUES, trader_at

D = Decimal


@pytest.fixture(scope="module")
def server() -> Iterator[PaperServer]:
    with PaperServer() as running:
        yield running


@pytest.mark.parametrize("venue", VENUES)
def test_tickers_when_a_price_moved_then_each_kind_of_market_shows_it(server: PaperServer, venue: str) -> None:
    client = trader_at(venue, server.url)
    client.load_markets()
    PaperControl(server.url, venue).price("BTC", D(40_000))
    spot = client.fetch_tickers(None, {"type": "spot"})
    assert {symbol: D(spot[symbol]["last"]) for symbol in (SPOT, "ETH/USDT")} == {SPOT: 40_000, "ETH/USDT": 2_500}
    assert all(":" not in symbol for symbol in spot)
    assert D(client.fetch_tickers([PERP])[PERP]["last"]) == 40_000
    dated = "BTC/USDT:USDT-301227"
    single = {symbol: D(client.fetch_ticker(symbol)["last"]) for symbol in (SPOT, PERP, dated, "BTC/USD:BTC")}
    assert single == dict.fromkeys((SPOT, PERP, dated, "BTC/USD:BTC"), D(40_000))


@pytest.mark.parametrize("venue", VENUES)
def test_ticker_when_the_market_is_not_there_then_the_exchanges_own_error_comes(
    server: PaperServer, venue: str
) -> None:
    client = trader_at(venue, server.url)
    client.load_markets()
    client.market(SPOT)["id"] = "NONEUSDT"
    with pytest.raises((ccxt.BadSymbol, ccxt.BadRequest)):
        client.fetch_ticker(SPOT)
