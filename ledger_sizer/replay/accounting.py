"""Keeps the bots' own book of one portfolio (holds, positions, earnings) and checks the ledger against it.

The book is computed from orders and fills alone. After every decision its exposure must equal the exposure that the
decision states. Sums in `_e8` are whole 1e-8 USD; earnings are exact Decimal, USD.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from ledger_sizer.exchanges.known_markets import Market, MarketKey
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.units import exact_arithmetic, notional_e8, usd, usd_floor_e8
from ledger_sizer.replay.bars import Quote
from ledger_sizer.replay.strategy import Strategy

BUCKETS = ("0.0 - 0.2", "0.2 - 0.4", "0.4 - 0.6", "0.6 - 0.8", "0.8 - 1.0")
_VIOLATIONS_MAX = 20


@dataclass(frozen=True, slots=True)
class Order:
    """One bot's order at one bar. key: the same in both portfolios. score: the bot's, whether it sends it or not."""

    key: str
    bot: Strategy
    market: Market
    quote: Quote
    score: Decimal

    @property
    def bucket(self) -> int:
        """Index in `BUCKETS`, 0 to 4."""
        with exact_arithmetic():
            return min(int(self.score * 5), 4)


@dataclass(frozen=True, slots=True)
class Fill:
    """A filled quantity in base units, with the prices of both legs, USD."""

    quantity: Decimal
    perp_price: Decimal
    spot_price: Decimal


@dataclass(slots=True)
class Hold:
    """A granted reservation that is not confirmed yet."""

    order: Order
    budget_e8: int
    expires_at: datetime


@dataclass(slots=True)
class Holding:
    """An open position."""

    order: Order
    quantity: Decimal
    perp_price: Decimal
    spot_price: Decimal
    open_e8: int


@dataclass(slots=True)
class BucketFigures:
    """Totals of the orders in one range of scores.

    formula_e8: budgets by the sizing formula, before any cap. granted_e8, filled_e8: budgets granted, notional filled,
    1e-8 USD. funding: collected, USD.
    """

    grants: int = 0
    formula_e8: int = 0
    granted_e8: int = 0
    fills: int = 0
    filled_e8: int = 0
    funding: Decimal = Decimal(0)


@dataclass(slots=True)
class Figures:
    """Totals of one portfolio's replay.

    decisions: counts by (command, outcome, reason, binding scope of a denial). peak_granted_e8: highest exposure after
    a grant; peak_e8: highest exposure after any decision; both also by venue. overages: fills that left a scope above
    its cap, by cause. violations: what must never happen and did, at most 20.
    """

    decisions: Counter[tuple[str, str, str | None, str | None]] = field(default_factory=Counter)
    retries: int = 0
    expired: int = 0
    late_fills: int = 0
    entries: int = 0
    exits: int = 0
    peak_granted_e8: int = 0
    peak_e8: int = 0
    venue_peak_granted_e8: Counter[str] = field(default_factory=Counter)
    venue_peak_e8: Counter[str] = field(default_factory=Counter)
    overages: Counter[str] = field(default_factory=Counter)
    open_sum_e8: int = 0
    open_samples: int = 0
    funding: Decimal = Decimal(0)
    funding_by_bot: dict[str, Decimal] = field(default_factory=dict)
    entries_by_bot: Counter[str] = field(default_factory=Counter)
    basis: Decimal = Decimal(0)
    turnover: Decimal = Decimal(0)
    buckets: tuple[BucketFigures, ...] = field(default_factory=lambda: tuple(BucketFigures() for _ in BUCKETS))
    violations: list[str] = field(default_factory=list)


class Book:
    """Holds, positions and totals of one portfolio. scored: whether its bots send their scores (dynamic sizing)."""

    def __init__(self, portfolio: str, *, scored: bool, cap: Decimal, venue_cap: Decimal) -> None:
        self.portfolio = portfolio
        self.scored = scored
        self.cap_e8 = usd_floor_e8(cap)
        self.venue_cap_e8 = usd_floor_e8(venue_cap)
        self.holds: dict[str, Hold] = {}
        self.holdings: dict[str, Holding] = {}
        self.figures = Figures()
        self.held_e8 = 0
        self.open_e8 = 0
        self._venue_e8: Counter[str] = Counter()
        self._busy: set[tuple[str, MarketKey]] = set()

    @property
    def exposure_e8(self) -> int:
        """held + open."""
        return self.held_e8 + self.open_e8

    def is_busy(self, bot: Strategy, market: MarketKey) -> bool:
        """Whether the bot has a hold or a position in this market."""
        return (bot.name, market) in self._busy

    def busy_count(self, bot: Strategy) -> int:
        """Number of markets in which the bot has a hold or a position."""
        return sum(name == bot.name for name, _ in self._busy)

    # --- time ---

    def expire(self, now: datetime) -> None:
        """Remove expired holds, as the ledger does before its next batch."""
        for position_id in [name for name, hold in self.holds.items() if hold.expires_at <= now]:
            self._end_hold(position_id)
            self.figures.expired += 1
            self.figures.decisions["expire", "applied", None, None] += 1

    def collect_funding(self, quotes: Mapping[MarketKey, Quote]) -> None:
        """Add funding (rate x quantity x the perpetual's open price; a negative rate costs). Sample open exposure."""
        figures = self.figures
        figures.open_sum_e8 += self.open_e8
        figures.open_samples += 1
        with exact_arithmetic():
            for holding in self.holdings.values():
                order = holding.order
                quote = quotes.get(order.market.key)
                if quote is None:
                    continue
                earned = quote.rate * holding.quantity * quote.perp.open
                figures.funding += earned
                figures.buckets[order.bucket].funding += earned
                figures.funding_by_bot[order.bot.name] = figures.funding_by_bot.get(order.bot.name, Decimal(0)) + earned

    def mark_to_market(self, quotes: Mapping[MarketKey, Quote]) -> None:
        """Add the basis result of open positions, valued at their markets' last close."""
        for holding in self.holdings.values():
            quote = quotes[holding.order.market.key]
            self._add_basis(holding, Fill(holding.quantity, quote.perp.close, quote.spot.close))

    # --- decisions ---

    def record_denial(self, decision: Decision) -> None:
        """Record a denied reservation, extension or other command."""
        self._count_decision(decision)
        self._check_exposure(decision)

    def record_grant(self, order: Order, decision: Decision) -> None:
        """Record a granted reservation: held until confirmed, released or expired."""
        assert decision.position_id is not None and decision.budget is not None and decision.expires_at is not None
        budget_e8 = usd_floor_e8(decision.budget)
        self.holds[decision.position_id] = Hold(order, budget_e8, decision.expires_at)
        self.held_e8 += budget_e8
        self._venue_e8[order.market.venue] += budget_e8
        self._busy.add((order.bot.name, order.market.key))
        bucket = self.figures.buckets[order.bucket]
        bucket.grants += 1
        bucket.formula_e8 += usd_floor_e8(decision.raw_budget or Decimal(0))
        bucket.granted_e8 += budget_e8
        self._count_decision(decision)
        self._check_exposure(decision)
        self._check_caps(order, decision)

    def record_extension(self, decision: Decision) -> None:
        """Record a hold's later expiry."""
        assert decision.position_id is not None and decision.expires_at is not None
        self.holds[decision.position_id].expires_at = decision.expires_at
        self._count_decision(decision)
        self._check_exposure(decision)

    def record_fill(self, order: Order, fill: Fill, decision: Decision) -> None:
        """Record a fill. A fill after the hold expired has a position id of its own."""
        assert decision.position_id is not None
        is_late = decision.position_id not in self.holds
        if not is_late:
            self._end_hold(decision.position_id)
        open_e8 = notional_e8(fill.quantity, fill.perp_price)
        self.holdings[decision.position_id] = Holding(order, fill.quantity, fill.perp_price, fill.spot_price, open_e8)
        self.open_e8 += open_e8
        self._venue_e8[order.market.venue] += open_e8
        self._busy.add((order.bot.name, order.market.key))
        figures = self.figures
        figures.late_fills += is_late
        figures.entries += 1
        figures.entries_by_bot[order.bot.name] += 1
        figures.buckets[order.bucket].fills += 1
        figures.buckets[order.bucket].filled_e8 += open_e8
        self._add_turnover(fill)
        self._count_decision(decision)
        self._check_exposure(decision)
        if self.exposure_e8 > self.cap_e8 or self._venue_e8[order.market.venue] > self.venue_cap_e8:
            figures.overages["late fill" if is_late else "fill price"] += 1

    def record_cancel(self, decision: Decision) -> None:
        """Record the release of a hold whose order failed."""
        assert decision.position_id is not None
        self._end_hold(decision.position_id)
        self._count_decision(decision)
        self._check_exposure(decision)

    def record_close(self, fill: Fill, decision: Decision) -> None:
        """Record that an open position was closed, fully or in part."""
        assert decision.position_id is not None
        holding = self.holdings[decision.position_id]
        with exact_arithmetic():
            left = holding.quantity - fill.quantity
        open_e8 = notional_e8(left, holding.perp_price)
        self.open_e8 -= holding.open_e8 - open_e8
        self._venue_e8[holding.order.market.venue] -= holding.open_e8 - open_e8
        self._add_basis(holding, fill)
        self._add_turnover(fill)
        holding.quantity, holding.open_e8 = left, open_e8
        if not left:
            del self.holdings[decision.position_id]
            self._busy.discard((holding.order.bot.name, holding.order.market.key))
            self.figures.exits += 1
        self._count_decision(decision)
        self._check_exposure(decision)

    def record_admin(self, decision: Decision) -> None:
        """Record a cap that was set, or a venue halted or resumed."""
        self._count_decision(decision)
        self._check_exposure(decision)

    def record_replay(self, decision: Decision, first: Decision) -> None:
        """Check that a command sent again with its key got its first answer."""
        self.figures.retries += 1
        if decision.hash != first.hash or decision.outcome != first.outcome:
            self.report_violation(
                f"{decision.key}: answered {first.outcome} at first, {decision.outcome} when asked again"
            )

    def report_violation(self, what: str) -> None:
        """Note something that must never happen. Keeps the first 20."""
        if len(self.figures.violations) < _VIOLATIONS_MAX:
            self.figures.violations.append(f"{self.portfolio}: {what}")

    # --- helpers ---

    def _end_hold(self, position_id: str) -> None:
        hold = self.holds.pop(position_id)
        self.held_e8 -= hold.budget_e8
        self._venue_e8[hold.order.market.venue] -= hold.budget_e8
        self._busy.discard((hold.order.bot.name, hold.order.market.key))

    def _add_turnover(self, fill: Fill) -> None:
        with exact_arithmetic():
            self.figures.turnover += fill.quantity * (fill.perp_price + fill.spot_price)

    def _add_basis(self, holding: Holding, fill: Fill) -> None:
        """Add the price result of both legs (long spot, short perpetual) from entry to `fill`."""
        with exact_arithmetic():
            spot = fill.spot_price - holding.spot_price
            perp = fill.perp_price - holding.perp_price
            self.figures.basis += fill.quantity * (spot - perp)

    def _count_decision(self, decision: Decision) -> None:
        binding = decision.binding if decision.outcome == "denied" else None
        self.figures.decisions[decision.command, decision.outcome, decision.reason, binding] += 1

    def _check_exposure(self, decision: Decision) -> None:
        """Check that the decision's exposure is the book's, and update the peaks."""
        if usd_floor_e8(decision.exposure_after) != self.exposure_e8:
            self.report_violation(
                f"seq {decision.seq}: exposure after it is {decision.exposure_after}, by the desk's own book "
                f"{usd(self.exposure_e8)}"
            )
        figures = self.figures
        figures.peak_e8 = max(figures.peak_e8, self.exposure_e8)
        for venue, exposure_e8 in self._venue_e8.items():
            figures.venue_peak_e8[venue] = max(figures.venue_peak_e8[venue], exposure_e8)

    def _check_caps(self, order: Order, decision: Decision) -> None:
        """Check that the grant leaves no scope above its cap, and update the peaks after grants."""
        figures, venue = self.figures, order.market.venue
        figures.peak_granted_e8 = max(figures.peak_granted_e8, self.exposure_e8)
        figures.venue_peak_granted_e8[venue] = max(figures.venue_peak_granted_e8[venue], self._venue_e8[venue])
        for scope, exposure_e8, cap_e8 in (
            ("portfolio", self.exposure_e8, self.cap_e8),
            (f"venue={venue}", self._venue_e8[venue], self.venue_cap_e8),
        ):
            if exposure_e8 > cap_e8:
                self.report_violation(
                    f"seq {decision.seq}: the grant leaves {scope} at {usd(exposure_e8)} of its cap {usd(cap_e8)}"
                )
