"""What a replay came to: lines for a trading desk to read, or one document for a program.

Rates, sums and averages are exact until they are shown; the lines round down to the digits they have, the document
keeps up to twelve decimals.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import ROUND_FLOOR, Decimal
from typing import Any, Literal

from ledger_sizer.replay.book import BUCKETS, BucketFigures
from ledger_sizer.replay.run import PortfolioReport, Report
from ledger_sizer.replay.strategy import basis_points
from ledger_sizer.replay.venues import VENUES
from ledger_sizer.units import exactly, plain, usd

Style = Literal["title", "head", "text", "good", "bad"]
Line = tuple[Style, str]

_BOTS_SHOWN_MAX = 16
_BROKEN_SHOWN_MAX = 10
_YEAR_SECONDS = 365 * 24 * 3600
_LABEL_WIDTH = 42
_PLACES = Decimal("1e-12")


class Derived:
    """Figures that follow from a portfolio's own: averages and shares. None where nothing was open or granted."""

    def __init__(self, portfolio: PortfolioReport, seconds: int) -> None:
        figures = portfolio.figures
        with exactly():
            self.average_usd = _share(usd(figures.open_sum_e8), figures.open_samples) or Decimal(0)
            self.per_dollar = _share(figures.funding, self.average_usd)
            self.a_year = None if self.per_dollar is None else _share(self.per_dollar * _YEAR_SECONDS, seconds)
            self.basis_point_of_fees = (figures.turnover / 10_000).quantize(_PLACES, ROUND_FLOOR)


def _share(of: Decimal, by: Decimal | int) -> Decimal | None:
    return (of / by).quantize(_PLACES, ROUND_FLOOR) if by else None


# --- lines -----------------------------------------------------------------------------------------------------


def lines(report: Report) -> Iterator[Line]:
    """The summary, line by line, at most 100 columns wide."""
    yield from _head(report)
    yield from _result(report)
    yield from _exposure(report)
    yield from _decisions(report)
    yield from _sizes(report)
    yield from _bots(report)
    yield from _proof(report)


def _money(value: Decimal | None) -> str:
    return _places(value, "0.01")


def _places(value: Decimal | None, step: str) -> str:
    if value is None:
        return "-"
    with exactly():
        return f"{value.quantize(Decimal(step), ROUND_FLOOR):,}"


def _percent(value: Decimal | None) -> str:
    if value is None:
        return "-"
    with exactly():
        return f"{(value * 100).quantize(Decimal('0.01'), ROUND_FLOOR)} %"


def _row(label: str, cells: Sequence[str], widths: Sequence[int], label_width: int = _LABEL_WIDTH) -> str:
    figures = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"  {label:<{label_width}}{figures}"


def _head(report: Report) -> Iterator[Line]:
    source, plan = report.source, report.plan
    venues = len({venue for venue, _ in source.markets})
    yield "title", f"Replay of {source.name}"
    yield (
        "text",
        f"  {source.bars:,} bars from {source.first:%Y-%m-%d %H:%M} to {source.last:%Y-%m-%d %H:%M} UTC, "
        f"{len(source.markets)} markets on {venues} venues",
    )
    if source.skipped:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(source.skipped.items()))
        yield "text", f"  left out of {source.rows:,} rows: {left_out}"
    yield (
        "text",
        f"  {plan.bots} bots, cap {_money(plan.cap)}, each venue {_money(plan.venue_cap)}, a position at most "
        f"{_money(plan.max_position)} USD",
    )
    low, high = plain(plan.min_fraction), plain(plan.max_fraction)
    yield "text", f"  dynamic: {low} to {high} of a position by score; flat: all of it; seed {plan.seed}"


