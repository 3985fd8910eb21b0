"""What fills, closes and growth do to a position of any size: sums are exact, nothing is lost or counted twice."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ledger_sizer.model.domain import Position
from ledger_sizer.model.legs import Leg, LegFills
from ledger_sizer.model.tags import tags_of
from ledger_sizer.rules.filling import close_part, fill_position, grow_position, reprice_position

D = Decimal
E8 = 10**8
EXPIRES_US = 10**12
COINS = st.decimals(D("1e-9"), D(1000), allow_nan=False, places=9)
PRICES = st.decimals(D("0.000001"), D(100_000), allow_nan=False, places=6)
PARTS = st.lists(st.integers(1, 50), min_size=1, max_size=8)
FEW = settings(max_examples=60, deadline=None)
Sides = Sequence[tuple[str, str]]
PERPS: Sides = (("swap", "buy"), ("swap", "sell"))
HEDGE: Sides = (("spot", "buy"), ("swap", "sell"))
LONE: Sides = (("swap", "sell"),)
SIDES = st.sampled_from([PERPS, HEDGE, LONE, (("spot", "buy"), ("swap", "buy"), ("swap", "sell"))])


def granted(sides: Sides, quantity: Decimal, price: Decimal) -> Position:
    """Return a hold of this many coins on each side, at one price."""
    legs = tuple(
        Leg(f"venue{number}", "BTC", kind, side, quantity, fills=LegFills(quantity, quantity * price))  # type: ignore[arg-type]
        for number, (kind, side) in enumerate(sides)
    )
    usd = Fraction(quantity) * Fraction(price) * max(1, sum(side == "buy" for _, side in sides))
    return Position(
        "main", 1, "held", tags_of({}), -int(-usd * E8 // 1), 0, quantity, None, legs, EXPIRES_US, 1, 1, 1
    )  # fmt: skip


def plain(usd_e8: int) -> Position:
    return Position("main", 1, "held", tags_of({}), usd_e8, 0, expires_us=EXPIRES_US)


def split(total: Decimal, parts: Sequence[int]) -> list[Decimal]:
    """Return quantities in these proportions, to 1e-12, whose sum is exactly the total."""
    shares = [D(int(Fraction(total) * part * 10**12 / sum(parts))).scaleb(-12) for part in parts]
    shares[-1] = total - sum(shares[:-1])
    assume(all(share > 0 for share in shares))
    return shares


def exposure(position: Position) -> int:
    assert position.held_e8 >= 0
    assert position.open_e8 >= 0
    return position.held_e8 + position.open_e8


@FEW
@given(sides=SIDES, quantity=COINS, price=PRICES, parts=PARTS, prices=st.lists(PRICES, min_size=8, max_size=8))
def test_fill_when_told_in_any_parts_then_the_cost_is_their_exact_sum_and_nothing_stays_held(
    sides: Sides, quantity: Decimal, price: Decimal, parts: list[int], prices: list[Decimal]
) -> None:
    position, cost = granted(sides, quantity, price), Fraction(0)
    for filled, paid in zip(split(quantity, parts), prices, strict=False):
        position = fill_position(position, filled, filled * paid, keep_rest=True)
        cost += Fraction(filled) * Fraction(paid)
        assert Fraction(position.cost) == cost
        assert all(Fraction(leg.cost) == cost for leg in position.legs)
        exposure(position)
    assert (position.quantity, position.filled, position.unfilled) == (quantity, quantity, 0)
    assert (position.held_e8, position.pending, position.expires_us) == (0, False, None)
    bought = sum(side == "buy" for _, side in sides)
    assert position.open_e8 == -int(-cost * max(1, bought) * E8 // 1)


@FEW
@given(sides=SIDES, quantity=COINS, price=PRICES, parts=PARTS)
def test_fill_when_it_is_at_the_grants_price_then_exposure_never_shrinks_and_is_conserved(
    sides: Sides, quantity: Decimal, price: Decimal, parts: list[int]
) -> None:
    position = granted(sides, quantity, price)
    before = exposure(position)
    for filled in split(quantity, parts):
        position = fill_position(position, filled, filled * price, keep_rest=True)
        # What stays planned of a leg is a share, rounded up to 1e-18: never less than before, and at most 1e-8 more.
        assert before <= exposure(position) <= before + 1
    assert exposure(position) == before


@FEW
@given(sides=SIDES, quantity=COINS, price=PRICES, order=st.randoms(use_true_random=False))
def test_fill_when_legs_are_named_one_by_one_then_all_together_count_as_if_told_at_once(
    sides: Sides, quantity: Decimal, price: Decimal, order: object
) -> None:
    position = granted(sides, quantity, price)
    at_once = fill_position(position, quantity, quantity * price, keep_rest=True)
    legs = [Leg(leg.venue, leg.symbol, leg.kind, leg.side, quantity, price) for leg in position.legs]
    order.shuffle(legs)  # type: ignore[attr-defined]
    before = exposure(position)
    for number, leg in enumerate(legs):
        assert position.pending
        position = fill_position(position, quantity, quantity * price, legs=[leg], keep_rest=True)
        assert exposure(position) >= before, "a half of a hedge counts no less than the hedge"
        assert position.pending == (number + 1 < len(legs))
    assert (position.open_e8, position.held_e8) == (at_once.open_e8, 0)
    assert (position.quantity, position.cost) == (at_once.quantity, at_once.cost)


@FEW
@given(usd=st.integers(1, 10**12), fills=st.lists(st.tuples(COINS, PRICES), min_size=1, max_size=6))
def test_fill_when_the_budget_is_plain_then_held_and_open_are_conserved_until_it_is_used_up(
    usd: int, fills: list[tuple[Decimal, Decimal]]
) -> None:
    position, cost = plain(usd), Fraction(0)
    for quantity, price in fills:
        position = fill_position(position, quantity, quantity * price, keep_rest=True)
        cost += Fraction(quantity) * Fraction(price)
        opened = -int(-cost * E8 // 1)
        assert (position.open_e8, position.held_e8) == (opened, max(usd - opened, 0))
        assert position.pending, "a plain hold lasts until it is freed"


@FEW
@given(
    sides=SIDES, quantity=COINS, price=PRICES, paid=PRICES, closes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    repriced=st.one_of(st.none(), PRICES),
)  # fmt: skip
def test_close_when_a_part_is_closed_then_cost_and_exposure_keep_the_share_rounded_up(
    sides: Sides, quantity: Decimal, price: Decimal, paid: Decimal, closes: list[int], repriced: Decimal | None
) -> None:
    position = fill_position(granted(sides, quantity, price), quantity, quantity * paid, keep_rest=False)
    if repriced is not None:
        position = reprice_position(position, repriced)
    cost, opened = Fraction(position.cost), position.open_e8
    left = quantity
    for closing in split(quantity, closes)[:-1]:
        position = close_part(position, closing)
        left -= closing
        share = Fraction(left) / Fraction(quantity)
        assert position.quantity == left
        assert cost * share <= Fraction(position.cost) <= cost * share + Fraction(len(closes), 10**18)
        assert opened * share - 1 < position.open_e8 <= opened * share + 2
        assert position.held_e8 == 0
    position = close_part(position, left)
    assert (position.state, position.open_e8, position.held_e8, position.cost) == ("closed", 0, 0, 0)
    assert position.filled == quantity, "what was filled is known after it is closed"


@FEW
@given(sides=SIDES, quantity=COINS, price=PRICES, part=st.integers(1, 99), more=COINS)
def test_grow_when_a_part_is_filled_then_what_is_open_stays_and_the_rest_grows_by_the_grant(
    sides: Sides, quantity: Decimal, price: Decimal, part: int, more: Decimal
) -> None:
    filled = D(int(Fraction(quantity) * part * 10**10)).scaleb(-12)
    assume(0 < filled < quantity)
    position = fill_position(granted(sides, quantity, price), filled, filled * price, keep_rest=True)
    orders = [leg for leg in granted(sides, more, price).legs]
    after = grow_position(position, more, orders, 0, EXPIRES_US - 1)
    assert (after.open_e8, after.quantity, after.cost) == (position.open_e8, filled, position.cost)
    assert after.unfilled == position.unfilled + more  # type: ignore[operator]
    assert after.expires_us == EXPIRES_US, "the later expiry stands"
    done = fill_position(after, after.unfilled, after.unfilled * price, keep_rest=True)  # type: ignore[arg-type,operator]
    assert (done.quantity, done.held_e8, done.pending) == (quantity + more, 0, False)
    assert done.open_e8 == exposure(granted(sides, quantity + more, price))


def test_fill_when_legs_are_named_after_a_fill_that_named_none_then_both_count() -> None:
    position = fill_position(plain(400 * E8), D(1), D(100), keep_rest=True)
    after = fill_position(position, D(1), D(50), legs=[Leg("okx", "BTC", "swap", "sell", D(1), D(50))], keep_rest=True)
    assert (after.open_e8, after.held_e8, after.quantity, after.cost) == (150 * E8, 250 * E8, D(2), D(150))


def test_fill_when_a_plain_budget_grew_while_open_then_its_rest_stays_held() -> None:
    position = fill_position(plain(100 * E8), D(1), D(100), keep_rest=False)
    grown = grow_position(position, None, (), 80 * E8, EXPIRES_US)
    assert (grown.open_e8, grown.held_e8, grown.unfilled) == (100 * E8, 80 * E8, None)
    repriced = reprice_position(grown, D(90))
    assert (repriced.open_e8, repriced.held_e8) == (90 * E8, 80 * E8)
    after = fill_position(grown, D(1), D(30), keep_rest=True)
    assert (after.open_e8, after.held_e8, after.pending) == (130 * E8, 50 * E8, True)
