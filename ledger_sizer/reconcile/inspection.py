"""Inspects a portfolio: fetches its accounts, reads the ledger and compares them. Writes nothing.

`LocalInspector` does it in the caller's thread, `worker_process.WorkerInspector` in a process of its own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from sqlalchemy import Engine

from ledger_sizer.config import AppSettings
from ledger_sizer.exchanges.snapshot import Snapshot
from ledger_sizer.model.asset_policies import AssetPolicies, AssetRule
from ledger_sizer.model.choices import RunOutcome, Trigger
from ledger_sizer.model.domain import Position
from ledger_sizer.model.market_names import split_factor
from ledger_sizer.model.reconciliation import Drift, Market, Run
from ledger_sizer.model.tags import account_scope
from ledger_sizer.model.times import to_us
from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.account_looks import AccountLook, look_of, unsettled_by_scope
from ledger_sizer.reconcile.assets import listed_text
from ledger_sizer.reconcile.compare import Comparison, ComparisonParameters, compare
from ledger_sizer.reconcile.decided_policies import effective_policies, read_decided
from ledger_sizer.reconcile.late_fills import ended_rests, may_fill_after_its_rest
from ledger_sizer.reconcile.ledger_reads import (
    last_prices,
    read_ended_budgets,
    read_head,
    read_ledger,
    read_moves,
    read_planned_hedges,
    read_planned_legs,
    read_released_holds,
)
from ledger_sizer.reconcile.ledger_side import EndedHold, LedgerSide, ended_holds, ledger_side_of
from ledger_sizer.reconcile.unseen import (
    accounts_with_new_differences,
    failed_families,
    snapshot_with_new_rules,
    unseen_markets,
)
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.storage.clock import ClockGuard, read_clock
from ledger_sizer.views.attribution import AccountResolver, known_since

Clock = Callable[[], datetime]


class InspectionFailed(Exception):
    """The inspection failed, so both sides are unknown; the message says why. Known drifts stay as they are."""


class NamedAccount(Protocol):
    """The identity of an account. venue: the same as in position tags. portfolio: the owner of its positions."""

    venue: str
    account: str
    portfolio: str


class Account(NamedAccount, Protocol):
    """An account whose snapshot can be fetched."""

    def snapshot(self, now_us: Callable[[], int]) -> Snapshot:
        """Fetch positions and balances. Never raises for a failure of the exchange."""


@dataclass(frozen=True, slots=True)
class InspectionRequest:
    """The portfolio to inspect. epoch: of the run's lease, 0 for a dry run."""

    portfolio: str
    trigger: Trigger
    epoch: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """Result of an inspection. run: the run to record, its id still 0.

    external: open external positions by market; None if the ledger was not read. looks: what was seen of each account.
    """

    run: Run
    comparison: Comparison
    external: Mapping[Market, Sequence[Position]] | None
    looks: tuple[AccountLook, ...] = ()


@dataclass(frozen=True, slots=True)
class _Look:
    """One comparison, the ledger's side of it, the drifts known before, and what each account shows of its money."""

    comparison: Comparison
    ledger_side: LedgerSide
    live: Sequence[Drift]
    looks: tuple[AccountLook, ...]


class Inspector(Protocol):
    """Runs inspections."""

    @property
    def accounts(self) -> Sequence[NamedAccount]:
        """The accounts it can inspect."""

    def inspect(self, request: InspectionRequest, seconds_max: float) -> Inspection:
        """Inspect the accounts and the positions of a portfolio.

        Raises `InspectionFailed` if there is no result within `seconds_max`, `Unavailable` without a database.
        """


