"""Reads positions from the ledger and sums up the expected quantities by venue, account and market."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from operator import itemgetter
from types import MappingProxyType
from typing import Any

from sqlalchemy import Engine, Select, bindparam, select, text, union_all

from ledger_sizer.model.domain import Position
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.market_names import split_factor
from ledger_sizer.model.reconciliation import Market
from ledger_sizer.model.tags import EXTERNAL_TAG
from ledger_sizer.model.units import E8_MAX, exact_arithmetic, usd
from ledger_sizer.reconcile.throttle import throttled
from ledger_sizer.rules.state import CLOCK_STEP_US_MAX
from ledger_sizer.storage.database import read_transaction, stream_rows
from ledger_sizer.storage.lookups import portfolio_id
from ledger_sizer.storage.tables import PENDING, DecisionRow, PortfolioRow, PositionRow
from ledger_sizer.storage.write_store import position_from_row

_BATCH_ROWS = 100
_PRICE_LOOKBACK = 20_000
"""Positions that are searched for the last price of an asset."""

AccountKey = tuple[str, str]
"""(venue, account)."""


def read_head(engine: Engine, portfolio: str) -> int:
    """Return the seq of the portfolio's newest decision; 0 if the portfolio does not exist."""
    with read_transaction(engine) as connection:
        return connection.execute(select(PortfolioRow.last_seq).where(PortfolioRow.name == portfolio)).scalar() or 0


def read_expired_budgets(engine: Engine, portfolio: str, positions: Iterable[Position]) -> dict[int, Decimal]:
    """Return the USD granted to expired holds without legs, by position number. Their rows keep no budget."""
    numbers = [one.number for one in positions if one.state == "expired" and not one.legs]
    query = select(DecisionRow.seq, DecisionRow.held_delta_e8)
    return {number: usd(held_e8) for number, held_e8 in _read_decisions(engine, portfolio, query, numbers)}


def read_partial_closes(
    engine: Engine, portfolio: str, positions: Iterable[Position], since_us: int
) -> dict[int, Decimal]:
    """Return the quantity that the last decision closed of open positions updated after `since_us`, by number."""
    moved = {one.updated_seq: one.number for one in positions if one.state == "open" and one.updated_us > since_us}
    query = select(DecisionRow.seq, DecisionRow.quantity).where(DecisionRow.command == "release")
    rows = _read_decisions(engine, portfolio, query, [*moved])
    return {moved[seq]: Decimal(quantity) for seq, quantity in rows if quantity is not None}


def _read_decisions(
    engine: Engine, portfolio: str, query: Select[int, Any], seqs: Sequence[int]
) -> list[tuple[int, Any]]:
    """Run `query` (seq and one column) for the decisions with these seqs, in batches that fit into one statement."""
    if not seqs:
        return []
    query = query.join(PortfolioRow, PortfolioRow.id == DecisionRow.portfolio_id).where(
        PortfolioRow.name == portfolio, DecisionRow.seq.in_(bindparam("seqs", expanding=True))
    )
    values: list[tuple[int, Any]] = []
    with read_transaction(engine) as connection:
        for start in range(0, len(seqs), _BATCH_ROWS):
            rows = connection.execute(query, {"seqs": seqs[start : start + _BATCH_ROWS]})
            values += [(seq, value) for seq, value in rows]
    return values


def read_positions(engine: Engine, portfolio: str, *, since_us: int) -> list[Position]:
    """Return every live position, and those closed or expired since `since_us`.

    Released holds are left out: they never were at the exchange.
    """
    rows: list[tuple[Any, ...]] = []
    with read_transaction(engine) as connection:
        owner = portfolio_id(connection, portfolio)
        if owner is None:
            return []
        # One SELECT per partial index, each with exactly the condition of its index: an OR would read all rows.
        query = union_all(
            *(
                select(PositionRow.__table__).where(PositionRow.portfolio_id == owner, text(condition))
                for condition in (
                    f"state = 'held' AND {PENDING}",
                    "state = 'open'",
                    f"state IN ('closed', 'expired') AND updated_us >= {since_us:d}",
                )
            )
        )
        for batch in throttled(stream_rows(connection, query, _BATCH_ROWS)):
            rows += batch
    rows.sort(key=itemgetter(1))  # by number
    return [position_from_row(portfolio, row) for row in throttled(rows)]


