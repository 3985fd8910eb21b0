"""Positions of the reference model: legs, what they count, and what a fill, a close and a growth make of them.

Exact fractions, from the documented rules. A side counts what is filled at its cost and what is planned at its price;
the larger side is the exposure, the larger filled side what is open. A spot buy with a contract sold counts the
contract.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import ROUND_DOWN, Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from math import ceil, floor

WHOLE = "portfolio"
E8 = 10**8
USD_MAX = Fraction(2**63 - 1, E8)
NEVER = datetime(9999, 1, 1, tzinfo=UTC)
"""The expiry of a hold that never ends by time."""
ZERO = Fraction(0)
Tags = tuple[tuple[str, str], ...]
"""Every name with each of its values, sorted."""


def down(usd: Fraction) -> Fraction:
    """Round down to 1e-8 USD."""
    return Fraction(floor(usd * E8), E8)


def up(usd: Fraction) -> Fraction:
    """Round up to 1e-8 USD."""
    return Fraction(ceil(usd * E8), E8)


def share(amount: Fraction, part: Fraction, whole: Fraction) -> Fraction:
    """Return amount x part / whole, rounded up to 1e-18 where it has no end within 36 decimals."""
    exact = amount * part / whole
    return exact if (exact * 10**36).denominator == 1 else Fraction(ceil(exact * 10**18), 10**18)


def pairs_of(tags: Iterable[tuple[str, str | Sequence[str]]]) -> Tags:
    """Return the pairs of tags, of which some may have several values."""
    return tuple(
        sorted({
            (name, value) for name, values in tags for value in ([values] if isinstance(values, str) else values)
        })
    )  # fmt: skip


def values_of(tags: Tags, name: str) -> list[str]:
    """Return the values of one name."""
    return [value for other, value in tags if other == name]


def coin_of(symbol: str) -> str:
    """Return the coin of a market, or of a tag. No market here has a factor in its name."""
    return symbol.partition("/")[0]


@lru_cache(maxsize=1000)
def scopes_of(tags: Tags) -> tuple[str, ...]:
    """Return the scopes of a position with these tags, the whole portfolio first."""
    return (WHOLE, *(f"{name}={value}" for name, value in tags))


@dataclass(frozen=True)
class LegHolding:
    """One leg. Coins and USD, filled and planned. value: what the filled coins count, where that is not the cost."""

    venue: str
    symbol: str
    kind: str
    side: str
    account: str | None = None
    filled: Fraction = ZERO
    cost: Fraction = ZERO
    value: Fraction | None = None
    unfilled: Fraction = ZERO
    unfilled_usd: Fraction = ZERO

    @property
    def counts(self) -> Fraction:
        """USD that its filled coins count."""
        return self.cost if self.value is None else self.value

    def fits(self, other: LegHolding) -> bool:
        """Whether another names this leg. A venue or an account that is not said fits any."""
        return (
            (self.symbol, self.kind, self.side) == (other.symbol, other.kind, other.side)
            and (self.venue == other.venue or "" in (self.venue, other.venue))
            and (self.account == other.account or None in (self.account, other.account))
        )


@dataclass(frozen=True)
class Holding:
    """A position of the model.

    unfilled: coins granted and not filled; None for a plain budget. filled, filled_usd: by all entries, closes not
    subtracted. more: whether a fill may come after its hold is over.
    """

    number: int
    state: str
    tags: Tags
    held: Fraction = ZERO
    open: Fraction = ZERO
    quantity: Fraction | None = None
    cost: Fraction = ZERO
    value: Fraction | None = None
    unfilled: Fraction | None = None
    filled: Fraction = ZERO
    filled_usd: Fraction = ZERO
    more: bool = False
    legs: tuple[LegHolding, ...] = ()
    expires_at: datetime | None = None
    origin: int | None = None
    reference: str | None = None

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes that it counts in."""
        return scopes_of(self.tags)

    @property
    def live(self) -> bool:
        """Whether it is held or open."""
        return self.state in ("held", "open")

    @property
    def pending(self) -> bool:
        """Whether it may still fill. Held or open, a position is pending while it has an expiry."""
        return self.expires_at is not None and self.live

    @property
    def fillable(self) -> bool:
        """Whether a confirmed fill adds to it."""
        return self.pending or (self.state == "open" and self.more)

    @property
    def counted_cost(self) -> Fraction:
        """USD that its filled coins count, where it has no legs."""
        return self.cost if self.value is None else self.value


def expiry_of(one: Holding) -> datetime:
    """Return the expiry of a pending position."""
    assert one.expires_at is not None, "every held dollar has an expiry"
    return one.expires_at