class LocalInspector:
    """Inspects in the caller's thread. Only the accounts' own time-outs bound it: `seconds_max` has no effect.

    clock: for tests; None reads the database's clock, which all replicas share.
    """

    def __init__(
        self, engine: Engine, accounts: Sequence[Account], settings: AppSettings, *, clock: Clock | None = None
    ) -> None:
        self.accounts = tuple(accounts)
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self._guard = ClockGuard(settings.ledger.clock_jump_seconds)
        self._policy_cache: dict[str, tuple[tuple[AssetRule, ...], AssetPolicies]] = {}
        self._price_cache: dict[str, dict[str, Decimal | None]] = {}
        self._plan_cache: dict[str, dict[int, bool]] = {}

    def inspect(self, request: InspectionRequest, seconds_max: float = 0) -> Inspection:  # noqa: ARG002 - see the class
        """See `Inspector`."""
        accounts = [account for account in self.accounts if account.portfolio == request.portfolio]
        seq_before = read_head(self._engine, request.portfolio)
        started_us = self._now_us()
        snapshots = self._fetch(accounts, lambda account: account.snapshot(self._now_us))
        look = self._compare(request.portfolio, accounts, snapshots, seq_before, started_us)
        if doubtful := accounts_with_new_differences(look.comparison.findings, look.live):
            seq_before, again_us = read_head(self._engine, request.portfolio), self._now_us()
            by_account = {(one.venue, one.account): one for one in snapshots}
            again = self._fetch(
                [one for one in accounts if (one.venue, one.account) in doubtful],
                lambda account: snapshot_with_new_rules(account, self._now_us),
            )
            if again:
                by_account |= {(one.venue, one.account): one for one in again}
                snapshots = list(by_account.values())
                look = self._compare(request.portfolio, accounts, snapshots, seq_before, again_us)
        run = _run_of(request, snapshots, look.comparison, started_us, self._now_us())
        return Inspection(run, look.comparison, look.ledger_side.external, look.looks)

    @staticmethod
    def _fetch(accounts: Sequence[Account], fetch: Callable[[Account], Snapshot | None]) -> list[Snapshot]:
        """Fetch from all accounts at once. Accounts that return None are left out."""
        with ThreadPoolExecutor(max_workers=min(max(len(accounts), 1), 8)) as pool:
            return [one for one in pool.map(fetch, accounts) if one is not None]

    def _compare(
        self, portfolio: str, accounts: Sequence[Account], snapshots: Sequence[Snapshot], seq_before: int,
        started_us: int,
    ) -> _Look:  # fmt: skip
        """Read the ledger and compare it with the snapshots. snapshots: of the accounts, in their order."""
        settings = self._settings.reconcile
        expired_us = started_us - settings.expired_seconds * 1_000_000
        # Read after the fetch: these rows include what moved meanwhile, which is then not judged.
        positions, scopes = read_ledger(self._engine, portfolio, since_us=expired_us)
        settled_us = started_us - settings.grace_seconds * 1_000_000
        live = drifts.live_drifts(self._engine, portfolio)
        sighted_us = min((one.updated_us for one in live), default=settled_us)
        account_keys = [(account.venue, account.account) for account in accounts]
        moves = read_moves(self._engine, portfolio, positions, settled_us=settled_us, sighted_us=sighted_us)
        ledger_side = ledger_side_of(
            positions,
            AccountResolver(account_keys, known_since(scopes)),
            seq_before=seq_before,
            settled_us=settled_us,
            expired_us=expired_us,
            now_us=self._now_us(),
            budgets_usd=read_ended_budgets(self._engine, portfolio, positions),
            moves=moves,
        )
        ledger_side.planned_hedges = self._planned_hedges(portfolio, ledger_side)
        ledger_side.known_excess = _excess_by_market(live)
        ledger_side.excess_since_us = {one.market: one.opened_us for one in reversed(live) if one.excess > 0}
        ledger_side.accepted_excess = _excess_by_market(drift for drift in live if drift.state == "acknowledged")
        ledger_side.interest = {one.market: (one.excess, one.opened_us) for one in live if one.kind == "interest"}
        ledger_side.moving |= unseen_markets(ledger_side, snapshots, live)
        prices = self._last_prices(portfolio, ledger_side, snapshots)

        def released() -> list[EndedHold]:
            resolver = AccountResolver(account_keys, known_since(scopes))
            return self._released_holds(portfolio, positions, resolver, expired_us)

        parameters = _parameters(self._settings, started_us, prices, self._asset_policies(portfolio))
        comparison = compare(ledger_side, snapshots, parameters, released)
        comparison.findings += failed_families(snapshots)
        unsettled = unsettled_by_scope(positions, scopes, moves, settled_us)
        looks = self._looks(accounts, snapshots, scopes, unsettled, parameters)
        return _Look(comparison, ledger_side, live, looks)

    def _looks(
        self, accounts: Sequence[Account], snapshots: Sequence[Snapshot], scopes: Sequence[ScopeState],
        unsettled: Mapping[str, int], parameters: ComparisonParameters,
    ) -> tuple[AccountLook, ...]:  # fmt: skip
        known = {scope.name: scope for scope in scopes}
        names = [account_scope(account.venue, account.account) for account in accounts]
        return tuple(
            look_of(
                snapshot, known.get(name), unsettled.get(name, 0), stale_us=parameters.stale_us,
                policies=parameters.policies, prices=parameters.last_prices,
                margin_fraction=getattr(account, "margin_fraction", Decimal(1)),
                binds=getattr(account, "bind_free_balance", True),
            )
            for account, snapshot, name in zip(accounts, snapshots, names, strict=True)
        )  # fmt: skip

    def _released_holds(
        self, portfolio: str, positions: Sequence[Position], resolver: AccountResolver, since_us: int
    ) -> list[EndedHold]:
        """Return what released holds, and the rests of open positions that are over, may have filled after all."""
        holds = read_released_holds(self._engine, portfolio, since_us=since_us)
        budgets_usd = read_ended_budgets(self._engine, portfolio, holds)
        open_still = [one for one in positions if may_fill_after_its_rest(one, since_us)]
        planned = read_planned_legs(self._engine, portfolio, [one.number for one in open_still])
        with exact_arithmetic():
            rests = ended_rests(open_still, planned, resolver)
            return [*rests, *ended_holds(holds, positions, resolver, budgets_usd)]

    def _planned_hedges(self, portfolio: str, ledger_side: LedgerSide) -> set[int]:
        """Return which positions of one side were planned with both. Each is looked up once per process."""
        numbers = {one.number for one in ledger_side.balances if not (one.bought and one.sold)}
        known = self._plan_cache.setdefault(portfolio, {})
        for gone in known.keys() - numbers:
            del known[gone]
        unknown = sorted(numbers - known.keys())
        planned = read_planned_hedges(self._engine, portfolio, unknown)
        known |= {number: number in planned for number in unknown}
        return {number for number, is_planned in known.items() if is_planned}

    def _last_prices(
        self, portfolio: str, ledger_side: LedgerSide, snapshots: Sequence[Snapshot]
    ) -> Mapping[str, Decimal | None]:
        """Return the last known price of every asset: from this inspection, an earlier one, or an old position.

        A process searches the old positions once per asset, even if it finds no price.
        """
        known = self._price_cache.setdefault(portfolio, {})
        known |= ledger_side.prices
        shown = {split_factor(balance.asset)[1] for one in snapshots for balance in one.balances or ()}
        shown |= {split_factor(name.rpartition("/")[2])[1] for name in self._settings.reconcile.baselines}
        if unknown := shown - known.keys() - set(self._settings.reconcile.quote_assets):
            known |= dict.fromkeys(unknown) | last_prices(self._engine, portfolio, unknown)
        return known

    def _asset_policies(self, portfolio: str) -> AssetPolicies:
        """Return whose money each asset is. What was found out about an asset is kept until something is decided."""
        decided = tuple(read_decided(self._engine, [portfolio]))
        known = self._policy_cache.get(portfolio)
        if known is None or known[0] != decided:
            known = self._policy_cache[portfolio] = (decided, effective_policies(self._settings.reconcile, decided))
        return known[1]

    def _now_us(self) -> int:
        return time_us(self._engine, self._clock, self._guard)


