"""Explains excess at the exchange by holds that may be filling, each of them once."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from ledger_sizer.model.reconciliation import Market
from ledger_sizer.reconcile.ledger_side import LedgerSide, PlainHold

ZERO = Decimal(0)


class Explained(NamedTuple):
    """What holds explain of a difference. left: coins that none explains, zero or less if they explain all of it.

    unknown: names of the holds of unknown fate that are needed for it.
    """

    left: Decimal
    unknown: tuple[str, ...]


class InFlight:
    """The holds of one comparison. Each is consumed as it explains differences.

    Holds that name their markets explain their size in each. One without may become one long and one short of its
    size, at any account where it may fill. Those whose orders' fate is unknown explain what is left by the others.
    """

    def __init__(self, ledger_side: LedgerSide) -> None:
        self._in_flight: Mapping[Market, Decimal] = ledger_side.in_flight
        self._until_known: dict[Market, list[tuple[str, Decimal]]] = {}
        for name, legs in ledger_side.until_known:
            for market, coins in legs.items():
                self._until_known.setdefault(market, []).append((name, coins))
        plain = [(hold, {"long": hold.held, "short": hold.held}) for hold in ledger_side.holds_without_legs]
        self._plain = [one for one in plain if not one[0].until_known]
        self._plain_until_known = [one for one in plain if one[0].until_known]

    def explain(self, market: Market, excess: Decimal, price: Decimal | None) -> Explained:
        """Explain an excess in an order market (see `attribution.order_market`)."""
        unknown = self._until_known.get(market, ())
        excess -= self._in_flight.get(market, ZERO) - sum((coins for _, coins in unknown), ZERO)
        excess, _ = _take_plain(self._plain, market, excess, price)
        names = []
        for name, coins in unknown:
            if excess <= 0:
                break
            names.append(name)
            excess -= coins
        excess, plain_names = _take_plain(self._plain_until_known, market, excess, price)
        return Explained(excess, (*names, *plain_names))


def _take_plain(
    holds: Sequence[tuple[PlainHold, dict[str, Decimal]]], market: Market, excess: Decimal, price: Decimal | None
) -> tuple[Decimal, list[str]]:
    names: list[str] = []
    if not market.is_swap and market.side == "short":
        return excess, names  # coins that are missing are not taken for a sale that names no market
    for hold, left_usd in holds:
        fits = (market.venue, market.account) in hold.accounts and market.base in hold.coins
        if excess <= 0 or not fits or not left_usd[market.side]:
            continue
        # Without a price the excess has no USD value: one hold may explain all of it, and is used up.
        explained = excess if price is None else min(left_usd[market.side] / price, excess)
        left_usd[market.side] -= left_usd[market.side] if price is None else explained * price
        excess -= explained
        names.append(hold.position_id)
    return excess, names
