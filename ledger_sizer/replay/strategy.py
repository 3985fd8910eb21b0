"""Scores a market by its funding rates, and decides when a bot enters and exits. Pure functions.

    smoothed rate = mean of the last `window_bars` funding rates, rounded down to 1e-12
    level         = (smoothed rate - exit_rate) / (full_rate - exit_rate), not below 0, not above 1
    persistence   = share of those rates that are above 0
    score         = level x persistence, rounded down to 1e-4

A bot enters where the smoothed rate is at least `entry_rate`, and exits where it is below `exit_rate`. The gap between
the two (hysteresis) avoids a round trip at each small move of the rate. There is no signal before `window_bars` rates
are known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.units import decimal_text, exact_arithmetic

BASIS_POINT = Decimal("0.0001")
RATE_STEP = Decimal("1e-12")
SCORE_STEP = Decimal("1e-4")
BOTS_MAX = 200

# window_bars, entry and exit in basis points per interval. Short windows enter at a higher rate and exit sooner.
_STYLES = (
    (3, "2.0", "1.2"),
    (3, "1.5", "1.05"),
    (6, "1.5", "1.05"),
    (6, "1.2", "0.8"),
    (9, "2.0", "1.1"),
    (15, "1.2", "0.7"),
    (21, "0.9", "0.5"),
    (42, "0.9", "0.4"),
)
_FULL_BP = Decimal("3")


@dataclass(frozen=True, slots=True)
class Strategy:
    """One bot's parameters. Rates are fractions per funding interval; 0 <= exit_rate < entry_rate <= full_rate."""

    name: str
    window_bars: int
    entry_rate: Decimal
    exit_rate: Decimal
    full_rate: Decimal

    def __post_init__(self) -> None:
        if self.window_bars < 1:
            raise InvalidRequest(f"window_bars must be 1 or more, got {self.window_bars}", field="window_bars")
        if not 0 <= self.exit_rate < self.entry_rate <= self.full_rate:
            raise InvalidRequest(
                f"rates must rise from exit_rate {self.exit_rate} over entry_rate {self.entry_rate} "
                f"to full_rate {self.full_rate}, from 0 on",
                field="entry_rate",
            )


@dataclass(frozen=True, slots=True)
class Signal:
    """A strategy's view of one market. score: 0 to 1. enters, leaves: whether a threshold is passed."""

    smoothed_rate: Decimal
    score: Decimal
    enters: bool
    leaves: bool


def smoothed_rate(rates: Sequence[Decimal], window_bars: int) -> Decimal | None:
    """Return the mean of the last `window_bars` rates, rounded down to 1e-12; None while there are fewer."""
    if len(rates) < window_bars:
        return None
    with exact_arithmetic():
        return (sum(rates[-window_bars:], Decimal(0)) / window_bars).quantize(RATE_STEP, ROUND_FLOOR)


def read_signal(strategy: Strategy, rates: Sequence[Decimal]) -> Signal | None:
    """Score a market by its funding rates, oldest first; None while there are fewer than `window_bars`."""
    smoothed = smoothed_rate(rates, strategy.window_bars)
    if smoothed is None:
        return None
    positive_count = sum(rate > 0 for rate in rates[-strategy.window_bars :])
    with exact_arithmetic():
        span = strategy.full_rate - strategy.exit_rate
        gain = min(max(smoothed - strategy.exit_rate, Decimal(0)), span)
        # One division at full precision, then one rounding: rounding twice could miss an exact score.
        score = (gain * positive_count / (span * strategy.window_bars)).quantize(SCORE_STEP, ROUND_FLOOR)
    return Signal(smoothed, score, smoothed >= strategy.entry_rate, smoothed < strategy.exit_rate)


def strategies(count: int) -> tuple[Strategy, ...]:
    """Return `count` (1 to 200) different strategies: eight styles, repeated with slightly higher entry rates."""
    if not 1 <= count <= BOTS_MAX:
        raise InvalidRequest(f"bots must be 1 to {BOTS_MAX}, got {count}", field="bots")
    return tuple(_strategy(index) for index in range(count))


def _strategy(index: int) -> Strategy:
    window_bars, entry, exit_ = _STYLES[index % len(_STYLES)]
    with exact_arithmetic():
        entry_bp = Decimal(entry) + Decimal(index // len(_STYLES)) / 20
        return Strategy(
            name=f"bot-{index + 1:02d}",
            window_bars=window_bars,
            entry_rate=entry_bp * BASIS_POINT,
            exit_rate=Decimal(exit_) * BASIS_POINT,
            full_rate=max(_FULL_BP, entry_bp) * BASIS_POINT,
        )


def basis_points(rate: Decimal) -> str:
    """Format a rate in basis points: 0.00015 -> `1.5`."""
    with exact_arithmetic():
        return decimal_text(rate / BASIS_POINT)
