"""Compares the two sides of hedges: as the exchanges show them, and as the ledger's own positions have them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal

from ledger_sizer.model.reconciliation import Finding, Market
from ledger_sizer.model.tags import Tags
from ledger_sizer.model.units import decimal_text
from ledger_sizer.reconcile.ledger_side import Balance, LedgerSide
from ledger_sizer.reconcile.throttle import throttled
from ledger_sizer.views.attribution import AccountKey

ZERO = Decimal(0)

EVERY_ACCOUNT: AccountKey = ("", "")
"""Stands for all accounts among which a coin is hedged."""

IsDust = Callable[[Market, Decimal], bool]


class _Sides:
    """Long and short of one coin at one place, in coins: of the ledger, at the exchange, and under way."""

    __slots__ = ("bought", "less", "long", "more", "short", "sold")

    def __init__(self) -> None:
        self.bought = self.sold = self.long = self.short = self.more = self.less = ZERO

    def add_ledger(self, market: Market, quantity: Decimal) -> None:
        if market.side == "long":
            self.bought += quantity
        else:
            self.sold += quantity

    def add_shown(self, market: Market, quantity: Decimal) -> None:
        if market.side == "long":
            self.long += quantity
        else:
            self.short += quantity

    def add_in_flight(self, market: Market, quantity: Decimal) -> None:
        if market.side == "long":
            self.more += quantity
        else:
            self.less += quantity


class HedgeComparison:
    """Checks, for each coin that the ledger holds both long and short, that the exchanges show the same net.

    A coin is hedged at an account, or among several: where positions have legs at two accounts, one that shrank leaves
    the other naked, though each account has only one side.
    tolerance: relative, of a quantity; net_tolerance: of a net. moving: what was not judged.
    """

    def __init__(self, ledger_side: LedgerSide, tolerance: Decimal, net_tolerance: Decimal) -> None:
        self._ledger = ledger_side
        self._tolerance = tolerance
        self._net_tolerance = net_tolerance
        self._sides: dict[tuple[AccountKey, str], _Sides] = {}
        self._is_dust: dict[AccountKey, IsDust] = {}
        self._known: set[AccountKey] = set()
        self.moving: set[tuple[AccountKey, str]] = set()
        for market in (*ledger_side.moving, *ledger_side.settling):
            self.moving.add(self._place(market))

    def _place(self, market: Market) -> tuple[AccountKey, str]:
        account_key, base = (market.venue, market.account), market.base
        return (EVERY_ACCOUNT if account_key in self._ledger.across.get(base, ()) else account_key, base)

    def _sides_of(self, market: Market) -> _Sides:
        place = self._place(market)
        if place not in self._sides:
            self._sides[place] = _Sides()
        return self._sides[place]

    def add(
        self,
        account_key: AccountKey,
        ledger: LedgerSide,
        shown: Mapping[Market, Decimal] | None,
        is_dust: IsDust,
        unread: Iterable[Market] = (),
    ) -> None:
        """Add an account.

        ledger: with its net sides. shown: None where a part of the account was not fetched. unread: markets whose
        positions could not be read.
        """
        if shown is None:
            return
        self._known.add(account_key)
        self._is_dust[account_key] = is_dust
        for market, quantity in throttled(ledger.open.items()):
            if market[:2] == account_key:
                self._sides_of(market).add_ledger(market, quantity)
        for market, quantity in throttled(shown.items()):
            self._sides_of(market).add_shown(market, quantity)
        for market, quantity in ledger.in_flight.items():
            if market[:2] == account_key:
                self._sides_of(market).add_in_flight(market, quantity)
        self.moving |= {self._place(market) for market in ledger.moving if market[:2] == account_key}
        self.moving |= set(map(self._place, unread))
        self._leave_out_accepted(account_key, ledger, shown)

    def _leave_out_accepted(self, account_key: AccountKey, ledger: LedgerSide, shown: Mapping[Market, Decimal]) -> None:
        for market, accepted in ledger.accepted_excess.items():
            if market[:2] != account_key:
                continue
            quantity = shown.get(market, ZERO)
            sign = -1 if quantity < 0 else 1  # below zero: coins of a baseline were sold
            self._sides_of(market).add_shown(market, -sign * accepted)
            excess = sign * (quantity - ledger.open.get(market, ZERO))
            less = accepted - excess > self._tolerance * max(abs(excess), abs(accepted))
            if less and not self._is_dust[account_key](market, accepted - excess):
                self.moving.add(self._place(market))  # a close not released yet, or less of what was accepted

    def findings(self) -> list[Finding]:
        """Return the coins whose net differs at the exchanges, ordered by account and name."""
        for base, hedged_at in self._ledger.across.items():
            if not hedged_at <= self._known:
                self.moving.add((EVERY_ACCOUNT, base))
        found = []
        for place in throttled(sorted(self._sides)):
            account_key, base = place
            sides = self._sides[place]
            if not sides.bought or not sides.sold or place in self.moving:
                continue
            accounts = sorted(self._ledger.across[base]) if account_key == EVERY_ACCOUNT else [account_key]
            off = (sides.long - sides.short) - (sides.bought - sides.sold)
            limit = self._net_tolerance * max(sides.bought, sides.sold)
            market = Market(*account_key, base, "")
            if abs(off) <= limit or self._is_dust[accounts[0]](market, off):
                continue
            if -sides.less - limit <= off <= sides.more + limit:
                self.moving.add(place)  # orders under way may be it
                continue
            where = " and ".join(map("/".join, accounts))
            held = f"{decimal_text(sides.long)} long and {decimal_text(sides.short)} short"
            detail = f"{base}: the exchange holds {held}" if account_key in accounts else f"{base}: {where} hold {held}"
            venues = tuple(sorted({venue for venue, _ in accounts}))
            found.append(Finding(market, "legs_unequal", sides.long, sides.short, detail, venues=venues))
        return found


def _of_others(one: Tags, other: Tags) -> bool:
    """Whether the tags of two positions name different strategies, or different bots."""
    return any(
        one.values_of(name) and other.values_of(name) and set(one.values_of(name)).isdisjoint(other.values_of(name))
        for name in ("strategy", "bot")
    )


def unhedged_positions(ledger_side: LedgerSide, tolerance: Decimal) -> tuple[list[Finding], set[Market]]:
    """Return the positions of which one side is not hedged, and those that orders under way may still make equal.

    A position of one side is meant to be one, unless it was planned with both: as its other leg never filled, or was
    closed by the adoption of what an exchange no longer had. What is bare is hedged by other bare positions of the same
    coin, and by positions of one side that were opened later, unless their tags say that they are another strategy's or
    another bot's; each hedges once.
    """
    rest: dict[tuple[str, bool], dict[int, Decimal]] = {}
    tags: dict[int, Tags] = {}
    bare: dict[int, Balance] = {}
    moving = set()
    for one in throttled(ledger_side.balances):
        number, off = one.position.number, one.bought - one.sold
        planned = bool(one.bought and one.sold) or one.number in ledger_side.planned_hedges
        if planned and abs(off) <= tolerance * max(one.bought, one.sold):
            continue
        if one.bought and one.sold and one.largest - one.smallest <= tolerance * one.largest:
            continue  # such as one bought against two sold: its legs are as they were planned
        rest.setdefault((one.coin, off > 0), {})[number] = abs(off)
        tags[number] = one.position.tags
        market = Market("", "", one.position.position_id, "")
        if not planned or market in ledger_side.moving:
            continue
        may_be_equal = off - one.more_sold <= 0 <= off + one.more_bought or one.largest <= one.reachable
        if may_be_equal and (one.more_bought or one.more_sold):
            moving.add(market)
        else:
            bare[number] = one
    found = []
    for number, one in sorted(bare.items()):
        side = one.bought > one.sold
        left = rest[one.coin, side][number]
        others = rest.get((one.coin, not side), {})
        for other in sorted(others):
            may_hedge = other in bare or (other > number and not _of_others(tags[number], tags[other]))
            if left and others[other] and may_hedge:
                hedged = min(left, others[other])
                left, others[other] = left - hedged, others[other] - hedged
        rest[one.coin, side][number] = left
        if left > tolerance * max(one.bought, one.sold):
            name = one.position.position_id
            detail = f"{name} bought {decimal_text(one.bought)} and sold {decimal_text(one.sold)}"
            market = Market("", "", name, "")
            found.append(Finding(market, "legs_unequal", one.bought, one.sold, detail, venues=one.venues))
    return found, moving


def naked_coins(ledger_side: LedgerSide, unequal: Sequence[Finding]) -> dict[str, str]:
    """Return the coin of each position that these findings are about, by the position's name."""
    names = {one.market.subject for one in unequal}
    positions = ((one.position.position_id, one.coin) for one in ledger_side.balances)
    return {name: coin for name, coin in positions if name in names}
