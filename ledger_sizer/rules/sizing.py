"""Sizes positions: from a signal score to a budget in USD, from a budget to a quantity every leg accepts.

Pure: no database, no clock, no logging. The ledger's rules and a backtest call the same functions.

    fraction = min_allocation_fraction + (max_allocation_fraction - min_allocation_fraction) x signal_score
    raw budget = max_position_size_usd x fraction
    budget = min(raw budget, cap - current exposure)
    quantity = floor(min(max_position_size_usd, available balance, budget) / price) to the legs' common step

All arithmetic is exact Decimal. Quantities round down.
"""

from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from ledger_sizer.model.arguments import checked_flag, checked_score
from ledger_sizer.model.choices import Side
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.instruments import InstrumentInfo, InstrumentLike
from ledger_sizer.model.plans import Plan
from ledger_sizer.model.units import (
    decimal_text,
    exact_arithmetic,
    exact_decimal,
    floor_to_step,
    not_negative,
    positive,
    shown,
    usd,
    usd_floor_e8,
)
from ledger_sizer.rules.leg_sizing import Match, match_legs
from ledger_sizer.rules.sizing_objects import DynamicSizingLike, MatchingSizer, TradingLike, setting_of


def round_to_step(value: Decimal, step: Decimal) -> Decimal:
    """Return the largest multiple of `step` not above `value` (floor). Raise `InvalidRequest` for a step <= 0."""
    return floor_to_step(exact_decimal(value, "value"), positive(step, "step"))


@dataclass(frozen=True, slots=True)
class SizingPolicy:
    """The settings that a size depends on."""

    enabled: bool
    min_fraction: Decimal
    max_fraction: Decimal
    max_position_size_usd: Decimal

    @classmethod
    def of(cls, settings: DynamicSizingLike, max_position_size_usd: Decimal) -> "SizingPolicy":
        """Build the policy from the settings. Raises `InvalidRequest` for a field that is missing or out of range."""
        least = setting_of(settings, "min_allocation_fraction", checked_score)
        most = setting_of(settings, "max_allocation_fraction", checked_score)
        if least > most:
            raise InvalidRequest(
                f"min_allocation_fraction {shown(least)} is above max_allocation_fraction {shown(most)}",
                field="min_allocation_fraction",
            )
        maximum = positive(max_position_size_usd, "max_position_size_usd")
        return cls(setting_of(settings, "enabled", checked_flag), least, most, maximum)

    def fraction(self, signal_score: Decimal | None) -> Decimal:
        """Return the fraction of the per-position maximum for a checked score; 1 for flat sizing or no score."""
        if not self.enabled or signal_score is None:
            return Decimal(1)
        with exact_arithmetic():
            return self.min_fraction + (self.max_fraction - self.min_fraction) * signal_score

    def raw_budget(self, fraction: Decimal) -> Decimal:
        """Return max_position_size_usd x fraction: USD before any cap."""
        with exact_arithmetic():
            return self.max_position_size_usd * fraction

    def raw_budget_binding(self, signal_score: Decimal | None) -> str:
        """Return the name of the binding constraint when the raw budget is what bound the size."""
        return "signal_score" if self.enabled and signal_score is not None else "max_position_size_usd"

    def raw_budget_of(
        self,
        signal_score: Decimal | None,
        amount_usd: Decimal | None,
        max_position_usd: Decimal | None,
        of_scopes: tuple[str, int] | None = None,
    ) -> "RawBudget":
        """Return what a request asks for, in the forms the ledger stores.

        of_scopes: name and amount (1e-8 USD) of a per-position maximum that replaces the settings'. max_position_usd:
        of the request; it only lowers the maximum. amount_usd: in place of the score.
        """
        return _raw_budget(self, signal_score if self.enabled else None, amount_usd, max_position_usd, of_scopes)


class RawBudget(NamedTuple):
    """What a request asks for before any cap: figures as text, budget in 1e-8 USD rounded down, what bound it.

    fraction_text: None for an amount. most_e8, most_binding: the per-position maximum, 1e-8 USD, and its name.
    """

    fraction_text: str | None
    budget_text: str
    budget_e8: int
    binding: str
    most_e8: int
    most_binding: str


@lru_cache(maxsize=4096)
def _raw_budget(
    policy: SizingPolicy,
    signal_score: Decimal | None,
    amount_usd: Decimal | None,
    max_position_usd: Decimal | None,
    of_scopes: tuple[str, int] | None,
) -> RawBudget:
    most, most_binding = policy.max_position_size_usd, "max_position_size_usd"
    if of_scopes is not None:
        most_binding, most = of_scopes[0], usd(of_scopes[1])
    if max_position_usd is not None and max_position_usd < most:
        most, most_binding = max_position_usd, "max_position_usd"
    most_e8 = usd_floor_e8(most, most_binding)
    if amount_usd is not None:
        budget, binding = min((amount_usd, "amount_usd"), (most, most_binding), key=itemgetter(0))
        return RawBudget(
            None, decimal_text(amount_usd), usd_floor_e8(budget, "amount_usd"), binding, most_e8, most_binding
        )
    fraction = policy.fraction(signal_score)
    with exact_arithmetic():
        budget = most * fraction
    return RawBudget(
        decimal_text(fraction), decimal_text(budget), usd_floor_e8(budget, "raw_budget"),
        most_binding if signal_score is None else "signal_score", most_e8, most_binding,
    )  # fmt: skip


