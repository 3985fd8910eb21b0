"""Draws the outcome and fill price of each simulated order, lost answers, and incidents at venues.

Each draw depends on the replay's seed and the order's key alone (see `random_numbers`). Both portfolios therefore have
the same accidents, and so has a second run.
"""

from decimal import Decimal
from enum import StrEnum

from ledger_sizer.exchanges.known_markets import Market
from ledger_sizer.model.units import exact_arithmetic, floor_to_step
from ledger_sizer.replay.bars import Candle
from ledger_sizer.replay.random_numbers import random_below

RETRY_PERMILLE = 20
"""Share of lost answers, after which the bot sends the same command with the same key again."""

TWO_PART_EXIT_PERMILLE = 80
"""Share of exits that close half of the position at this bar and the rest at a later one."""

INCIDENT_PERMILLE = 4
"""Chance per venue and bar of an incident: the venue is halted, or set to reducing, for some bars."""

INCIDENT_BARS_MAX = 6

_SLIP_BP = 5


class OrderOutcome(StrEnum):
    """Outcome of the order of a granted reservation."""

    FILLED = "filled"
    PARTIAL = "partial"
    FAILED = "failed"
    SLOW = "slow"
    CRASHED = "crashed"
    LATE = "late"


_PERMILLE = (
    (OrderOutcome.FILLED, 850),  # both legs, in full, within seconds
    (OrderOutcome.PARTIAL, 60),  # part of the quantity, and no more
    (OrderOutcome.FAILED, 40),  # the exchange refuses: the bot releases the hold
    (OrderOutcome.SLOW, 20),  # a resting order: the bot extends the hold and is filled minutes later
    (OrderOutcome.CRASHED, 15),  # the bot dies before it sends an order: the hold expires
    (OrderOutcome.LATE, 15),  # the bot dies after it sent the orders: they fill, and are confirmed after the expiry
)
assert sum(share for _, share in _PERMILLE) == 1000


def order_outcome(seed: int, order_key: str) -> OrderOutcome:
    """Draw the outcome of the order with this key."""
    drawn = random_below(1000, seed, "fate", order_key)
    for outcome, share in _PERMILLE:
        if drawn < share:
            return outcome
        drawn -= share
    raise AssertionError("the shares add up to 1000")


def partial_quantity(seed: int, order_key: str, quantity: Decimal, market: Market) -> Decimal:
    """Draw 1/4, 1/2 or 3/4 of `quantity`, floored to the market's step; all of it when that is 0."""
    with exact_arithmetic():
        part = floor_to_step(quantity * (1 + random_below(3, seed, "part", order_key)) / 4, market.step)
    return part or quantity


def fill_price(seed: int, order_key: str, candle: Candle, tick_size: Decimal) -> Decimal:
    """Draw the fill price: the bar's open, up to five basis points off, on a tick, inside the bar's range."""
    slip_bp = random_below(2 * _SLIP_BP + 1, seed, "slip", order_key) - _SLIP_BP
    with exact_arithmetic():
        slipped = floor_to_step(candle.open * (10_000 + slip_bp) / 10_000, tick_size)
    return min(max(slipped, candle.low), candle.high)


def is_retried(seed: int, command_key: str) -> bool:
    """Whether the answer to this command gets lost, so that the command is sent again."""
    return random_below(1000, seed, "retry", command_key) < RETRY_PERMILLE


def closes_in_two_parts(seed: int, command_key: str) -> bool:
    """Whether this exit closes only half of the position."""
    return random_below(1000, seed, "exit", command_key) < TWO_PART_EXIT_PERMILLE


def incident(seed: int, venue: str, bar_name: str) -> tuple[str, int] | None:
    """Draw (mode, duration in bars) of an incident that begins at this bar; None without one."""
    if random_below(1000, seed, "incident", venue, bar_name) >= INCIDENT_PERMILLE:
        return None
    mode = ("halted", "reducing")[random_below(2, seed, "mode", venue, bar_name)]
    return mode, 1 + random_below(INCIDENT_BARS_MAX, seed, "bars", venue, bar_name)