def failed_inspection(
    request: InspectionRequest, accounts: Sequence[NamedAccount], started_us: int, now_us: int, reason: str
) -> Inspection:
    """Build the result of a failed inspection: every account of the portfolio is unknown."""
    snapshots = [
        Snapshot(one.venue, one.account, started_us, now_us, None, None, (reason,))
        for one in accounts if one.portfolio == request.portfolio
    ]  # fmt: skip
    comparison = compare(LedgerSide(), snapshots, ComparisonParameters(ledger_known=False))
    return Inspection(_run_of(request, snapshots, comparison, started_us, now_us), comparison, None)


def time_us(engine: Engine, clock: Clock | None, guard: ClockGuard) -> int:
    """Return the time of `clock`, or of the ledger's own clock if it is None, in microseconds. Raises `ClockJumped`."""
    return read_clock(engine, guard) if clock is None else to_us(clock())


def _excess_by_market(live: Iterable[Drift]) -> dict[Market, Decimal]:
    """Return the largest excess of the drifts of each market, base units."""
    excess: dict[Market, Decimal] = {}
    for drift in live:
        if drift.excess > 0:
            excess[drift.market] = max(drift.excess, excess.get(drift.market, Decimal(0)))
    return excess


def _parameters(
    settings: AppSettings, started_us: int, prices: Mapping[str, Decimal | None], policies: AssetPolicies
) -> ComparisonParameters:
    stale = settings.reconcile.stale_after_seconds
    return ComparisonParameters(
        tolerance=settings.reconcile.tolerance,
        delta_tolerance=settings.trading.delta_drift_tolerance,
        policies=policies,
        baselines=dict(settings.reconcile.baselines),
        dust_usd=settings.reconcile.dust_usd,
        interest_usd=settings.reconcile.interest_usd,
        last_prices=prices,
        stale_us=0 if stale is None else started_us - stale * 1_000_000,
    )


