"""Sums up the ledger's positions for a comparison: coins by venue, account and market."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import NamedTuple

from ledger_sizer.model.domain import Position
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.market_names import coin_of
from ledger_sizer.model.reconciliation import Market
from ledger_sizer.model.tags import EXTERNAL_TAG
from ledger_sizer.model.units import E8_MAX, exact_arithmetic, usd
from ledger_sizer.reconcile.ledger_reads import Moves
from ledger_sizer.reconcile.throttle import throttled
from ledger_sizer.rules.state import CLOCK_STEP_US_MAX
from ledger_sizer.views.attribution import AccountKey, AccountResolver, order_market

ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class EndedHold:
    """An expired or released hold whose orders may have filled after all.

    accounts: where; none if unknown. legs: coins by order market. budget_usd: without legs, the most that may have
    filled in its coin.
    """

    position: Position
    accounts: tuple[AccountKey, ...]
    legs: Mapping[Market, Decimal]
    budget_usd: Decimal

    @property
    def coins(self) -> frozenset[str]:
        """The coins of its tags."""
        return _coins_of_tags(self.position)


class PlainHold(NamedTuple):
    """A live hold that names no markets. accounts: where it may fill; coins: in what; held: USD."""

    accounts: frozenset[AccountKey]
    coins: frozenset[str]
    held: Decimal
    position_id: str
    until_known: bool


class Balance(NamedTuple):
    """The two sides of an open position, in coins: what is filled, and what is under way.

    venues: of its legs. largest, smallest: what its legs have filled. reachable: the least that one of them may end
    with.
    """

    position: Position
    coin: str
    venues: tuple[str, ...]
    bought: Decimal
    sold: Decimal
    more_bought: Decimal
    more_sold: Decimal
    largest: Decimal
    smallest: Decimal
    reachable: Decimal

    @property
    def number(self) -> int:
        """The number of the decision that planned it: of a late fill the one that made the hold."""
        return self.position.origin or self.position.number


@dataclass(slots=True)
class LedgerSide:
    """What the ledger holds, summed up for a comparison. Quantities are coins.

    open: of open positions by market; spot is the net of buys and sells. in_flight: what live holds may fill at any
    moment, by order market (see `attribution.order_market`). until_known: the part of it that is of holds whose orders'
    fate is unknown, oldest first. holds_without_legs: live holds that may fill at the accounts compared. holds:
    (account, markets, USD) of every live hold whose account is known. expired: expired holds. external: positions that
    count an excess only the exchange showed. known_excess: what is beyond the ledger that an earlier run saw and no
    hold explained. excess_since_us: when that was first seen. accepted_excess: the part of it that a person
    acknowledged. interest: excess that was taken for interest, and when it was first seen. balances: open positions
    whose two sides are to be compared; those of one side may hedge others. planned_hedges: numbers of positions that
    were planned with both sides. across: accounts among which positions hedge a coin. moving: markets that changed
    during the fetch, and positions that changed recently. settling: what changed shortly before the fetch; the exchange
    may show it or not. moved_us: when a fill or a close last changed a coin at an account. prices: USD by coin.
    unplaced: number of legs and holds whose account is unknown. without_legs: number of open positions that name no
    market. unknown: number of live holds that are `until_known`.
    """

    open: dict[Market, Decimal] = field(default_factory=dict)
    in_flight: dict[Market, Decimal] = field(default_factory=dict)
    until_known: list[tuple[str, dict[Market, Decimal]]] = field(default_factory=list)
    holds_without_legs: list[PlainHold] = field(default_factory=list)
    holds: list[tuple[AccountKey, tuple[Market, ...], Decimal]] = field(default_factory=list)
    expired: list[EndedHold] = field(default_factory=list)
    external: dict[Market, list[Position]] = field(default_factory=dict)
    known_excess: Mapping[Market, Decimal] = field(default_factory=dict)
    excess_since_us: Mapping[Market, int] = field(default_factory=dict)
    accepted_excess: Mapping[Market, Decimal] = field(default_factory=dict)
    interest: Mapping[Market, tuple[Decimal, int]] = field(default_factory=dict)
    balances: list[Balance] = field(default_factory=list)
    planned_hedges: set[int] = field(default_factory=set)
    across: dict[str, set[AccountKey]] = field(default_factory=dict)
    moving: set[Market] = field(default_factory=set)
    settling: dict[Market, Decimal] = field(default_factory=dict)
    moved_us: dict[tuple[AccountKey, str], int] = field(default_factory=dict)
    prices: dict[str, Decimal] = field(default_factory=dict)
    unplaced: int = 0
    without_legs: int = 0
    unknown: int = 0

    def coins_ordered(self) -> set[str]:
        """Return the coins of orders that are out, or were until lately."""
        legs = {market.base for market in self.in_flight} | {market.base for one in self.expired for market in one.legs}
        return legs.union(*(one.coins for one in self.holds_without_legs), *(one.coins for one in self.expired))


def ledger_side_of(
    positions: Sequence[Position],
    accounts: AccountResolver,
    *,
    seq_before: int,
    settled_us: int,
    expired_us: int,
    now_us: int = 0,
    budgets_usd: Mapping[int, Decimal] = MappingProxyType({}),
    moves: Moves | None = None,
) -> LedgerSide:
    """Sum up the positions.

    accounts: those of this run. At a venue with one account a position need not name it. seq_before: newest seq before
    the fetch; what changed later is `moving`. settled_us: what changed after this time is `settling`. expired_us: holds
    that expired before this time are ignored. now_us: a hold that is overdue by then counts as expired: a write or a
    sweep frees it. A change at a time still to come was dated by a wrong clock and counts as settled: its market would
    else not be judged until that time. budgets_usd: of expired holds, by number. moves: what recently moved positions
    that are still open; a position that they do not know moved as a whole when it was updated.
    """
    side, resolver = LedgerSide(), accounts
    moves = moves or Moves()
    latest_us = now_us + CLOCK_STEP_US_MAX if now_us else E8_MAX
    with exact_arithmetic():
        expired = []
        for position in throttled(positions):
            if EXTERNAL_TAG in position.tags:
                _add_external(side, resolver, position)
                continue
            if position.state in ("open", "closed"):
                moved_seq, moved_us = moves.last_of(position)
                moved_us = moved_us if moved_us <= latest_us else 0
                during_fetch = moved_seq > seq_before
                recent = during_fetch or moved_us > settled_us
                _Filled(side, resolver, position, moves, moved_us, during_fetch=during_fetch, recent=recent).add()
            if position.pending and not position.is_due(now_us):
                _add_hold(side, resolver, position)
            elif position.state == "held" or (position.state == "expired" and position.updated_us >= expired_us):
                expired.append(position)
        side.expired = ended_holds(expired, positions, resolver, budgets_usd)
    return side


def ended_holds(
    ended: Iterable[Position],
    positions: Iterable[Position],
    resolver: AccountResolver,
    budgets_usd: Mapping[int, Decimal],
) -> list[EndedHold]:
    """Return the ended holds that may have filled at these accounts beyond what `positions` record of it."""
    late: dict[int, list[Position]] = {}
    for position in positions:
        if position.origin is not None:
            late.setdefault(position.origin, []).append(position)
    holds = []
    for position in ended:
        accounts = resolver.accounts_of(position)
        if accounts:
            legs = {
                order_market(market, leg): unfilled_of(position, leg)
                for leg, market in resolver.legs(position) if market is not None
            }  # fmt: skip
            budget_usd = budgets_usd.get(position.number, usd(position.held_e8))
            hold = _left_of(EndedHold(position, tuple(accounts), legs, budget_usd), resolver, late)
            holds += [] if hold is None else [hold]
    return holds


def _left_of(hold: EndedHold, resolver: AccountResolver, late: Mapping[int, Sequence[Position]]) -> EndedHold | None:
    """Return what of an ended hold may still have filled after the late fills that are recorded; None if nothing."""
    recorded = late.get(hold.position.number)
    if not recorded:
        return hold
    if not all(one.fills is not None and one.fills.more for one in recorded):
        return None
    legs = dict(hold.legs)
    for position in recorded:
        for leg, market in resolver.legs(position):
            if market is not None:
                key = order_market(market, leg)
                legs[key] = legs.get(key, ZERO) - leg.filled
    left = {market: coins for market, coins in legs.items() if coins > 0}
    return EndedHold(hold.position, hold.accounts, left, ZERO) if left else None


def unfilled_of(position: Position, leg: Leg) -> Decimal:
    """Return the coins of a leg that are planned and not filled. Versions before planned them as its quantity."""
    return leg.quantity if leg.fills is None and leg.price is None and position.state != "open" else leg.unfilled


def _coins_of_tags(position: Position) -> frozenset[str]:
    return frozenset(map(coin_of, position.tags.values_of("symbol")))


def _add_external(side: LedgerSide, resolver: AccountResolver, position: Position) -> None:
    if position.state != "open":
        return
    for _, market in resolver.legs(position):
        if market is not None:
            side.external.setdefault(market, []).append(position)


def _add_hold(side: LedgerSide, resolver: AccountResolver, position: Position) -> None:
    legs = [(leg, market, unfilled_of(position, leg)) for leg, market in resolver.legs(position)]
    side.unknown += position.until_known
    planned: dict[Market, Decimal] = {}
    for leg, market, coins in legs:
        if market is not None and coins:
            key = order_market(market, leg)
            planned[key] = planned.get(key, ZERO) + coins
    for market, coins in planned.items():
        side.in_flight[market] = side.in_flight.get(market, ZERO) + coins
    if planned and position.until_known:
        side.until_known.append((position.position_id, planned))
    accounts = resolver.accounts_of(position)
    if not any(coins for _, _, coins in legs) and accounts and position.held_e8:
        plain = PlainHold(
            frozenset(accounts), _coins_of_tags(position), usd(position.held_e8), position.position_id,
            position.until_known,
        )  # fmt: skip
        side.holds_without_legs.append(plain)
        side.unplaced += len(accounts) != 1
    _add_money_held(side, position, legs, accounts)


def _add_money_held(
    side: LedgerSide,
    position: Position,
    legs: Sequence[tuple[Leg, Market | None, Decimal]],
    accounts: Sequence[AccountKey],
) -> None:
    """Add what the orders to come need of the free balance of each account."""
    held = usd(position.held_e8)
    markets = tuple(market for _, market, _ in legs if market is not None)
    orders = [(leg, market) for leg, market, coins in legs if coins]
    if orders and all(leg.kind == "spot" and leg.side == "sell" for leg, _ in orders):
        return  # these sell coins, which is no use of money
    if len(accounts) == 1 and len(markets) == len(legs):
        if len(position.tags.values_of("venue")) < 2 or markets:
            side.holds.append((accounts[0], markets, held))
        return
    for account_key in accounts if markets else ():
        here = [(leg, market) for leg, market in orders if market is not None and market[:2] == account_key]
        sides = {"buy": ZERO, "sell": ZERO}
        for leg, _ in here:
            if leg.fills is not None and not (leg.kind == "spot" and leg.side == "sell"):
                sides[leg.side] += leg.fills.unfilled_usd
        if needed := max(sides.values()):
            side.holds.append((account_key, tuple(market for _, market in here), needed))


class _Filled:
    """Adds what an open or a closed position has, or had, at its accounts."""

    def __init__(
        self,
        side: LedgerSide,
        resolver: AccountResolver,
        position: Position,
        moves: Moves,
        moved_us: int,
        *,
        during_fetch: bool,
        recent: bool,
    ) -> None:
        self._side = side
        self._position = position
        self._legs = resolver.legs(position)
        self._moves = moves
        self._moved_us = moved_us
        self._during_fetch = during_fetch
        self._recent = recent

    def add(self) -> None:
        """Add every leg, and both sides of an open position."""
        position, side = self._position, self._side
        is_open = position.state == "open"
        if is_open and not position.legs:
            side.without_legs += 1
        for leg, market in self._legs:
            if market is None:
                side.unplaced += is_open
            elif not leg.planned_only:
                self._add_leg(leg, market, is_open=is_open)
        if is_open and position.legs:
            self._add_balance()

    def _add_leg(self, leg: Leg, market: Market, *, is_open: bool) -> None:
        side = self._side
        if self._during_fetch:
            side.moving.add(market)
        elif self._recent:
            side.settling[market] = side.settling.get(market, ZERO) + self._moved(leg)
        asset = ((market.venue, market.account), market.base)
        side.moved_us[asset] = max(side.moved_us.get(asset, 0), self._moved_us)
        if is_open:
            signed = -leg.quantity if leg.kind == "spot" and leg.side == "sell" else leg.quantity
            side.open[market] = side.open.get(market, ZERO) + signed
        if leg.price is not None:
            side.prices[market.base] = leg.price

    def _moved(self, leg: Leg) -> Decimal:
        """Return the coins of a leg that recent fills and closes moved: all of it where they are not known."""
        position, moves = self._position, self._moves
        filled, closed = moves.filled.get(position.number), moves.closed.get(position.number)
        if position.state != "open" or not position.quantity or (filled is None and closed is None):
            return leg.quantity
        share = leg.quantity / position.quantity
        filled, closed = filled or ZERO, closed or ZERO
        return max(filled, filled * share) + closed * share

    def _add_balance(self) -> None:
        pending = self._position.pending
        bought = sold = more_bought = more_sold = largest = ZERO
        smallest = reachable = None
        for leg in self._position.legs:
            filled, more = leg.filled, leg.unfilled if pending else ZERO
            if leg.side == "buy":
                bought, more_bought = bought + filled, more_bought + more
            else:
                sold, more_sold = sold + filled, more_sold + more
            largest = max(largest, filled)
            smallest = filled if smallest is None else min(smallest, filled)
            reachable = filled + more if reachable is None else min(reachable, filled + more)
        legs = self._position.legs
        coin = coin_of(next((leg for leg in legs if leg.kind != "spot"), legs[0]).symbol)
        venues = {leg.venue if market is None else market.venue for leg, market in self._legs}
        named = tuple(sorted(venue for venue in venues if venue and "," not in venue))
        side = self._side
        side.balances.append(
            Balance(
                self._position, coin, named, bought, sold, more_bought, more_sold, largest, smallest or ZERO,
                reachable or ZERO,
            )
        )  # fmt: skip
        if self._recent:
            side.moving.add(Market("", "", self._position.position_id, ""))
        accounts = {(market.venue, market.account) for _, market in self._legs if market is not None}
        if len(accounts) > 1:
            side.across.setdefault(coin, set()).update(accounts)
