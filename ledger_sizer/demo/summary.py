"""What came of a demonstration, read from the ledger's audit chain after everything has stopped."""

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
from ledger_sizer.model.domain import Page, VerifyReport
from ledger_sizer.model.units import decimal_text, usd
from ledger_sizer.reconcile import drifts

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What the reconciliation found.

    runs: by outcome. agreed: markets that were equal on both sides, over all runs. injected: each meddling, with what
    became of it. others: confirmed drifts that nobody meant to make.
    """

    runs: Mapping[str, int]
    agreed: int
    injected: tuple[InjectionResult, ...]
    others: int

    @property
    def ok(self) -> bool:
        """Whether both sides agreed at some time, and all that was done at the venue was found and cleared."""
        seen_through = [one.drift is not None and one.cleared for one in self.injected]
        return self.agreed > 0 and bool(seen_through) and all(seen_through)

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "ok": self.ok, "runs": dict(self.runs), "agreed": self.agreed, "other_drifts": self.others,
            "injected": [
                {"what": one.what, "kind": one.kind, "found": one.drift is not None, "cleared": one.cleared}
                for one in self.injected
            ],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a demonstration. Money in USD.

    outcomes: decisions by (command, outcome, reason). highest_granted: the highest exposure any grant led to;
    highest: the same after facts too (a late fill may stand above the cap). breaches: grants that left a scope above
    its cap. deaths, events: what became of the bots, and what they told. graceful: the service stopped by itself.
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
    reconciled: Reconciled | None = None

    @property
    def expiries(self) -> int:
        """Holds that ended by themselves."""
        return sum(number for (command, _, _), number in self.outcomes.items() if command == "expire")

    @property
    def ok(self) -> bool:
        """Whether everything went as promised.

        The ledger verifies, no grant breached a cap, no replay gave another answer, nothing died of a defect, and what
        happened at the exchange behind the ledger's back was found.
        """
        kept = self.report.ok and not self.breaches and not self.events.get("not replayed")
        kept = kept and (self.reconciled is None or self.reconciled.ok)
        return kept and self.graceful and not self.deaths.get("failed")

    def document(self) -> dict[str, Any]:
        """For programs: decimals as strings."""
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
            "reconciliation": None if self.reconciled is None else self.reconciled.document(),
            "stopped_gracefully": self.graceful,
            "verify": {
                "ok": self.report.ok,
                "decisions": self.report.decisions,
                "positions": self.report.positions,
                "findings": [finding.what for finding in self.report.findings],
            },
        }


def summarised(
    ledger: Ledger,
    cap: Decimal,
    deaths: Mapping[str, int],
    events: Mapping[str, int],
    *,
    graceful: bool,
    reconciled: Reconciled | None = None,
) -> Summary:
    """Read the whole chain, and verify it."""
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
        cap, outcomes, highest_granted, highest, tuple(breaches), deaths, events, graceful, ledger.verify(), reconciled
    )  # fmt: skip


def reconciled_at(reads: Engine, injected: Sequence[InjectionResult]) -> Reconciled:
    """Read the runs and drifts; injected: what was done at the venue."""
    outcomes: Counter[str] = Counter()
    agreed = 0
    for run in _all(lambda cursor: drifts.list_runs(reads, cursor=cursor)):
        outcomes[run.outcome] += 1
        agreed += run.found.get("agrees", 0)
    known = {one.drift for one in injected}.union(*(one.companions for one in injected))
    found = _all(lambda cursor: drifts.list_drifts(reads, cursor=cursor))
    others = [drift for drift in found if drift.id not in known and drift.sightings >= CONFIRMATIONS]
    return Reconciled(outcomes, agreed, tuple(injected), len(others))


def _all(page_at: Callable[[str | None], Page[T]]) -> Iterator[T]:
    cursor: str | None = None
    while True:
        page = page_at(cursor)
        yield from page
        cursor = page.cursor
        if cursor is None:
            return


def _decisions(ledger: Ledger) -> Iterator[Decision]:
    return _all(lambda cursor: ledger.history(PORTFOLIO, ascending=True, limit=1000, cursor=cursor))


def _breaches(decision: Decision) -> Iterator[str]:
    """The scopes that a grant left above their caps, from what the rules saw when they decided."""
    granted_e8 = decision.record.budget_e8 or 0
    for name, cap_e8, held_e8, open_e8, *_ in json.loads(decision.trace)["scopes"]:
        if cap_e8 is not None and held_e8 + open_e8 + granted_e8 > cap_e8:
            above = usd(held_e8 + open_e8 + granted_e8 - cap_e8)
            yield f"{decision.portfolio} #{decision.seq} left {name} {decimal_text(above)} USD above its cap"
