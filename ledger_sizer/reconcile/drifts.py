"""Records runs and tracks drifts in the database. A run writes in one transaction, fenced by its lease."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, insert, select, update

from ledger_sizer.config import ReconcileSettings
from ledger_sizer.model.caller import RECONCILE
from ledger_sizer.model.domain import Page
from ledger_sizer.model.errors import InvalidRequest, NotFound
from ledger_sizer.model.reconciliation import QUANTITY_KINDS, Drift, Finding, Market, Run, stops_grants
from ledger_sizer.model.units import decimal_text
from ledger_sizer.reconcile import listings
from ledger_sizer.reconcile.compare import Comparison
from ledger_sizer.reconcile.continued import name_heirs
from ledger_sizer.reconcile.listings import DriftChoice
from ledger_sizer.reconcile.outbox import enqueue_alerts
from ledger_sizer.reconcile.sameness import accepted_growth, adds_no_excess, counts_the_same, is_unchanged
from ledger_sizer.reconcile.shown import SHOWN, forget_shown_before
from ledger_sizer.storage.database import read_transaction, write_transaction
from ledger_sizer.storage.leases import Lease, LeaseLost, fence_var
from ledger_sizer.storage.tables import DecisionRow, DriftRow, PortfolioRow, ReconciliationRow
from ledger_sizer.storage.write_store import drift_from_row

_TABLE = DriftRow.__table__
_IDS_MAX = 500
"""Drifts that one statement names."""
_REVISIONS_BATCH = 100
"""Revisions of a drift that one query searches."""


@dataclass(slots=True)
class RunChanges:
    """How a run changed the drifts. live: all that are not resolved, including `acknowledged` ones."""

    run_id: int
    live: list[Drift] = field(default_factory=list)
    confirmed: list[Drift] = field(default_factory=list)
    resolved: list[Drift] = field(default_factory=list)


def record_run(
    engine: Engine, lease: Lease, run: Run, comparison: Comparison, settings: ReconcileSettings
) -> RunChanges:
    """Write a run and its changes to the drifts. Raises `LeaseLost` when another run has taken the lease."""
    with write_transaction(engine, "record the run") as connection:
        _require_lease(lease, connection)
        return _record(connection, run, comparison, settings)


def _require_lease(lease: Lease, connection: Connection) -> None:
    if not lease.holds(connection):
        raise LeaseLost(f"the lease of this run is over (epoch {lease.epoch}); it writes nothing more")


def _record(connection: Connection, run: Run, comparison: Comparison, settings: ReconcileSettings) -> RunChanges:
    run = replace(run, id=_insert_run(connection, run, comparison))
    forget_shown_before(connection, run.portfolio, run.id)
    query = select(_TABLE).where(DriftRow.portfolio == run.portfolio, DriftRow.state != "resolved")
    unseen = {drift.key: drift for drift in map(drift_from_row, connection.execute(query))}
    writer = _DriftWriter(run, settings)
    acknowledged = {
        drift.market: drift
        for drift in unseen.values() if drift.state == "acknowledged" and drift.kind in QUANTITY_KINDS
    }  # fmt: skip
    live = {drift.market: drift for drift in unseen.values() if drift.live and drift.kind in QUANTITY_KINDS}
    for finding in comparison.findings:
        drift = acknowledged.get(finding.market) if finding.kind in QUANTITY_KINDS else None
        if drift is None or not (is_unchanged(drift, finding, settings) or adds_no_excess(drift, finding)):
            drift = unseen.get(finding.key)
        if drift is not None:
            unseen.pop(drift.key, None)
        if drift is not None and drift.state == "acknowledged":
            if is_unchanged(drift, finding, settings):
                writer.keep_acknowledged(drift, finding)
                continue
            moved = comparison.moved_since(drift)
            if adds_no_excess(drift, finding) and writer.keep_for_now(drift, moved=moved):
                continue
            writer.resolve(drift, "it changed after it was acknowledged")
            drift = None
        previous = live.get(finding.market) if drift is None and finding.kind in QUANTITY_KINDS else None
        if previous is not None and previous.kind == "interest":
            previous = None  # what comes to interest that was known is another difference: it is confirmed anew
        same = drift is not None and not comparison.moved_since(drift)
        writer.add_sighting(drift, finding, same=same, previous=previous)
    _end_unseen(writer, comparison, unseen.values(), acknowledged)
    changes = writer.write(connection)
    enqueue_alerts(connection, run, changes.confirmed, changes.resolved, changes.live, settings)
    return changes


def _insert_run(connection: Connection, run: Run, comparison: Comparison) -> int:
    """Insert a run with what the exchanges showed. Return its id."""
    fetched = [{**one, SHOWN: comparison.shown.get((one["venue"], one["account"]))} for one in run.fetched]
    values = {
        "portfolio": run.portfolio, "trigger": run.trigger, "outcome": run.outcome, "started_us": run.started_us,
        "finished_us": run.finished_us, "epoch": run.epoch, "fetched": json.dumps(fetched),
        "found": json.dumps(run.found),
    }  # fmt: skip
    run_id: int = connection.execute(
        insert(ReconciliationRow).values(**values).returning(ReconciliationRow.id)
    ).scalar_one()
    return run_id


def _end_unseen(
    writer: "_DriftWriter", comparison: Comparison, unseen: Iterable[Drift], acknowledged: Mapping[Market, Drift]
) -> None:
    """End the drifts that a run did not find, where it would have found them."""
    found_kinds = {finding.market: finding.kind for finding in comparison.findings if finding.kind in QUANTITY_KINDS}
    for drift in unseen:
        new_kind = found_kinds.get(drift.market) if drift.kind in QUANTITY_KINDS else None
        if not comparison.judged(drift) or writer.hides_interest(drift):
            writer.changes.live.append(drift)
        elif new_kind is not None:
            writer.resolve(drift, f"it is {new_kind} now")
        elif drift.kind == "legs_unequal" and (
            heirs := {name for name, coin in comparison.naked.items() if coin == drift.subject}
        ):
            writer.resolve_into(drift, heirs)
        elif acknowledged.get(drift.market) is not drift or not writer.keep_for_now(
            drift, moved=comparison.moved_since(drift)
        ):
            writer.resolve(drift, "not there any more")


class _DriftWriter:
    """Collects a run's changes to the drifts, and writes them with one statement per kind of change."""

    def __init__(self, run: Run, settings: ReconcileSettings) -> None:
        self._run = run
        self._settings = settings
        self._new: list[dict[str, Any]] = []
        self._updates: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        self._heirs: dict[int, Collection[str]] = {}
        self.changes = RunChanges(run.id)
        self._unconfirmed: set[Market] = set()

    def add_sighting(self, drift: Drift | None, finding: Finding, *, same: bool, previous: Drift | None = None) -> None:
        """Add a sighting of a known drift, or of a new one if `drift` is None.

        same: False if the ledger moved since the last sighting: two closes under way in two runs look like one drift
        seen twice, so the count starts again. A confirmed drift stays confirmed. previous: the live drift of this
        market that the new one continues under another kind. The two sides never agreed in between, so a confirmed one
        stays confirmed and nothing thaws.
        """
        last = drift or previous
        if last is not None and (finding.price is None or counts_the_same(last, finding)):
            finding = replace(finding, price=last.price or finding.price)  # so that what was counted stays counted
        policy = self._settings.policy(finding.kind)
        was_confirmed = last is not None and last.state == "confirmed"
        sightings = last.sightings + 1 if last is not None and (same or was_confirmed) else 1
        confirmed = was_confirmed or sightings >= self._settings.confirmations
        if not confirmed:
            self._unconfirmed.add(finding.market)
        values: dict[str, Any] = {
            "ledger_quantity": finding.ledger_quantity, "venue_quantity": finding.venue_quantity,
            "excess": finding.excess, "price": finding.price, "detail": finding.detail, "last_run": self._run.id,
            "updated_us": self._run.finished_us, "sightings": sightings, "policy": policy,
            "state": "confirmed" if confirmed else "open",
            "frozen_scope": None if drift is None else drift.frozen_scope,
        }  # fmt: skip
        if confirmed and values["frozen_scope"] is None and stops_grants(policy, finding):
            # Set once: after a change of settings, another scope would leave the first one frozen without a drift.
            values["frozen_scope"] = finding.scopes_to_freeze(self._settings.freeze_scope)
        if drift is None:
            self._new.append(_as_row(values) | self._identity(finding, previous))
            return
        updated = self._update(drift, values)
        self.changes.live.append(updated)
        if confirmed and drift.state == "open":
            self.changes.confirmed.append(updated)

    def hides_interest(self, drift: Drift) -> bool:
        """Whether it is interest to which something came that is not confirmed, and may be gone in the next run."""
        return drift.kind == "interest" and drift.market in self._unconfirmed

    def keep_acknowledged(self, drift: Drift, finding: Finding) -> None:
        """Note that an acknowledged drift is unchanged."""
        values: dict[str, Any] = {
            "last_run": self._run.id, "sightings": max(drift.sightings, self._settings.confirmations)
        }  # fmt: skip
        if grown := accepted_growth(drift, finding, self._run.finished_us, self._settings):
            values |= {**grown, "updated_us": self._run.finished_us}
        self.changes.live.append(self._update(drift, values))

    def keep_for_now(self, drift: Drift, *, moved: bool) -> bool:
        """Note that a run saw less than was acknowledged, or nothing. Returns whether the drift stays acknowledged.

        It stays until as many runs in a row saw less as it takes to confirm a drift: a close that is not released yet
        hides an excess, and a fill that is not confirmed yet hides a shortfall. moved: the ledger moved the asset since
        the last of these runs, which may have seen another close, so the count starts again.
        """
        left = (self._settings.confirmations if moved else min(drift.sightings, self._settings.confirmations)) - 1
        if left < 1:
            return False
        values = {"sightings": left, "updated_us": self._run.finished_us}
        self.changes.live.append(self._update(drift, values))
        return True

    def _identity(self, finding: Finding, previous: Drift | None) -> dict[str, Any]:
        market = finding.market
        first_run = self._run.id if previous is None else previous.first_run
        opened_us = self._run.finished_us if previous is None else previous.opened_us
        return {
            "portfolio": self._run.portfolio, "venue": market.venue, "account": market.account,
            "subject": market.subject, "side": market.side, "kind": finding.kind, "revision": 0,
            "first_run": first_run, "opened_us": opened_us,
        }  # fmt: skip

    def resolve(self, drift: Drift, reason: str) -> None:
        """End a drift."""
        now_us = self._run.finished_us
        values = {
            "state": "resolved", "ended_us": now_us, "updated_us": now_us, "actor": RECONCILE.actor, "reason": reason
        }  # fmt: skip
        if drift.state == "acknowledged":  # a person knew of it, so its end is announced like that of a confirmed one
            values["sightings"] = max(drift.sightings, self._settings.confirmations)
        self.changes.resolved.append(self._update(drift, values))

    def resolve_into(self, drift: Drift, heirs: Collection[str]) -> None:
        """End a drift about a coin whose naked side is told as drifts about these positions now."""
        self._heirs[len(self.changes.resolved)] = heirs
        self.resolve(drift, "it is told about the positions now")

    def _update(self, drift: Drift, values: dict[str, Any]) -> Drift:
        self._updates.setdefault(tuple(values), []).append({**_as_row(values), "row_id": drift.id})
        return replace(drift, **values)

    def write(self, connection: Connection) -> RunChanges:
        """Write all changes. Updates come first: a new drift may need the unique key of one that is resolved now."""
        for rows in self._updates.values():
            names = [name for name in rows[0] if name != "row_id"]
            statement = update(DriftRow).where(DriftRow.id == bindparam("row_id"))
            connection.execute(statement.values({name: bindparam(name) for name in names}), rows)
        if self._new:
            insertion = insert(DriftRow).returning(*_TABLE.columns, sort_by_parameter_order=True)
            inserted = [drift_from_row(row) for row in connection.execute(insertion, self._new)]
            self.changes.live += inserted
            self.changes.confirmed += [drift for drift in inserted if drift.state == "confirmed"]
        name_heirs(connection, self.changes.resolved, self.changes.live, self._heirs)
        return self.changes


