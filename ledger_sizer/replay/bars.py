"""Reads market history: bars with funding rates from a CSV file, plain or gzipped.

One row is one instrument during one funding interval. The columns used are

    time            when the interval starts, ISO 8601, UTC unless it says otherwise
    exchange        the venue, such as `bybit`
    pair            `BTC/USDT` (spot), `BTCUSDT` (USDT-margined perpetual) or `BTCUSDCM` (coin-margined perpetual)
    contract        `spot` or `perpetual`
    open, high, low, close    USD per base unit, above 0
    funding rate    of a perpetual: the fraction of the notional that longs pay shorts at `time` (negative: shorts pay)

in any order. Other columns are ignored. Rows must be sorted by time. The file is streamed, one bar in memory at a time.
Every error names the file, the line, the column and the value.
"""

import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from itertools import islice
from pathlib import Path
from typing import IO, NoReturn, cast

from ledger_sizer.exchanges.known_markets import MarketKey
from ledger_sizer.model.arguments import label_text
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.units import exact_decimal, parse_decimal, positive

COLUMNS = ("time", "exchange", "pair", "contract", "open", "high", "low", "close", "funding rate")
INTERVAL_MIN = timedelta(hours=1)
"""Shortest time between two bars, because the orders of one bar must end before the next begins."""

COIN_MARGINED = "coin-margined"
UNKNOWN_PAIR = "unknown pair"
ONE_LEG = "one leg missing"

_GZIP_MAGIC = b"\x1f\x8b"
_LINEAR, _INVERSE = "USDT", "USDCM"


@dataclass(frozen=True, slots=True)
class Candle:
    """Prices of one instrument during one bar, USD per base unit."""

    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal


@dataclass(frozen=True, slots=True)
class Quote:
    """One coin on one venue at one bar: both legs' prices, and the funding rate settled at the bar's time."""

    venue: str
    coin: str
    spot: Candle
    perp: Candle
    rate: Decimal

    @property
    def key(self) -> MarketKey:
        """(venue, coin)."""
        return self.venue, self.coin


@dataclass(frozen=True, slots=True)
class Bar:
    """All markets at one time (aware UTC), sorted by venue and coin."""

    time: datetime
    quotes: tuple[Quote, ...]


class BarFile:
    """The bars of one file. Each iteration reads the file from its start, and sets `rows` and `skipped` anew.

    skipped: rows left out, by reason. Coin-margined perpetuals are left out because they are inverse contracts with a
    fixed value in USD: a quantity in coins does not size them. Raises `InvalidRequest` at the first error.
    """

    def __init__(self, path: Path, bars_max: int | None = None) -> None:
        self._path = path
        self._bars_max = bars_max
        self.rows = 0
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Bar]:
        self.rows = 0
        self.skipped = Counter()
        yield from islice(self._bars(), self._bars_max)
        if not self.rows:
            raise InvalidRequest(f"{self._path.name} has a header and no rows", field="file")

    def _bars(self) -> Iterator[Bar]:
        legs: dict[tuple[str, str, str], tuple[Candle, Decimal]] = {}
        time: datetime | None = None
        for row in self._rows():
            if row.time != time:
                if time is not None:
                    row.require_after(time)
                    yield self._make_bar(time, legs)
                time, legs = row.time, {}
            self.rows += 1
            kind, coin = row.kind_and_coin()
            if kind in (COIN_MARGINED, UNKNOWN_PAIR):
                self.skipped[kind] += 1
                continue
            key = (row.venue, coin, kind)
            if key in legs:
                row.reject("pair", f"stands twice at {row.text('time')}")
            legs[key] = row.candle(), row.rate() if kind == "perpetual" else Decimal(0)
        if time is not None:
            yield self._make_bar(time, legs)

    def _make_bar(self, time: datetime, legs: dict[tuple[str, str, str], tuple[Candle, Decimal]]) -> Bar:
        quotes = []
        for venue, coin in sorted({(venue, coin) for venue, coin, _ in legs}):
            spot, perp = legs.get((venue, coin, "spot")), legs.get((venue, coin, "perpetual"))
            if spot is None or perp is None:
                self.skipped[ONE_LEG] += 1
                continue
            quotes.append(Quote(venue, coin, spot[0], perp[0], perp[1]))
        return Bar(time, tuple(quotes))

    def _rows(self) -> Iterator["_Row"]:
        name = self._path.name
        with _open_text(self._path) as text:
            reader = csv.reader(text, strict=True)
            try:
                header = next(reader, None)
                if header is None:
                    raise InvalidRequest(f"{name} is empty; a first line with {', '.join(COLUMNS)} is needed")
                indexes = _column_indexes(name, header)
                for fields in reader:
                    if not fields:
                        continue
                    if len(fields) != len(header):
                        raise InvalidRequest(
                            f"{name} line {reader.line_num}: {len(fields)} fields, the header has {len(header)}",
                            field="file",
                        )
                    yield _Row(name, reader.line_num, fields, indexes)
            except (csv.Error, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise InvalidRequest(
                    f"{name} cannot be read after line {reader.line_num}: {error}; is it a CSV file, whole, in UTF-8?",
                    field="file",
                ) from None


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    """Open the file as text. Gzip is recognised by its first bytes, not by the file name."""
    try:
        # The file is read twice, to check it and then to replay it. A pipe could be read only once.
        if path.exists() and not path.is_file():
            raise InvalidRequest(f"{path} is not a regular file; replay reads a CSV file, plain or gzipped")
        raw = path.open("rb")
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror or error}", field="file") from None
    with raw:
        is_gzip = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if is_gzip else raw
        with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
            yield text


