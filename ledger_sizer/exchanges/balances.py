"""Reads the balances of an account through ccxt: every wallet, added up by asset."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from ledger_sizer.exchanges.earn_names import earned_coin
from ledger_sizer.exchanges.numbers_read import Unreadable, decimal_of, is_blank
from ledger_sizer.exchanges.snapshot import UnreadRow, VenueBalance
from ledger_sizer.exchanges.wallets import Wallet, read_wallets
from ledger_sizer.model.asset_policies import DOLLARS
from ledger_sizer.model.market_names import split_factor
from ledger_sizer.model.units import exact_arithmetic

_SCALED = frozenset({"phemex"})
"""Exchanges whose amounts are scaled by a number that only their list of currencies tells."""

DOLLAR_ORDER = ("USDT", "USDC", "USD", "FDUSD", "USD1", "USDE", "TUSD", "BUSD", "DAI")
"""Dollars in the order in which a coin's market is looked for."""


@dataclass(frozen=True, slots=True)
class BalancesRead:
    """What was read: the balances, sorted by asset, the ones that could not be, and what was not told, as text."""

    balances: tuple[VenueBalance, ...]
    unread: tuple[UnreadRow, ...] = ()
    problems: tuple[str, ...] = ()


class BalanceReader:
    """Reads the balances of one account."""

    def __init__(self, client: Any, wallets: tuple[Wallet, ...]) -> None:
        self._client = client
        self._wallets = wallets

    def read(self) -> BalancesRead:
        """Fetch and read all balances. Raises whatever ccxt raises, and `Unreadable`."""
        totals: dict[str, VenueBalance] = {}
        unread: dict[str, str] = {}
        problems: dict[str, None] = {}
        for asset, row in read_wallets(self._client, self._wallets):
            try:
                totals[asset] = _add_balances(totals.get(asset), self._parse(asset, row, problems))
            except Unreadable as error:
                if asset in DOLLARS:
                    raise
                unread[asset] = str(error)
        held = [totals[asset] for asset in sorted(totals) if totals[asset].total or totals[asset].used]
        markets = self._client.markets or {}
        coins = {one.get("base") for one in markets.values()} | {*DOLLARS}
        named = tuple(self._named(balance, markets, coins) for balance in held if balance.asset not in unread)
        rows = tuple(UnreadRow(asset, unread[asset]) for asset in sorted(unread))
        return BalancesRead(named, rows, (*self._currency_problems(), *problems))

    def _parse(self, asset: str, row: Any, problems: dict[str, None]) -> VenueBalance:
        total = decimal_of(row.get("total"), f"total of {asset}")
        if is_blank(row.get("free")) and is_blank(row.get("used")):
            free, used = (total, Decimal(0)) if total <= 0 else (Decimal(0), total)
            if total:
                problems[f"the exchange does not tell what of {asset} is free: none is taken for it"] = None
        else:
            free, used = (decimal_of(row.get(name), f"{name} of {asset}") for name in ("free", "used"))
        if total and self._client.currencies_problem is not None:
            self._require_meaning(asset)
        return VenueBalance(asset, free, used, total)

    def _require_meaning(self, asset: str) -> None:
        """Raise `Unreadable` for an amount or an id that means nothing without the list of currencies."""
        scaled = self._client.id in _SCALED and "valueScale" not in (self._client.currencies or {}).get(asset, {})
        if scaled or (asset.isdigit() and asset not in (self._client.currencies or {})):
            what = "the scale of its amounts" if scaled else "the name of this asset"
            raise Unreadable(f"{asset}: {what} is not known: {self._client.currencies_problem}")

    def _currency_problems(self) -> list[str]:
        problem = self._client.currencies_problem
        return [] if problem is None else [f"the list of currencies is not loaded: {problem}"]

    def _named(self, balance: VenueBalance, markets: Mapping[str, Any], coins: Container[str]) -> VenueBalance:
        """Return the balance with what the exchange's markets say of it."""
        tradable = balance.asset in DOLLARS or dollar_market(markets, balance.asset) is not None
        earns = earned_coin(self._client.id, balance.asset, coins)
        return replace(balance, tradable=tradable or not markets, earns=earns)


def dollar_market(markets: Mapping[str, Any], asset: str) -> str | None:
    """Return the symbol of the active spot market of an asset against a dollar; None without one."""
    for dollar in DOLLAR_ORDER:
        market = markets.get(f"{asset}/{dollar}")
        if market is not None and market.get("spot") and market.get("active") is not False:
            return str(market["symbol"])
    return None


def coin_of(balance: VenueBalance) -> str:
    """Return the coin that a balance is of, without a factor in its name."""
    return split_factor(balance.earns or balance.asset)[1]


def _add_balances(first: VenueBalance | None, second: VenueBalance) -> VenueBalance:
    if first is None:
        return second
    with exact_arithmetic():
        free, used, total = first.free + second.free, first.used + second.used, first.total + second.total
    return VenueBalance(first.asset, free, used, total)
