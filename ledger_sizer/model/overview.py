"""What everybody who looks at a ledger wants to see first: one picture, read at one moment.

The dashboard and `ledger-sizer top` show the same `Overview`. Everything in it is bounded, however large the ledger is:
lists come in pages, scopes and portfolios up to a number, and the line of exposure over time has so many points.
"""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Page, Position, ScopeExposure
from ledger_sizer.model.units import exact_arithmetic

ROWS_MAX = 200
"""Most rows of a list in one overview."""

HOURS_MAX = 24 * 366


@dataclass(frozen=True, slots=True)
class OverviewQuery:
    """What to look at.

    portfolio: the one shown in full; None takes the first. rows: of each list, 1 to `ROWS_MAX`. hours: how far the line
    of exposure goes back. held_cursor, open_cursor, decisions_cursor, portfolios_cursor: of the overview before, to
    continue one of its lists. only: portfolios that may be seen, None for all.
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
    """One portfolio in the list of all: the row of its whole."""

    name: str
    whole: ScopeExposure


class ExposurePoint(NamedTuple):
    """Exposure of a portfolio right after one decision, and the cap it was made under, USD; no cap: None.

    low, high: the lowest and highest it was after any decision since the point before, this one included.
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

    points: oldest first; the first may be older than `since`, it says what held then. exact_from: what lies between
    the points up to then was not read yet, and will be by the next looks; None: `low` and `high` miss nothing.
    """

    since: datetime
    points: tuple[ExposurePoint, ...] = ()
    exact_from: datetime | None = None


@dataclass(frozen=True, slots=True)
class DriftLine:
    """One difference between the ledger and the exchange that is not resolved.

    kind, state: as the reconciliation calls them. where: venue, account, market and side. ledger_quantity,
    venue_quantity: base units (USD for a balance). excess: what the exchange shows beyond the ledger, base units.
    frozen_scope: the scope it froze. requested: what those who trade were asked to do about it.
    """

    id: int
    kind: str
    state: str
    where: str
    ledger_quantity: Decimal | None
    venue_quantity: Decimal | None
    excess: Decimal
    detail: str
    opened_at: datetime
    frozen_scope: str | None
    requested: str | None


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """How a portfolio stands to its exchange.

    run_at, outcome: of the last run (`good`, `partial` or `failed`), None where there never was one. drifts: the
    confirmed ones first, up to a number; drift_count: all that are not resolved.
    """

    run_at: datetime | None = None
    outcome: str | None = None
    drifts: tuple[DriftLine, ...] = ()
    drift_count: int = 0


@dataclass(frozen=True, slots=True)
class Detail:
    """One portfolio in full.

    scopes: the whole first, then those with a cap, then the others by exposure; scopes_left_out counts the rest.
    held: live reservations, the soonest to end first. open: open positions, newest first. decisions: newest first.
    held_count, open_count: of the portfolio, whatever the page shows.
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

    @property
    def whole(self) -> ScopeExposure:
        """The row of the portfolio itself."""
        return self.scopes[0]


@dataclass(frozen=True, slots=True)
class Overview:
    """A ledger at one moment. read_at: by the ledger's clock. detail: None while there is no portfolio at all."""

    read_at: datetime
    portfolios: Page[PortfolioLine] = field(default_factory=lambda: Page(()))
    detail: Detail | None = None


def share_of_cap(value: Decimal, scope: ScopeExposure) -> Decimal:
    """Which part of the scope's scale `value` is, 0 to 1; the scale is the cap, or the exposure where that is more."""
    with exact_arithmetic():
        scale = max(scope.cap or Decimal(0), scope.exposure)
        return min(value / scale, Decimal(1)) if scale else Decimal(0)