def _run_of(
    request: InspectionRequest, snapshots: Sequence[Snapshot], comparison: Comparison, started_us: int, now_us: int
) -> Run:
    return Run(
        id=0, portfolio=request.portfolio, trigger=request.trigger, outcome=_outcome(snapshots), started_us=started_us,
        finished_us=max(now_us, started_us), epoch=request.epoch,
        fetched=tuple(_fetched(snapshot, comparison) for snapshot in snapshots), found=_found(comparison),
    )  # fmt: skip


def _outcome(snapshots: Sequence[Snapshot]) -> RunOutcome:
    if all(snapshot.whole for snapshot in snapshots):
        return "good"
    any_part = any(one.positions is not None or one.balances is not None for one in snapshots)
    return "partial" if any_part else "failed"


def _fetched(snapshot: Snapshot, comparison: Comparison) -> dict[str, object]:
    listed = comparison.listed.get((snapshot.venue, snapshot.account), {})
    return {
        "venue": snapshot.venue,
        "account": snapshot.account,
        "positions": None if snapshot.positions is None else len(snapshot.positions),
        "balances": None if snapshot.balances is None else len(snapshot.balances),
        "milliseconds": (snapshot.taken_us - snapshot.begun_us) // 1000,
        "problems": list(snapshot.problems),
        "listed": listed_text(listed, lambda asset: _usd_of(asset, snapshot)),
        "unread": [f"{one.symbol}: {one.detail}" for one in snapshot.unread],
        "not_asked": list(snapshot.not_asked),
        "failed": list(snapshot.failed),
    }


def _usd_of(asset: str, snapshot: Snapshot) -> Decimal:
    """Return what one unit is worth, as far as this snapshot says."""
    factor, coin = split_factor(asset)
    with exact_arithmetic():
        return factor * snapshot.prices.get(coin, Decimal(0))


def _found(comparison: Comparison) -> dict[str, int]:
    found = dict(comparison.counts)
    for finding in comparison.findings:
        found[finding.kind] = found.get(finding.kind, 0) + 1
    return found
