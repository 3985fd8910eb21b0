"""Tells which part of an account's balances the ledger must explain: whose money each asset is. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from ledger_sizer.exchanges.snapshot import Snapshot, VenueBalance
from ledger_sizer.model.asset_policies import AssetPolicies
from ledger_sizer.model.market_names import split_factor
from ledger_sizer.model.reconciliation import Market
from ledger_sizer.model.units import decimal_text
from ledger_sizer.reconcile.throttle import throttled

ZERO = Decimal(0)

LISTED_MAX = 20
"""Assets that a run's record names for each account: those worth most."""

_SPENT_SHARE_MAX = Decimal("0.2")
"""Share of a baseline that may be gone, as by fees, of a coin that nobody trades. What is more was sold."""


@dataclass(slots=True)
class Holdings:
    """The balances of one account, as they are to be compared.

    compared: coins by market. taken_as_told: what the ledger holds of assets that are money here: nobody can tell these
    coins from other money, so they are taken to be there. listed: units of what is nobody's position, by asset name.
    """

    compared: dict[Market, Decimal] = field(default_factory=dict)
    taken_as_told: dict[Market, Decimal] = field(default_factory=dict)
    listed: dict[str, Decimal] = field(default_factory=dict)


class AssetSide:
    """Sorts the balances of one account by policy.

    expected: coins of the ledger's spot positions here, by market. traded: whether a strategy of the ledger ever traded
    a coin, or is about to. A coin that none traded is not the strategies': where it cannot be traded here either, it is
    listed, whatever its policy; and of a baseline of it that shrank a little, as by fees, nothing is missing. A coin
    that is lent under another name (`LDBTC`) is there as far as the ledger misses it.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        policies: AssetPolicies,
        baselines: Mapping[str, Decimal],
        expected: Mapping[Market, Decimal],
        traded: Callable[[str], bool],
    ) -> None:
        self._snapshot = snapshot
        self._account_key = (snapshot.venue, snapshot.account)
        self._policies = policies
        self._baselines = baselines
        self._expected = expected
        self._traded = traded
        self._lent: dict[str, Decimal] = {}

    def holdings(self, balances: Iterable[VenueBalance]) -> Holdings:
        """Sort the balances, and the baselines of assets of which the account lists none."""
        found = Holdings()
        for balance in throttled(balances):
            self._add(found, balance)
        for name in self._baselines:
            venue, account, asset = name.split("/")
            market = self._market(asset)
            if (venue, account) == self._account_key and market not in found.compared and asset not in found.listed:
                self._add(found, VenueBalance(asset, ZERO, ZERO, ZERO))
        for market, coins in self._expected.items():
            if self._policies.policy(*market[:3]) == "cash":
                found.taken_as_told[market] = coins
        self._add_lent(found)
        return found

    def _market(self, asset: str) -> Market:
        return Market(*self._account_key, asset, "long")

    def _add(self, found: Holdings, balance: VenueBalance) -> None:
        policy = self._policies.policy(*self._account_key, balance.asset)
        market = self._market(balance.asset)
        held = self._expected.get(market, ZERO)
        if policy == "cash":
            return
        if balance.earns is not None and not held:
            self._lent[balance.earns] = self._lent.get(balance.earns, ZERO) + balance.coins
            found.listed[balance.asset] = balance.total
        elif policy == "position":
            self._add_position(found, balance, market)
        elif balance.coins >= held or (policy == "ignore" and held <= 0):
            found.compared[market] = held
            if policy == "fees" and balance.coins != held:
                found.listed[balance.asset] = balance.total
        else:
            found.compared[market] = balance.coins

    def _add_position(self, found: Holdings, balance: VenueBalance, market: Market) -> None:
        baseline = self._baselines.get("/".join((*self._account_key, balance.asset)), ZERO)
        coins = balance.coins - baseline * split_factor(balance.asset)[0]
        spent = baseline - balance.total
        if self._traded(market.base):
            found.compared[market] = coins
        elif not balance.tradable:
            found.listed[balance.asset] = balance.total
        elif 0 < spent <= _SPENT_SHARE_MAX * baseline:
            found.compared[market] = ZERO
            found.listed[balance.asset] = balance.total
        else:
            found.compared[market] = coins

    def _add_lent(self, found: Holdings) -> None:
        for market in {**self._expected, **found.compared} if self._lent else ():
            missing = self._expected.get(market, ZERO) - found.compared.get(market, ZERO)
            lent = self._lent.get(market.base, ZERO)
            if lent > 0 and missing > 0 and market not in found.taken_as_told:
                found.compared[market] = found.compared.get(market, ZERO) + min(lent, missing)
                self._lent[market.base] = lent - min(lent, missing)


def free_usd(snapshot: Snapshot, policies: AssetPolicies) -> Decimal:
    """Return the money that is free, USD: dollars, and of what else is `cash` what it is worth where that is known.

    Money that is lent is not free. What is owed in one dollar takes nothing from another.
    """
    free = ZERO
    for balance in snapshot.balances or ():
        place = (snapshot.venue, snapshot.account, balance.asset)
        if balance.earns is None and policies.policy(*place) == "cash":
            factor, coin = split_factor(balance.asset)
            usd = Decimal(1) if policies.is_dollar(*place) else factor * snapshot.prices.get(coin, ZERO)
            free += max(balance.free, ZERO) * usd
    return free


def listed_text(listed: Mapping[str, Decimal], usd_of: Callable[[str], Decimal]) -> dict[str, object]:
    """Return what a run's record says of them: how many, and the units of those worth most. usd_of: USD of one unit."""
    names = sorted(listed, key=lambda asset: (-abs(listed[asset]) * usd_of(asset), asset))
    return {"count": len(listed), "assets": {name: decimal_text(listed[name]) for name in names[:LISTED_MAX]}}
