"""Formats a replay's report as lines of text. Figures are rounded down to the digits shown."""

from collections.abc import Callable, Iterator, Sequence
from decimal import ROUND_FLOOR, Decimal
from textwrap import wrap
from typing import Literal

from ledger_sizer.model.units import decimal_text, exact_arithmetic
from ledger_sizer.replay.run import PortfolioReport, Report
from ledger_sizer.replay.statistics import Yield, decision_counts, scope_peaks, sizes_by_score
from ledger_sizer.replay.strategy import basis_points

Style = Literal["title", "head", "text", "good", "bad"]
Line = tuple[Style, str]

_WIDTH = 80
_BOTS_SHOWN_MAX = 16
_VIOLATIONS_SHOWN_MAX = 10


def lines(report: Report) -> Iterator[Line]:
    """Yield the summary line by line, for 80 columns (wider when figures reach a million)."""
    yield from _header(report)
    for part in (_result, _exposure, _decisions, _sizes, _bots, _verification):
        yield "text", ""
        yield from part(report)


def _money(value: Decimal | None) -> str:
    return _rounded(value, "0.01")


def _rounded(value: Decimal | None, step: str) -> str:
    if value is None:
        return "-"
    with exact_arithmetic():
        return f"{value.quantize(Decimal(step), ROUND_FLOOR):,}"


def _percent(value: Decimal | None) -> str:
    if value is None:
        return "-"
    with exact_arithmetic():
        return f"{(value * 100).quantize(Decimal('0.01'), ROUND_FLOOR)} %"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _paragraph(text: str) -> Iterator[Line]:
    """Wrap text below a heading."""
    for line in wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    "):
        yield "text", line


def _table(
    heads: Sequence[tuple[str, Sequence[str]]],
    rows: Sequence[tuple[str, Sequence[str]]],
    label_width: int,
    widths: Sequence[int],
) -> Iterator[Line]:
    """Yield labels and right-aligned figures below one or two head lines. A column grows with its figures."""
    cells = [cells for _, cells in (*heads, *rows)]
    needed = [max(width, *(len(row[place]) + 2 for row in cells)) for place, width in enumerate(widths)]
    for number, (label, row) in enumerate((*heads, *rows)):
        figures = "".join(f"{cell:>{width}}" for cell, width in zip(row, needed, strict=True))
        yield "head" if number < len(heads) else "text", f"  {label:<{label_width}}{figures}"


def _header(report: Report) -> Iterator[Line]:
    source, plan = report.source, report.plan
    venues = len({venue for venue, _ in source.markets})
    yield "title", f"Replay of {source.name}"
    yield from _paragraph(
        f"{_count(source.bars, 'bar')}, {source.first:%Y-%m-%d %H:%M} to {source.last:%Y-%m-%d %H:%M} UTC; "
        f"{_count(len(source.markets), 'market')} on {_count(venues, 'venue')}"
    )
    if source.skipped:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(source.skipped.items()))
        yield from _paragraph(f"left out of {source.rows:,} rows: {left_out}")
    yield from _paragraph(
        f"{_count(plan.bots, 'bot')}, cap {_money(plan.cap)}, each venue {_money(plan.venue_cap)}, "
        f"a position at most {_money(plan.max_position)} USD"
    )
    low, high = decimal_text(plan.min_fraction), decimal_text(plan.max_fraction)
    yield from _paragraph(f"dynamic: {low} to {high} of a position by score; flat: all of it; seed {plan.seed}")


def _result(report: Report) -> Iterator[Line]:
    figures: tuple[tuple[str, Callable[[PortfolioReport, Yield], str]], ...] = (
        ("Funding collected, USD", lambda portfolio, _: _money(portfolio.figures.funding)),
        ("Average open exposure, USD", lambda _, earned: _money(earned.average_usd)),
        ("Funding per dollar of average exposure", lambda _, earned: _rounded(earned.per_dollar, "0.0001")),
        ("  the same a year", lambda _, earned: _percent(earned.a_year)),
        ("Basis result of both legs, USD", lambda portfolio, _: _money(portfolio.figures.basis)),
        ("Turnover of both legs, USD", lambda portfolio, _: _money(portfolio.figures.turnover)),
        ("  each basis point of fees would cost", lambda _, earned: _money(earned.basis_point_of_fees_usd)),
        ("Entries", lambda portfolio, _: f"{portfolio.figures.entries:,}"),
        ("Exits", lambda portfolio, _: f"{portfolio.figures.exits:,}"),
        ("Still open, positions", lambda portfolio, _: f"{portfolio.open_positions:,}"),
        ("Still open, USD", lambda portfolio, _: _money(portfolio.open_usd)),
    )
    pairs = [(portfolio, Yield.of(report, portfolio)) for portfolio in report.portfolios]
    rows = [(label, [show(portfolio, earned) for portfolio, earned in pairs]) for label, show in figures]
    yield from _table([("Result, before fees", ("dynamic", "flat"))], rows, 42, (16, 16))


