"""Matches differences against live holds whose orders may have filled. Each hold explains its size once."""

from collections.abc import Mapping, Sequence
from decimal import Decimal

from ledger_sizer.model.reconciliation import Market
from ledger_sizer.reconcile.ledger_side import AccountKey

ZERO = Decimal(0)


class InFlight:
    """The holds of one comparison. Each is consumed as it explains differences.

    in_flight: base units by market, of holds with legs. holds_without_legs: (account or None for any, symbol, USD);
    such a hold may become one long and one short of its size, at any matching account.
    """

    def __init__(
        self,
        in_flight: Mapping[Market, Decimal],
        holds_without_legs: Sequence[tuple[AccountKey | None, str, Decimal]],
    ) -> None:
        self._in_flight = in_flight
        self._late_fills: set[tuple[int, str]] = set()
        self._without_legs = [
            (account_key, symbol, {"long": held_usd, "short": held_usd})
            for account_key, symbol, held_usd in holds_without_legs
        ]

    def unexplained(self, market: Market, excess: Decimal, price: Decimal | None) -> Decimal:
        """Return the part of an excess that no hold explains, in base units; zero or less if they explain all of it."""
        excess -= self._in_flight.get(market, ZERO)
        for account_key, symbol, left_usd in self._without_legs:
            fits = account_key in (None, (market.venue, market.account)) and symbol in (market.base, market.subject)
            if excess <= 0 or not fits or not left_usd[market.side]:
                continue
            # Without a price the excess has no USD value: one hold may explain all of it, and is used up.
            explained = excess if price is None else min(left_usd[market.side] / price, excess)
            left_usd[market.side] -= left_usd[market.side] if price is None else explained * price
            excess -= explained
        return excess

    def claim_late_fill(self, number: int, side: str) -> bool:
        """Use an expired hold without legs as a late fill. True once per side: it fills one long and one short."""
        first = (number, side) not in self._late_fills
        self._late_fills.add((number, side))
        return first