def _as_row(values: dict[str, Any]) -> dict[str, Any]:
    return {name: decimal_text(value) if isinstance(value, Decimal) else value for name, value in values.items()}


# --- updates outside the record of a run, and queries ------------------------------------------------


@dataclass(frozen=True, slots=True)
class DriftUpdate:
    """An update of one drift. It applies only if the drift is in one of `states`, and at `revision` if given."""

    drift_id: int
    values: dict[str, Any]
    states: tuple[str, ...] = ("open", "confirmed")
    revision: int | None = None


def update_drifts(engine: Engine, updates: Sequence[DriftUpdate]) -> list[Drift]:
    """Apply the updates in one transaction, equal ones in one statement. Returns the drifts updated, by number.

    Within a run (see `storage.leases.fenced`) raises `LeaseLost` unless the run still holds its lease.
    """
    lease = fence_var.get()
    equal: dict[Any, list[DriftUpdate]] = {}
    for one in updates:
        equal.setdefault((one.states, one.revision, tuple(one.values.items())), []).append(one)
    rows: list[Any] = []
    with write_transaction(engine, "write drifts") as connection:
        if lease is not None:
            _require_lease(lease, connection)
        for alike in equal.values():
            states, revision, values = alike[0].states, alike[0].revision, alike[0].values
            statement = update(DriftRow).where(DriftRow.id.in_(bindparam("ids", expanding=True)))
            statement = statement.where(DriftRow.state.in_(states))
            if revision is not None:
                statement = statement.where(DriftRow.revision == revision)
            statement = statement.values(**values).returning(*_TABLE.columns)
            ids = [one.drift_id for one in alike]
            for start in range(0, len(ids), _IDS_MAX):
                rows += connection.execute(statement, {"ids": ids[start : start + _IDS_MAX]}).all()
    return sorted(map(drift_from_row, rows), key=lambda one: one.id)