def _column_indexes(name: str, header: list[str]) -> dict[str, int]:
    found = [column.strip() for column in header]
    missing = [column for column in COLUMNS if column not in found]
    if missing:
        raise InvalidRequest(
            f"{name} line 1 lacks the column {missing[0]!r} (of {', '.join(COLUMNS)}); it has {', '.join(found)}",
            field="file",
        )
    twice = [column for column in COLUMNS if found.count(column) > 1]
    if twice:
        raise InvalidRequest(f"{name} line 1 has the column {twice[0]!r} twice", field="file")
    return {column: found.index(column) for column in COLUMNS}


class _Row:
    """One line of the file. Columns are parsed when they are asked for."""

    __slots__ = ("_column_indexes", "_fields", "_file", "_line", "time", "venue")

    def __init__(self, file: str, line: int, fields: list[str], indexes: dict[str, int]) -> None:
        self._file = file
        self._line = line
        self._fields = fields
        self._column_indexes = indexes
        self.time = self._time()
        self.venue = self._venue()

    def text(self, column: str) -> str:
        """Return the column's text without surrounding blanks."""
        return self._fields[self._column_indexes[column]].strip()

    def reject(self, column: str, problem: str) -> NoReturn:
        """Raise `InvalidRequest` about this column."""
        raise InvalidRequest(
            f"{self._file} line {self._line}, column {column!r}: {self.text(column)!r} {problem}", field="file"
        )

    def _time(self) -> datetime:
        try:
            moment = datetime.fromisoformat(self.text("time"))
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
            _ = moment + INTERVAL_MIN  # the orders of its bar come after it
        except (ValueError, OverflowError):
            self.reject("time", "is not a time such as 2023-01-01 08:00:00")
        return moment

    def _venue(self) -> str:
        try:
            return label_text(self.text("exchange"), "it")
        except InvalidRequest as error:
            self.reject("exchange", f"is no name of a venue: {error}")

    def require_after(self, before: datetime) -> None:
        """Check that this row's bar starts at least `INTERVAL_MIN` after the previous bar."""
        if self.time < before:
            self.reject("time", f"is earlier than {before:%Y-%m-%d %H:%M:%S} above it; sort the rows by time")
        if self.time - before < INTERVAL_MIN:
            self.reject("time", f"is less than an hour after {before:%Y-%m-%d %H:%M:%S}; give one row per funding time")

    def kind_and_coin(self) -> tuple[str, str]:
        """Return (`spot` or `perpetual`, coin), or (the reason to skip the row, `""`)."""
        contract, pair = self.text("contract"), self.text("pair")
        if contract not in ("spot", "perpetual"):
            self.reject("contract", "is neither 'spot' nor 'perpetual'")
        if not pair.isascii() or not pair.isprintable() or not pair:
            self.reject("pair", "is no pair such as BTC/USDT or BTCUSDT")
        if contract == "spot":
            coin, slash, quote = pair.partition("/")
            return ("spot", coin) if slash and coin and quote == _LINEAR else (UNKNOWN_PAIR, "")
        if pair.endswith(_INVERSE):
            return COIN_MARGINED, ""
        coin = pair.removesuffix(_LINEAR)
        return ("perpetual", coin) if coin and coin != pair else (UNKNOWN_PAIR, "")

    def candle(self) -> Candle:
        """Return the four prices: above 0, the high not below the others, the low not above them."""
        candle = Candle(*[self._number(column, is_price=True) for column in ("open", "high", "low", "close")])
        if candle.high < max(candle.open, candle.close, candle.low):
            self.reject("high", f"is below open {candle.open}, low {candle.low} or close {candle.close}")
        if candle.low > min(candle.open, candle.close):
            self.reject("low", f"is above open {candle.open} or close {candle.close}")
        return candle

    def rate(self) -> Decimal:
        """Return the funding rate, a fraction per interval."""
        rate = self._number("funding rate", is_price=False)
        if not -1 <= rate <= 1:
            self.reject("funding rate", "is more than the whole notional; it is a fraction, 0.0001 is one basis point")
        return rate

    def _number(self, column: str, *, is_price: bool) -> Decimal:
        try:
            number = parse_decimal(self.text(column))
        except InvalidOperation:
            self.reject(column, "is not a number")
        try:
            return positive(number, "it") if is_price else exact_decimal(number, "it")
        except InvalidRequest as error:
            self.reject(column, f"cannot be right: {error}")
