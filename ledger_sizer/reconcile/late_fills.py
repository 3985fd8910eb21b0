"""Explains excess by holds that are over: their orders may have filled after all, or late."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal

from ledger_sizer.exchanges.snapshot import rounded_price
from ledger_sizer.model.domain import Position
from ledger_sizer.model.drift_words import naming_holds
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.market_names import coin_of
from ledger_sizer.model.reconciliation import Finding, Market
from ledger_sizer.reconcile.ledger_side import EndedHold
from ledger_sizer.reconcile.throttle import throttled
from ledger_sizer.views.attribution import AccountKey, AccountResolver, order_market

ReadReleased = Callable[[], Sequence[EndedHold]]


class LateFills:
    """The ended holds of one comparison. One without legs is one late long and one late short.

    tolerance: relative. excess_since_us: when an excess was first seen; what is older than a hold is not its fill.
    released: reads the released holds, which is done only where no expired one explains an excess.
    """

    def __init__(
        self, expired: Sequence[EndedHold], excess_since_us: Mapping[Market, int], tolerance: Decimal,
        released: ReadReleased,
    ) -> None:  # fmt: skip
        self._expired = expired
        self._released: Sequence[EndedHold] | None = None
        self._read_released = released
        self._since_us = excess_since_us
        self._factor = 1 + tolerance
        self._claimed: set[tuple[int, str]] = set()
        self._filled: set[str] = set()

    def explained(self, finding: Finding) -> Finding:
        """Return the finding as a late fill if an ended hold is large enough for its excess, else unchanged."""
        if finding.excess <= 0 or finding.kind not in ("unknown_position", "quantity_differs"):
            return finding
        found = next((one for one in self._expired if self._fits(one, finding)), None)
        if found is None:
            if self._released is None:
                self._released = self._read_released()
            found = next((one for one in self._released if self._fits(one, finding)), None)
        if found is None:
            return finding
        name = found.position.position_id
        self._filled.add(name)
        price = finding.price or _price_of(found.position, finding.market)
        return replace(finding, kind="late_fill", detail=naming_holds(finding.detail, [name]), price=price)

    def _fits(self, one: EndedHold, finding: Finding) -> bool:
        market, position = finding.market, one.position
        since_us = self._since_us.get(market)
        if since_us is not None and position.opened_us >= since_us:
            return False
        if position.legs:
            sold = not market.is_swap and (finding.venue_quantity or 0) < (finding.ledger_quantity or 0)
            return finding.excess <= one.legs.get(market.opposite if sold else market, Decimal(0)) * self._factor
        here = (market.venue, market.account) in one.accounts and market.base in one.coins
        if not here or finding.price is None or finding.excess * finding.price > one.budget_usd * self._factor:
            return False
        first = (position.number, market.side) not in self._claimed
        self._claimed.add((position.number, market.side))
        return first

    def unfilled(self, accounts: Collection[AccountKey], moving: set[Market]) -> list[Finding]:
        """Return the expired holds of which nothing is seen: their callers may have stopped.

        accounts: those whose positions were fetched. A hold that may be at another one too is added to `moving`.
        """
        found = []
        for one in throttled(self._expired):
            name = one.position.position_id
            placed = one.accounts if one.position.legs or len(one.accounts) == 1 else ()
            if one.position.state != "expired" or not placed or name in self._filled:
                continue
            market = Market(*placed[0], name, "")
            if all(account_key in accounts for account_key in placed):
                detail = f"{name} expired without a fill; its caller may have stopped"
                found.append(Finding(market, "expired_hold", None, None, detail))
            else:
                moving.add(market)
        return found


def _price_of(hold: Position, market: Market) -> Decimal | None:
    """Return the price, USD per coin, at which a hold planned an order in a coin; None if it planned none."""
    for leg in hold.legs:
        if coin_of(leg.symbol) != market.base:
            continue
        if leg.price is not None:
            return leg.price
        if leg.fills is not None and leg.fills.unfilled:
            return rounded_price(leg.fills.unfilled_usd / leg.fills.unfilled)
    return None


def may_fill_after_its_rest(position: Position, since_us: int) -> bool:
    """Whether it is open, and its rest ended since a time: by expiry or a release, so that a fill may still come."""
    more = position.fills is not None and position.fills.more
    return position.state == "open" and more and not position.pending and position.updated_us >= since_us


def ended_rests(
    positions: Iterable[Position], planned: Mapping[int, Sequence[Leg]], resolver: AccountResolver
) -> list[EndedHold]:
    """Return what may still fill of open positions whose rest ended: of each leg planned, what is not filled yet.

    planned: the legs of their first grants, by number. What they were granted later is left out.
    """
    rests = []
    for position in positions:
        left: dict[Market, Decimal] = {}
        whole = position.changed(legs=tuple(planned.get(position.number, ())))
        for leg, market in resolver.legs(whole):
            if market is not None:
                left[order_market(market, leg)] = leg.quantity
        entries = (position.filled or Decimal(0)) / position.quantity if position.quantity else Decimal(1)
        for leg, market in resolver.legs(position):
            if market is not None:
                key = order_market(market, leg)
                left[key] = left.get(key, Decimal(0)) - leg.filled * entries
        legs = {market: coins for market, coins in left.items() if coins > 0}
        accounts = tuple(sorted({(market.venue, market.account) for market in legs}))
        rests.append(EndedHold(position, accounts, legs, Decimal(0)))
    return rests
