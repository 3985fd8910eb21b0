"""Finds hedges among holdings: longs against shorts of one coin, two by two. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

from ledger_sizer.model.reconciliation import Drift, Finding, Market
from ledger_sizer.model.units import exact_arithmetic

ZERO = Decimal(0)


class Holding(NamedTuple):
    """Coins that an account holds in one market, or a part of them.

    coins: above 0. sold: a short, or coins sold of a baseline. price: USD per coin, None where no price is known.
    """

    market: Market
    coins: Decimal
    sold: bool
    price: Decimal | None = None


Piece = tuple[Holding, ...]
"""The legs of one position: two of a hedge, one of what nothing hedges."""


def holding_of(one: Drift | Finding) -> Holding:
    """Return what the exchange shows beyond the ledger, by a drift or a finding with an excess."""
    market = one.market
    sold = market.side == "short" if market.is_swap else (one.venue_quantity or 0) < 0
    return Holding(market, one.excess, sold, one.price)


def paired(holdings: Iterable[Holding], tolerance: Decimal) -> list[Piece]:
    """Return the positions that these holdings make: each coin's longs against its shorts, and what is left alone.

    A coin is what its markets' names say without their factor: 1000PEPE is PEPE. Two at one account are a hedge before
    two at one venue, and these before two at different ones; of equal places those of the same size. A quantity that is
    left of the larger one is hedged by another, or is a position of its own. Both sides of one contract at one account,
    which hedge mode allows, are two bets and no hedge. tolerance: relative; sizes that differ by
    no more are equal, and both whole in one position. What has no price has that of another holding of its coin.
    """
    coins: dict[str, list[Holding]] = {}
    for one in holdings:
        coins.setdefault(one.market.base, []).append(one)
    with exact_arithmetic():
        return [piece for coin in sorted(coins) for piece in _CoinPairs(coins[coin], tolerance).pieces()]


def connected(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Return the positions in groups, in their order: those that share a holding are in one, and decided together."""
    by_coin: dict[str, list[dict[int, Piece]]] = {}
    for number, piece in enumerate(pieces):
        groups = by_coin.setdefault(piece[0].market.base, [])
        markets = {one.market for one in piece}
        joined = {number: piece}
        for group in [*groups]:
            if any(one.market in markets for other in group.values() for one in other):
                joined |= group
                groups.remove(group)
        groups.append(joined)
    return [[group[number] for number in sorted(group)] for groups in by_coin.values() for group in groups]


def _may_hedge(long: Holding, short: Holding) -> bool:
    """Whether two are a hedge. The two sides of one contract, which hedge mode allows, are two bets."""
    return long.market.opposite != short.market


def _same_account(one: Market, other: Market) -> bool:
    return one[:2] == other[:2]


def _same_venue(one: Market, other: Market) -> bool:
    return one.venue == other.venue


def _anywhere(_one: Market, _other: Market) -> bool:
    return True


class _CoinPairs:
    """Pairs the holdings of one coin."""

    def __init__(self, holdings: Sequence[Holding], tolerance: Decimal) -> None:
        # Spot first: coins are bought to be hedged, a long contract may be a bet of its own.
        order = sorted(holdings, key=lambda one: (one.market.is_swap, -one.coins, one.market))
        price = next((one.price for one in order if one.price is not None), None)
        order = [one if one.price is not None else one._replace(price=price) for one in order]
        self._longs = [one for one in order if not one.sold]
        self._shorts = [one for one in order if one.sold]
        self._tolerance = tolerance
        self._left = {one.market: one.coins for one in holdings}
        self._pieces: list[Piece] = []

    def pieces(self) -> Iterator[Piece]:
        """Yield the hedges in the order they are found, then what is left, by market."""
        for near in (_same_account, _same_venue, _anywhere):
            for long in self._longs:
                candidates = [one for one in self._shorts if _may_hedge(long, one) and near(long.market, one.market)]
                if equal := [one for one in candidates if self._are_equal(long, one)]:
                    self._pair(long, min(equal, key=lambda one: (abs(self._off(long, one)), one.market)))
            for long in self._longs:
                for short in self._shorts:
                    left = self._left[long.market] and self._left[short.market]
                    if left and _may_hedge(long, short) and near(long.market, short.market):
                        self._pair(long, short)
        yield from self._pieces
        for one in sorted((*self._longs, *self._shorts), key=lambda one: one.market):
            if self._left[one.market]:
                yield (one._replace(coins=self._left[one.market]),)

    def _off(self, long: Holding, short: Holding) -> Decimal:
        return self._left[long.market] - self._left[short.market]

    def _are_equal(self, long: Holding, short: Holding) -> bool:
        bought, sold = self._left[long.market], self._left[short.market]
        return bool(bought and sold) and abs(bought - sold) <= self._tolerance * max(bought, sold)

    def _pair(self, long: Holding, short: Holding) -> None:
        bought, sold = self._left[long.market], self._left[short.market]
        if not self._are_equal(long, short):
            bought = sold = min(bought, sold)
        self._left[long.market] -= bought
        self._left[short.market] -= sold
        self._pieces.append((long._replace(coins=bought), short._replace(coins=sold)))
