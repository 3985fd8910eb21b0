"""Market histories for the tests of the replay: small made-up ones, and the path of the recorded one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from ledger_sizer.replay.bars import Bar, Candle, Quote

HEADER = "time,exchange,crypto,pair,contract,open,high,low,close,volume,funding rate"
START = datetime(2023, 1, 1, tzinfo=UTC)
INTERVAL = timedelta(hours=8)


def shared_data() -> Path:
    """Return the folder of real data. It is not part of the repository and may not exist."""
    beside = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "data"
    return Path(os.environ.get("LEDGER_SIZER_SHARED_DATA", beside))


def real_history() -> Path:
    """Return the path of the recorded history: three venues, 8-hour bars from January 2023 to July 2024."""
    return shared_data() / "market" / "funding_8h_2023_2024.csv.gz"


def flat_candle(price: str) -> Candle:
    """Return a candle whose price does not move, so that every fill has this price."""
    return Candle(*[Decimal(price)] * 4)


def quiet_bars(rates: Sequence[str], price: str = "50000", market: tuple[str, str] = ("binance", "BTC")) -> list[Bar]:
    """Return bars of one market with a constant price and these funding rates."""
    return [
        Bar(START + number * INTERVAL, (Quote(*market, flat_candle(price), flat_candle(price), Decimal(rate)),))
        for number, rate in enumerate(rates)
    ]


def csv_lines(bars: Iterable[Bar]) -> Iterator[str]:
    """Yield the bars as lines of a CSV file, header first."""
    yield HEADER
    for bar in bars:
        for quote in bar.quotes:
            legs = (
                (f"{quote.coin}/USDT", "spot", quote.spot, ""),
                (f"{quote.coin}USDT", "perpetual", quote.perp, f"{quote.rate:f}"),
            )
            for pair, contract, candle, rate in legs:
                prices = f"{candle.open},{candle.high},{candle.low},{candle.close}"
                yield f"{bar.time:%Y-%m-%d %H:%M:%S},{quote.venue},{quote.coin},{pair},{contract},{prices},1,{rate}"
