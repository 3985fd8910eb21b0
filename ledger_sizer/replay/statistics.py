"""Figures that follow from a report's own: averages, shares, peaks per scope, counts in the order of a position's life.

Quotients are rounded down to twelve decimals; sums are exact.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

from ledger_sizer.model.units import exact_arithmetic, usd
from ledger_sizer.replay.run import PortfolioReport, Report
from ledger_sizer.replay.venues import VENUES

_YEAR_SECONDS = 365 * 24 * 3600
_PLACES = Decimal("1e-12")
_VERBS = ("reserve", "confirm", "extend", "release", "expire", "set_cap", "halt", "resume")


def share(of: Decimal, by: Decimal | int) -> Decimal | None:
    """`of` / `by`; None where there is nothing to divide by."""
    with exact_arithmetic():
        return (of / by).quantize(_PLACES, ROUND_FLOOR) if by else None


def average_usd(total_e8: int, count: int) -> Decimal | None:
    """The mean of `count` amounts that sum to `total_e8`, USD."""
    return share(usd(total_e8), count)


@dataclass(frozen=True, slots=True)
class Yield:
    """What a portfolio's money earned.

    average_usd: open exposure, averaged over all bars. per_dollar: funding collected per USD of it, a_year: the same
    scaled to 365 days without compounding. basis_point_of_fees_usd: what a fee of 0.0001 on every fill would cost.
    """

    average_usd: Decimal
    per_dollar: Decimal | None
    a_year: Decimal | None
    basis_point_of_fees_usd: Decimal

    @classmethod
    def of(cls, report: Report, portfolio: PortfolioReport) -> "Yield":
        """The yield of one of the report's portfolios."""
        figures = portfolio.figures
        seconds = int(report.source.span.total_seconds())
        with exact_arithmetic():
            # Each from the sums themselves: a quotient of rounded quotients would be off in its last digits.
            bar_dollars = usd(figures.open_sum_e8)
            funding_bars = figures.funding * figures.open_samples
            return cls(
                average_usd=average_usd(figures.open_sum_e8, figures.open_samples) or Decimal(0),
                per_dollar=share(funding_bars, bar_dollars),
                a_year=share(funding_bars * _YEAR_SECONDS, bar_dollars * seconds),
                basis_point_of_fees_usd=share(figures.turnover, 10_000) or Decimal(0),
            )


@dataclass(frozen=True, slots=True)
class Peak:
    """How high one scope went in one portfolio, USD: after grants, and above its cap by fills."""

    by_grants_usd: Decimal
    overage_usd: Decimal


def scope_peaks(report: Report) -> Iterator[tuple[str, Decimal, list[Peak]]]:
    """Each capped scope with its cap in USD and its peak in each portfolio."""
    quoted = {venue for venue, _ in report.source.markets}
    for venue in (None, *[venue for venue in VENUES if venue in quoted]):
        cap = report.plan.cap if venue is None else report.plan.venue_cap
        peaks = []
        for portfolio in report.portfolios:
            figures = portfolio.figures
            granted_e8 = figures.peak_granted_e8 if venue is None else figures.venue_peak_granted_e8[venue]
            highest = usd(figures.peak_e8 if venue is None else figures.venue_peak_e8[venue])
            with exact_arithmetic():
                peaks.append(Peak(usd(granted_e8), max(highest - cap, Decimal(0))))
        yield "portfolio" if venue is None else f"venue={venue}", cap, peaks


@dataclass(frozen=True, slots=True)
class DecisionCount:
    """How often a command had an outcome (a denial with its reason, and whether portfolio or venue bound it)."""

    command: str
    outcome: str
    bound_by: str
    counts: tuple[int, ...]


def decision_counts(report: Report) -> list[DecisionCount]:
    """All decisions, counted per portfolio, in the order of a position's life."""
    counters: list[Counter[tuple[str, str, str]]] = []
    for portfolio in report.portfolios:
        counter: Counter[tuple[str, str, str]] = Counter()
        for (command, outcome, reason, binding), count in portfolio.figures.decisions.items():
            bound_by = "" if binding is None else binding.partition("=")[0]
            counter[command, f"denied {reason}" if outcome == "denied" else outcome, bound_by] += count
        counters.append(counter)
    keys = sorted(set().union(*counters), key=lambda key: (_VERBS.index(key[0]), key[1].startswith("denied"), key))
    return [DecisionCount(*key, tuple(counter[key] for counter in counters)) for key in keys]