def last_prices(engine: Engine, portfolio: str, assets: Collection[str]) -> dict[str, Decimal]:
    """Return the prices at which the portfolio last traded these assets, USD per base unit.

    Searches its newest 20,000 positions. An asset that none of them traded is left out.
    """
    rows: list[tuple[Any, ...]] = []
    with read_transaction(engine) as connection:
        owner = portfolio_id(connection, portfolio)
        if owner is None:
            return {}
        query = select(PositionRow.__table__).where(PositionRow.portfolio_id == owner)
        newest_first = query.order_by(PositionRow.number.desc()).limit(_PRICE_LOOKBACK)
        for batch in throttled(stream_rows(connection, newest_first, _BATCH_ROWS)):
            rows += batch
    prices: dict[str, Decimal] = {}
    for position in (position_from_row(portfolio, row) for row in throttled(rows)):
        if position.state not in ("open", "closed") or EXTERNAL_TAG in position.tags:
            continue
        for leg in position.legs:
            asset = split_factor(leg.symbol.partition("/")[0])[1]
            if asset in assets and leg.price is not None:
                prices.setdefault(asset, leg.price)
        if len(prices) == len(assets):
            break
    return prices


@dataclass(frozen=True, slots=True)
class ExpiredHold:
    """An expired hold whose orders may have filled after all. account_key: None where it is not known.

    legs: base units by market. budget_usd: without legs, the most that may have filled in its symbol.
    """

    position: Position
    account_key: AccountKey | None
    legs: Mapping[Market, Decimal]
    budget_usd: Decimal


@dataclass(slots=True)
class LedgerSide:
    """What the ledger holds, summed up for a comparison.

    open: base units of open positions by market; spot is the net of buys and sells. in_flight: base units that live
    holds may fill at any moment. holds_without_legs: (account or None, symbol, USD) of live holds that name no markets
    and may fill at the accounts compared. holds: (account, markets, USD) of every live hold whose account is known.
    expired: expired holds. external: positions that count an excess only the exchange showed. known_excess: base units
    beyond the ledger that an earlier run saw and no hold explained. excess_since_us: when that was first seen.
    accepted_excess: the part of it that a person acknowledged. hedged: (position, bought, sold) of positions with both.
    moving: markets that changed during the fetch, and positions that changed recently. settling: base units that
    changed shortly before the fetch; the exchange may show them or not. moved_us: when a fill or a close last changed
    an asset at an account. prices: USD by asset. unplaced: number of legs and holds whose account is unknown.
    without_legs: number of open positions that name no market.
    """

    open: dict[Market, Decimal] = field(default_factory=dict)
    in_flight: dict[Market, Decimal] = field(default_factory=dict)
    holds_without_legs: list[tuple[AccountKey | None, str, Decimal]] = field(default_factory=list)
    holds: list[tuple[AccountKey, tuple[Market, ...], Decimal]] = field(default_factory=list)
    expired: list[ExpiredHold] = field(default_factory=list)
    external: dict[Market, list[Position]] = field(default_factory=dict)
    known_excess: Mapping[Market, Decimal] = field(default_factory=dict)
    excess_since_us: Mapping[Market, int] = field(default_factory=dict)
    accepted_excess: Mapping[Market, Decimal] = field(default_factory=dict)
    hedged: list[tuple[Position, Decimal, Decimal]] = field(default_factory=list)
    moving: set[Market] = field(default_factory=set)
    settling: dict[Market, Decimal] = field(default_factory=dict)
    moved_us: dict[tuple[AccountKey, str], int] = field(default_factory=dict)
    prices: dict[str, Decimal] = field(default_factory=dict)
    unplaced: int = 0
    without_legs: int = 0


