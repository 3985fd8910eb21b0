"""The life of drifts and the record of runs. What a run writes is one transaction, fenced by the run's lease."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, insert, select, update
from sqlalchemy.exc import DBAPIError

from ledger_sizer.config import ReconcileSettings
from ledger_sizer.model.domain import Page
from ledger_sizer.model.errors import InvalidRequest, NotFound, Unavailable
from ledger_sizer.model.reconciliation import KINDS, QUANTITY_KINDS, STATES, Drift, Finding, Run, stops_grants
from ledger_sizer.model.units import decimal_text, exact_arithmetic
from ledger_sizer.reconcile.compare import Comparison
from ledger_sizer.reconcile.outbox import enqueue_alerts
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.leases import Lease, LeaseLost, fence_var
from ledger_sizer.storage.tables import DecisionRow, DriftRow, PortfolioRow, ReconciliationRow

RECONCILIATION = "reconciliation"
"""The actor of what no person decided."""

_TABLE = DriftRow.__table__
_NAMES = tuple(one.name for one in fields(Drift))
_REVISIONS = 100
"""How many of them are looked for at once."""
_EXACT = ("ledger_quantity", "venue_quantity", "excess", "price")


@dataclass(slots=True)
class Changes:
    """What a run made of the drifts. live: those that still stand, with `acknowledged` ones."""

    run_id: int
    live: list[Drift] = field(default_factory=list)
    confirmed: list[Drift] = field(default_factory=list)
    resolved: list[Drift] = field(default_factory=list)


def drift_of(row: Any) -> Drift:
    """A drift from its row."""
    values = dict(row._mapping)
    for name in _EXACT:
        values[name] = None if values[name] is None else Decimal(values[name])
    values["excess"] = values["excess"] or Decimal(0)
    return Drift(**values)


def run_of(row: Any) -> Run:
    """A run from its row."""
    values = dict(row._mapping)
    return Run(**{**values, "fetched": tuple(json.loads(values["fetched"])), "found": json.loads(values["found"])})


def record_run(engine: Engine, lease: Lease, run: Run, comparison: Comparison, settings: ReconcileSettings) -> Changes:
    """Write a run and what it made of the drifts. Raises `LeaseLost` when its lease has passed to another."""
    try:
        with engine.begin() as connection:
            _require(lease, connection)
            return _record(connection, run, comparison, settings)
    except DBAPIError as error:
        raise Unavailable(f"cannot record the run: {str(error.orig).strip()}") from None


def _require(lease: Lease, connection: Connection) -> None:
    if not lease.holds(connection):
        raise LeaseLost(f"the lease of this run is over (epoch {lease.epoch}); it writes nothing more")


def _record(connection: Connection, run: Run, comparison: Comparison, settings: ReconcileSettings) -> Changes:
    values = {
        "portfolio": run.portfolio, "trigger": run.trigger, "outcome": run.outcome, "started_us": run.started_us,
        "finished_us": run.finished_us, "epoch": run.epoch, "fetched": json.dumps(run.fetched),
        "found": json.dumps(run.found),
    }  # fmt: skip
    run_id: int = connection.execute(
        insert(ReconciliationRow).values(**values).returning(ReconciliationRow.id)
    ).scalar_one()
    run = replace(run, id=run_id)
    query = select(_TABLE).where(DriftRow.portfolio == run.portfolio, DriftRow.state != "resolved")
    known = {drift.key: drift for drift in map(drift_of, connection.execute(query))}
    writer = _Writer(run, settings)
    accepted = {
        drift.market: drift
        for drift in known.values() if drift.state == "acknowledged" and drift.kind in QUANTITY_KINDS
    }  # fmt: skip
    turned = {drift.market: drift for drift in known.values() if drift.live and drift.kind in QUANTITY_KINDS}
    for finding in comparison.findings:
        drift = accepted.get(finding.market) if finding.kind in QUANTITY_KINDS else None
        if drift is None or not (_as_acknowledged(drift, finding, settings) or _no_more(drift, finding)):
            drift = known.get(finding.key)
        if drift is not None:
            known.pop(drift.key, None)
        if drift is not None and drift.state == "acknowledged":
            if _as_acknowledged(drift, finding, settings):
                writer.seen_acknowledged(drift)
                continue
            if _no_more(drift, finding) and writer.outlasts(drift, moved=comparison.moved_since(drift)):
                continue
            writer.resolve(drift, "it changed after it was acknowledged")
            drift = None
        before = turned.get(finding.market) if drift is None and finding.kind in QUANTITY_KINDS else None
        writer.seen(drift, finding, again=drift is not None and not comparison.moved_since(drift), before=before)
    there = {finding.market: finding.kind for finding in comparison.findings if finding.kind in QUANTITY_KINDS}
    for drift in known.values():
        goes_on = there.get(drift.market) if drift.kind in QUANTITY_KINDS else None
        if not comparison.judged(drift):
            writer.changes.live.append(drift)
        elif goes_on is not None:
            writer.resolve(drift, f"it is {goes_on} now")
        elif accepted.get(drift.market) is not drift or not writer.outlasts(drift, moved=comparison.moved_since(drift)):
            writer.resolve(drift, "not there any more")
    changes = writer.written(connection)
    enqueue_alerts(connection, run, changes.confirmed, changes.resolved, settings)
    return changes


def _as_acknowledged(drift: Drift, finding: Finding, settings: ReconcileSettings) -> bool:
    """Whether a drift is still the one that somebody said may stay, whatever was traded beside it since."""
    with exact_arithmetic():
        if drift.excess > 0 and finding.excess > 0 and _same_sign(drift, finding):
            was, now = drift.excess, finding.excess
        else:
            was = (drift.venue_quantity or Decimal(0)) - (drift.ledger_quantity or Decimal(0))
            now = (finding.venue_quantity or Decimal(0)) - (finding.ledger_quantity or Decimal(0))
        if abs(was - now) <= settings.tolerance * max(abs(was), abs(now)):
            return True
        price = finding.price or drift.price
        return not drift.market.is_swap and price is not None and abs(was - now) * price < settings.dust_usd


def _no_more(drift: Drift, finding: Finding) -> bool:
    """Whether a finding shows no more beyond the ledger than a person accepted: nothing new is to be counted."""
    if finding.kind not in QUANTITY_KINDS:
        return False
    return finding.excess <= 0 or (_same_sign(drift, finding) and finding.excess <= drift.excess)


def _same_sign(drift: Drift, finding: Finding) -> bool:
    """Whether both are of coins that were bought, or both of coins that were sold from a baseline."""
    return ((drift.venue_quantity or 0) < 0) == ((finding.venue_quantity or 0) < 0)


class _Writer:
    """Collects what a run makes of the drifts, and writes it in as few statements as there are kinds of change."""

    def __init__(self, run: Run, settings: ReconcileSettings) -> None:
        self._run = run
        self._settings = settings
        self._new: list[dict[str, Any]] = []
        self._changed: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        self.changes = Changes(run.id)

    def seen(self, drift: Drift | None, finding: Finding, *, again: bool, before: Drift | None = None) -> None:
        """Note a sighting: of a new drift, or once more of a known one. again: it is surely the same as before.

        Two closes that are under way in two runs look like one drift seen twice; only the ledger's own moves between
        the runs tell them apart. What was confirmed stays confirmed. before: the drift of this market that a new one
        goes on from, under the name of another kind: it never agreed in between, so what froze need not thaw.
        """
        last = drift or before
        if last is not None and finding.price is None:
            finding = replace(finding, price=last.price)  # the last one known: what was counted stays counted
        policy = self._settings.policy(finding.kind)
        was_confirmed = last is not None and last.state == "confirmed"
        sightings = last.sightings + 1 if last is not None and (again or was_confirmed) else 1
        confirmed = was_confirmed or sightings >= self._settings.confirmations
        values: dict[str, Any] = {
            "ledger_quantity": finding.ledger_quantity, "venue_quantity": finding.venue_quantity,
            "excess": finding.excess, "price": finding.price, "detail": finding.detail, "last_run": self._run.id,
            "updated_us": self._run.finished_us, "sightings": sightings, "policy": policy,
            "state": "confirmed" if confirmed else "open",
            "frozen_scope": None if drift is None else drift.frozen_scope,
        }  # fmt: skip
        if confirmed and values["frozen_scope"] is None and stops_grants(policy, finding):
            # Once only: another scope by now, after other settings, would leave the first frozen without a drift.
            scope = f"venue={finding.market.venue}" if self._settings.freeze_scope == "venue" else "portfolio"
            values["frozen_scope"] = "portfolio" if not finding.market.venue else scope
        if drift is None:
            self._new.append(_as_row(values) | self._identity(finding, before))
            return
        written = self._change(drift, values)
        self.changes.live.append(written)
        if confirmed and drift.state == "open":
            self.changes.confirmed.append(written)

    def seen_acknowledged(self, drift: Drift) -> None:
        """Note that a drift is still what a person accepted."""
        sightings = max(drift.sightings, self._settings.confirmations)
        self.changes.live.append(self._change(drift, {"last_run": self._run.id, "sightings": sightings}))

    def outlasts(self, drift: Drift, *, moved: bool) -> bool:
        """Note that less was seen than a person accepted, or nothing; whether what they accepted stays all the same.

        A bot's close that is not released yet hides an excess, and a fill that is not confirmed yet a lack. So a change
        is believed when as many runs in a row saw it as confirm a drift. moved: whether the ledger moved the asset
        since the last of them, which may have seen another close; that starts the count anew.
        """
        left = (self._settings.confirmations if moved else min(drift.sightings, self._settings.confirmations)) - 1
        if left < 1:
            return False
        values = {"sightings": left, "updated_us": self._run.finished_us}
        self.changes.live.append(self._change(drift, values))
        return True

    def _identity(self, finding: Finding, before: Drift | None) -> dict[str, Any]:
        market = finding.market
        first_run = self._run.id if before is None else before.first_run
        opened_us = self._run.finished_us if before is None else before.opened_us
        return {
            "portfolio": self._run.portfolio, "venue": market.venue, "account": market.account,
            "subject": market.subject, "side": market.side, "kind": finding.kind, "revision": 0,
            "first_run": first_run, "opened_us": opened_us,
        }  # fmt: skip

    def resolve(self, drift: Drift, why: str) -> None:
        """Note the end of a drift."""
        now_us = self._run.finished_us
        values = {"state": "resolved", "ended_us": now_us, "updated_us": now_us, "actor": RECONCILIATION, "reason": why}
        if drift.state == "acknowledged":  # a person knew of it, so that its end is told
            values["sightings"] = max(drift.sightings, self._settings.confirmations)
        self.changes.resolved.append(self._change(drift, values))

    def _change(self, drift: Drift, values: dict[str, Any]) -> Drift:
        self._changed.setdefault(tuple(values), []).append({**_as_row(values), "row_id": drift.id})
        return replace(drift, **values)

    def written(self, connection: Connection) -> Changes:
        """Write it all. What ended comes first, because the place of a drift that changed is taken by a new one."""
        for rows in self._changed.values():
            names = [name for name in rows[0] if name != "row_id"]
            changing = update(DriftRow).where(DriftRow.id == bindparam("row_id"))
            connection.execute(changing.values({name: bindparam(name) for name in names}), rows)
        if self._new:
            inserting = insert(DriftRow).returning(*_TABLE.columns, sort_by_parameter_order=True)
            made = [drift_of(row) for row in connection.execute(inserting, self._new)]
            self.changes.live += made
            self.changes.confirmed += [drift for drift in made if drift.state == "confirmed"]
        return self.changes


def _as_row(values: dict[str, Any]) -> dict[str, Any]:
    return {name: decimal_text(value) if isinstance(value, Decimal) else value for name, value in values.items()}


# --- after the run, and for people -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one drift, if it is in one of `states` still, and at `revision` where one is given."""

    drift_id: int
    values: dict[str, Any]
    states: tuple[str, ...] = ("open", "confirmed")
    revision: int | None = None


