"""What came of a demonstration, read from the ledger's audit chain after everything has stopped."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ledger_sizer.demo.bots import PORTFOLIO
from ledger_sizer.domain import VerifyReport
from ledger_sizer.ledger import Ledger
from ledger_sizer.records import Decision
from ledger_sizer.units import plain, usd


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

    @property
    def expiries(self) -> int:
        """Holds that ended by themselves."""
        return sum(number for (command, _, _), number in self.outcomes.items() if command == "expire")

    @property
    def ok(self) -> bool:
        """Whether everything went as promised.

        The ledger verifies, no grant breached a cap, no replay gave another answer, and nothing died of a defect.
        """
        kept = self.report.ok and not self.breaches and not self.events.get("not replayed")
        return kept and self.graceful and not self.deaths.get("failed")

    def document(self) -> dict[str, Any]:
        """For programs: decimals as strings."""
        return {
            "ok": self.ok,
            "cap": plain(self.cap),
            "highest_exposure_granted": plain(self.highest_granted),
            "highest_exposure": plain(self.highest),
            "breaches": list(self.breaches),
            "decisions": [
                {"command": command, "outcome": outcome, "reason": reason, "count": count}
                for (command, outcome, reason), count in sorted(self.outcomes.items(), key=str)
            ],
            "expiries": self.expiries,
            "bots": {"deaths": dict(self.deaths), "events": dict(self.events)},
            "stopped_gracefully": self.graceful,
            "verify": {
                "ok": self.report.ok,
                "decisions": self.report.decisions,
                "positions": self.report.positions,
                "findings": [finding.what for finding in self.report.findings],
            },
        }


def summarised(
    ledger: Ledger, cap: Decimal, deaths: Mapping[str, int], events: Mapping[str, int], *, graceful: bool
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
    return Summary(cap, outcomes, highest_granted, highest, tuple(breaches), deaths, events, graceful, ledger.verify())


def _decisions(ledger: Ledger) -> Iterator[Decision]:
    cursor: str | None = None
    while True:
        page = ledger.history(PORTFOLIO, ascending=True, limit=1000, cursor=cursor)
        yield from page
        cursor = page.cursor
        if cursor is None:
            return


def _breaches(decision: Decision) -> Iterator[str]:
    """The scopes that a grant left above their caps, from what the rules saw when they decided."""
    granted_e8 = decision.record.budget_e8 or 0
    for name, cap_e8, held_e8, open_e8, _ in json.loads(decision.trace)["scopes"]:
        if cap_e8 is not None and held_e8 + open_e8 + granted_e8 > cap_e8:
            above = usd(held_e8 + open_e8 + granted_e8 - cap_e8)
            yield f"{decision.portfolio} #{decision.seq} left {name} {plain(above)} USD above its cap"
