"""Provides the bars of a replay, from a file (checked in full before the first decision) or the synthetic market."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from ledger_sizer.exchanges.known_markets import MARKETS, MarketKey
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.replay.bars import Bar, BarFile
from ledger_sizer.replay.synthetic_market import BARS_DEFAULT, generated_bars

NO_RULES = "no instrument rules"


@dataclass(frozen=True, slots=True)
class Source:
    """A sequence of bars and a summary of it. Each call of `read` starts from the first bar.

    markets: those that can be traded, sorted. rows: instrument rows of the file, or as many as a file would have.
    skipped: rows left out, by reason.
    """

    name: str
    bars: int
    first: datetime
    last: datetime
    rows: int
    markets: tuple[MarketKey, ...]
    skipped: Mapping[str, int]
    read: Callable[[], Iterator[Bar]]

    @property
    def span(self) -> timedelta:
        """From the first bar to the last."""
        return self.last - self.first


def file_source(path: Path, bars_max: int | None = None) -> Source:
    """Return the first `bars_max` bars of a CSV file. Reads them all once, to find a bad line before any decision.

    Raises `InvalidRequest` with file, line, column and value of a bad line, or when the file has no market to trade.
    """
    file = BarFile(path, bars_max)
    found = _scan(path.name, iter(file), lambda: iter(file))
    return replace(found, rows=file.rows, skipped={**file.skipped, **found.skipped})


def generated_source(seed: int, bars: int | None = None) -> Source:
    """Return the synthetic market of this seed: `bars` bars, 540 (half a year) when None."""
    count = BARS_DEFAULT if bars is None else bars
    name = f"generated market, seed {seed}"
    return _scan(name, generated_bars(seed, count), lambda: generated_bars(seed, count))


def _scan(name: str, bars: Iterator[Bar], read: Callable[[], Iterator[Bar]]) -> Source:
    count = quotes = 0
    first: datetime | None = None
    last: datetime | None = None
    markets: set[MarketKey] = set()
    skipped: Counter[str] = Counter()
    for bar in bars:
        count += 1
        first, last = first or bar.time, bar.time
        for quote in bar.quotes:
            quotes += 1
            if quote.key in MARKETS:
                markets.add(quote.key)
            else:
                skipped[NO_RULES] += 2  # its spot row and its perpetual's
    if first is None or last is None or not markets:
        known = ", ".join(f"{venue} {coin}" for venue, coin in sorted(MARKETS))
        raise InvalidRequest(f"{name} has no market to trade: spot and USDT perpetual of one of {known}", field="file")
    return Source(name, count, first, last, 2 * quotes, tuple(sorted(markets)), dict(skipped), read)
