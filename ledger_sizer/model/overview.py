"""Types of the overview: one snapshot of a ledger, as the dashboard and `ledger-sizer top` show it.

Its size is bounded, however large the ledger is: lists are paged, and the numbers of scopes, portfolios and points of
exposure over time have a maximum.
"""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from ledger_sizer.model.choices import RunOutcome, Status
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Page, Position, ScopeExposure
from ledger_sizer.model.pools import DefaultCap, Pool
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.model.units import exact_arithmetic

ROWS_MAX = 200
"""Maximum rows of a list in one overview."""

HOURS_MAX = 24 * 366


@dataclass(frozen=True, slots=True)
class OverviewQuery:
    """Arguments of an overview.

    portfolio: the one shown in full; None takes the first. rows: of each list, 1 to `ROWS_MAX`. hours: time span of the
    exposure line, 1 to `HOURS_MAX`. held_cursor, open_cursor, decisions_cursor, portfolios_cursor: cursors of the
    previous overview, to continue one of its lists. only: portfolios that may be shown, None for all.
    """

    portfolio: str | None = None
    rows: int = 25
    hours: int = 24
    held_cursor: str | None = None
    open_cursor: str | None = None
    decisions_cursor: str | None = None
    portfolios_cursor: str | None = None
    only: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class PortfolioLine:
    """One entry in the list of portfolios. whole: exposure of the whole portfolio."""

    name: str
    whole: ScopeExposure


class ExposurePoint(NamedTuple):
    """Exposure of a portfolio right after one decision, and the cap at that decision (None: no cap), USD.

    low, high: lowest and highest exposure after any decision since the previous point, this one included.
    """

    at: datetime
    seq: int
    exposure: Decimal
    cap: Decimal | None
    low: Decimal
    high: Decimal


@dataclass(frozen=True, slots=True)
class ExposureLine:
    """Exposure over time: a step line from `since` on.

    points: oldest first; the first may be older than `since` and gives the value at `since`. exact_from: up to then
    the decisions between the points are not read yet; later overviews read them. None: `low` and `high` are complete.
    """

    since: datetime
    points: tuple[ExposurePoint, ...] = ()
    exact_from: datetime | None = None


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Reconciliation state of a portfolio.

    run_at, outcome: of the last run (`good`, `partial` or `failed`); None before the first run. drifts: unresolved
    ones, confirmed first, up to a maximum. drift_count: number of all unresolved drifts.
    """

    run_at: datetime | None = None
    outcome: RunOutcome | None = None
    drifts: tuple[Drift, ...] = ()
    drift_count: int = 0


@dataclass(frozen=True, slots=True)
class Detail:
    """One portfolio in full.

    scopes: the whole first, then those with a cap or a guarantee, then the others by exposure; scopes_left_out counts
    the rest. held: live reservations, the next to expire first. open: open positions, newest first. decisions: newest
    first. held_count, open_count: totals of the portfolio, not of the page. pools: the largest guarantees, by name;
    pools_left_out counts the rest. shared: what a request outside of every pool could still have, USD. defaults: the
    default caps, which are not among the scopes.
    """

    name: str
    seq: int
    scopes: tuple[ScopeExposure, ...]
    scopes_left_out: int
    held: Page[Position]
    held_count: int
    open: Page[Position]
    open_count: int
    decisions: Page[Decision]
    line: ExposureLine
    reconciliation: Reconciliation
    pools: tuple[Pool, ...] = ()
    pools_left_out: int = 0
    shared: Decimal | None = None
    defaults: tuple[DefaultCap, ...] = ()

    @property
    def whole(self) -> ScopeExposure:
        """Row of the whole portfolio."""
        return self.scopes[0]


@dataclass(frozen=True, slots=True)
class DeskHalt:
    """A halt of all portfolios together. status: `halted` or `reducing`.

    since, actor, note: when, by whom and why; None for a key bound to portfolios, and once the halt is archived.
    """

    status: Status
    since: datetime | None = None
    actor: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Overview:
    """A ledger at one moment. read_at: by the ledger's clock. detail: None while there is no portfolio at all.

    desk: the halt of all portfolios, None while there is none.
    """

    read_at: datetime
    portfolios: Page[PortfolioLine] = field(default_factory=lambda: Page(()))
    detail: Detail | None = None
    desk: DeskHalt | None = None


def share_of_cap(value: Decimal, scope: ScopeExposure) -> Decimal:
    """Return `value` as a share, 0 to 1, of the scope's cap, or of its exposure where that is larger."""
    with exact_arithmetic():
        scale = max(scope.cap or Decimal(0), scope.exposure)
        return min(value / scale, Decimal(1)) if scale else Decimal(0)
