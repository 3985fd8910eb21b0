"""The comparison: pure but for its rests, from the ledger's book and the accounts' snapshots to findings.

It goes over the union of both sides. What is unknown (a part that was not fetched) or was moving meanwhile is not
judged at all: neither found nor taken for gone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from ledger_sizer.exchanges.market_rules import USD_QUOTES
from ledger_sizer.exchanges.snapshot import Snapshot
from ledger_sizer.model.reconciliation import QUOTE, Drift, DriftKind, Finding, Market
from ledger_sizer.model.units import decimal_text, exact_arithmetic
from ledger_sizer.reconcile.in_flight import InFlight
from ledger_sizer.reconcile.ledger_side import LedgerSide, Place
from ledger_sizer.reconcile.netting import net_sides
from ledger_sizer.reconcile.throttle import throttled

ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Measures:
    """What the comparison goes by.

    tolerance, delta_tolerance: relative. baselines: base units by `venue/account/asset`.
    dust_usd: a spot difference worth less is none. last_prices: USD by asset, good for telling dust and nothing else.
    stale_us: a snapshot begun before this time counts as not fetched. ledger_known: False where the book was not read.
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
    """What was found, and what could be judged. counts: by name, for the record of the run.

    moved_us: when the ledger last moved an asset.
    """

    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    accounts: set[Place] = field(default_factory=set)
    positions_known: set[Place] = field(default_factory=set)
    balances_known: set[Place] = field(default_factory=set)
    ledger_known: bool = True
    touched: set[Market] = field(default_factory=set)
    hedges_moving: set[tuple[Place, str]] = field(default_factory=set)
    moved_us: dict[tuple[Place, str], int] = field(default_factory=dict)

    def moved_since(self, drift: Drift) -> bool:
        """Whether the ledger moved the drift's asset after its last sighting: what is seen now may be another one."""
        asset = ((drift.venue, drift.account), drift.market.base)
        return self.moved_us.get(asset, 0) > drift.updated_us

    def judged(self, drift: Drift) -> bool:
        """Whether this comparison would have found the drift if it were still there."""
        place, part = (drift.venue, drift.account), drift.part
        if part == "ledger" and not self.ledger_known:
            return False
        if part == "account":
            return place in self.accounts
        if part in ("positions", "both") and place not in self.positions_known:
            return False
        if part in ("balances", "both") and place not in self.balances_known:
            return False
        if drift.kind == "legs_unequal" and (place, drift.subject) in self.hedges_moving:
            return False
        return not any(self._is_about(drift, market) for market in self.touched)

    @staticmethod
    def _is_about(drift: Drift, market: Market) -> bool:
        return (drift.venue, drift.account, drift.subject) == (market.venue, market.account, market.subject)

    def count(self, name: str) -> None:
        """Count something that is no drift."""
        self.counts[name] = self.counts.get(name, 0) + 1


def compare(book: LedgerSide, snapshots: Iterable[Snapshot], measures: Measures) -> Comparison:
    """Compare. Findings come in the order of the accounts, then of the markets' names."""
    result = Comparison(ledger_known=measures.ledger_known, touched=set(book.touched))
    for name in ("unplaced", "without_legs"):
        if getattr(book, name):
            result.counts[name] = getattr(book, name)
    with exact_arithmetic():
        claims = InFlight(book.in_flight, book.plain_holds)
        for snapshot in snapshots:
            _Account(book, claims, snapshot, measures, result).compare()
        for position, bought, sold in throttled(book.uneven):
            if _differs(bought, sold, measures.delta_tolerance):
                detail = f"{position.position_id} bought {decimal_text(bought)} and sold {decimal_text(sold)}"
                market = Market("", "", position.position_id, "")
                result.findings.append(Finding(market, "legs_unequal", bought, sold, detail))
    result.moved_us = book.moved_us
    return result


def _differs(one: Decimal, other: Decimal, tolerance: Decimal) -> bool:
    return abs(one - other) > tolerance * max(abs(one), abs(other))


