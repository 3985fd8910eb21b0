"""Generates a seeded synthetic market for replays without a file, volatile enough to exercise the ledger.

The prices of the two coins share a common move and add their own. Funding follows the exchanges' public formula

    funding rate = premium + clamp(interest - premium, -band, +band)         interest = 0.0001 per 8 hours

which is why real rates are exactly one basis point most of the time. The premium reverts to the mean of its coin's
regime (calm, greedy, fearful) and differs slightly between venues. All arithmetic is in integers: prices in 1e-6 USD,
rates and premiums in 1e-8.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from ledger_sizer.exchanges.known_markets import MARKETS, Market
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.units import exact_arithmetic, floor_to_step
from ledger_sizer.replay.bars import Bar, Candle, Quote
from ledger_sizer.replay.random_numbers import SeededRandom

START = datetime(2024, 1, 1, tzinfo=UTC)
INTERVAL = timedelta(hours=8)
BARS_DEFAULT = 540
BARS_MAX = 20_000

_MICRO = 1_000_000
_INTEREST_E8 = 10_000
_BAND_E8 = {"binance": 50_000, "bybit": 50_000, "okx": 40_000}


@dataclass(frozen=True, slots=True)
class _Regime:
    """A market regime: mean of the premium, its standard deviation per bar (1e-8), and chance per 1000 bars to end."""

    premium_e8: int
    deviation_e8: int
    ends_permille: int


_CALM = _Regime(0, 16_000, 20)
_GREEDY = _Regime(78_000, 14_000, 35)
_FEARFUL = _Regime(-62_000, 14_000, 60)
_NEXT_REGIMES = {
    _CALM: (_GREEDY, _GREEDY, _FEARFUL),
    _GREEDY: (_CALM, _CALM, _FEARFUL),
    _FEARFUL: (_CALM, _GREEDY, _CALM),
}


class _Coin:
    """Price and regime of one coin, the same on all venues."""

    def __init__(self, price_usd: int, deviation_e6: int) -> None:
        self.open_e6 = self.close_e6 = price_usd * _MICRO
        self.high_e6 = self.low_e6 = self.open_e6
        self.regime = _CALM
        self._deviation_e6 = deviation_e6

    def step(self, random: SeededRandom, common_e6: int) -> None:
        """Advance by one bar. common_e6: the move that all coins share, in millionths."""
        if random.below(1000) < self.regime.ends_permille:
            choices = _NEXT_REGIMES[self.regime]
            self.regime = choices[random.below(len(choices))]
        move_e6 = min(max(common_e6 + random.normal(self._deviation_e6), -250_000), 250_000)
        self.open_e6 = self.close_e6
        self.close_e6 = max(self.open_e6 * (_MICRO + move_e6) // _MICRO, _MICRO)
        reach_e6 = abs(random.normal(self._deviation_e6)), abs(random.normal(self._deviation_e6))
        self.high_e6 = max(self.open_e6, self.close_e6) * (_MICRO + reach_e6[0]) // _MICRO
        self.low_e6 = min(self.open_e6, self.close_e6) * _MICRO // (_MICRO + reach_e6[1])


class _Venue:
    """One coin's premium on one venue."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self._premium_e8 = 0

    def quote(self, random: SeededRandom, coin: _Coin) -> Quote:
        """Advance the premium by one bar, and return the market's quote."""
        regime = coin.regime
        pull_e8 = (regime.premium_e8 - self._premium_e8) // 8
        self._premium_e8 += pull_e8 + random.normal(regime.deviation_e8)
        band_e8 = _BAND_E8[self._market.venue]
        rate_e8 = self._premium_e8 + min(max(_INTEREST_E8 - self._premium_e8, -band_e8), band_e8)
        offset_e6 = random.normal(80)
        # Funding follows the perpetual's premium: half of the premium shows in its price.
        basis_e6 = self._premium_e8 // 200
        spot = self._candle(coin, offset_e6, self._market.spot.tick_size)
        perp = self._candle(coin, offset_e6 + basis_e6, self._market.perp.tick_size)
        return Quote(self._market.venue, self._market.coin, spot, perp, Decimal(f"{rate_e8}E-8"))

    @staticmethod
    def _candle(coin: _Coin, shift_e6: int, tick_size: Decimal) -> Candle:
        prices = [
            floor_to_step(Decimal(f"{price_e6 * (_MICRO + shift_e6) // _MICRO}E-6"), tick_size)
            for price_e6 in (coin.open_e6, coin.high_e6, coin.low_e6, coin.close_e6)
        ]
        return Candle(*prices)


def generated_bars(seed: int, count: int) -> Iterator[Bar]:
    """Yield `count` bars (1 to 20,000) of every known market, eight hours apart, the same for the same seed."""
    if not 1 <= count <= BARS_MAX:
        raise InvalidRequest(f"bars must be 1 to {BARS_MAX} for a generated market, got {count}", field="bars")
    return _generate(SeededRandom(seed), count)


def _generate(random: SeededRandom, count: int) -> Iterator[Bar]:
    coins = {"BTC": _Coin(42_000, 6_000), "ETH": _Coin(2_300, 9_000)}
    venues = [(_Venue(MARKETS[key]), coins[key[1]]) for key in sorted(MARKETS)]
    for index in range(count):
        common_e6 = random.normal(11_000)
        for name in sorted(coins):
            coins[name].step(random, common_e6)
        with exact_arithmetic():
            yield Bar(START + index * INTERVAL, tuple(venue.quote(random, coin) for venue, coin in venues))