class PositionSizer:
    """Converts USD into a quantity that the exchange accepts. `settings` bounds one position's size.

    Settings and instruments may be objects of a bot's own, with the same fields.
    """

    def __init__(self, settings: TradingLike) -> None:
        self.max_position_size_usd = setting_of(settings, "max_position_size_usd", positive)

    def calculate_quantity(
        self, price: Decimal, available_balance: Decimal, instrument: InstrumentLike
    ) -> Decimal | None:
        """Return one leg's quantity in base units: min(max_position_size_usd, available_balance) / price, floored.

        price: USD per base unit, above 0. available_balance: USD. None when nothing valid fits.
        Raises `InvalidRequest` for a float, NaN or a price <= 0.
        """
        return self.match(price, available_balance, instrument).quantity

    def calculate_matching_quantity(
        self,
        price: Decimal,
        available_balance: Decimal,
        spot_instrument: InstrumentLike,
        perp_instrument: InstrumentLike,
    ) -> Decimal | None:
        """Return a quantity both legs accept, in base units; None below the higher minimum. Never rounded up.

        price: USD per base unit, above 0. available_balance: USD. Raises `InvalidRequest` for bad input.
        """
        return self.match(price, available_balance, spot_instrument, perp_instrument).quantity

    def match(self, price: Decimal, available_balance: Decimal, *instruments: InstrumentLike) -> Match:
        """Return the quantity with its intermediate figures."""
        price = positive(price, "price")
        spend = min(exact_decimal(available_balance, "available_balance"), self.max_position_size_usd)
        names = ("instrument",) if len(instruments) == 1 else ("spot_instrument", "perp_instrument")
        rules = [InstrumentInfo.of(one, name) for one, name in zip(instruments, names, strict=True)]
        sides: tuple[Side, Side] = ("buy", "sell")
        plans = [
            Plan(instrument, side, instrument.kind or "swap", price, None, None)
            for instrument, side in zip(rules, sides, strict=False)
        ]
        return match_legs(spend, plans)

    def validate_matching_quantity(
        self, spot_qty: Decimal, perp_qty: Decimal, tolerance: Decimal = Decimal("0.02")
    ) -> bool:
        """Return True if the legs' quantities (base units) differ by at most `tolerance` of the larger one.

        Two empty legs match. Raises `InvalidRequest` for a float or a negative quantity or tolerance.
        """
        spot = not_negative(spot_qty, "spot_qty")
        perp = not_negative(perp_qty, "perp_qty")
        with exact_arithmetic():
            return abs(spot - perp) <= not_negative(tolerance, "tolerance") * max(spot, perp)


@dataclass(frozen=True, slots=True)
class Sizing:
    """A size with all its intermediate figures, in USD and base units.

    budget: None when the cap leaves nothing. spend: min(available balance, budget, per-position maximum).
    binding: what decided the size: `signal_score`, `max_position_size_usd`, `portfolio` (its cap), `available_balance`
    or `max_qty`; `position_sizer` where a subclass of it answered otherwise. reason: the denial reason
    when there is no quantity.
    """

    signal_score: Decimal | None
    fraction: Decimal
    raw_budget: Decimal
    headroom: Decimal
    budget: Decimal | None
    spend: Decimal | None
    step: Decimal | None
    raw_quantity: Decimal | None
    quantity: Decimal | None
    notional_usd: Decimal | None
    binding: str
    reason: str | None