def live_drifts(engine: Engine, portfolio: str) -> list[Drift]:
    """Return the drifts of a portfolio that are not resolved, oldest first."""
    query = select(_TABLE).where(DriftRow.portfolio == portfolio, DriftRow.state != "resolved").order_by(DriftRow.id)
    with read_transaction(engine) as connection:
        return [drift_from_row(row) for row in connection.execute(query)]


def freezing_drifts(engine: Engine, portfolio: str) -> list[Drift]:
    """Return drifts with a frozen scope: those that require the freeze, and those whose thaw is still to come."""
    query = select(_TABLE).where(DriftRow.portfolio == portfolio, DriftRow.frozen_scope.is_not(None))
    with read_transaction(engine) as connection:
        return [drift_from_row(row) for row in connection.execute(query.order_by(DriftRow.id))]


def close_requested_excess(engine: Engine, drift: Drift) -> Decimal | None:
    """Return the excess counted at the last close request; if none was counted then, the first one counted after it.

    None if no excess was counted. It is read from the chain: the key of every count and of every request contains the
    drift's revision.
    """
    query = (
        select(DecisionRow.key, DecisionRow.quantity)
        .join(PortfolioRow, PortfolioRow.id == DecisionRow.portfolio_id)
        .where(PortfolioRow.name == drift.portfolio, DecisionRow.key.in_(bindparam("keys", expanding=True)))
    )
    counted: Decimal | None = None
    with read_transaction(engine) as connection:
        for newest in range(drift.revision, -1, -_REVISIONS_BATCH):
            revisions = range(newest, max(newest - _REVISIONS_BATCH, -1), -1)
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


