"""Compares the ledger's quantities with the accounts' snapshots and returns findings. Pure, except that it sleeps.

It covers every market of either side. A part that was not fetched, or that was moving meanwhile, is not judged: it
neither yields findings nor counts as gone.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from ledger_sizer.exchanges.snapshot import Snapshot
from ledger_sizer.model.asset_policies import DOLLARS, AssetPolicies
from ledger_sizer.model.choices import DriftKind
from ledger_sizer.model.drift_words import naming_holds
from ledger_sizer.model.market_names import split_factor
from ledger_sizer.model.reconciliation import QUOTE, Drift, Finding, Market
from ledger_sizer.model.units import decimal_text, exact_arithmetic
from ledger_sizer.reconcile.assets import AssetSide, free_usd
from ledger_sizer.reconcile.hedges import HedgeComparison, naked_coins, unhedged_positions
from ledger_sizer.reconcile.in_flight import InFlight
from ledger_sizer.reconcile.late_fills import LateFills, ReadReleased
from ledger_sizer.reconcile.ledger_side import LedgerSide
from ledger_sizer.reconcile.netting import net_sides
from ledger_sizer.reconcile.shown import Shown, held_coins, shown_by_coin
from ledger_sizer.reconcile.throttle import throttled
from ledger_sizer.views.attribution import AccountKey

ZERO = Decimal(0)
_DAY_US = 86_400 * 1_000_000


@dataclass(frozen=True, slots=True)
class ComparisonParameters:
    """Tolerances, policies, baselines and prices of a comparison.

    tolerance, delta_tolerance: relative. policies: whose money each asset is. baselines: units of the asset by
    `venue/account/asset`. dust_usd: a spot difference worth less is ignored. interest_usd: most that a balance grows by
    interest in a day. last_prices: USD by coin that the ledger ever traded, only good enough to recognise dust; None
    for one that it did not. stale_us: a snapshot begun before this time counts as not fetched. ledger_known: False if
    the ledger was not read.
    """

    tolerance: Decimal = ZERO
    delta_tolerance: Decimal = ZERO
    policies: AssetPolicies = field(default_factory=AssetPolicies)
    baselines: Mapping[str, Decimal] = field(default_factory=dict)
    dust_usd: Decimal = ZERO
    interest_usd: Decimal = ZERO
    last_prices: Mapping[str, Decimal | None] = field(default_factory=dict)
    stale_us: int = 0
    ledger_known: bool = True


@dataclass(slots=True)
class Comparison:
    """The findings, and what could be judged.

    counts: by name, for the record of the run. accounts, positions_known, balances_known: the accounts compared, and
    those whose parts were fetched. listed: by account, units of the assets that are nobody's position. moving: markets
    that were not judged. hedges_moving: (account, asset) whose legs were not judged. moved_us: when the ledger last
    changed an asset. naked: the coin of every position that is told as `legs_unequal`, by its name. shown: see
    `shown.shown_by_coin`, by account.
    """

    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    accounts: set[AccountKey] = field(default_factory=set)
    positions_known: set[AccountKey] = field(default_factory=set)
    balances_known: set[AccountKey] = field(default_factory=set)
    listed: dict[AccountKey, dict[str, Decimal]] = field(default_factory=dict)
    ledger_known: bool = True
    moving: set[Market] = field(default_factory=set)
    hedges_moving: set[tuple[AccountKey, str]] = field(default_factory=set)
    moved_us: dict[tuple[AccountKey, str], int] = field(default_factory=dict)
    naked: Mapping[str, str] = field(default_factory=dict)
    shown: dict[AccountKey, Shown] = field(default_factory=dict)

    def moved_since(self, drift: Drift) -> bool:
        """Whether the ledger changed the asset after the drift's last sighting: this may then be another difference."""
        asset = ((drift.venue, drift.account), drift.market.base)
        return self.moved_us.get(asset, 0) > drift.updated_us

    def judged(self, drift: Drift) -> bool:
        """Whether this comparison would have found the drift if it still existed."""
        account_key, part = (drift.venue, drift.account), drift.part
        if part == "ledger" and not self.ledger_known:
            return False
        if part == "account":
            return account_key in self.accounts
        if part in ("positions", "both") and account_key not in self.positions_known:
            return False
        if part in ("balances", "both") and account_key not in self.balances_known:
            return False
        if drift.kind == "legs_unequal" and (account_key, drift.subject) in self.hedges_moving:
            return False
        return not any(self._is_about(drift, market) for market in self.moving)

    @staticmethod
    def _is_about(drift: Drift, market: Market) -> bool:
        return (drift.venue, drift.account, drift.subject) == (market.venue, market.account, market.subject)

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter of what is no drift."""
        if number:
            self.counts[name] = self.counts.get(name, 0) + number


def compare(
    ledger_side: LedgerSide,
    snapshots: Iterable[Snapshot],
    parameters: ComparisonParameters,
    released: ReadReleased = tuple,
) -> Comparison:
    """Compare the ledger with every snapshot. Findings about markets are ordered by account, then by name.

    released: reads the holds that were released lately, where a difference may be the late fill of one.
    """
    result = Comparison(ledger_known=parameters.ledger_known, moving=set(ledger_side.moving))
    for name, count in (
        ("unplaced", ledger_side.unplaced), ("without_legs", ledger_side.without_legs),
        ("until_known", ledger_side.unknown),
    ):  # fmt: skip
        result.count(name, count)
    with exact_arithmetic():
        in_flight = InFlight(ledger_side)
        late_fills = LateFills(ledger_side.expired, ledger_side.excess_since_us, parameters.tolerance, released)
        hedges = HedgeComparison(ledger_side, parameters.tolerance, parameters.delta_tolerance)
        about_to_trade = ledger_side.coins_ordered()
        coins = held_coins(ledger_side)
        for snapshot in snapshots:
            account = _AccountComparison(
                ledger_side, in_flight, late_fills, snapshot, parameters, about_to_trade, result
            )
            account.run()
            account.add_to(hedges, coins)
        result.findings += late_fills.unfilled(result.positions_known, result.moving)
        result.findings += hedges.findings()
        result.hedges_moving = hedges.moving
        unequal, moving = unhedged_positions(ledger_side, parameters.delta_tolerance)
        result.naked = naked_coins(ledger_side, unequal)
        result.findings += unequal
        result.moving |= moving
    result.moved_us = ledger_side.moved_us
    return result


def _differs(one: Decimal, other: Decimal, tolerance: Decimal) -> bool:
    return abs(one - other) > tolerance * max(abs(one), abs(other))


class _AccountComparison:
    """Compares one account and adds to `result`."""

    def __init__(
        self,
        ledger_side: LedgerSide,
        in_flight: InFlight,
        late_fills: LateFills,
        snapshot: Snapshot,
        parameters: ComparisonParameters,
        about_to_trade: Collection[str],
        result: Comparison,
    ) -> None:
        self._ledger = ledger_side
        self._in_flight = in_flight
        self._late_fills = late_fills
        self._snapshot = snapshot
        self._parameters = parameters
        self._about_to_trade = about_to_trade
        self._result = result
        self._account_key: AccountKey = (snapshot.venue, snapshot.account)
        self._shown: dict[Market, Decimal] = {}
        self._unread: set[Market] = set()
        self._market_prices: dict[Market, Decimal] = {}
        self._prices: dict[str, Decimal] = dict(ledger_side.prices)  # by symbol, and by asset
        self._new_excess_usd: dict[str, Decimal | None] = {}

    def run(self) -> None:
        result, snapshot = self._result, self._snapshot
        result.accounts.add(self._account_key)
        stale = snapshot.begun_us < self._parameters.stale_us
        positions = None if stale else snapshot.positions
        balances = None if stale else snapshot.balances
        if positions is None or balances is None:
            missing = [name for name in ("positions", "balances") if getattr(snapshot, name) is None]
            self._add_fetch_failed(stale, missing)
        if positions is not None or balances is not None:
            self._leave_out_unread()
        if positions is not None:
            result.positions_known.add(self._account_key)
            for position in throttled(positions):
                market = Market(*self._account_key, position.symbol, position.side)
                self._shown[market] = self._shown.get(market, ZERO) + position.coins
                price = position.coin_price
                if price is not None and market.quote in DOLLARS:
                    self._market_prices[market] = self._prices[market.base] = self._prices[position.symbol] = price
            self._ledger = net_sides(self._ledger, self._account_key, positions, self._shown)
            result.moving |= self._ledger.moving
            self._compare_markets(self._here(self._shown, swap=True), self._here(self._ledger.open, swap=True))
        if balances is not None:
            result.balances_known.add(self._account_key)
            expected = self._here(self._ledger.open, swap=False)
            assets = AssetSide(
                snapshot, self._parameters.policies, self._parameters.baselines, expected, self._is_traded
            )
            holdings = assets.holdings(balances)
            self._shown |= holdings.compared | holdings.taken_as_told
            result.listed[self._account_key] = holdings.listed
            result.count("listed", len(holdings.listed))
            taken = holdings.taken_as_told
            self._compare_markets(holdings.compared, {one: expected[one] for one in expected if one not in taken})
            if positions is not None:
                self._check_free_balance(free_usd(snapshot, self._parameters.policies))

    def add_to(self, hedges: HedgeComparison, coins: Collection[str]) -> None:
        """Add what the ledger has here and what the exchange shows; nothing shown where a part was not fetched."""
        account_key, result = self._account_key, self._result
        shown = self._shown if account_key in result.positions_known & result.balances_known else None
        hedges.add(account_key, self._ledger, shown, self._is_dust, self._unread)
        if shown is not None:
            accepted = self._ledger.accepted_excess
            result.shown[account_key] = shown_by_coin(shown, self._snapshot, coins, accepted, self._unread)

    def _add_fetch_failed(self, stale: bool, missing: Sequence[str]) -> None:
        what = "the picture is too old" if stale else f"{' and '.join(missing)} not fetched"
        detail = "; ".join([what, *self._snapshot.problems])[:500]
        market = Market(*self._account_key, "account", "")
        self._result.findings.append(Finding(market, "fetch_failed", None, None, detail))

    def _here(self, quantities: dict[Market, Decimal], *, swap: bool) -> dict[Market, Decimal]:
        """Return the quantities at this account: of derivative markets, or of assets."""
        return {
            market: quantity
            for market, quantity in throttled(quantities.items())
            if (market.venue, market.account) == self._account_key and market.is_swap == swap
        }

    def _is_traded(self, coin: str) -> bool:
        """Whether a strategy of the ledger ever traded a coin, or is about to."""
        return (
            coin in self._about_to_trade or coin in self._ledger.prices
            or self._parameters.last_prices.get(coin) is not None
        )  # fmt: skip

    def _leave_out_unread(self) -> None:
        """Tell of rows that could not be read. Their markets and coins are unknown, so they are not judged."""
        told: dict[str, str] = {}
        for row in self._snapshot.unread:
            told[row.symbol] = f"{told[row.symbol]}; {row.detail}" if row.symbol in told else row.detail
        for symbol, detail in told.items():
            market = Market(*self._account_key, symbol, "long")
            self._unread |= {market, market.opposite}
            finding = Finding(market._replace(side=""), "unreadable", None, None, f"{symbol}: {detail}"[:500])
            self._result.findings.append(finding)
        self._result.moving |= self._unread

    # --- markets ---------------------------------------------------------------------------------

    def _compare_markets(self, shown: dict[Market, Decimal], expected: dict[Market, Decimal]) -> None:
        differences = []
        for market in throttled({*shown, *expected}):
            venue, ledger = shown.get(market, ZERO), expected.get(market, ZERO)
            if market in self._unread:
                continue
            if market in self._ledger.moving:
                self._result.count("moving")
            elif not _differs(venue, ledger, self._parameters.tolerance) or self._is_dust(market, venue - ledger):
                self._result.count("agrees" if venue == ledger else "within_tolerance")
            else:
                differences.append((market, ledger, venue))
        for market, ledger, venue in sorted(differences, key=lambda one: (one[0].subject, one[0].side)):
            settling = self._ledger.settling.get(market)
            if settling is not None and abs(venue - ledger) <= settling + self._ledger.in_flight.get(market, ZERO):
                self._result.moving.add(market)
                self._result.count("moving")
            else:
                self._judge_difference(market, ledger, venue, settling or ZERO)

    def _is_dust(self, market: Market, difference: Decimal) -> bool:
        """Whether a spot difference is worth too little to trade, such as the remainder of fees taken in coins."""
        price = self._price(market) or self._parameters.last_prices.get(market.base)
        return not market.is_swap and price is not None and abs(difference) * price < self._parameters.dust_usd

    def _price(self, market: Market) -> Decimal | None:
        """Return USD per coin: of a derivative its own entry price first, of an asset the exchange's ticker."""
        ticker = self._snapshot.prices.get(market.base)
        if not market.is_swap and ticker:
            return ticker
        known = self._market_prices.get(market) or self._prices.get(market.subject) or self._prices.get(market.base)
        return known or ticker

    def _judge_difference(self, market: Market, ledger: Decimal, venue: Decimal, settling: Decimal) -> None:
        """Add a finding, unless holds explain the difference. settling: coins of very recent fills and closes."""
        price = self._price(market)
        unknown: tuple[str, ...] = ()
        if venue < ledger and not market.is_swap:  # of an asset, less may be coins that are being sold
            sold = self._in_flight.explain(market.opposite, ledger - venue - settling, price)
            shown = venue if sold.left > 0 else ledger
            excess, unknown = self._excess(ledger, shown), sold.unknown
            explained = sold.left <= 0
        else:
            excess, explained = self._excess(ledger, venue), False
        if excess > 0:
            # Excess seen by an earlier run is no fill of a later hold, so it consumes none.
            known = min(excess, self._ledger.known_excess.get(market, ZERO))
            new = excess - known
            self._add_new_excess(market.base, None if price is None and new else new * (price or ZERO))
            if venue > ledger or market.is_swap:
                left, unknown = self._in_flight.explain(market, new - settling, price)
                excess = known + max(left, ZERO)
            explained = excess <= self._parameters.tolerance * abs(venue)
        if explained:
            self._result.count("in_flight")
            if unknown:
                self._add_unknown(market, ledger, venue, price, unknown)
            return
        kind, detail = self._classify(market, ledger, venue)
        if kind in ("unknown_position", "quantity_differs") and self._is_interest(market, ledger, excess, price):
            kind = "interest"
        finding = Finding(market, kind, ledger, venue, detail, max(excess, ZERO), price)
        self._result.findings.append(self._late_fills.explained(finding))

    def _is_interest(self, market: Market, ledger: Decimal, excess: Decimal, price: Decimal | None) -> bool:
        """Whether an excess of coins grew no faster than by interest: a little at first sight, and a little a day.

        What is left of it when the coins that it grew from are sold is still interest.
        """
        known = self._ledger.interest.get(market)
        if market.is_swap or price is None or excess <= 0 or (known is None and market in self._ledger.known_excess):
            return False
        little = self._parameters.tolerance * (abs(ledger) + self._baseline_coins(market.subject))
        step = min(little, self._parameters.interest_usd / price)
        if known is None:
            return excess <= little + step
        before, since_us = known
        if excess <= before * (1 + self._parameters.tolerance):
            return True
        days = max(self._snapshot.begun_us - since_us, 0) // _DAY_US
        return excess <= min(before + step, little + step * (1 + days))

    def _baseline_coins(self, asset: str) -> Decimal:
        units = self._parameters.baselines.get("/".join((*self._account_key, asset)), ZERO)
        return units * split_factor(asset)[0]

    @staticmethod
    def _excess(ledger: Decimal, venue: Decimal) -> Decimal:
        """Return the coins beyond the ledger's: all of them where the signs differ; below zero for a shortfall."""
        return abs(venue) - abs(ledger) if ledger * venue >= 0 else abs(venue)

    def _add_unknown(
        self, market: Market, ledger: Decimal, venue: Decimal, price: Decimal | None, holds: Sequence[str]
    ) -> None:
        """Tell of a fill of holds whose orders' fate is unknown. They count it already, so there is no excess."""
        detail = naming_holds(self._text(market, ledger, venue), holds)
        self._result.findings.append(Finding(market, "late_fill", ledger, venue, detail, ZERO, price))

    def _add_new_excess(self, base: str, usd: Decimal | None) -> None:
        """Note an excess no earlier run saw. The legs of a hedge show it twice, so the larger counts. None: unknown."""
        before = self._new_excess_usd.get(base, ZERO)
        self._new_excess_usd[base] = None if usd is None or before is None else max(before, usd)

    @staticmethod
    def _text(market: Market, ledger: Decimal, venue: Decimal) -> str:
        return f"{market.subject} {market.side}: ledger {decimal_text(ledger)}, exchange {decimal_text(venue)}"

    def _classify(self, market: Market, ledger: Decimal, venue: Decimal) -> tuple[DriftKind, str]:
        text = self._text(market, ledger, venue)
        other = market.opposite
        flipped = ledger * venue < 0
        if market.is_swap:
            flipped = (venue == 0 and self._shown.get(other, ZERO) > self._ledger.open.get(other, ZERO)) or (
                ledger == 0 and self._ledger.open.get(other, ZERO) > 0 and self._shown.get(other, ZERO) == 0
            )
        if flipped:
            return "side_flipped", f"{text}, on the other side of what was opened"
        if ledger == 0:
            return "unknown_position", text
        return ("missing_position", text) if venue == 0 else ("quantity_differs", text)

    # --- free balance ----------------------------------------------------------------------------

    def _check_free_balance(self, free: Decimal) -> None:
        """Check that the free quote balance covers the live holds, less what their fills already show."""
        held_by_asset: dict[str, Decimal] = {}
        needed = ZERO
        for account_key, markets, held in self._ledger.holds:
            if account_key != self._account_key:
                continue
            if markets:
                held_by_asset[markets[0].base] = held_by_asset.get(markets[0].base, ZERO) + held
            else:
                needed += held
        for base, held in held_by_asset.items():
            filled = self._new_excess_usd.get(base, ZERO)
            needed += ZERO if filled is None else max(held - filled, ZERO)
        if needed > free and _differs(needed, free, self._parameters.tolerance):
            detail = f"{decimal_text(free)} is free, {decimal_text(needed)} USD is held for orders to come"
            market = Market(*self._account_key, QUOTE, "")
            self._result.findings.append(Finding(market, "balance_below_holds", needed, free, detail))