def market_of(leg: Leg, account_key: AccountKey) -> Market:
    """Return the market of a leg: one side of a derivative market, or an asset."""
    if leg.kind != "spot":
        return Market(*account_key, leg.symbol, "long" if leg.side == "buy" else "short")
    return Market(*account_key, leg.symbol.partition("/")[0], "long")


def ledger_side_of(
    positions: Iterable[Position],
    accounts: Sequence[AccountKey],
    *,
    seq_before: int,
    settled_us: int,
    expired_us: int,
    now_us: int = 0,
    budgets_usd: Mapping[int, Decimal] = MappingProxyType({}),
    partial_closes: Mapping[int, Decimal] = MappingProxyType({}),
) -> LedgerSide:
    """Sum up the positions.

    accounts: those of this run. At a venue with one account a position need not name it (tag `account`).
    seq_before: newest seq before the fetch; what changed later is `moving`. settled_us: what changed after this time is
    `settling`. expired_us: holds that expired before this time are ignored. now_us: a hold that is overdue by then
    counts as expired: a write or a sweep frees it. A change at a time still to come was dated by a wrong clock and
    counts as settled: its market would else not be judged until that time. budgets_usd: of expired holds, by number.
    partial_closes: the quantity recently closed of positions that are still open, by number; all other positions
    changed as a whole.
    """
    ledger_side = LedgerSide()
    resolver = AccountResolver(accounts)
    latest_us = now_us + CLOCK_STEP_US_MAX if now_us else E8_MAX
    with exact_arithmetic():
        filled_late = set()
        for position in throttled(positions):
            if position.origin is not None:
                filled_late.add(position.origin)
            if EXTERNAL_TAG in position.tags:
                _add_external(ledger_side, resolver, position)
                continue
            if position.state in ("open", "closed"):
                during_fetch = position.updated_seq > seq_before
                moved_us = position.updated_us if position.updated_us <= latest_us else 0
                recent = during_fetch or moved_us > settled_us
                closed = partial_closes.get(position.number)
                _add_fill(
                    ledger_side, resolver, position, moved_us, during_fetch=during_fetch, recent=recent, closed=closed
                )
            if position.pending and not position.is_due(now_us):
                _add_hold(ledger_side, resolver, position)
            elif position.state == "held" or (position.state == "expired" and position.updated_us >= expired_us):
                if resolver.is_elsewhere(position):
                    continue
                legs = {market: leg.quantity for leg, market in resolver.legs(position) if market is not None}
                budget_usd = budgets_usd.get(position.number, usd(position.held_e8))
                ledger_side.expired.append(ExpiredHold(position, resolver.account_of(position), legs, budget_usd))
        ledger_side.expired = [one for one in ledger_side.expired if one.position.number not in filled_late]
    return ledger_side