def is_pair(legs: Sequence[LegHolding]) -> bool:
    """Return True for a spot buy with a contract sold."""
    return sorted((leg.kind == "spot", leg.side) for leg in legs) == [(False, "sell"), (True, "buy")]


def counted(legs: Sequence[LegHolding]) -> tuple[Fraction, Fraction]:
    """Return what legs count filled, and filled and planned."""
    filled = {side: sum((leg.counts for leg in legs if leg.side == side), ZERO) for side in ("buy", "sell")}
    both = {
        side: filled[side] + sum((leg.unfilled_usd for leg in legs if leg.side == side), ZERO)
        for side in ("buy", "sell")
    }
    if not is_pair(legs):
        return max(filled.values()), max(both.values())
    coins = {leg.side: leg.filled for leg in legs}
    hedged = coins["sell"] >= coins["buy"] * Fraction(9, 10)
    opened = filled["sell"] if hedged else max(filled.values())
    return opened, max(opened, both["sell"])


def counted_anew(after: Holding, before: Holding) -> Holding:
    """Count a position. A plain budget holds what its fills leave of it."""
    opened, exposure = counted(after.legs) if after.legs else (after.counted_cost, after.counted_cost)
    if not after.pending:
        return replace(after, open=up(opened), held=ZERO)
    if after.unfilled is not None:
        return replace(after, open=up(opened), held=up(exposure) - up(opened))
    return replace(after, open=up(opened), held=max(before.held + before.open - up(opened), ZERO))


def without_rest(legs: Sequence[LegHolding]) -> tuple[LegHolding, ...]:
    """Return what is filled of legs."""
    return tuple(replace(leg, unfilled=ZERO, unfilled_usd=ZERO) for leg in legs if leg.filled)


def fill(
    one: Holding, quantity: Fraction, cost: Fraction, *, hold: bool, spot_price: Fraction | None = None,
    named: Sequence[LegHolding] | None = None,
) -> Holding:  # fmt: skip
    """Return a position with a further fill. named: the legs that filled; a missing cost of theirs is None there."""
    before = one.quantity or ZERO if one.state == "open" else ZERO
    if named is not None and before and not one.legs:
        named = None  # what filled before named no legs, so that the legs would not say all
        unnamed = True
    else:
        unnamed = False
    added = quantity
    if named is not None:
        legs = _fill_named(one.legs, named)
        added = max(min(before + quantity, max(leg.filled for leg in legs)) - before, ZERO)
        left = None if one.unfilled is None else min(one.unfilled, max(leg.unfilled for leg in legs))
    else:
        left = None if one.unfilled is None else max(one.unfilled - quantity, ZERO)
        legs = () if unnamed else tuple(_fill_all(leg, one, quantity, cost, spot_price) for leg in one.legs)
    pending = hold and one.pending and left != 0
    added_usd = cost if added == quantity else share(cost, added, quantity)
    after = replace(
        one, state="open", quantity=before + added, legs=legs if pending else without_rest(legs),
        expires_at=one.expires_at if pending else None, unfilled=left if pending else ZERO,
        cost=one.cost + added_usd, filled=one.filled + added, filled_usd=one.filled_usd + added_usd,
        value=None if one.value is None or legs else one.value + added_usd, more=hold,
    )  # fmt: skip
    return counted_anew(after, one)


def _fill_all(
    leg: LegHolding, one: Holding, quantity: Fraction, cost: Fraction, spot_price: Fraction | None
) -> LegHolding:
    own = quantity * spot_price if spot_price is not None and leg.kind == "spot" else cost
    rest = max((one.unfilled or ZERO) - quantity, ZERO)
    return _filled_leg(leg, quantity, own, rest, one.unfilled or Fraction(1))


def _fill_named(legs: Sequence[LegHolding], named: Sequence[LegHolding]) -> tuple[LegHolding, ...]:
    after = list(legs)
    for fill_ in named:
        place = next((place for place, leg in enumerate(after) if leg.fits(fill_)), None)
        if place is None:
            after.append(fill_)
            continue
        leg = after[place]
        left = max(leg.unfilled - fill_.filled, ZERO)
        after[place] = _filled_leg(
            replace(leg, venue=leg.venue or fill_.venue), fill_.filled, fill_.cost, left, leg.unfilled or Fraction(1)
        )
    return tuple(after)


def _filled_leg(leg: LegHolding, quantity: Fraction, cost: Fraction, left: Fraction, of: Fraction) -> LegHolding:
    """Return a leg with a fill. left, of: the part of what is planned that stays so."""
    return replace(
        leg, filled=leg.filled + quantity, cost=leg.cost + cost,
        value=None if leg.value is None else leg.value + cost,
        unfilled=share(leg.unfilled, left, of), unfilled_usd=share(leg.unfilled_usd, left, of),
    )  # fmt: skip