def change_drifts(engine: Engine, changes: Sequence[Change]) -> list[Drift]:
    """Carry out the changes in one transaction; the drifts that were changed, in order.

    Within a run (see `leases.fenced`) only under its lease; raises `LeaseLost`.
    """
    lease = fence_var.get()
    found: list[Any] = []
    try:
        with engine.begin() as connection:
            if lease is not None:
                _require(lease, connection)
            for one in changes:
                changing = update(DriftRow).where(DriftRow.id == one.drift_id, DriftRow.state.in_(one.states))
                if one.revision is not None:
                    changing = changing.where(DriftRow.revision == one.revision)
                found += connection.execute(changing.values(**one.values).returning(*_TABLE.columns)).all()
    except DBAPIError as error:
        raise Unavailable(f"cannot write drifts: {str(error.orig).strip()}") from None
    return [drift_of(row) for row in found]


def live_drifts(engine: Engine, portfolio: str) -> list[Drift]:
    """The drifts of a portfolio that are not resolved, oldest first."""
    query = select(_TABLE).where(DriftRow.portfolio == portfolio, DriftRow.state != "resolved").order_by(DriftRow.id)
    with read_transaction(engine) as connection:
        return [drift_of(row) for row in connection.execute(query)]


def freezing_drifts(engine: Engine, portfolio: str) -> list[Drift]:
    """Drifts that froze a scope, or are about to: those that ask for it, and those that were not thawed for yet."""
    query = select(_TABLE).where(DriftRow.portfolio == portfolio, DriftRow.frozen_scope.is_not(None))
    with read_transaction(engine) as connection:
        return [drift_of(row) for row in connection.execute(query.order_by(DriftRow.id))]


