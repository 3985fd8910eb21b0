"""Finds the account of every leg, and the accounts at which a position without legs may be."""

from collections.abc import Collection, Sequence

from ledger_sizer.model.domain import Position
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.reconciliation import Market

AccountKey = tuple[str, str]
"""(venue, account)."""


def market_of(leg: Leg, account_key: AccountKey) -> Market:
    """Return the market of a leg: one side of a derivative market, or an asset."""
    if leg.kind != "spot":
        return Market(*account_key, leg.symbol, "long" if leg.side == "buy" else "short")
    return Market(*account_key, leg.symbol.partition("/")[0], "long")


def order_market(market: Market, leg: Leg) -> Market:
    """Return the market of what a leg still has to fill: its own, of a sale of coins the asset's `short`.

    Coins bought and coins sold change one quantity, in opposite directions, so that neither explains the other.
    """
    return market.opposite if leg.kind == "spot" and leg.side == "sell" else market


class AccountResolver:
    """Finds the accounts of positions and of their legs among those of a run."""

    def __init__(self, accounts: Sequence[AccountKey]) -> None:
        self._accounts: dict[str, list[str]] = {}
        for venue, account in accounts:
            self._accounts.setdefault(venue, []).append(account)
        self._found: dict[tuple[str, str | None, tuple[str, ...], tuple[str, ...]], AccountKey | None] = {}

    def legs(self, position: Position) -> list[tuple[Leg, Market | None]]:
        """Return every leg of a position with its market, None where its account is unknown."""
        venues, accounts = position.tags.values_of("venue"), position.tags.values_of("account")
        legs: list[tuple[Leg, Market | None]] = []
        for leg in position.legs:
            case = (leg.venue, leg.account, venues, accounts)
            if case not in self._found:
                self._found[case] = self._account_of_leg(*case)
            account_key = self._found[case]
            legs.append((leg, None if account_key is None else market_of(leg, account_key)))
        return legs

    def accounts_of(self, position: Position) -> list[AccountKey]:
        """Return the accounts at which a position may have or get something; none where it is elsewhere."""
        if position.legs:
            return sorted({(market.venue, market.account) for _, market in self.legs(position) if market is not None})
        venues, accounts = position.tags.values_of("venue"), position.tags.values_of("account")
        return [
            (venue, account)
            for venue, known in self._accounts.items() if not venues or venue in venues
            for account in known if not accounts or account in accounts
        ]  # fmt: skip

    def _account_of_leg(
        self, venue: str, account: str | None, venues: Collection[str], accounts: Sequence[str]
    ) -> AccountKey | None:
        """Return the account of a leg: its own, else the tagged one of its venue, else the only one; None if unknown.

        With several venues in the tags, an account tag that this venue does not have is another one's.
        """
        if not venue and len(venues) == 1:
            (venue,) = venues
        known = self._accounts.get(venue, [])
        if account is None:
            tagged = [one for one in accounts if one in known]
            elsewhere = not tagged and (not accounts or any(one != venue for one in venues))
            candidates = known if elsewhere else tagged
            return (venue, candidates[0]) if len(candidates) == 1 else None
        return (venue, account) if account in known else None
