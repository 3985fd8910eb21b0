"""The ledger's side of a comparison: which quantities it says there are, by venue, account and market."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from operator import itemgetter
from types import MappingProxyType
from typing import Any

from sqlalchemy import Engine, Select, bindparam, select, text, union_all

from ledger_sizer.model.domain import Position
from ledger_sizer.model.instruments import Leg
from ledger_sizer.model.reconciliation import Market
from ledger_sizer.model.tags import EXTERNAL_TAG
from ledger_sizer.model.units import exact_arithmetic, usd
from ledger_sizer.reconcile.throttle import throttled
from ledger_sizer.storage.database import read_transaction, stream_rows
from ledger_sizer.storage.tables import DecisionRow, PortfolioRow, PositionRow
from ledger_sizer.storage.write_store import position_of

_PORTION = 100
_LOOKED_BACK = 20_000

Place = tuple[str, str]
"""(venue, account)."""


def read_head(engine: Engine, portfolio: str) -> int:
    """The seq of the portfolio's newest decision; 0 for one that does not exist."""
    with read_transaction(engine) as connection:
        return connection.execute(select(PortfolioRow.last_seq).where(PortfolioRow.name == portfolio)).scalar() or 0


def read_budgets(engine: Engine, portfolio: str, positions: Iterable[Position]) -> dict[int, Decimal]:
    """What expired holds that name no markets were granted, in USD by number: their rows keep no budget."""
    numbers = [one.number for one in positions if one.state == "expired" and not one.legs]
    query = select(DecisionRow.seq, DecisionRow.held_delta_e8)
    return {number: usd(held_e8) for number, held_e8 in _of_decisions(engine, portfolio, query, numbers)}


def read_parts(engine: Engine, portfolio: str, positions: Iterable[Position], since_us: int) -> dict[int, Decimal]:
    """How much of positions that are still open was closed by what moved them last after `since_us`, by number."""
    moved = {one.updated_seq: one.number for one in positions if one.state == "open" and one.updated_us > since_us}
    query = select(DecisionRow.seq, DecisionRow.quantity).where(DecisionRow.command == "release")
    rows = _of_decisions(engine, portfolio, query, [*moved])
    return {moved[seq]: Decimal(quantity) for seq, quantity in rows if quantity is not None}


def _of_decisions(
    engine: Engine, portfolio: str, query: Select[int, Any], seqs: Sequence[int]
) -> list[tuple[int, Any]]:
    """A column of the decisions with these seqs, in portions of what a statement may name."""
    if not seqs:
        return []
    query = query.join(PortfolioRow, PortfolioRow.id == DecisionRow.portfolio_id).where(
        PortfolioRow.name == portfolio, DecisionRow.seq.in_(bindparam("seqs", expanding=True))
    )
    found: list[tuple[int, Any]] = []
    with read_transaction(engine) as connection:
        for start in range(0, len(seqs), _PORTION):
            rows = connection.execute(query, {"seqs": seqs[start : start + _PORTION]})
            found += [(seq, value) for seq, value in rows]
    return found


def read_positions(engine: Engine, portfolio: str, *, since_us: int) -> list[Position]:
    """Every live position, and those that were closed or expired since `since_us`.

    A released hold never was at the exchange.
    """
    rows: list[tuple[Any, ...]] = []
    with read_transaction(engine) as connection:
        owner = connection.execute(select(PortfolioRow.id).where(PortfolioRow.name == portfolio)).scalar()
        if owner is None:
            return []
        # One SELECT for each partial index, whose condition must stand there as it is: with an OR all rows are read.
        query = union_all(
            *(
                select(PositionRow.__table__).where(PositionRow.portfolio_id == owner, text(condition))
                for condition in (
                    "state = 'held'",
                    "state = 'open'",
                    f"state IN ('closed', 'expired') AND updated_us >= {since_us:d}",
                )
            )
        )
        for portion in throttled(stream_rows(connection, query, _PORTION)):
            rows += portion
    rows.sort(key=itemgetter(1))  # by number
    return [position_of(portfolio, row) for row in throttled(rows)]