def _result(report: Report) -> Iterator[Line]:
    seconds = int(report.source.span.total_seconds())
    pairs = [(portfolio, Derived(portfolio, seconds)) for portfolio in report.portfolios]
    rows: tuple[tuple[str, Callable[[PortfolioReport, Derived], str]], ...] = (
        ("Funding collected, USD", lambda p, _: _money(p.figures.funding)),
        ("Average open exposure, USD", lambda _, d: _money(d.average_usd)),
        ("Funding per dollar of average exposure", lambda _, d: _places(d.per_dollar, "0.0001")),
        ("  the same a year", lambda _, d: _percent(d.a_year)),
        ("Basis result of both legs, USD", lambda p, _: _money(p.figures.basis)),
        ("Turnover of both legs, USD", lambda p, _: _money(p.figures.turnover)),
        ("  each basis point of fees would cost", lambda _, d: _money(d.basis_point_of_fees)),
        ("Entries", lambda p, _: f"{p.figures.entries:,}"),
        ("Exits", lambda p, _: f"{p.figures.exits:,}"),
        ("Still open, positions", lambda p, _: f"{p.open_positions:,}"),
        ("Still open, USD", lambda p, _: _money(p.open_usd)),
    )
    yield "text", ""
    yield "head", _row("Result, before fees", ("dynamic", "flat"), (16, 16))
    for label, figure in rows:
        yield "text", _row(label, [figure(portfolio, derived) for portfolio, derived in pairs], (16, 16))


def _exposure(report: Report) -> Iterator[Line]:
    widths = (12, 12, 11, 12, 11)
    yield "text", ""
    yield "text", _row("", ("", "dynamic", "", "flat", ""), widths, 24)
    yield "head", _row("Highest exposure, USD", ("cap", "by grants", "overage", "by grants", "overage"), widths, 24)
    for scope, cap, peaks in _scope_peaks(report):
        cells = [_money(cap)]
        for granted, overage in peaks:
            cells += [_money(granted), _money(overage)]
        yield "text", _row(scope, cells, widths, 24)
    causes = [
        f"{count} {'fill' if count == 1 else 'fills'} in {portfolio.name} ({cause})"
        for portfolio in report.portfolios
        for cause, count in sorted(portfolio.figures.overages.items())
    ]
    if causes:
        yield "text", "  overage is facts, never grants: " + ", ".join(causes[:2]) + ("," if causes[2:] else "")
    if causes[2:]:
        yield "text", "  " + ", ".join(causes[2:])


def _scope_peaks(report: Report) -> Iterator[tuple[str, Decimal, list[tuple[Decimal, Decimal]]]]:
    """Each capped scope with, per portfolio, the highest exposure a grant left and the highest overage of any fact."""
    venues = {venue for venue, _ in report.source.markets}
    for venue in (None, *[venue for venue in VENUES if venue in venues]):
        cap = report.plan.cap if venue is None else report.plan.venue_cap
        peaks = []
        for portfolio in report.portfolios:
            figures = portfolio.figures
            granted_e8 = figures.peak_granted_e8 if venue is None else figures.venue_peak_granted_e8[venue]
            highest = usd(figures.peak_e8 if venue is None else figures.venue_peak_e8[venue])
            with exactly():
                peaks.append((usd(granted_e8), max(highest - cap, Decimal(0))))
        yield "portfolio" if venue is None else f"venue={venue}", cap, peaks


def _decision_rows(report: Report) -> list[tuple[str, str, str, list[int]]]:
    """(command, outcome or reason, what bound it, counts per portfolio), in the order of a position's life."""
    order = ("reserve", "confirm", "extend", "release", "expire", "set_cap", "halt", "resume")
    counts: list[Counter[tuple[str, str, str]]] = []
    for portfolio in report.portfolios:
        counter: Counter[tuple[str, str, str]] = Counter()
        for (command, outcome, reason, binding), count in portfolio.figures.decisions.items():
            bound = "" if binding is None else binding.partition("=")[0]
            counter[command, f"denied {reason}" if outcome == "denied" else outcome, bound] += count
        counts.append(counter)
    keys = sorted(set().union(*counts), key=lambda key: (order.index(key[0]), key[1].startswith("denied"), key))
    return [(*key, [counter[key] for counter in counts]) for key in keys]


