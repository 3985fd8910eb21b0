"""Remembers the prices of every asset, and tells candles of any interval from them.

Before the server started, a price went up and down by 1% around the first one every four hours, so that a bot finds the
history that its indicators need. Since then it is what `price` set.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper.accounts import RequestRefused, now_ms

UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
MONTH = "M"
HISTORY_BEGINS_MS = 1_577_836_800_000
"""2020-01-01: no candle begins before."""

_WAVE_MS = 4 * UNITS_MS["h"]
_WAVE_HEIGHT = Decimal("0.01")
_MONDAY_MS = 4 * UNITS_MS["d"]
"""The first Monday of Unix time, at which weeks begin."""
_TURNOVER_PER_HOUR = 1_000_000


class Candle(NamedTuple):
    """One candle. volume: base units, of a turnover of 1,000,000 USDT an hour; turnover: USDT.

    end_ms: when the next one begins.
    """

    begin_ms: int
    opening: Decimal
    high: Decimal
    low: Decimal
    closing: Decimal
    volume: Decimal
    turnover: Decimal
    end_ms: int

    @property
    def change(self) -> Decimal:
        """How much the price rose, USDT."""
        with exact_arithmetic():
            return self.closing - self.opening

    @property
    def change_ratio(self) -> Decimal:
        """How much the price rose, a fraction."""
        with exact_arithmetic():
            return round(self.change / self.opening, 6)


class Prices(dict[str, Decimal]):
    """The present price of each asset, USDT; setting one remembers when."""

    def __init__(self, prices: Mapping[str, Decimal]) -> None:
        self._moves: dict[str, list[tuple[int, Decimal]]] = {}
        super().__init__()
        for asset, price in prices.items():
            self[asset] = price

    def __setitem__(self, asset: str, price: Decimal) -> None:
        super().__setitem__(asset, price)
        self._moves.setdefault(asset, []).append((now_ms(), price))

    def at(self, asset: str, time_ms: int) -> Decimal:
        """Return the price of an asset at a time."""
        moves = self._moves[asset]
        begun_ms, first = moves[0]
        if time_ms >= begun_ms:
            return moves[bisect_right(moves, time_ms, key=lambda move: move[0]) - 1][1]
        return _wave(first, begun_ms - time_ms)

    def between(self, asset: str, begin_ms: int, end_ms: int) -> list[Decimal]:
        """Return the prices from `begin_ms` to before `end_ms`: the first, every turn and every move, the last."""
        moves = self._moves[asset]
        begun_ms, first = moves[0]
        prices = [self.at(asset, begin_ms)]
        # The wave turns a quarter and three quarters after each multiple of its length.
        turn, half = begun_ms - _WAVE_MS // 4, _WAVE_MS // 2
        newest = turn - max(0, -(-(turn - end_ms + 1) // half)) * half
        # Two neighbouring turns have both extremes.
        prices += [_wave(first, begun_ms - at) for at in (newest - half, newest) if begin_ms <= at < end_ms]
        since, until = (bisect_left(moves, at, key=lambda move: move[0]) for at in (begin_ms, end_ms))
        prices += [price for _, price in moves[since:until]]
        return [*prices, self.at(asset, end_ms - 1)]


def _wave(first: Decimal, before_ms: int) -> Decimal:
    """Return the price `before_ms` before the first one was set: a triangle that begins there, going up."""
    phase = before_ms % _WAVE_MS
    quarter = _WAVE_MS // 4
    rise = phase if phase <= quarter else 2 * quarter - phase if phase <= 3 * quarter else phase - _WAVE_MS
    with exact_arithmetic():
        return first + (first * _WAVE_HEIGHT * rise / quarter).quantize(Decimal(1).scaleb(first.adjusted() - 6))


def begin_of(time_ms: int, count: int, unit: str) -> int:
    """Return when the interval that contains a time begins. unit: s, m, h, d, w (from Monday) or M."""
    if unit == MONTH:
        day = datetime.fromtimestamp(time_ms / 1000, UTC)
        months = (day.year * 12 + day.month - 1) // count * count
        return int(datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC).timestamp()) * 1000
    length, shift = count * UNITS_MS[unit], _MONDAY_MS if unit == "w" else 0
    return time_ms - (time_ms - shift) % length


def _next_begin(begin_ms: int, count: int, unit: str) -> int:
    if unit != MONTH:
        return begin_ms + count * UNITS_MS[unit]
    # This many days later is one of the first of the following months.
    later = datetime.fromtimestamp(begin_ms / 1000, UTC) + timedelta(days=31 * count)
    return begin_of(int(later.timestamp() * 1000), count, unit)


def candles(
    prices: Prices, asset: str, count: int, unit: str, *, since_ms: int | None, until_ms: int | None, limit: int
) -> list[Candle]:
    """Return at most `limit` candles, oldest first: the first from `since_ms` on, or the newest before `until_ms`.

    The newest one is that of the present, unfinished. Raises `RequestRefused` for an interval that is none.
    """
    if count < 1 or unit not in (*UNITS_MS, MONTH):
        raise RequestRefused("bad_request", f"no interval of {count}{unit}")
    present = now_ms()
    last = min(present, until_ms if until_ms is not None else present)
    begin = max(since_ms if since_ms is not None else 0, HISTORY_BEGINS_MS)
    if since_ms is None:
        average = count * (UNITS_MS["d"] * 31 if unit == MONTH else UNITS_MS[unit])
        begin = max(begin, last - average * (limit - 1))
    first = begin_of(begin, count, unit)
    if since_ms is not None and first < begin:
        first = _next_begin(first, count, unit)
    begins: list[int] = []
    while first <= last and (since_ms is None or len(begins) < limit):
        begins.append(first)
        first = _next_begin(first, count, unit)
    return [
        _candle(prices, asset, one, min(_next_begin(one, count, unit), present + 1), _next_begin(one, count, unit))
        for one in begins[-limit:]
    ]


def _candle(prices: Prices, asset: str, begin_ms: int, until_ms: int, end_ms: int) -> Candle:
    """Return the candle of an interval of which the time before `until_ms` has passed."""
    found = prices.between(asset, begin_ms, until_ms)
    with exact_arithmetic():
        turnover = Decimal(_TURNOVER_PER_HOUR * (until_ms - begin_ms)) / UNITS_MS["h"]
        volume, turnover = round(turnover / found[-1], 8), round(turnover, 8)
    return Candle(begin_ms, found[0], max(found), min(found), found[-1], volume, turnover, end_ms)