class _Account:
    """One account's comparison."""

    def __init__(
        self, book: LedgerSide, claims: InFlight, snapshot: Snapshot, measures: Measures, result: Comparison
    ) -> None:
        self._book = book
        self._claims = claims
        self._snapshot = snapshot
        self._measures = measures
        self._result = result
        self._place: Place = (snapshot.venue, snapshot.account)
        self._prices: dict[Market, Decimal] = {}
        self._prices_of: dict[str, Decimal] = dict(book.prices)  # by symbol, and by asset
        self._visible_usd: dict[str, Decimal | None] = {}
        self._shown: dict[Market, Decimal] = {}
        self._filled_late: set[str] = set()

    def compare(self) -> None:
        result, snapshot = self._result, self._snapshot
        result.accounts.add(self._place)
        stale = snapshot.begun_us < self._measures.stale_us
        positions = None if stale else snapshot.positions
        balances = None if stale else snapshot.balances
        if positions is None or balances is None:
            self._unknown(stale, [name for name in ("positions", "balances") if getattr(snapshot, name) is None])
        if positions is not None:
            result.positions_known.add(self._place)
            for found in throttled(positions):
                market = Market(*self._place, found.symbol, found.side)
                self._shown[market] = self._shown.get(market, ZERO) + found.quantity
                price = found.entry_price or found.mark_price
                if price is not None and market.quote in USD_QUOTES:
                    self._prices[market] = self._prices_of[market.base] = self._prices_of[found.symbol] = price
            self._book = net_sides(self._book, self._place, positions, self._shown)
            result.touched |= self._book.touched
            self._markets(self._of(self._shown, swap=True), self._of(self._book.open, swap=True))
        if balances is not None:
            result.balances_known.add(self._place)
            assets = self._assets(self._snapshot)
            self._shown |= assets
            said = self._of(self._book.open, swap=False)
            self._markets(assets, {one: said[one] for one in said if one.subject not in self._measures.quote_assets})
        if positions is not None:
            self._expired()
        if positions is not None and balances is not None:
            self._hedges()
            self._free(sum((b.free for b in balances if b.asset in self._measures.quote_assets), ZERO))

    def _unknown(self, stale: bool, missing: Sequence[str]) -> None:
        what = "the picture is too old" if stale else f"{' and '.join(missing)} not fetched"
        detail = "; ".join([what, *self._snapshot.problems])[:500]
        market = Market(*self._place, "account", "")
        self._result.findings.append(Finding(market, "fetch_failed", None, None, detail))

    def _of(self, quantities: dict[Market, Decimal], *, swap: bool) -> dict[Market, Decimal]:
        return {
            market: quantity
            for market, quantity in throttled(quantities.items())
            if (market.venue, market.account) == self._place and market.is_swap == swap
        }

    def _assets(self, snapshot: Snapshot) -> dict[Market, Decimal]:
        """Spot holdings above their declared baselines."""
        assert snapshot.balances is not None, "asked for an account whose balances are known"
        found = {}
        for balance in snapshot.balances:
            if balance.asset in self._measures.quote_assets:
                continue
            baseline = self._measures.baselines.get("/".join((*self._place, balance.asset)), ZERO)
            found[Market(*self._place, balance.asset, "long")] = balance.total - baseline
        for name, baseline in self._measures.baselines.items():  # an asset that is gone has no balance to be shown
            *place, asset = name.split("/")
            if tuple(place) == self._place and asset not in self._measures.quote_assets:
                found.setdefault(Market(*self._place, asset, "long"), -baseline)
        return found

    # --- markets ---------------------------------------------------------------------------------

    def _markets(self, shown: dict[Market, Decimal], said: dict[Market, Decimal]) -> None:
        differ = []
        for market in throttled({*shown, *said}):
            venue, ledger = shown.get(market, ZERO), said.get(market, ZERO)
            if market in self._book.touched:
                self._result.count("moving")
            elif not _differs(venue, ledger, self._measures.tolerance) or self._is_dust(market, venue - ledger):
                self._result.count("agrees" if venue == ledger else "within_tolerance")
            else:
                differ.append((market, ledger, venue))
        for market, ledger, venue in sorted(differ, key=lambda one: (one[0].subject, one[0].side)):
            slack = self._book.settling.get(market)
            if slack is not None and abs(venue - ledger) <= slack + self._book.in_flight.get(market, ZERO):
                self._result.touched.add(market)
                self._result.count("moving")
            else:
                self._market(market, ledger, venue, slack or ZERO)

    def _is_dust(self, market: Market, difference: Decimal) -> bool:
        """Whether a difference is what fees taken in coins leave: an asset's alone, and worth too little to trade."""
        price = self._prices_of.get(market.base) or self._measures.last_prices.get(market.base)
        return not market.is_swap and price is not None and abs(difference) * price < self._measures.dust_usd

    def _market(self, market: Market, ledger: Decimal, venue: Decimal, slack: Decimal) -> None:
        """A difference. slack: what of it may be a fill or a close that has just happened."""
        same_way = ledger * venue >= 0
        excess = abs(venue) - abs(ledger) if same_way else abs(venue)
        price = self._prices.get(market) or self._prices_of.get(market.subject) or self._prices_of.get(market.base)
        if excess > 0:
            # What was there before is no fill of a hold that came later, so it uses none up.
            known = min(excess, self._book.known.get(market, ZERO))
            new = excess - known
            self._note_visible(market.base, None if price is None and new else new * (price or ZERO))
            excess = known + max(self._claims.beyond(market, new - slack, price), ZERO)
            if excess <= self._measures.tolerance * abs(venue):
                self._result.count("in_flight")
                return
        kind, detail = self._kind(market, ledger, venue, excess, price)
        finding = Finding(market, kind, ledger, venue, detail, max(excess, ZERO), price)
        self._result.findings.append(finding)

    def _note_visible(self, base: str, usd: Decimal | None) -> None:
        """Something of this asset is to be seen that the ledger lacks: as much as its larger leg, or nobody knows."""
        before = self._visible_usd.get(base, ZERO)
        self._visible_usd[base] = None if usd is None or before is None else max(before, usd)

    def _kind(
        self, market: Market, ledger: Decimal, venue: Decimal, excess: Decimal, price: Decimal | None
    ) -> tuple[DriftKind, str]:
        says = f"{market.subject} {market.side}: ledger {decimal_text(ledger)}, exchange {decimal_text(venue)}"
        other = market.opposite
        flipped = ledger * venue < 0
        if market.is_swap:
            flipped = (venue == 0 and self._shown.get(other, ZERO) > self._book.open.get(other, ZERO)) or (
                ledger == 0 and self._book.open.get(other, ZERO) > 0 and self._shown.get(other, ZERO) == 0
            )
        if flipped:
            return "side_flipped", f"{says}, on the other side of what was opened"
        if excess > 0:
            late = self._expired_that_fits(market, excess, price)
            if late is not None:
                return "late_fill", f"{says}; the hold {late} expired and may have been filled"
        if ledger == 0:
            return "unknown_position", says
        return ("missing_position", says) if venue == 0 else ("quantity_differs", says)

    def _expired_that_fits(self, market: Market, excess: Decimal, price: Decimal | None) -> str | None:
        slack = 1 + self._measures.tolerance
        since_us = self._book.known_since_us.get(market)
        for one in self._book.expired:
            position = one.position
            if since_us is not None and position.opened_us >= since_us:
                continue  # what was there before a hold is none of its fill
            fits = excess <= one.legs.get(market, ZERO) * slack
            if not position.legs and one.place in (None, self._place) and position.tags.get("symbol") == market.base:
                fits = price is not None and excess * price <= one.budget_usd * slack
                fits = fits and self._claims.late(position.number, market.side)
            if fits:
                self._filled_late.add(position.position_id)
                return position.position_id
        return None

    # --- the rest --------------------------------------------------------------------------------

    def _expired(self) -> None:
        """Holds that ran out and have nothing to show: their callers may be dead."""
        for one in self._book.expired:
            name = one.position.position_id
            if one.place == self._place and one.position.state == "expired" and name not in self._filled_late:
                market = Market(*self._place, name, "")
                detail = f"{name} expired without a fill; its caller may have stopped"
                self._result.findings.append(Finding(market, "expired_hold", None, None, detail))

    def _hedges(self) -> None:
        """Where the ledger holds both sides of an asset here, the exchange must hold them in the same proportion."""
        said, shown = self._sides(self._book.open), self._sides(self._shown)
        moving = {market.base for market in (*self._book.touched, *self._book.settling, *self._book.in_flight)}
        for market, accepted in self._book.accepted.items():
            if (market.venue, market.account) == self._place and market.base in shown:
                there = self._shown.get(market, ZERO)
                sign = -1 if there < 0 else 1  # below zero they were sold from a baseline
                shown[market.base][market.side] -= sign * accepted
                beyond = sign * (there - self._book.open.get(market, ZERO))
                less = beyond < accepted and _differs(beyond, accepted, self._measures.tolerance)
                if less and not self._is_dust(market, accepted - beyond):
                    moving.add(market.base)  # a close that is not released yet, or less of what was accepted: who knows
        self._result.hedges_moving |= {(self._place, base) for base in moving}
        for base in throttled(sorted(said.keys() - moving - self._measures.quote_assets)):
            bought, sold = said[base]["long"], said[base]["short"]
            if not bought or not sold:
                continue
            held = shown.get(base, {"long": ZERO, "short": ZERO})
            has, owes = held["long"], held["short"]
            market, off = Market(*self._place, base, ""), (has - owes) - (bought - sold)
            if abs(off) > self._measures.delta_tolerance * max(bought, sold) and not self._is_dust(market, off):
                detail = f"{base}: the exchange holds {decimal_text(has)} long and {decimal_text(owes)} short"
                self._result.findings.append(Finding(market, "legs_unequal", has, owes, detail))

    def _sides(self, quantities: dict[Market, Decimal]) -> dict[str, dict[str, Decimal]]:
        """Long and short by asset, spot and derivatives together."""
        sides: dict[str, dict[str, Decimal]] = {}
        for market, quantity in throttled(quantities.items()):
            if (market.venue, market.account) == self._place:
                base = market.base
                if base not in sides:
                    sides[base] = {"long": ZERO, "short": ZERO}
                sides[base][market.side] += quantity
        return sides

    def _free(self, free: Decimal) -> None:
        """Free quote balance against the holds whose orders are not yet to be seen."""
        waiting: dict[str, Decimal] = {}
        needed = ZERO
        for place, markets, held in self._book.holds:
            if place != self._place:
                continue
            if markets:
                waiting[markets[0].base] = waiting.get(markets[0].base, ZERO) + held
            else:
                needed += held
        for base, held in waiting.items():
            visible = self._visible_usd.get(base, ZERO)
            needed += ZERO if visible is None else max(held - visible, ZERO)
        if needed > free and _differs(needed, free, self._measures.tolerance):
            detail = f"{decimal_text(free)} is free, {decimal_text(needed)} USD is held for orders to come"
            market = Market(*self._place, QUOTE, "")
            self._result.findings.append(Finding(market, "balance_below_holds", needed, free, detail))
