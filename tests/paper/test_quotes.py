"""Tests what the paper venue publishes, as the real ccxt reads it: candles, order book, funding, leverage tiers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer.paper import PaperControl, PaperServer
from ledger_sizer.paper.candles import Prices, begin_of, candles
from tests.support.paper_clients import PERP, SPOT, VENUES, trader_at

D = Decimal
HOUR_MS, MINUTE_MS = 3_600_000, 60_000


@pytest.fixture(scope="module")
def server() -> Iterator[PaperServer]:
    with PaperServer(spot_fee_rate=D("0.001"), swap_fee_rate=D("0.0005")) as running:
        yield running


@pytest.fixture(params=VENUES)
def client(server: PaperServer, request: pytest.FixtureRequest) -> Any:
    client = trader_at(request.param, server.url)
    client.load_markets()
    return client


@pytest.mark.parametrize("symbol", [SPOT, PERP])
def test_candles_when_every_interval_is_asked_for_then_each_is_whole_and_ends_at_the_present_price(
    client: Any, symbol: str
) -> None:
    for interval in client.timeframes:
        rows = [
            [row[0], *(D(str(number)) for number in row[1:6])] for row in client.fetch_ohlcv(symbol, interval, limit=4)
        ]
        begins = [row[0] for row in rows]
        assert len(rows) == 4, interval
        assert begins == sorted(set(begins)), interval
        assert all(
            low <= min(opening, close) and max(opening, close) <= high for _, opening, high, low, close, _ in rows
        )
        assert all(abs(before[4] - after[1]) <= D("0.01") for before, after in itertools.pairwise(rows)), interval
        assert rows[-1][4] == 50_000
        assert all(row[5] > 0 for row in rows)


@pytest.mark.parametrize("symbol", [SPOT, PERP])
def test_candles_when_they_are_asked_for_twice_and_since_a_time_then_they_are_the_same(
    client: Any, symbol: str
) -> None:
    since = client.milliseconds() - 50 * HOUR_MS
    rows = client.fetch_ohlcv(symbol, "1h", since, 10)
    assert [row[0] for row in rows] == [-(-since // HOUR_MS) * HOUR_MS + number * HOUR_MS for number in range(10)]
    assert client.fetch_ohlcv(symbol, "1h", since, 10) == rows
    assert len({row[4] for row in rows}) > 2, "a history that indicators can use moves"


def test_candle_when_the_price_moved_then_the_present_one_shows_it(server: PaperServer, client: Any) -> None:
    control = PaperControl(server.url, client.id)
    for price in ("3000", "2000", "2500"):
        control.price("ETH", D(price))
    newest = client.fetch_ohlcv("ETH/USDT", "1d", limit=1)[-1]
    assert [D(str(number)) for number in newest[2:5]] == [3_000, 2_000, 2_500]


def test_candles_when_minutes_are_added_up_then_they_are_the_hours() -> None:
    prices, present = Prices({"X": D(100)}), int(time.time() * 1000)
    first = begin_of(present, 1, "h") - 30 * HOUR_MS
    hours = candles(prices, "X", 1, "h", since_ms=first, until_ms=None, limit=29)
    minutes = candles(prices, "X", 1, "m", since_ms=first, until_ms=None, limit=29 * 60)
    for number, hour in enumerate(hours):
        within = minutes[number * 60 : number * 60 + 60]
        assert (hour.begin_ms, hour.opening, hour.closing) == (
            within[0].begin_ms, within[0].opening, prices.at("X", hour.end_ms - 1)
        )  # fmt: skip
        assert hour.high == max(one.high for one in within)
        assert hour.low == min(one.low for one in within)


def test_candles_when_they_are_weeks_and_months_then_they_begin_on_mondays_and_firsts() -> None:
    wednesday = 1_796_169_600_000
    assert [begin_of(wednesday, count, unit) for count, unit in ((1, "w"), (1, "M"), (3, "M"))] == [
        1_795_996_800_000, 1_796_083_200_000, 1_790_812_800_000
    ]  # fmt: skip


@pytest.mark.parametrize("symbol", [SPOT, PERP])
def test_order_book_when_it_is_fetched_then_its_best_prices_are_those_of_the_ticker(client: Any, symbol: str) -> None:
    book, ticker = client.fetch_l2_order_book(symbol, 5), client.fetch_ticker(symbol)
    assert (len(book["bids"]), len(book["asks"])) == (5, 5)
    assert D(str(book["bids"][0][0])) == D(str(book["asks"][0][0])) == D(str(ticker["last"])) == 50_000
    assert book["bids"][1][0] < book["bids"][0][0]
    assert book["asks"][0][0] < book["asks"][1][0]
    assert min(book["bids"][0][1], book["asks"][0][1]) > 0
    assert len(client.fetch_trades(symbol, limit=3)) == 3


def test_ticker_when_it_is_of_a_contract_then_ccxt_reads_it_as_one_with_a_day_and_a_volume(client: Any) -> None:
    ticker = client.fetch_tickers([PERP, "ETH/USDT:USDT"])[PERP]
    assert ticker["symbol"] == PERP
    assert D(str(ticker["low"])) < 50_000 < D(str(ticker["high"]))
    assert D(str(ticker["baseVolume"])) > 0


def test_funding_when_a_rate_is_set_then_the_present_and_the_past_ones_show_it(
    server: PaperServer, client: Any
) -> None:
    PaperControl(server.url, client.id).funding_rate(PERP, D("0.0003"))
    present = client.fetch_funding_rate(PERP)
    assert D(str(present["fundingRate"])) == D("0.0003")
    assert 0 < present["fundingTimestamp"] - client.milliseconds() <= 8 * HOUR_MS
    since = client.milliseconds() - 72 * HOUR_MS
    past = client.fetch_funding_rate_history(PERP, since, 5)
    assert [row["timestamp"] % (8 * HOUR_MS) for row in past] == [0] * 5
    assert since <= past[0]["timestamp"] < since + 8 * HOUR_MS
    assert {D(str(row["fundingRate"])) for row in past} == {D("0.0003")}
    assert D(str(client.fetch_mark_ohlcv(PERP, "1h", limit=1)[-1][4])) == 50_000
    assert D(str(client.fetch_index_ohlcv(PERP, "1h", limit=1)[-1][4])) == 50_000


def test_tiers_coins_and_fees_when_they_are_fetched_then_ccxt_reads_them(client: Any) -> None:
    tiers = client.fetch_market_leverage_tiers(PERP)
    assert [(D(str(tier["maintenanceMarginRate"])), D(str(tier["maxLeverage"]))) for tier in tiers] == [
        (D("0.005"), 100)
    ]
    assert {"BTC", "USDT"} <= set(client.fetch_currencies())
    assert [D(str(client.fetch_trading_fee(symbol)["taker"])) for symbol in (SPOT, PERP)] == [D("0.001"), D("0.0005")]
