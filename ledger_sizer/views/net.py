"""Reads the net of every coin over all accounts: from the open positions, and what the last run saw beside them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, func, select, text

from ledger_sizer.model.domain import Position
from ledger_sizer.model.fills import average_price
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.market_names import coin_of
from ledger_sizer.model.names import DESK, portfolio_or_desk
from ledger_sizer.model.net import Net, NetAsset, NetPlace, is_hedged
from ledger_sizer.model.reconciliation import Market
from ledger_sizer.model.tags import EXTERNAL_TAG
from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.lookups import no_portfolio
from ledger_sizer.storage.tables import DESK_ID, DriftRow, PortfolioRow, PositionRow, ReconciliationRow
from ledger_sizer.storage.write_store import position_from_row
from ledger_sizer.views.attribution import AccountKey, AccountResolver, known_since
from ledger_sizer.views.scopes import read_shared

ZERO = Decimal(0)
_ENDED_MAX = 2000
"""Closed positions of a portfolio that are searched for the time since when a coin is naked, the newest first."""

_POSITIONS = PositionRow.__table__
_Place = tuple[str, str]


class NetView:
    """Reads nets. One that was read stays in memory until its portfolios decide something, or are reconciled again.

    tolerance: the largest relative difference of two sides that are hedged.
    """

    def __init__(self, engine: Engine, tolerance: Decimal, *, declared: bool) -> None:
        self.engine = engine
        self._tolerance = tolerance
        self._declared = declared
        self._known: dict[str, tuple[Any, Net]] = {}

    def read(self, portfolio: str) -> Net:
        """Return the net of a portfolio; of the desk (`*`) over all portfolios.

        Raises `NotFound` for a portfolio that nobody used yet, where portfolios are declared.
        """
        name = portfolio_or_desk(portfolio)
        owners = select(PortfolioRow.id, PortfolioRow.name, PortfolioRow.last_seq).where(PortfolioRow.id != DESK_ID)
        if name != DESK:
            owners = owners.where(PortfolioRow.name == name)
        with read_transaction(self.engine) as connection:
            found = connection.execute(owners.order_by(PortfolioRow.id)).all()
            if not found and name != DESK and self._declared:
                raise no_portfolio(name)
            version = (tuple(map(tuple, found)), _last_runs(connection, [one.name for one in found]))
            known = self._known.get(name)
            if known is not None and known[0] == version:
                return known[1]
            with exact_arithmetic():
                net = self._read(connection, name, found, version[1])
        self._known[name] = (version, net)
        return net

    def open_count(self, portfolios: Sequence[str]) -> int:
        """Return how many positions are open in these portfolios."""
        owners = select(PortfolioRow.id).where(PortfolioRow.name.in_(portfolios))
        query = select(func.count()).select_from(_POSITIONS).where(text("state = 'open'"))
        query = query.where(PositionRow.portfolio_id.in_(owners))
        with read_transaction(self.engine) as connection:
            return connection.execute(query).scalar_one()

    def _read(self, connection: Connection, name: str, owners: Sequence[Any], runs: Mapping[str, int]) -> Net:
        sight = _read_sight(connection, runs)
        coins: dict[str, _Coin] = {}
        for owner in owners:
            known = [one for one in read_shared(connection, owner.id) if one.settings.since_seq is not None]
            accounts = AccountResolver(sight.accounts.get(owner.name, ()), known_since(known))
            for position in _open_positions(connection, owner):
                for part in _parts_of(position, accounts):
                    coins.setdefault(part.coin, _Coin()).add(part)
        for coin, one in coins.items():
            one.add_shown(sight, coin)
        naked = {coin for coin, one in coins.items() if not is_hedged(one.bought, one.sold, self._tolerance)}
        since = self._naked_since(connection, owners, {coin: coins[coin] for coin in naked})
        since |= self._since_drifts(connection, owners, sight, {coin: coins[coin] for coin in coins.keys() - naked})
        assets = [one.asset(coin, since.get(coin)) for coin, one in coins.items()]
        assets.sort(key=lambda one: (-one.naked_usd, -abs(one.net_usd or ZERO), one.asset))
        return Net(name, sight.run_us, tuple(assets))

    def _naked_since(
        self, connection: Connection, owners: Sequence[Any], naked: Mapping[str, "_Coin"]
    ) -> dict[str, int]:
        """Return since when these coins are naked: go back over what opened and closed until they were hedged.

        Where that is before the oldest closed position that is searched, its time is returned.
        """
        if not naked:
            return {}
        nowhere = AccountResolver(())
        horizon_us, quoted = 0, [json.dumps(coin)[1:-1] for coin in naked]  # as the stored text has them
        events: dict[str, list[_Event]] = {coin: [*one.events] for coin, one in naked.items()}
        for owner in owners:
            ended = _ended_rows(connection, owner)
            if len(ended) == _ENDED_MAX:
                horizon_us = max(horizon_us, ended[-1].updated_us)
            for row in ended:
                if any(name in row.legs for name in quoted):
                    for part in _parts_of(position_from_row(owner.name, row), nowhere):
                        if part.coin in events:
                            events[part.coin] += part.events
        return {
            coin: _since(one.bought, one.sold, events[coin], self._tolerance, horizon_us) for coin, one in naked.items()
        }

    def _since_drifts(
        self, connection: Connection, owners: Sequence[Any], sight: "_Sight", hedged: Mapping[str, "_Coin"]
    ) -> dict[str, int]:
        """Return since when coins differ at the exchanges that the ledger has hedged: since their oldest live drift."""
        differs = {coin for coin, one in hedged.items() if one.shown_naked(self._tolerance)}
        if not differs:
            return {}
        query = select(DriftRow.subject, DriftRow.opened_us).where(
            DriftRow.portfolio.in_([one.name for one in owners]), DriftRow.state != "resolved"
        )
        since = {coin: sight.run_us or 0 for coin in differs}
        for subject, opened_us in connection.execute(query):
            coin = coin_of(subject)
            if coin in since:
                since[coin] = min(since[coin], opened_us)
        return since


class _Event(NamedTuple):
    """A change of what is bought and sold of a coin, coins."""

    at_us: int
    bought: Decimal
    sold: Decimal


def _since(bought: Decimal, sold: Decimal, events: list[_Event], tolerance: Decimal, horizon_us: int) -> int:
    """Return the time of the last change after which the two sides differed ever since."""
    events.sort(key=lambda one: one.at_us, reverse=True)
    at_us = events[0].at_us if events else 0
    for event in events:
        if event.at_us != at_us:
            if is_hedged(bought, sold, tolerance):
                return at_us
            if event.at_us < horizon_us:
                return horizon_us
            at_us = event.at_us
        bought, sold = bought - event.bought, sold - event.sold
    return at_us


class _Part(NamedTuple):
    """What one position has of its coin. legs: by place; a position without legs has one at none.

    ended: whether it is closed: it counts nothing now, and did from when it was opened until it changed last.
    """

    coin: str
    position: Position
    legs: tuple[tuple[_Place, Leg], ...]

    @property
    def sides(self) -> tuple[Decimal, Decimal]:
        """Coins bought and sold."""
        filled = {"buy": ZERO, "sell": ZERO}
        for _, leg in self.legs:
            filled[leg.side] += leg.filled
        return filled["buy"], filled["sell"]

    @property
    def events(self) -> list[_Event]:
        """When it opened, and when coins of it were closed, with the changes of the coin."""
        position, (bought, sold) = self.position, self.sides
        first_bought, first_sold = bought, sold
        if position.state == "open" and position.quantity and (position.filled or ZERO) > position.quantity:
            share = (position.filled or ZERO) / position.quantity
            first_bought, first_sold = bought * share, sold * share
        events = [_Event(position.opened_us, first_bought, first_sold)]
        if position.state != "open":
            events.append(_Event(position.updated_us, -bought, -sold))
        elif first_bought != bought or first_sold != sold:
            events.append(_Event(position.updated_us, bought - first_bought, sold - first_sold))
        return events


@dataclass(slots=True)
class _Sides:
    """Coins of one coin at one place."""

    bought: Decimal = ZERO
    sold: Decimal = ZERO
    external: Decimal = ZERO
    shown: tuple[Decimal, Decimal] | None = None


@dataclass(slots=True)
class _Coin:
    """The sums of one coin."""

    places: dict[_Place, _Sides] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    events: list[_Event] = field(default_factory=list)
    bought: Decimal = ZERO
    sold: Decimal = ZERO
    bought_usd: Decimal = ZERO
    sold_usd: Decimal = ZERO
    without_legs: Decimal = ZERO
    without_legs_usd: Decimal = ZERO
    shown: tuple[Decimal, Decimal] | None = None
    exchange_price: Decimal | None = None
    hedged: bool = True

    def add(self, part: _Part) -> None:
        if not part.legs:
            self.without_legs += part.position.quantity or ZERO
            self.without_legs_usd += part.position.open
            return
        external = EXTERNAL_TAG in part.position.tags
        for place, leg in part.legs:
            self.names.add(coin_of(leg.symbol))
            sides = self.places.setdefault(place, _Sides())
            if leg.side == "buy":
                sides.bought += leg.filled
                self.bought += leg.filled
                self.bought_usd += leg.value
            else:
                sides.sold += leg.filled
                self.sold += leg.filled
                self.sold_usd += leg.value
            if external:
                sides.external += leg.filled if leg.side == "buy" else -leg.filled
        self.events += part.events

    def add_shown(self, sight: "_Sight", coin: str) -> None:
        """Add what the last run saw of the coin under its names. It is whole if every account of it was seen."""
        long = short = ZERO
        unread = {place for name in self.names | {coin} for place in sight.unread.get(name, ())}
        whole = sight.whole and bool(self.names) and not unread
        for name in sorted(self.names | {coin}):
            for place, (more_long, more_short, price) in sight.coins.get(name, {}).items():
                sides = self.places.setdefault(place, _Sides())
                before = sides.shown or (ZERO, ZERO)
                sides.shown = before[0] + more_long, before[1] + more_short
                self.exchange_price = price or self.exchange_price
        for place, sides in self.places.items():
            if place in unread:
                sides.shown = None
            elif sides.shown is None and place in sight.seen:
                sides.shown = (ZERO, ZERO)
            whole = whole and sides.shown is not None
            if sides.shown is not None:
                long, short = long + sides.shown[0], short + sides.shown[1]
        self.shown = (long, short) if whole else None

    def shown_naked(self, tolerance: Decimal) -> bool:
        """Whether the two sides differ as the last run saw them."""
        return self.shown is not None and not is_hedged(*self.shown, tolerance)

    def asset(self, coin: str, naked_us: int | None) -> NetAsset:
        shown = None if self.shown is None else self.shown[0] - self.shown[1]
        coins, usd = self._side(self.bought - self.sold or shown or ZERO)
        places = tuple(
            NetPlace(*place, one.bought, one.sold, one.external, *(one.shown or (None, None)))
            for place, one in sorted(self.places.items())
        )
        return NetAsset(
            coin, self.bought, self.sold, sum((one.external for one in self.places.values()), ZERO), self.without_legs,
            average_price(usd, coins)[0] if coins and usd else None, self.exchange_price, shown, naked_us is None,
            naked_us, places,
        )  # fmt: skip

    def _side(self, net: Decimal) -> tuple[Decimal, Decimal]:
        """Return coins and USD of the side that a net is on; of the other where the ledger has nothing there."""
        sides = [(self.bought, self.bought_usd), (self.sold, self.sold_usd)]
        sides = sides if net >= 0 else sides[::-1]
        return next((one for one in sides if one[0]), (self.without_legs, self.without_legs_usd))


@dataclass(slots=True)
class _Sight:
    """What the last runs saw. coins: long, short and price by coin and place. seen: accounts that were read whole.

    unread: by coin, the accounts where a row of it could not be read. accounts: all of them, by portfolio.
    whole: whether all of them were read whole. run_us: when the oldest run began.
    """

    coins: dict[str, dict[_Place, tuple[Decimal, Decimal, Decimal | None]]] = field(default_factory=dict)
    seen: set[_Place] = field(default_factory=set)
    unread: dict[str, set[_Place]] = field(default_factory=dict)
    accounts: dict[str, list[AccountKey]] = field(default_factory=dict)
    whole: bool = True
    run_us: int | None = None


def _parts_of(position: Position, accounts: AccountResolver) -> Iterator[_Part]:
    """Yield what a position has of its coin. All its legs are of one coin, also where their names differ."""
    if not position.legs:
        yield _Part(coin_of(position.tags.only("symbol") or ""), position, ())
        return
    legs = tuple([(_place_of(position, leg, market), leg) for leg, market in accounts.legs(position) if leg.filled])
    named = next((leg for leg in position.legs if leg.kind != "spot"), position.legs[0])
    if legs:
        yield _Part(coin_of(named.symbol), position, legs)


def _place_of(position: Position, leg: Leg, market: Market | None) -> _Place:
    """Return venue and account of a leg; what it says of itself where no run knows its account."""
    if market is not None:
        return market.venue, market.account
    return leg.venue or position.tags.only("venue") or "", leg.account or position.tags.only("account") or ""


def _open_positions(connection: Connection, owner: Any) -> Iterator[Position]:
    query = select(*_POSITIONS.columns).where(PositionRow.portfolio_id == owner.id, text("state = 'open'"))
    for row in connection.execute(query.order_by(PositionRow.number)):
        yield position_from_row(owner.name, row)


def _ended_rows(connection: Connection, owner: Any) -> Sequence[Any]:
    """Return the rows of the positions that closed last, newest first."""
    # The condition and the order of a partial index.
    query = select(*_POSITIONS.columns).where(
        PositionRow.portfolio_id == owner.id, text("state IN ('closed', 'expired')"), PositionRow.state == "closed"
    )
    return connection.execute(query.order_by(PositionRow.updated_us.desc()).limit(_ENDED_MAX)).all()


def _last_runs(connection: Connection, portfolios: Sequence[str]) -> dict[str, int]:
    """Return the number of each portfolio's last run."""
    last = select(ReconciliationRow.portfolio, func.max(ReconciliationRow.id)).group_by(ReconciliationRow.portfolio)
    rows = connection.execute(last.where(ReconciliationRow.portfolio.in_(portfolios)))
    return {portfolio: number for portfolio, number in rows}