def read_drifts(engine: Engine, ids: Sequence[int]) -> list[Drift]:
    """Return the drifts with these numbers, those that there are, by number."""
    found: list[Drift] = []
    query = select(_TABLE).where(DriftRow.id.in_(bindparam("ids", expanding=True))).order_by(DriftRow.id)
    with read_transaction(engine) as connection:
        ordered = sorted(set(ids))
        for start in range(0, len(ordered), _IDS_MAX):
            rows = connection.execute(query, {"ids": ordered[start : start + _IDS_MAX]})
            found += [drift_from_row(row) for row in rows]
    return found


def drift_number(drift_id: object) -> int:
    """Return the number of a drift. Raises `InvalidRequest` for anything that cannot be one."""
    if isinstance(drift_id, bool) or not isinstance(drift_id, int) or not 1 <= drift_id < 2**63:
        raise InvalidRequest(f"a drift has a number from 1, got {drift_id!r}", field="drift_id")
    return drift_id


def list_drifts(
    engine: Engine, *, portfolios: Sequence[str] | None = None, state: str | None = None, kind: str | None = None,
    cursor: str | None = None, limit: int = 100,
) -> Page[Drift]:  # fmt: skip
    """Return drifts, newest first, by state (a `DriftFilter`) and kind. `listings` has more filters."""
    chosen = DriftChoice(state=state, kind=kind)
    return listings.list_drifts(engine, portfolios=portfolios, chosen=chosen, cursor=cursor, limit=limit)


def get_drift(engine: Engine, drift_id: object) -> Drift:
    """Return one drift. Raises `NotFound`."""
    drift_id = drift_number(drift_id)
    with read_transaction(engine) as connection:
        row = connection.execute(select(_TABLE).where(DriftRow.id == drift_id)).one_or_none()
    if row is None:
        raise NotFound(f"no drift {drift_id}; list them with: ledger-sizer drifts list")
    return drift_from_row(row)
