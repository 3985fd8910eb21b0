"""Finds the account of every leg, and the accounts at which a position without legs may be."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

from ledger_sizer.model.domain import Position
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.names import SEQ_MAX
from ledger_sizer.model.reconciliation import Market
from ledger_sizer.model.tags import account_of_scope
from ledger_sizer.rules.scope_state import ScopeState

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


def known_since(scopes: Iterable[ScopeState]) -> dict[AccountKey, int]:
    """Return the decision since which the ledger knows each account. scopes: of accounts."""
    return {account_of_scope(scope.name): scope.settings.since_seq or 0 for scope in scopes}


class AccountResolver:
    """Finds the accounts of positions and of their legs among those of a run.

    since: the decision since which the ledger knows an account. A leg that names none is at the one that its venue had
    when its position was made: an account that is added later makes no leg's place unknown.
    """

    def __init__(self, accounts: Sequence[AccountKey], since: Mapping[AccountKey, int] = MappingProxyType({})) -> None:
        self._since = since
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
            if account_key is None and leg.account is None and self._since:
                account_key = self._account_then(leg.venue or position.tags.only("venue") or "", position)
            legs.append((leg, None if account_key is None else market_of(leg, account_key)))
        return legs

    def _account_then(self, venue: str, position: Position) -> AccountKey | None:
        """Return the account that a venue had when a position was made; None if there were several, or a tag says."""
        known = self._accounts.get(venue, ())
        if not known or position.tags.values_of("account"):
            return None
        since = sorted((self._since.get((venue, account), SEQ_MAX), account) for account in known)
        earlier = [account for seq, account in since if seq < position.number]
        # Accounts that were there from the start became known one decision after the other.
        together = len(since) > 1 and since[1][0] - since[0][0] < len(self._since)
        if len(earlier) > 1 or (not earlier and together):
            return None
        return venue, (earlier[0] if earlier else since[0][1])

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
