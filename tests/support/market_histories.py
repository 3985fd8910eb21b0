"""Market histories for the tests of the replay: small ones made by hand, and where the real one is."""

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
    """The folder of real data, which is not part of the repository. It need not exist."""
    beside = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "data"
    return Path(os.environ.get("LEDGER_SIZER_SHARED_DATA", beside))


def real_history() -> Path:
    """Two and a half thousand hours of three venues, as recorded."""
    return shared_data() / "market" / "funding_8h_2023_2024.csv.gz"


def still(price: str) -> Candle:
    """A candle of a price that does not move, so that a fill has only one price to be at."""
    return Candle(*[Decimal(price)] * 4)


def quiet_bars(rates: Sequence[str], price: str = "50000", market: tuple[str, str] = ("binance", "BTC")) -> list[Bar]:
    """One market whose price stands still, with these funding rates."""
    return [
        Bar(START + number * INTERVAL, (Quote(*market, still(price), still(price), Decimal(rate)),))
        for number, rate in enumerate(rates)
    ]


def csv_lines(bars: Iterable[Bar]) -> Iterator[str]:
    """The bars as the lines of a file, header first."""
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