def asked_to_close(engine: Engine, drift: Drift) -> Decimal | None:
    """The excess that was counted when closing a drift was last asked for, or first after that; None if none was.

    The chain tells it: every count and every request has the drift's revision in its key.
    """
    query = (
        select(DecisionRow.key, DecisionRow.quantity)
        .join(PortfolioRow, PortfolioRow.id == DecisionRow.portfolio_id)
        .where(PortfolioRow.name == drift.portfolio, DecisionRow.key.in_(bindparam("keys", expanding=True)))
    )
    counted: Decimal | None = None
    with read_transaction(engine) as connection:
        for newest in range(drift.revision, -1, -_REVISIONS):
            revisions = range(newest, max(newest - _REVISIONS, -1), -1)
            keys = {
                revision: (f"reconcile:count:{drift.id}:{revision}", f"drift:{drift.id}:{revision}:close_requested")
                for revision in revisions
            }
            rows = connection.execute(query, {"keys": [one for both in keys.values() for one in both]})
            found: dict[str, Any] = dict(rows.all())
            for count, request in keys.values():
                counted = Decimal(found[count]) if count in found else counted
                if request in found:
                    return counted
    return counted


def get_drift(engine: Engine, drift_id: object) -> Drift:
    """One drift. Raises `NotFound`."""
    if isinstance(drift_id, bool) or not isinstance(drift_id, int) or not 1 <= drift_id < 2**63:
        raise InvalidRequest(f"a drift has a number from 1, got {drift_id!r}", field="drift_id")
    with read_transaction(engine) as connection:
        row = connection.execute(select(_TABLE).where(DriftRow.id == drift_id)).one_or_none()
    if row is None:
        raise NotFound(f"no drift {drift_id}; list them with: ledger-sizer drifts list")
    return drift_of(row)


