"""Derives figures from a report: averages, yields, peaks per scope, counts of decisions.

Quotients are rounded down to twelve decimals; sums are exact.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

from ledger_sizer.exchanges.known_markets import VENUES
from ledger_sizer.model.units import exact_arithmetic, usd
from ledger_sizer.replay.accounting import BUCKETS, Figures
from ledger_sizer.replay.run import PortfolioReport, Report

_YEAR_SECONDS = 365 * 24 * 3600
_QUOTIENT_STEP = Decimal("1e-12")
_COMMAND_ORDER = ("reserve", "confirm", "extend", "release", "expire", "set_cap", "halt", "resume")


def ratio(numerator: Decimal, denominator: Decimal | int) -> Decimal | None:
    """Return the quotient; None when the denominator is 0."""
    with exact_arithmetic():
        return (numerator / denominator).quantize(_QUOTIENT_STEP, ROUND_FLOOR) if denominator else None


def average_usd(total_e8: int, count: int) -> Decimal | None:
    """Return the mean of `count` amounts that sum to `total_e8`, USD; None when `count` is 0."""
    return ratio(usd(total_e8), count)


@dataclass(frozen=True, slots=True)
class SizeRow:
    """The orders in one range of scores. Averages in USD, None where there were none; funding_usd is a sum."""

    score: str
    grants: int
    formula_usd: Decimal | None
    granted_usd: Decimal | None
    filled_usd: Decimal | None
    funding_usd: Decimal


def sizes_by_score(figures: Figures) -> list[SizeRow]:
    """Return one row per range of scores, ascending."""
    return [
        SizeRow(
            score, bucket.grants, average_usd(bucket.formula_e8, bucket.grants),
            average_usd(bucket.granted_e8, bucket.grants), average_usd(bucket.filled_e8, bucket.fills), bucket.funding,
        )
        for score, bucket in zip(BUCKETS, figures.buckets, strict=True)
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Yield:
    """A portfolio's return.

    average_usd: open exposure, averaged over all bars. per_dollar: funding collected per USD of average exposure.
    a_year: per_dollar scaled to 365 days without compounding. basis_point_of_fees_usd: cost of a fee of 0.0001 on
    every fill.
    """

    average_usd: Decimal
    per_dollar: Decimal | None
    a_year: Decimal | None
    basis_point_of_fees_usd: Decimal

    @classmethod
    def of(cls, report: Report, portfolio: PortfolioReport) -> "Yield":
        """Compute the yield of one of the report's portfolios."""
        figures = portfolio.figures
        seconds = int(report.source.span.total_seconds())
        with exact_arithmetic():
            # Each from the exact sums: a quotient of rounded quotients would be wrong in its last digits.
            bar_dollars = usd(figures.open_sum_e8)
            funding_bars = figures.funding * figures.open_samples
            return cls(
                average_usd=average_usd(figures.open_sum_e8, figures.open_samples) or Decimal(0),
                per_dollar=ratio(funding_bars, bar_dollars),
                a_year=ratio(funding_bars * _YEAR_SECONDS, bar_dollars * seconds),
                basis_point_of_fees_usd=ratio(figures.turnover, 10_000) or Decimal(0),
            )


@dataclass(frozen=True, slots=True)
class Peak:
    """Peak of one scope in one portfolio, USD: exposure after a grant, and overage above the cap by fills."""

    by_grants_usd: Decimal
    overage_usd: Decimal


def scope_peaks(report: Report) -> Iterator[tuple[str, Decimal, list[Peak]]]:
    """Yield (scope, cap in USD, peak per portfolio) of each capped scope."""
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
    """Counts of one (command, outcome) per portfolio. bound_by: `portfolio` or `venue` for a denial, else empty."""

    command: str
    outcome: str
    bound_by: str
    counts: tuple[int, ...]


def decision_counts(report: Report) -> list[DecisionCount]:
    """Count all decisions per portfolio, sorted by `_COMMAND_ORDER`."""
    counters: list[Counter[tuple[str, str, str]]] = []
    for portfolio in report.portfolios:
        counter: Counter[tuple[str, str, str]] = Counter()
        for (command, outcome, reason, binding), count in portfolio.figures.decisions.items():
            bound_by = "" if binding is None else binding.partition("=")[0]
            counter[command, f"denied {reason}" if outcome == "denied" else outcome, bound_by] += count
        counters.append(counter)
    keys = sorted(
        set().union(*counters), key=lambda key: (_COMMAND_ORDER.index(key[0]), key[1].startswith("denied"), key)
    )
    return [DecisionCount(*key, tuple(counter[key] for counter in counters)) for key in keys]
