"""Computes the results of a demonstration from the ledger's audit chain and drifts, after everything has stopped."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

from sqlalchemy import Engine

from ledger_sizer.demo.bots import PORTFOLIO
from ledger_sizer.demo.drift_injection import CONFIRMATIONS, InjectionResult
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Page
from ledger_sizer.model.units import decimal_text, usd
from ledger_sizer.model.verification import VerifyReport
from ledger_sizer.reconcile import listings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReconciliationSummary:
    """Results of the reconciliation.

    runs: by outcome. agreed: markets equal on both sides, summed over all runs. injected: each injection with its
    result. others: confirmed drifts that were not injected.
    """

    runs: Mapping[str, int]
    agreed: int
    injected: tuple[InjectionResult, ...]
    others: int

    @property
    def ok(self) -> bool:
        """Whether both sides agreed at some time, and every injection was found and cleared."""
        completed = [one.drift is not None and one.cleared for one in self.injected]
        return self.agreed > 0 and bool(completed) and all(completed)

    def document(self) -> dict[str, Any]:
        """Return the results as JSON."""
        return {
            "ok": self.ok, "runs": dict(self.runs), "agreed": self.agreed, "other_drifts": self.others,
            "injected": [
                {"what": one.what, "kind": one.kind, "found": one.drift is not None, "cleared": one.cleared}
                for one in self.injected
            ],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Summary:
    """Results of a demonstration. Money in USD.

    outcomes: decisions by (command, outcome, reason). highest_granted: highest exposure after a grant. highest:
    highest exposure after any decision (a late fill may exceed the cap). breaches: grants that left a scope above its
    cap. deaths: bot exits by cause. events: what the bots logged. graceful: the service stopped on SIGTERM with code 0.
    """

    cap: Decimal
    outcomes: Mapping[tuple[str, str, str | None], int]
    highest_granted: Decimal
    highest: Decimal
    breaches: tuple[str, ...]
    deaths: Mapping[str, int]
    events: Mapping[str, int]
    graceful: bool
    report: VerifyReport
    reconciliation: ReconciliationSummary | None = None

    @property
    def expiries(self) -> int:
        """Number of expired holds."""
        return sum(number for (command, _, _), number in self.outcomes.items() if command == "expire")

    @property
    def ok(self) -> bool:
        """Whether every promise was kept.

        The ledger verifies, no grant breached a cap, every replay gave the first answer, nothing died of a defect, and
        the reconciliation found and cleared every injection.
        """
        ok = self.report.ok and not self.breaches and not self.events.get("not replayed")
        ok = ok and (self.reconciliation is None or self.reconciliation.ok)
        return ok and self.graceful and not self.deaths.get("failed")

    def document(self) -> dict[str, Any]:
        """Return the results as JSON: decimals as strings."""
        return {
            "ok": self.ok,
            "cap": decimal_text(self.cap),
            "highest_exposure_granted": decimal_text(self.highest_granted),
            "highest_exposure": decimal_text(self.highest),
            "breaches": list(self.breaches),
            "decisions": [
                {"command": command, "outcome": outcome, "reason": reason, "count": count}
                for (command, outcome, reason), count in sorted(self.outcomes.items(), key=str)
            ],
            "expiries": self.expiries,
            "bots": {"deaths": dict(self.deaths), "events": dict(self.events)},
            "reconciliation": None if self.reconciliation is None else self.reconciliation.document(),
            "stopped_gracefully": self.graceful,
            "verify": {
                "ok": self.report.ok,
                "decisions": self.report.decisions,
                "positions": self.report.positions,
                "findings": [finding.what for finding in self.report.findings],
            },
        }


def summarize(
    ledger: Ledger,
    cap: Decimal,
    deaths: Mapping[str, int],
    events: Mapping[str, int],
    *,
    graceful: bool,
    reconciliation: ReconciliationSummary | None = None,
) -> Summary:
    """Read the whole chain, verify it, and return the results."""
    outcomes: Counter[tuple[str, str, str | None]] = Counter()
    highest = highest_granted = Decimal(0)
    breaches: list[str] = []
    for decision in _decisions(ledger):
        outcomes[decision.command, decision.outcome, decision.reason] += 1
        highest = max(highest, decision.exposure_after)
        if decision.command == "reserve" and decision.granted:
            highest_granted = max(highest_granted, decision.exposure_after)
            breaches += _breaches(decision)
    return Summary(
        cap, outcomes, highest_granted, highest, tuple(breaches), deaths, events, graceful, ledger.verify(),
        reconciliation,
    )  # fmt: skip


def read_reconciliation(reads: Engine, injected: Sequence[InjectionResult]) -> ReconciliationSummary:
    """Read the runs and drifts, and compare them with the injections."""
    outcomes: Counter[str] = Counter()
    agreed = 0
    for run in _all_pages(lambda cursor: listings.list_runs(reads, cursor=cursor)):
        outcomes[run.outcome] += 1
        agreed += run.found.get("agrees", 0)
    known = {one.drift for one in injected}.union(*(one.companions for one in injected))
    found = _all_pages(lambda cursor: listings.list_drifts(reads, cursor=cursor))
    others = [drift for drift in found if drift.id not in known and drift.sightings >= CONFIRMATIONS]
    return ReconciliationSummary(outcomes, agreed, tuple(injected), len(others))


def _all_pages(page_at: Callable[[str | None], Page[T]]) -> Iterator[T]:
    cursor: str | None = None
    while True:
        page = page_at(cursor)
        yield from page
        cursor = page.cursor
        if cursor is None:
            return


def _decisions(ledger: Ledger) -> Iterator[Decision]:
    return _all_pages(lambda cursor: ledger.history(PORTFOLIO, ascending=True, limit=1000, cursor=cursor))


def _breaches(decision: Decision) -> Iterator[str]:
    """Yield a text for each scope that a grant left above its cap, by the decision's trace."""
    granted_e8 = decision.record.budget_e8 or 0
    for name, cap_e8, held_e8, open_e8, *_ in json.loads(decision.trace)["scopes"]:
        if cap_e8 is not None and held_e8 + open_e8 + granted_e8 > cap_e8:
            above = usd(held_e8 + open_e8 + granted_e8 - cap_e8)
            yield f"{decision.portfolio} #{decision.seq} left {name} {decimal_text(above)} USD above its cap"