def last_prices(engine: Engine, portfolio: str, assets: Collection[str]) -> dict[str, Decimal]:
    """The prices at which the portfolio last traded these assets, USD per base unit.

    Its newest 20,000 positions are looked through; an asset that none of them traded is left out.
    """
    rows: list[tuple[Any, ...]] = []
    with read_transaction(engine) as connection:
        owner = connection.execute(select(PortfolioRow.id).where(PortfolioRow.name == portfolio)).scalar()
        if owner is None:
            return {}
        query = select(PositionRow.__table__).where(PositionRow.portfolio_id == owner)
        newest_first = query.order_by(PositionRow.number.desc()).limit(_LOOKED_BACK)
        for portion in throttled(stream_rows(connection, newest_first, _PORTION)):
            rows += portion
    found: dict[str, Decimal] = {}
    for position in (position_of(portfolio, row) for row in throttled(rows)):
        if position.state not in ("open", "closed") or EXTERNAL_TAG in position.tags:
            continue
        for leg in position.legs:
            asset = leg.symbol.partition("/")[0]
            if asset in assets and leg.price is not None:
                found.setdefault(asset, leg.price)
        if len(found) == len(assets):
            break
    return found


@dataclass(frozen=True, slots=True)
class ExpiredHold:
    """A hold that ran out and may have been filled all the same. place: None where that is not known.

    legs: base units by market; without them `budget_usd` is what it may have become of its symbol.
    """

    position: Position
    place: Place | None
    legs: Mapping[Market, Decimal]
    budget_usd: Decimal


@dataclass(slots=True)
class LedgerSide:
    """What the ledger says, summed up for a comparison.

    open: base units of open positions by market; spot is the net of buys and sells. in_flight: base units that live
    holds may turn into at any moment. plain_holds: (place or None, symbol, USD) of holds that name no markets
    and may be filled here.
    holds: every hold with a place, its markets and its USD. expired: holds that ran out. external: positions that
    count what only the exchange knew. known: base units beyond the ledger that an earlier run saw and no hold
    explained, and known_since_us when that was first seen. accepted: those of them that a person said may stay.
    uneven: hedged positions, bought and sold. touched: markets that moved during the fetch, and positions that moved
    lately. settling: base units that moved shortly before the fetch, which the exchange may show or not. moved_us:
    when a fill or a close last moved an asset at a place. prices: USD by asset. unplaced: legs and holds whose
    account nobody can tell. without_legs: open positions that name no market.
    """

    open: dict[Market, Decimal] = field(default_factory=dict)
    in_flight: dict[Market, Decimal] = field(default_factory=dict)
    plain_holds: list[tuple[Place | None, str, Decimal]] = field(default_factory=list)
    holds: list[tuple[Place, tuple[Market, ...], Decimal]] = field(default_factory=list)
    expired: list[ExpiredHold] = field(default_factory=list)
    external: dict[Market, list[Position]] = field(default_factory=dict)
    known: Mapping[Market, Decimal] = field(default_factory=dict)
    known_since_us: Mapping[Market, int] = field(default_factory=dict)
    accepted: Mapping[Market, Decimal] = field(default_factory=dict)
    uneven: list[tuple[Position, Decimal, Decimal]] = field(default_factory=list)
    touched: set[Market] = field(default_factory=set)
    settling: dict[Market, Decimal] = field(default_factory=dict)
    moved_us: dict[tuple[Place, str], int] = field(default_factory=dict)
    prices: dict[str, Decimal] = field(default_factory=dict)
    unplaced: int = 0
    without_legs: int = 0


def market_of(leg: Leg, place: Place) -> Market:
    """What a leg holds: a derivative market and its side, or an asset."""
    if leg.kind == "swap":
        return Market(*place, leg.symbol, "long" if leg.side == "buy" else "short")
    return Market(*place, leg.symbol.partition("/")[0], "long")


def ledger_side_of(
    positions: Iterable[Position],
    accounts: Sequence[Place],
    *,
    seq_before: int,
    settled_us: int,
    expired_us: int,
    now_us: int = 0,
    budgets_usd: Mapping[int, Decimal] = MappingProxyType({}),
    parts: Mapping[int, Decimal] = MappingProxyType({}),
) -> LedgerSide:
    """Sum up the positions.

    accounts: those of this run; a position at a venue with one account need not name it (tag `account`).
    seq_before: head before the fetch; what moved later is touched. settled_us: what moved after this time is settling.
    expired_us: holds that expired before this time are forgotten. now_us: a hold whose time is over by then is freed by
    whatever is written next, so it explains nothing any more. budgets_usd: of expired holds, by number.
    parts: what was closed lately of positions that are open still, by number; of others all of it is what moved.
    """
    book = LedgerSide()
    places = Places(accounts)
    with exact_arithmetic():
        filled_late = set()
        for position in throttled(positions):
            if position.origin is not None:
                filled_late.add(position.origin)
            if EXTERNAL_TAG in position.tags:
                _add_external(book, places, position)
            elif position.state == "held" and (position.expires_us is None or position.expires_us > now_us):
                _add_hold(book, places, position)
            elif position.state in ("open", "closed"):
                during = position.updated_seq > seq_before
                lately = during or position.updated_us > settled_us
                _add_fill(book, places, position, during=during, lately=lately, part=parts.get(position.number))
            elif position.state == "held" or (position.state == "expired" and position.updated_us >= expired_us):
                if places.elsewhere(position):
                    continue
                legs = {market: leg.quantity for leg, market in places.markets(position) if market is not None}
                budget_usd = budgets_usd.get(position.number, usd(position.held_e8))
                book.expired.append(ExpiredHold(position, places.of(position), legs, budget_usd))
        book.expired = [one for one in book.expired if one.position.number not in filled_late]
    return book


