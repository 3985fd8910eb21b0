"""Lists runs and drifts, and says which drifts are meant."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Engine, or_, select

from ledger_sizer.model.choices import DRIFT_KINDS, DRIFT_STATES
from ledger_sizer.model.domain import Page
from ledger_sizer.model.drift_words import applies
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.reconciliation import Drift, Run
from ledger_sizer.reconcile.shown import without_shown
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.tables import DriftRow, ReconciliationRow
from ledger_sizer.storage.write_store import drift_from_row
from ledger_sizer.views.paging import cursor_numbers, page_of, require_limit

_TABLE = DriftRow.__table__


def run_from_row(row: Any) -> Run:
    """Build a run from its row."""
    values = dict(row._mapping)
    fetched = without_shown(json.loads(values["fetched"]))
    return Run(**{**values, "fetched": fetched, "found": json.loads(values["found"])})


@dataclass(frozen=True, slots=True)
class DriftChoice:
    """Which drifts: all that match every filter that is given.

    state: a `DriftFilter`. kind: a `DriftKind`. symbol: a market (`BTC/USDT:USDT`), an asset, or the coin of markets.
    """

    state: str | None = None
    kind: str | None = None
    venue: str | None = None
    account: str | None = None
    symbol: str | None = None

    def conditions(self) -> list[Any]:
        """Return the SQL conditions. Raises `InvalidRequest` for a state or a kind that there is not."""
        found: list[Any] = []
        if self.state is not None:
            found.append(DriftRow.state.in_(_states(self.state)))
        if self.kind is not None:
            if self.kind not in DRIFT_KINDS:
                raise InvalidRequest(f"kind must be one of {', '.join(DRIFT_KINDS)}, got {self.kind!r}", field="kind")
            found.append(DriftRow.kind == self.kind)
        if self.symbol is not None:
            of_coin = DriftRow.subject.startswith(f"{self.symbol}/", autoescape=True)
            found.append(or_(DriftRow.subject == self.symbol, of_coin))
        found += [
            column == value
            for column, value in ((DriftRow.venue, self.venue), (DriftRow.account, self.account)) if value is not None
        ]  # fmt: skip
        return found


def _states(state: str) -> Iterable[str]:
    if state == "live":
        return ("open", "confirmed")
    if state not in DRIFT_STATES:
        raise InvalidRequest(f"state must be one of {', '.join(DRIFT_STATES)} or live, got {state!r}", field="state")
    return (state,)


def list_drifts(
    engine: Engine,
    *,
    portfolios: Sequence[str] | None = None,
    chosen: DriftChoice | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> Page[Drift]:
    """Return drifts, newest first. chosen: which of them; None for all. cursor: from the last page."""
    query = select(_TABLE).where(*(chosen or DriftChoice()).conditions()).order_by(DriftRow.id.desc())
    return _page(engine, query, DriftRow, drift_from_row, portfolios, cursor, limit)


def drifts_to_decide(engine: Engine, action: str, chosen: DriftChoice, portfolios: Sequence[str] | None) -> list[int]:
    """Return the numbers of the chosen drifts to which an action applies. Without a state: of live ones."""
    if chosen.state is None:
        chosen = replace(chosen, state="live")
    query = select(_TABLE).where(*chosen.conditions(), DriftRow.state != "resolved").order_by(DriftRow.id)
    if portfolios is not None:
        query = query.where(DriftRow.portfolio.in_(portfolios))
    with read_transaction(engine) as connection:
        found = map(drift_from_row, connection.execute(query))
        return [drift.id for drift in found if applies(action, drift)]


def list_runs(
    engine: Engine, *, portfolios: Sequence[str] | None = None, cursor: str | None = None, limit: int = 100
) -> Page[Run]:
    """Return runs, newest first."""
    query = select(ReconciliationRow.__table__).order_by(ReconciliationRow.id.desc())
    return _page(engine, query, ReconciliationRow, run_from_row, portfolios, cursor, limit)


def _page(
    engine: Engine, query: Any, row: Any, make: Any, portfolios: Sequence[str] | None, cursor: str | None, limit: int
) -> Page[Any]:
    require_limit(limit)
    if portfolios is not None:
        query = query.where(row.portfolio.in_(portfolios))
    if cursor is not None:
        query = query.where(row.id < cursor_numbers(cursor, 1)[0])
    with read_transaction(engine) as connection:
        rows = connection.execute(query.limit(limit + 1)).all()
    return page_of(rows, limit, make, lambda row: row.id)
