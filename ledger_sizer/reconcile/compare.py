"""Compares the ledger's quantities with the accounts' snapshots and returns findings. Pure, except that it sleeps.

It covers every market of either side. A part that was not fetched, or that was moving meanwhile, is not judged: it
neither yields findings nor counts as gone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from ledger_sizer.exchanges.market_rules import USD_QUOTES
from ledger_sizer.exchanges.snapshot import Snapshot, VenueBalance
from ledger_sizer.model.choices import DriftKind
from ledger_sizer.model.market_names import split_factor
from ledger_sizer.model.reconciliation import QUOTE, Drift, Finding, Market
from ledger_sizer.model.units import decimal_text, exact_arithmetic
from ledger_sizer.reconcile.in_flight import InFlight
from ledger_sizer.reconcile.ledger_side import AccountKey, LedgerSide
from ledger_sizer.reconcile.netting import net_sides
from ledger_sizer.reconcile.throttle import throttled

ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class ComparisonParameters:
    """Tolerances, baselines and prices of a comparison.

    tolerance, delta_tolerance: relative. baselines: units of the asset by `venue/account/asset`. dust_usd: a spot
    difference worth less is ignored. last_prices: USD by coin, only good enough to recognise dust. stale_us: a snapshot
    begun before this time counts as not fetched. ledger_known: False if the ledger was not read.
    """

    tolerance: Decimal = ZERO
    delta_tolerance: Decimal = ZERO
    quote_assets: frozenset[str] = frozenset()
    baselines: Mapping[str, Decimal] = field(default_factory=dict)
    dust_usd: Decimal = ZERO
    last_prices: Mapping[str, Decimal | None] = field(default_factory=dict)
    stale_us: int = 0
    ledger_known: bool = True


@dataclass(slots=True)
class Comparison:
    """The findings, and what could be judged.

    counts: by name, for the record of the run. accounts, positions_known, balances_known: the accounts compared, and
    those whose parts were fetched. moving: markets that were not judged. hedges_moving: (account, asset) whose legs
    were not judged. moved_us: when the ledger last changed an asset.
    """

    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    accounts: set[AccountKey] = field(default_factory=set)
    positions_known: set[AccountKey] = field(default_factory=set)
    balances_known: set[AccountKey] = field(default_factory=set)
    ledger_known: bool = True
    moving: set[Market] = field(default_factory=set)
    hedges_moving: set[tuple[AccountKey, str]] = field(default_factory=set)
    moved_us: dict[tuple[AccountKey, str], int] = field(default_factory=dict)

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

    def count(self, name: str) -> None:
        """Add 1 to a counter of what is no drift."""
        self.counts[name] = self.counts.get(name, 0) + 1


def compare(ledger_side: LedgerSide, snapshots: Iterable[Snapshot], parameters: ComparisonParameters) -> Comparison:
    """Compare the ledger with every snapshot. Findings are ordered by account, then by market name."""
    result = Comparison(ledger_known=parameters.ledger_known, moving=set(ledger_side.moving))
    for name in ("unplaced", "without_legs"):
        if getattr(ledger_side, name):
            result.counts[name] = getattr(ledger_side, name)
    with exact_arithmetic():
        in_flight = InFlight(ledger_side.in_flight, ledger_side.holds_without_legs)
        for snapshot in snapshots:
            _AccountComparison(ledger_side, in_flight, snapshot, parameters, result).run()
        for position, bought, sold in throttled(ledger_side.hedged):
            if _differs(bought, sold, parameters.delta_tolerance):
                detail = f"{position.position_id} bought {decimal_text(bought)} and sold {decimal_text(sold)}"
                market = Market("", "", position.position_id, "")
                result.findings.append(Finding(market, "legs_unequal", bought, sold, detail))
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
        snapshot: Snapshot,
        parameters: ComparisonParameters,
        result: Comparison,
    ) -> None:
        self._ledger = ledger_side
        self._in_flight = in_flight
        self._snapshot = snapshot
        self._parameters = parameters
        self._result = result
        self._account_key: AccountKey = (snapshot.venue, snapshot.account)
        self._shown: dict[Market, Decimal] = {}
        self._market_prices: dict[Market, Decimal] = {}
        self._prices: dict[str, Decimal] = dict(ledger_side.prices)  # by symbol, and by asset
        self._new_excess_usd: dict[str, Decimal | None] = {}
        self._filled_late: set[str] = set()

    def run(self) -> None:
        result, snapshot = self._result, self._snapshot
        result.accounts.add(self._account_key)
        stale = snapshot.begun_us < self._parameters.stale_us
        positions = None if stale else snapshot.positions
        balances = None if stale else snapshot.balances
        if positions is None or balances is None:
            missing = [name for name in ("positions", "balances") if getattr(snapshot, name) is None]
            self._add_fetch_failed(stale, missing)
        if positions is not None:
            result.positions_known.add(self._account_key)
            for position in throttled(positions):
                market = Market(*self._account_key, position.symbol, position.side)
                self._shown[market] = self._shown.get(market, ZERO) + position.coins
                price = position.coin_price
                if price is not None and market.quote in USD_QUOTES:
                    self._market_prices[market] = self._prices[market.base] = self._prices[position.symbol] = price
            self._ledger = net_sides(self._ledger, self._account_key, positions, self._shown)
            result.moving |= self._ledger.moving
            self._compare_markets(self._here(self._shown, swap=True), self._here(self._ledger.open, swap=True))
        if balances is not None:
            result.balances_known.add(self._account_key)
            holdings = self._spot_holdings(balances)
            self._shown |= holdings
            expected = self._here(self._ledger.open, swap=False)
            quote_assets = self._parameters.quote_assets
            self._compare_markets(holdings, {one: expected[one] for one in expected if one.subject not in quote_assets})
        if positions is not None:
            self._find_expired_holds()
        if positions is not None and balances is not None:
            self._check_hedges()
            self._check_free_balance(sum((b.free for b in balances if b.asset in self._parameters.quote_assets), ZERO))

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

    def _spot_holdings(self, balances: Iterable[VenueBalance]) -> dict[Market, Decimal]:
        """Return the spot balances less their declared baselines, in coins."""
        holdings = {}
        for balance in balances:
            if balance.asset in self._parameters.quote_assets:
                continue
            baseline = self._parameters.baselines.get("/".join((*self._account_key, balance.asset)), ZERO)
            coins = balance.coins - baseline * split_factor(balance.asset)[0]
            holdings[Market(*self._account_key, balance.asset, "long")] = coins
        for name, baseline in self._parameters.baselines.items():  # the exchange lists no balance of an asset sold out
            *account_key, asset = name.split("/")
            if tuple(account_key) == self._account_key and asset not in self._parameters.quote_assets:
                coins = -baseline * split_factor(asset)[0]
                holdings.setdefault(Market(*self._account_key, asset, "long"), coins)
        return holdings

    # --- markets ---------------------------------------------------------------------------------

    def _compare_markets(self, shown: dict[Market, Decimal], expected: dict[Market, Decimal]) -> None:
        differences = []
        for market in throttled({*shown, *expected}):
            venue, ledger = shown.get(market, ZERO), expected.get(market, ZERO)
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
        price = self._prices.get(market.base) or self._parameters.last_prices.get(market.base)
        return not market.is_swap and price is not None and abs(difference) * price < self._parameters.dust_usd

    def _judge_difference(self, market: Market, ledger: Decimal, venue: Decimal, settling: Decimal) -> None:
        """Add a finding, unless holds explain the difference. settling: base units of very recent fills and closes."""
        same_sign = ledger * venue >= 0
        excess = abs(venue) - abs(ledger) if same_sign else abs(venue)
        price = self._market_prices.get(market) or self._prices.get(market.subject) or self._prices.get(market.base)
        if excess > 0:
            # Excess seen by an earlier run is no fill of a later hold, so it consumes none.
            known = min(excess, self._ledger.known_excess.get(market, ZERO))
            new = excess - known
            self._add_new_excess(market.base, None if price is None and new else new * (price or ZERO))
            excess = known + max(self._in_flight.unexplained(market, new - settling, price), ZERO)
            if excess <= self._parameters.tolerance * abs(venue):
                self._result.count("in_flight")
                return
        kind, detail = self._classify(market, ledger, venue, excess, price)
        finding = Finding(market, kind, ledger, venue, detail, max(excess, ZERO), price)
        self._result.findings.append(finding)

    def _add_new_excess(self, base: str, usd: Decimal | None) -> None:
        """Note an excess no earlier run saw. The legs of a hedge show it twice, so the larger counts. None: unknown."""
        before = self._new_excess_usd.get(base, ZERO)
        self._new_excess_usd[base] = None if usd is None or before is None else max(before, usd)

    def _classify(
        self, market: Market, ledger: Decimal, venue: Decimal, excess: Decimal, price: Decimal | None
    ) -> tuple[DriftKind, str]:
        text = f"{market.subject} {market.side}: ledger {decimal_text(ledger)}, exchange {decimal_text(venue)}"
        other = market.opposite
        flipped = ledger * venue < 0
        if market.is_swap:
            flipped = (venue == 0 and self._shown.get(other, ZERO) > self._ledger.open.get(other, ZERO)) or (
                ledger == 0 and self._ledger.open.get(other, ZERO) > 0 and self._shown.get(other, ZERO) == 0
            )
        if flipped:
            return "side_flipped", f"{text}, on the other side of what was opened"
        if excess > 0:
            hold = self._matching_expired_hold(market, excess, price)
            if hold is not None:
                return "late_fill", f"{text}; the hold {hold} expired and may have been filled"
        if ledger == 0:
            return "unknown_position", text
        return ("missing_position", text) if venue == 0 else ("quantity_differs", text)

    def _matching_expired_hold(self, market: Market, excess: Decimal, price: Decimal | None) -> str | None:
        """Return the id of an expired hold large enough for the excess, None if there is none."""
        factor = 1 + self._parameters.tolerance
        since_us = self._ledger.excess_since_us.get(market)
        for one in self._ledger.expired:
            position = one.position
            if since_us is not None and position.opened_us >= since_us:
                continue  # an excess older than the hold is not its fill
            fits = excess <= one.legs.get(market, ZERO) * factor
            here = one.account_key in (None, self._account_key)
            if not position.legs and here and market.base in position.tags.values_of("symbol"):
                fits = price is not None and excess * price <= one.budget_usd * factor
                fits = fits and self._in_flight.claim_late_fill(position.number, market.side)
            if fits:
                self._filled_late.add(position.position_id)
                return position.position_id
        return None

    # --- expired holds, hedges and free balance --------------------------------------------------

    def _find_expired_holds(self) -> None:
        """Find expired holds without a fill: their callers may have stopped."""
        for one in self._ledger.expired:
            name = one.position.position_id
            if (
                one.account_key == self._account_key
                and one.position.state == "expired"
                and name not in self._filled_late
            ):
                market = Market(*self._account_key, name, "")
                detail = f"{name} expired without a fill; its caller may have stopped"
                self._result.findings.append(Finding(market, "expired_hold", None, None, detail))

    def _check_hedges(self) -> None:
        """For each asset the ledger holds both long and short here, check that the exchange shows the same net."""
        expected, shown = self._by_side(self._ledger.open), self._by_side(self._shown)
        moving = {market.base for market in (*self._ledger.moving, *self._ledger.settling, *self._ledger.in_flight)}
        for market, accepted in self._ledger.accepted_excess.items():
            if (market.venue, market.account) == self._account_key and market.base in shown:
                quantity = self._shown.get(market, ZERO)
                sign = -1 if quantity < 0 else 1  # below zero: coins of a baseline were sold
                shown[market.base][market.side] -= sign * accepted
                excess = sign * (quantity - self._ledger.open.get(market, ZERO))
                less = excess < accepted and _differs(excess, accepted, self._parameters.tolerance)
                if less and not self._is_dust(market, accepted - excess):
                    moving.add(market.base)  # unknown: a close not released yet, or less of what was accepted
        self._result.hedges_moving |= {(self._account_key, base) for base in moving}
        for base in throttled(sorted(expected.keys() - moving - self._parameters.quote_assets)):
            bought, sold = expected[base]["long"], expected[base]["short"]
            if not bought or not sold:
                continue
            at_venue = shown.get(base, {"long": ZERO, "short": ZERO})
            long, short = at_venue["long"], at_venue["short"]
            market, off = Market(*self._account_key, base, ""), (long - short) - (bought - sold)
            if abs(off) > self._parameters.delta_tolerance * max(bought, sold) and not self._is_dust(market, off):
                detail = f"{base}: the exchange holds {decimal_text(long)} long and {decimal_text(short)} short"
                self._result.findings.append(Finding(market, "legs_unequal", long, short, detail))

    def _by_side(self, quantities: dict[Market, Decimal]) -> dict[str, dict[str, Decimal]]:
        """Sum up long and short at this account by asset, spot and derivatives together."""
        sides: dict[str, dict[str, Decimal]] = {}
        for market, quantity in throttled(quantities.items()):
            if (market.venue, market.account) == self._account_key:
                base = market.base
                if base not in sides:
                    sides[base] = {"long": ZERO, "short": ZERO}
                sides[base][market.side] += quantity
        return sides

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