class AccountResolver:
    """Finds the account of positions and of their legs."""

    def __init__(self, accounts: Sequence[AccountKey]) -> None:
        self._accounts: dict[str, list[str]] = {}
        for venue, account in accounts:
            self._accounts.setdefault(venue, []).append(account)

    def find(self, venue: str, account: str | None) -> AccountKey | None:
        """Return the account of this name at a venue, or its only account if `account` is None; None if unknown."""
        known = self._accounts.get(venue, [])
        if account is None and len(known) == 1:
            account = known[0]
        return (venue, account) if account in known else None

    def account_of(self, position: Position) -> AccountKey | None:
        """Return the account of a position: by its tags, else by its legs, else the only account; None if unknown."""
        venue = position.tags.only("venue")
        if venue is not None:
            return self.find(venue, position.tags.only("account"))
        of_legs = {None if market is None else (market.venue, market.account) for _, market in self.legs(position)}
        if len(of_legs) == 1:
            return of_legs.pop()
        every = [(venue, account) for venue, accounts in self._accounts.items() for account in accounts]
        return every[0] if len(every) == 1 and not of_legs and "venue" not in position.tags else None

    def is_elsewhere(self, position: Position) -> bool:
        """Whether the position names a venue or account that is none of these accounts."""
        if position.legs:
            return all(market is None for _, market in self.legs(position))
        venues, accounts = position.tags.values_of("venue"), position.tags.values_of("account")
        known = [self._accounts.get(venue, []) for venue in venues]
        return bool(venues) and not any(one and (not accounts or {*accounts} & {*one}) for one in known)

    def legs(self, position: Position) -> list[tuple[Leg, Market | None]]:
        """Return every leg of a position with its market, None where its account is unknown."""
        legs = []
        venues, account = position.tags.values_of("venue"), position.tags.only("account")
        for leg in position.legs:
            venue = leg.venue or position.tags.only("venue") or ""
            # The account tag names an account of the position's own venue. Another venue may have none of that name.
            foreign = venues not in ((), (venue,)) and account not in self._accounts.get(venue, [])
            account_key = self.find(venue, None if foreign else account)
            legs.append((leg, None if account_key is None else market_of(leg, account_key)))
        return legs


def _add_external(ledger_side: LedgerSide, resolver: AccountResolver, position: Position) -> None:
    if position.state != "open":
        return
    for _, market in resolver.legs(position):
        if market is not None:
            ledger_side.external.setdefault(market, []).append(position)


def _add_hold(ledger_side: LedgerSide, resolver: AccountResolver, position: Position) -> None:
    account_key = resolver.account_of(position)
    held = usd(position.held_e8)
    planned = position.state == "held"  # the legs of an open position are what has filled
    markets = []
    for leg, market in resolver.legs(position):
        if market is not None:
            markets.append(market)
            if planned:
                ledger_side.in_flight[market] = ledger_side.in_flight.get(market, Decimal(0)) + leg.quantity
    if not (planned and position.legs) and not resolver.is_elsewhere(position):
        for symbol in position.tags.values_of("symbol") or ("",):
            ledger_side.holds_without_legs.append((account_key, symbol, held))
        ledger_side.unplaced += account_key is None
    if account_key is not None:
        ledger_side.holds.append((account_key, tuple(markets), held))


def _add_fill(
    ledger_side: LedgerSide,
    resolver: AccountResolver,
    position: Position,
    moved_us: int,
    *,
    during_fetch: bool,
    recent: bool,
    closed: Decimal | None,
) -> None:
    is_open = position.state == "open"
    moved_share = Decimal(1) if closed is None or not position.quantity else closed / position.quantity
    if is_open and not position.legs:
        ledger_side.without_legs += 1
    bought = sold = Decimal(0)
    for leg, market in resolver.legs(position):
        if leg.side == "buy":
            bought += leg.quantity
        else:
            sold += leg.quantity
        if market is None:
            ledger_side.unplaced += is_open
            continue
        if during_fetch:
            ledger_side.moving.add(market)
        elif recent:
            ledger_side.settling[market] = ledger_side.settling.get(market, Decimal(0)) + leg.quantity * moved_share
        asset = ((market.venue, market.account), market.base)
        ledger_side.moved_us[asset] = max(ledger_side.moved_us.get(asset, 0), moved_us)
        if is_open:
            signed = -leg.quantity if leg.kind == "spot" and leg.side == "sell" else leg.quantity
            ledger_side.open[market] = ledger_side.open.get(market, Decimal(0)) + signed
        if leg.price is not None:
            ledger_side.prices[market.base] = leg.price
    if not is_open:
        return
    if recent:
        ledger_side.moving.add(Market("", "", position.position_id, ""))
    elif bought and sold:
        ledger_side.hedged.append((position, bought, sold))