def _exposure(report: Report) -> Iterator[Line]:
    heads = [
        ("", ("", "dynamic", "", "flat", "")),
        ("Highest exposure, USD", ("cap", "by grants", "overage", "by grants", "overage")),
    ]
    rows = [
        (scope, [_money(cap), *[_money(figure) for peak in peaks for figure in (peak.by_grants_usd, peak.overage_usd)]])
        for scope, cap, peaks in scope_peaks(report)
    ]
    yield from _table(heads, rows, 21, (12, 12, 10, 12, 10))
    causes = [
        f"{_count(count, 'fill')} in {portfolio.name} ({cause})"
        for portfolio in report.portfolios
        for cause, count in sorted(portfolio.figures.overages.items())
    ]
    if causes:
        yield from _paragraph(f"overage is facts, never grants: {', '.join(causes)}")


def _decisions(report: Report) -> Iterator[Line]:
    def label(command: str, outcome: str, bound_by: str) -> str:
        return f"{command:<10}{outcome:<28}{bound_by}"

    rows = [
        (label(row.command, row.outcome, row.bound_by), [f"{count:,}" for count in row.counts])
        for row in decision_counts(report)
    ]
    facts: tuple[tuple[str, Callable[[PortfolioReport], int]], ...] = (
        ("recorded in all", lambda portfolio: portfolio.head[0]),
        ("  fills that came after their hold had expired", lambda portfolio: portfolio.figures.late_fills),
        ("  answers asked for again with the same key", lambda portfolio: portfolio.figures.retries),
    )
    rows += [(text, [f"{count(portfolio):,}" for portfolio in report.portfolios]) for text, count in facts]
    yield from _table([(label("Decisions", "", "bound by"), ("dynamic", "flat"))], rows, 50, (12, 12))
    least = _money(report.plan.min_notional)
    yield from _paragraph(f"cap_exceeded: what the caps left buys less than one lot, or less than {least} USD")


def _sizes(report: Report) -> Iterator[Line]:
    for number, portfolio in enumerate(report.portfolios):
        if number:
            yield "text", ""
        title = f"Sizes by score, {portfolio.name.removeprefix('replay-')}"
        rows = [
            (
                row.score,
                [f"{row.grants:,}", *map(_money, (row.formula_usd, row.granted_usd, row.filled_usd, row.funding_usd))],
            )
            for row in sizes_by_score(portfolio.figures)
        ]
        heads = [(title, ("grants", "formula", "granted", "filled", "funding"))]
        yield from _table(heads, rows, 30, (8, 10, 10, 10, 10))
    yield from _paragraph("averages in USD: by the score, left by the caps, filled; funding is a sum")


def _bots(report: Report) -> Iterator[Line]:
    heads = [
        ("", ("", "in", "out", "dynamic", "", "flat", "")),
        ("Bots", ("bars", "bp", "bp", "entries", "funding", "entries", "funding")),
    ]
    rows = []
    for bot in report.plan.strategies[:_BOTS_SHOWN_MAX]:
        cells = [str(bot.window_bars), basis_points(bot.entry_rate), basis_points(bot.exit_rate)]
        for portfolio in report.portfolios:
            cells.append(f"{portfolio.figures.entries_by_bot[bot.name]:,}")
            cells.append(_money(portfolio.figures.funding_by_bot.get(bot.name, Decimal(0))))
        rows.append((bot.name, cells))
    yield from _table(heads, rows, 10, (8, 8, 8, 11, 11, 11, 11))
    if report.plan.bots > _BOTS_SHOWN_MAX:
        yield from _paragraph(f"and {report.plan.bots - _BOTS_SHOWN_MAX} more, see --json")


def _verification(report: Report) -> Iterator[Line]:
    if report.ok:
        yield "good", f"Verified: {report.decisions:,} decisions and {report.positions:,} positions"
        yield from _paragraph("chain, rows, counters and the desk's own book agree on every one of them")
    else:
        yield "bad", f"NOT verified: {_count(len(report.findings) + len(report.violations), 'finding')}"
        found = [f"{finding.portfolio} seq {finding.seq or '-'}: {finding.what}" for finding in report.findings]
        for what in [*found, *report.violations][:_VIOLATIONS_SHOWN_MAX]:
            yield "bad", f"  {what}"
    for portfolio in report.portfolios:
        yield "text", f"  {portfolio.name}: {_count(portfolio.head[0], 'decision')}, the chain ends in"
        yield "text", f"    {portfolio.head[1]}"
    a_second = int(report.decisions / report.replay_seconds) if report.replay_seconds else report.decisions
    yield from _paragraph(
        f"{report.replay_seconds:.1f} s: {a_second:,} decisions a second in {report.commits:,} durable commits; "
        f"verified in {report.verify_seconds:.1f} s"
    )