def _decisions(report: Report) -> Iterator[Line]:
    widths = (12, 12)
    yield "text", ""
    yield "head", _row(f"{'Decisions':<10}{'':<28}{'bound by':<12}", ("dynamic", "flat"), widths, 50)
    for command, outcome, bound, counts in _decision_rows(report):
        yield "text", _row(f"{command:<10}{outcome:<28}{bound:<12}", [f"{count:,}" for count in counts], widths, 50)
    yield (
        "text",
        f"  below_min_*: what the cap left buys less than one lot, or less than {_money(report.plan.min_notional)} USD",
    )
    totals = [f"{portfolio.head[0]:,}" for portfolio in report.portfolios]
    yield "text", _row("recorded in all", totals, widths, 50)
    for label, name in (
        ("fills that came after their hold had expired", "late_fills"),
        ("answers asked for again with the same key", "retries"),
    ):
        yield (
            "text",
            _row(label, [f"{getattr(portfolio.figures, name):,}" for portfolio in report.portfolios], widths, 50),
        )


def _average(total_e8: int, count: int) -> Decimal | None:
    with exactly():
        return _share(usd(total_e8), count)


def _sizes(report: Report) -> Iterator[Line]:
    widths = (8, 10, 10, 10, 10)
    for portfolio in report.portfolios:
        yield "text", ""
        title = f"Sizes by score, {portfolio.name.removeprefix('replay-')}"
        yield "head", _row(title, ("grants", "formula", "granted", "filled", "funding"), widths, 30)
        for name, bucket in zip(BUCKETS, portfolio.figures.buckets, strict=True):
            yield "text", _row(name, _bucket_cells(bucket), widths, 30)
    yield "text", "  averages in USD: what the score gives, what the caps left of it, what was filled; funding is a sum"


def _bucket_cells(bucket: BucketFigures) -> list[str]:
    return [
        f"{bucket.grants:,}",
        _money(_average(bucket.formula_e8, bucket.grants)),
        _money(_average(bucket.granted_e8, bucket.grants)),
        _money(_average(bucket.filled_e8, bucket.fills)),
        _money(bucket.funding),
    ]


def _bots(report: Report) -> Iterator[Line]:
    widths = (8, 8, 8, 10, 10, 10, 10)
    yield "text", ""
    yield "text", _row("", ("", "in", "out", "dynamic", "", "flat", ""), widths, 10)
    heads = ("bars", "bp", "bp", "entries", "funding", "entries", "funding")
    yield "head", _row("Bots", heads, widths, 10)
    for bot in report.plan.strategies[:_BOTS_SHOWN_MAX]:
        cells = [str(bot.window_bars), basis_points(bot.entry_rate), basis_points(bot.exit_rate)]
        for portfolio in report.portfolios:
            cells.append(f"{portfolio.figures.entries_by_bot[bot.name]:,}")
            cells.append(_money(portfolio.figures.funding_by_bot.get(bot.name, Decimal(0))))
        yield "text", _row(bot.name, cells, widths, 10)
    if report.plan.bots > _BOTS_SHOWN_MAX:
        yield "text", f"  and {report.plan.bots - _BOTS_SHOWN_MAX} more, see --json"


def _proof(report: Report) -> Iterator[Line]:
    yield "text", ""
    if report.ok:
        yield "good", f"Verified: {report.decisions:,} decisions and {report.positions:,} positions"
        yield "text", "  chain, rows and counters agree, and so does the desk's own book after every decision"
    else:
        yield "bad", f"NOT verified: {len(report.findings) + len(report.broken)} findings"
        found = [f"{finding.portfolio} seq {finding.seq}: {finding.what}" for finding in report.findings]
        for what in [*found, *report.broken][:_BROKEN_SHOWN_MAX]:
            yield "bad", f"  {what}"
    for portfolio in report.portfolios:
        yield "text", f"  {portfolio.name:<15}{portfolio.head[0]:>8,}  {portfolio.head[1]}"
    a_second = int(report.decisions / report.replay_seconds) if report.replay_seconds else report.decisions
    yield (
        "text",
        f"  {report.replay_seconds:.1f} s, {a_second:,} decisions a second in {report.commits:,} durable commits; "
        f"verified in {report.verify_seconds:.1f} s",
    )


