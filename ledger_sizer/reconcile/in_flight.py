"""What live holds may have become at the exchange already, each of them once."""

from collections.abc import Mapping, Sequence
from decimal import Decimal

from ledger_sizer.model.reconciliation import Market
from ledger_sizer.reconcile.ledger_side import Place

ZERO = Decimal(0)


class InFlight:
    """The holds of one comparison, used up by what they explain.

    in_flight: base units by market, of holds that name their markets. plain: (place or None for any, symbol, USD) of
    those that do not; such a one becomes one long and one short of its size, at one place or another.
    """

    def __init__(self, in_flight: Mapping[Market, Decimal], plain: Sequence[tuple[Place | None, str, Decimal]]) -> None:
        self._in_flight = in_flight
        self._late: set[tuple[int, str]] = set()
        self._plain = [(place, symbol, {"long": held_usd, "short": held_usd}) for place, symbol, held_usd in plain]

    def beyond(self, market: Market, excess: Decimal, price: Decimal | None) -> Decimal:
        """What of an excess no hold explains, in base units; zero or less where they explain all of it."""
        excess -= self._in_flight.get(market, ZERO)
        for place, symbol, left_usd in self._plain:
            fits = place in (None, (market.venue, market.account)) and symbol in (market.base, market.subject)
            if excess <= 0 or not fits or not left_usd[market.side]:
                continue
            # Without a price nobody can say how much it is, so one hold may be all of it, and nothing else then.
            explained = excess if price is None else min(left_usd[market.side] / price, excess)
            left_usd[market.side] -= left_usd[market.side] if price is None else explained * price
            excess -= explained
        return excess

    def late(self, number: int, side: str) -> bool:
        """Whether an expired hold that names no markets may be this late fill: it is one long and one short of them."""
        once = (number, side) not in self._late
        self._late.add((number, side))
        return once