def free(one: Holding, ended: str) -> tuple[Holding, Fraction | None]:
    """Free a hold. What is open stays; without that the position is `ended`. Returns it, and the quantity it had."""
    if one.state != "open":
        return replace(one, held=ZERO, expires_at=None, state=ended), one.quantity
    freed = replace(one, held=ZERO, expires_at=None, unfilled=ZERO, legs=without_rest(one.legs), more=True)
    return freed, None


def close(one: Holding, closing: Fraction) -> Holding:
    """Return an open position after a close: each leg and each cost keeps the same share."""
    assert one.quantity is not None
    left = one.quantity - closing
    state = "open" if left else "held" if one.pending else "closed"
    legs = tuple(leg for one_leg in one.legs if (leg := _closed_leg(one_leg, left, one.quantity)) is not None)
    after = replace(
        one, state=state, quantity=left, legs=one.legs if state == "closed" else legs,
        cost=share(one.cost, left, one.quantity),
        value=None if one.value is None else share(one.value, left, one.quantity),
    )  # fmt: skip
    if state == "closed":
        return replace(after, open=ZERO, held=ZERO, value=None)
    anew = counted_anew(after, one)
    return anew if one.unfilled is not None else replace(anew, held=one.held)


def _closed_leg(leg: LegHolding, left: Fraction, quantity: Fraction) -> LegHolding | None:
    coins = left if leg.filled == quantity else Fraction(floor(leg.filled * _part(left, quantity) * 10**18), 10**18)
    if not coins:
        return replace(leg, filled=ZERO, cost=ZERO, value=None) if leg.unfilled else None
    value = None if leg.value is None else share(leg.value, left, quantity)
    return replace(leg, filled=coins, cost=share(leg.cost, left, quantity), value=value)


def _part(left: Fraction, quantity: Fraction) -> Fraction:
    """Return left / quantity as a decimal of 150 digits. Where it has no end, a leg keeps down to 1e-18 coins less."""
    with localcontext(Context(prec=150, rounding=ROUND_DOWN)):
        part = left / quantity
        return Fraction(Decimal(part.numerator) / Decimal(part.denominator))


def grow(one: Holding, quantity: Fraction | None, orders: Sequence[LegHolding], budget: Fraction) -> Holding:
    """Return a position with a further grant. Its expiry is set already."""
    if quantity is None:
        return replace(one, held=one.held + budget, unfilled=None)
    legs = list(one.legs)
    for order in orders:
        place = next(place for place, leg in enumerate(legs) if leg.fits(order))
        leg = legs[place]
        legs[place] = replace(
            leg, unfilled=leg.unfilled + order.unfilled, unfilled_usd=leg.unfilled_usd + order.unfilled_usd
        )
    unfilled = (one.unfilled or ZERO) + quantity
    granted = unfilled if one.state == "held" and not one.filled else one.quantity
    return counted_anew(replace(one, legs=tuple(legs), unfilled=unfilled, quantity=granted), one)


def reprice(one: Holding, price: Fraction) -> Holding:
    """Return an open position whose filled coins count another price. A plain hold keeps what it holds."""
    legs = tuple(replace(leg, value=leg.filled * price) if leg.filled else leg for leg in one.legs)
    value = None if legs else (one.quantity or ZERO) * price
    anew = counted_anew(replace(one, legs=legs, value=value), one)
    return anew if one.unfilled is not None else replace(anew, held=one.held)


def rename(one: Holding, coin: str, asset: str, ratio: Fraction) -> Holding:
    """Return a position whose coin has another name: `ratio` new coins for one, rounded up to 1e-18."""

    def more(coins: Fraction) -> Fraction:
        exact = coins * ratio
        return Fraction(ceil(exact * 10**18), 10**18)

    def named(symbol: str) -> str:
        return asset + symbol.removeprefix(coin) if coin_of(symbol) == coin else symbol

    legs = tuple(
        replace(leg, symbol=named(leg.symbol), filled=more(leg.filled), unfilled=more(leg.unfilled))
        if coin_of(leg.symbol) == coin
        else leg
        for leg in one.legs
    )
    tags = tuple(sorted({(name, named(value) if name == "symbol" else value) for name, value in one.tags}))
    quantity, unfilled = [None if coins is None else more(coins) for coins in (one.quantity, one.unfilled)]
    return replace(one, legs=legs, tags=tags, quantity=quantity, unfilled=unfilled, filled=more(one.filled))