# --- document --------------------------------------------------------------------------------------------------


def document(report: Report) -> dict[str, Any]:
    """Everything as JSON-ready values, decimals as strings. Only `timing` differs between two runs of one replay."""
    source, plan = report.source, report.plan
    return {
        "source": {
            "name": source.name,
            "bars": source.bars,
            "first": source.first.isoformat(),
            "last": source.last.isoformat(),
            "rows": source.rows,
            "markets": [f"{venue}/{coin}" for venue, coin in source.markets],
            "left_out": dict(source.skipped),
        },
        "plan": {
            "bots": plan.bots,
            "cap_usd": plain(plan.cap),
            "venue_cap_usd": plain(plan.venue_cap),
            "max_position_usd": plain(plan.max_position),
            "min_notional_usd": plain(plan.min_notional),
            "min_fraction": plain(plan.min_fraction),
            "max_fraction": plain(plan.max_fraction),
            "seed": plan.seed,
        },
        "portfolios": {
            portfolio.name: _portfolio_document(report, number, portfolio)
            for number, portfolio in enumerate(report.portfolios)
        },
        "verify": {
            "ok": report.ok,
            "decisions": report.decisions,
            "positions": report.positions,
            "findings": [
                {"portfolio": finding.portfolio, "seq": finding.seq, "what": finding.what}
                for finding in report.findings
            ],
            "broken": report.broken,
        },
        "timing": {
            "replay_seconds": f"{report.replay_seconds:.3f}",
            "verify_seconds": f"{report.verify_seconds:.3f}",
            "commits": report.commits,
        },
    }


def _portfolio_document(report: Report, number: int, portfolio: PortfolioReport) -> dict[str, Any]:
    figures = portfolio.figures
    derived = Derived(portfolio, int(report.source.span.total_seconds()))
    return {
        "decisions": [
            {"command": command, "outcome": outcome, "bound_by": bound or None, "count": counts[number]}
            for command, outcome, bound, counts in _decision_rows(report)
            if counts[number]
        ],
        "retries": figures.retries,
        "expired": figures.expired,
        "late_fills": figures.late_fills,
        "entries": figures.entries,
        "exits": figures.exits,
        "open_positions": portfolio.open_positions,
        "open_usd": plain(portfolio.open_usd),
        "exposure": {
            scope: {
                "cap_usd": plain(cap),
                "highest_by_grants_usd": plain(peaks[number][0]),
                "highest_overage_usd": plain(peaks[number][1]),
            }
            for scope, cap, peaks in _scope_peaks(report)
        },
        "overages": dict(figures.overages),
        "funding_usd": plain(figures.funding),
        "average_exposure_usd": plain(derived.average_usd),
        "funding_per_dollar": _plain(derived.per_dollar),
        "funding_per_dollar_a_year": _plain(derived.a_year),
        "basis_usd": plain(figures.basis),
        "turnover_usd": plain(figures.turnover),
        "sizes_by_score": [
            {
                "score": name,
                "grants": bucket.grants,
                "formula_usd": _plain(_average(bucket.formula_e8, bucket.grants)),
                "granted_usd": _plain(_average(bucket.granted_e8, bucket.grants)),
                "filled_usd": _plain(_average(bucket.filled_e8, bucket.fills)),
                "funding_usd": plain(bucket.funding),
            }
            for name, bucket in zip(BUCKETS, figures.buckets, strict=True)
        ],
        "bots": {
            bot.name: {
                "entries": figures.entries_by_bot[bot.name],
                "funding_usd": plain(figures.funding_by_bot.get(bot.name, Decimal(0))),
            }
            for bot in report.plan.strategies
        },
        "head": {"seq": portfolio.head[0], "hash": portfolio.head[1]},
    }


def _plain(value: Decimal | None) -> str | None:
    return None if value is None else plain(value)