def list_drifts(
    engine: Engine,
    *,
    portfolios: Sequence[str] | None = None,
    state: str | None = None,
    kind: str | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> Page[Drift]:
    """Drifts, newest first. state: one of `STATES`, or `live` (open and confirmed). cursor: of the page before."""
    query = select(_TABLE).order_by(DriftRow.id.desc())
    if state is not None:
        query = query.where(DriftRow.state.in_(_states(state)))
    if kind is not None:
        if kind not in KINDS:
            raise InvalidRequest(f"kind must be one of {', '.join(KINDS)}, got {kind!r}", field="kind")
        query = query.where(DriftRow.kind == kind)
    return _page(engine, query, DriftRow, drift_of, portfolios, cursor, limit)


def list_runs(
    engine: Engine, *, portfolios: Sequence[str] | None = None, cursor: str | None = None, limit: int = 100
) -> Page[Run]:
    """Runs, newest first."""
    query = select(ReconciliationRow.__table__).order_by(ReconciliationRow.id.desc())
    return _page(engine, query, ReconciliationRow, run_of, portfolios, cursor, limit)


def _states(state: str) -> Iterable[str]:
    if state == "live":
        return ("open", "confirmed")
    if state not in STATES:
        raise InvalidRequest(f"state must be one of {', '.join(STATES)} or live, got {state!r}", field="state")
    return (state,)


def _page(
    engine: Engine, query: Any, row: Any, make: Any, portfolios: Sequence[str] | None, cursor: str | None, limit: int
) -> Page[Any]:
    if not 1 <= limit <= 1000:
        raise InvalidRequest(f"limit must be 1 to 1000, got {limit!r}", field="limit")
    if portfolios is not None:
        query = query.where(row.portfolio.in_(portfolios))
    if cursor is not None:
        if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
            raise InvalidRequest(f"cursor must come from the page before, got {cursor!r}", field="cursor")
        query = query.where(row.id < int(cursor))
    with read_transaction(engine) as connection:
        found = [make(one) for one in connection.execute(query.limit(limit + 1))]
    items = tuple(found[:limit])
    return Page(items, str(items[-1].id) if len(found) > limit else None)