class DynamicSizer:
    """Maps a signal score to a budget under the portfolio's cap, and with a `PositionSizer` to a quantity.

    With `settings.enabled` False every score gets the full `max_position_size_usd`; the cap still applies.
    Settings, instruments and the position sizer may be a bot's own: a sizer gets the instruments as they were given.
    """

    def __init__(
        self, position_sizer: MatchingSizer, settings: DynamicSizingLike, max_position_size_usd: Decimal
    ) -> None:
        if not callable(getattr(position_sizer, "calculate_matching_quantity", None)):
            raise InvalidRequest(
                f"position_sizer ({type(position_sizer).__name__}) has no calculate_matching_quantity; give a "
                "PositionSizer",
                field="position_sizer",
            )
        self._position_sizer = position_sizer
        self._policy = SizingPolicy.of(settings, max_position_size_usd)
        self._cap = setting_of(settings, "max_portfolio_exposure", not_negative)

    def compute_signal_budget(self, signal_score: Decimal | None, current_exposure: Decimal) -> Decimal | None:
        """Return min(max_position_size_usd x fraction, cap - current_exposure) in USD; None when nothing is left.

        signal_score: 0 to 1, None for a flat size. current_exposure: USD held and open now, 0 or above.
        Raises `InvalidRequest` for NaN, a float, or a score outside [0, 1]; nothing is clamped.
        """
        return self._budget(signal_score, current_exposure)[-1]

    def _budget(
        self, signal_score: Decimal | None, current_exposure: Decimal
    ) -> tuple[Decimal, Decimal, Decimal, Decimal | None]:
        score = None if signal_score is None else checked_score(signal_score)
        exposure = not_negative(current_exposure, "current_exposure")
        fraction = self._policy.fraction(score)
        raw = self._policy.raw_budget(fraction)
        with exact_arithmetic():
            headroom = self._cap - exposure
        budget = min(raw, headroom)
        return fraction, raw, headroom, budget if budget > 0 else None

    def calculate_matching_quantity(
        self,
        signal_score: Decimal | None,
        current_exposure: Decimal,
        price: Decimal,
        available_balance: Decimal,
        spot_instrument: InstrumentLike,
        perp_instrument: InstrumentLike,
    ) -> Decimal | None:
        """Return a quantity both legs accept for this score, in base units; None when cap or legs leave nothing."""
        positive(price, "price")
        balance = exact_decimal(available_balance, "available_balance")
        budget = self.compute_signal_budget(signal_score, current_exposure)
        if budget is None:
            return None
        return self._position_sizer.calculate_matching_quantity(
            price=price,
            available_balance=min(balance, budget),
            spot_instrument=spot_instrument,
            perp_instrument=perp_instrument,
        )

    def size(
        self,
        signal_score: Decimal | None,
        current_exposure: Decimal,
        price: Decimal,
        available_balance: Decimal,
        spot_instrument: InstrumentLike,
        perp_instrument: InstrumentLike,
    ) -> Sizing:
        """Return `calculate_matching_quantity` with all intermediate figures and the binding constraint.

        Raises `InvalidRequest` where the position sizer is no `PositionSizer`: it knows no figures.
        """
        sizer = self._position_sizer
        if not isinstance(sizer, PositionSizer):
            raise InvalidRequest(
                f"size needs a PositionSizer, and {type(sizer).__name__} is none; call calculate_matching_quantity",
                field="position_sizer",
            )
        positive(price, "price")
        balance = exact_decimal(available_balance, "available_balance")
        fraction, raw, headroom, budget = self._budget(signal_score, current_exposure)
        if budget is None:
            binding, reason = ("portfolio", "cap_exceeded") if headroom <= 0 else ("signal_score", "below_min_notional")
            return Sizing(signal_score, fraction, raw, headroom, None, None, None, None, None, None, binding, reason)
        match = sizer.match(price, min(balance, budget), spot_instrument, perp_instrument)
        most = sizer.max_position_size_usd
        if type(sizer).calculate_matching_quantity is not PositionSizer.calculate_matching_quantity:
            match = self._as_answered(match, price, min(balance, budget), spot_instrument, perp_instrument)
        return Sizing(
            signal_score=signal_score,
            fraction=fraction,
            raw_budget=raw,
            headroom=headroom,
            budget=budget,
            spend=min(balance, budget, most),
            step=match.step,
            raw_quantity=match.raw_quantity,
            quantity=match.quantity,
            notional_usd=match.notional_usd,
            binding=match.binding or self._binding(signal_score, raw, budget, balance, most),
            reason=match.reason,
        )

    def _as_answered(
        self, match: Match, price: Decimal, spend: Decimal, spot: InstrumentLike, perp: InstrumentLike
    ) -> Match:
        """Return the figures with the quantity of a position sizer that answers in a way of its own."""
        own = self._position_sizer.calculate_matching_quantity(
            price=price, available_balance=spend, spot_instrument=spot, perp_instrument=perp
        )
        if own == match.quantity:
            return match
        if own is None:
            return replace(match, quantity=None, notional_usd=None, binding="position_sizer", reason="below_min_qty")
        quantity = positive(own, "quantity")
        with exact_arithmetic():
            notional = quantity * price
        return replace(match, quantity=quantity, notional_usd=notional, binding="position_sizer", reason=None)

    def _binding(
        self, signal_score: Decimal | None, raw: Decimal, budget: Decimal, balance: Decimal, most: Decimal
    ) -> str:
        if most < min(balance, budget):
            return "max_position_size_usd"
        if balance < budget:
            return "available_balance"
        return "portfolio" if budget < raw else self._policy.raw_budget_binding(signal_score)