class Places:
    """Tells at which account a position is."""

    def __init__(self, accounts: Sequence[Place]) -> None:
        self._accounts: dict[str, list[str]] = {}
        for venue, account in accounts:
            self._accounts.setdefault(venue, []).append(account)

    def at(self, venue: str, account: str | None) -> Place | None:
        """The account of this name at a venue, or its only one where none is named; None where that is not known."""
        known = self._accounts.get(venue, [])
        if account is None and len(known) == 1:
            account = known[0]
        return (venue, account) if account in known else None

    def of(self, position: Position) -> Place | None:
        """Where it is: by its tags, or else by its legs, or because there is no other account."""
        if "venue" in position.tags:
            return self.at(position.tags["venue"], position.tags.get("account"))
        legs = {None if market is None else (market.venue, market.account) for _, market in self.markets(position)}
        if len(legs) == 1:
            return legs.pop()
        every = [(venue, account) for venue, accounts in self._accounts.items() for account in accounts]
        return every[0] if len(every) == 1 and not legs else None

    def elsewhere(self, position: Position) -> bool:
        """Whether it says that it is at a venue or account that is not looked at here."""
        if position.legs:
            return all(market is None for _, market in self.markets(position))
        venue, account = position.tags.get("venue"), position.tags.get("account")
        known = self._accounts.get(venue or "", [])
        return venue is not None and (not known or account not in (None, *known))

    def markets(self, position: Position) -> list[tuple[Leg, Market | None]]:
        """Every leg of a position and what it holds, None where its account is not known."""
        found = []
        here, account = position.tags.get("venue", ""), position.tags.get("account")
        for leg in position.legs:
            venue = leg.venue or here
            # The account is one of the position's own venue; another venue may know none of that name.
            foreign = here and venue != here and account not in self._accounts.get(venue, [])
            place = self.at(venue, None if foreign else account)
            found.append((leg, None if place is None else market_of(leg, place)))
        return found


def _add_external(book: LedgerSide, places: Places, position: Position) -> None:
    if position.state != "open":
        return
    for _, market in places.markets(position):
        if market is not None:
            book.external.setdefault(market, []).append(position)


def _add_hold(book: LedgerSide, places: Places, position: Position) -> None:
    place = places.of(position)
    held = usd(position.held_e8)
    markets = []
    for leg, market in places.markets(position):
        if market is not None:
            book.in_flight[market] = book.in_flight.get(market, Decimal(0)) + leg.quantity
            markets.append(market)
    if not position.legs and not places.elsewhere(position):
        book.plain_holds.append((place, position.tags.get("symbol", ""), held))
        book.unplaced += place is None
    if place is not None:
        book.holds.append((place, tuple(markets), held))


def _add_fill(
    book: LedgerSide, places: Places, position: Position, *, during: bool, lately: bool, part: Decimal | None
) -> None:
    is_open = position.state == "open"
    moved = Decimal(1) if part is None or not position.quantity else part / position.quantity
    if is_open and not position.legs:
        book.without_legs += 1
    bought = sold = Decimal(0)
    for leg, market in places.markets(position):
        if leg.side == "buy":
            bought += leg.quantity
        else:
            sold += leg.quantity
        if market is None:
            book.unplaced += is_open
            continue
        if during:
            book.touched.add(market)
        elif lately:
            book.settling[market] = book.settling.get(market, Decimal(0)) + leg.quantity * moved
        asset = ((market.venue, market.account), market.base)
        book.moved_us[asset] = max(book.moved_us.get(asset, 0), position.updated_us)
        if is_open:
            signed = -leg.quantity if leg.kind == "spot" and leg.side == "sell" else leg.quantity
            book.open[market] = book.open.get(market, Decimal(0)) + signed
        if leg.price is not None:
            book.prices[market.base] = leg.price
    if not is_open:
        return
    if lately:
        book.touched.add(Market("", "", position.position_id, ""))
    elif bought and sold:
        book.uneven.append((position, bought, sold))
