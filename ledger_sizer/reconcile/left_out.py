"""Why an import leaves out what an account shows: it is money, ignored, dust, unread, or the ledger has it. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from ledger_sizer.config import AppSettings
from ledger_sizer.exchanges.snapshot import Snapshot, VenueBalance
from ledger_sizer.model.asset_policies import DOLLARS, AssetPolicies
from ledger_sizer.model.reconciliation import Drift, Finding, Market
from ledger_sizer.model.units import decimal_text, exact_arithmetic, parse_decimal
from ledger_sizer.reconcile.adoption import PAIRED_KINDS
from ledger_sizer.reconcile.compare import Comparison


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something at an account that an import does not take, and why. usd: None where no price is known."""

    venue: str
    account: str
    subject: str
    side: str
    coins: Decimal | None
    usd: Decimal | None
    why: str


class Reasons:
    """Says why something at an account is not imported."""

    def __init__(
        self, settings: AppSettings, policies: AssetPolicies, comparison: Comparison,
        findings: Mapping[Market, Finding], ignored: Mapping[Market, Drift], prices: Mapping[str, Decimal | None],
    ) -> None:  # fmt: skip
        self._settings = settings.reconcile
        self._policies = policies
        self._comparison = comparison
        self._findings = findings
        self._ignored = ignored
        self._prices = prices

    def of(self, snapshot: Snapshot) -> Iterable[LeftOut]:
        """Yield everything that an account shows, each with the reason that holds if it is not taken."""
        place = snapshot.venue, snapshot.account
        for position in snapshot.positions or ():
            market = Market(*place, position.symbol, position.side)
            yield self._left(market, position.coins, self._why(market))
        for balance in snapshot.balances or ():
            market = Market(*place, balance.asset, "long")
            yield self._left(market, balance.coins, self._why_balance(market, balance))
        for row in snapshot.unread:
            yield LeftOut(*place, row.symbol, "", None, None, f"cannot be read: {row.detail}")
        for kind in snapshot.not_asked:
            yield LeftOut(*place, kind, "", None, None, "positions of this kind are not asked for")

    def _left(self, market: Market, coins: Decimal, why: str) -> LeftOut:
        price = Decimal(1) if why.startswith("dollars") else self._prices.get(market.base)
        with exact_arithmetic():
            value = None if price is None else (coins * price).quantize(Decimal("0.01"))
        coins = parse_decimal(decimal_text(coins))
        return LeftOut(market.venue, market.account, market.subject, market.side, coins, value, why)

    def _why(self, market: Market) -> str:
        if market in self._ignored:
            drift = self._ignored[market]
            return f"{drift.name} is ignored: {drift.reason} ({drift.actor})"
        found = self._findings.get(market)
        if found is None:
            return "it moves" if market in self._comparison.moving else "the ledger has it"
        if found.kind not in PAIRED_KINDS or found.excess <= 0:
            return f"{found.kind}: decide about its drift"
        return "no price is known; drifts adopt N --price takes it"

    def _why_balance(self, market: Market, balance: VenueBalance) -> str:
        rule = self._policies.rule(*market[:3])
        if rule is not None and rule.policy != "position":
            is_dollar = rule.source == "default" or balance.asset in DOLLARS
            return "dollars" if is_dollar else f"{rule.pattern} is {rule.policy}"
        listed = balance.asset in self._comparison.listed.get((market.venue, market.account), {})
        if balance.earns is not None and listed:
            return f"lent or staked {balance.earns}"
        if market in self._findings or market in self._ignored:
            return self._why(market)
        if listed and not balance.tradable:
            return "never traded, and no market here"
        baseline = self._settings.baselines.get("/".join(market[:3]))
        if baseline is not None:
            return f"baseline of {decimal_text(baseline)}"
        price = self._prices.get(market.base)
        with exact_arithmetic():
            dust = price is not None and balance.coins * price < self._settings.dust_usd
        return "worth less than RECONCILE_DUST_USD" if dust else self._why(market)