def _read_sight(connection: Connection, runs: Mapping[str, int]) -> _Sight:
    """Return what these runs saw; of an account that several saw, the newest."""
    sight = _Sight()
    columns = (ReconciliationRow.portfolio, ReconciliationRow.fetched, ReconciliationRow.started_us)
    query = select(*columns).order_by(ReconciliationRow.id)
    for portfolio, fetched, started_us in connection.execute(query.where(ReconciliationRow.id.in_(runs.values()))):
        sight.run_us = started_us if sight.run_us is None else min(started_us, sight.run_us)
        for entry in json.loads(fetched):
            _add_entry(sight, portfolio, entry)
    return sight


def _add_entry(sight: _Sight, portfolio: str, entry: Mapping[str, Any]) -> None:
    place = (entry["venue"], entry["account"])
    sight.accounts.setdefault(portfolio, []).append(place)
    shown: Mapping[str, tuple[str, str, str | None] | None] | None = entry.get("shown")
    if shown is None:
        sight.whole = False
        return
    sight.seen.add(place)
    for coin, sides in shown.items():
        if sides is None:
            sight.unread.setdefault(coin, set()).add(place)
            continue
        long, short, price = sides
        sight.coins.setdefault(coin, {})[place] = (
            Decimal(long), Decimal(short), None if price is None else Decimal(price)
        )  # fmt: skip
