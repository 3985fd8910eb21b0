"""Converts a replay's report to one JSON document: decimals as strings, missing figures as null."""

from dataclasses import asdict
from decimal import Decimal
from typing import Any

from ledger_sizer.model.units import decimal_text
from ledger_sizer.replay.run import Plan, PortfolioReport, Report
from ledger_sizer.replay.source import Source
from ledger_sizer.replay.statistics import Yield, decision_counts, scope_peaks, sizes_by_score


def report_document(report: Report) -> dict[str, Any]:
    """Return the whole report. Two runs of the same replay differ only in `timing`."""
    return {
        "source": _source(report.source),
        "plan": _plan(report.plan),
        "portfolios": {
            portfolio.name: _portfolio(report, number, portfolio) for number, portfolio in enumerate(report.portfolios)
        },
        "verify": {
            "ok": report.ok,
            "decisions": report.decisions,
            "positions": report.positions,
            "findings": [asdict(finding) for finding in report.findings],
            "broken": report.violations,
        },
        "timing": {
            "replay_seconds": f"{report.replay_seconds:.3f}",
            "verify_seconds": f"{report.verify_seconds:.3f}",
            "commits": report.commits,
        },
    }


def _source(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "bars": source.bars,
        "first": source.first.isoformat(),
        "last": source.last.isoformat(),
        "rows": source.rows,
        "markets": [f"{venue}/{coin}" for venue, coin in source.markets],
        "left_out": dict(source.skipped),
    }


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        "bots": plan.bots,
        "cap_usd": decimal_text(plan.cap),
        "venue_cap_usd": decimal_text(plan.venue_cap),
        "max_position_usd": decimal_text(plan.max_position),
        "min_notional_usd": decimal_text(plan.min_notional),
        "min_fraction": decimal_text(plan.min_fraction),
        "max_fraction": decimal_text(plan.max_fraction),
        "seed": plan.seed,
    }


def _portfolio(report: Report, number: int, portfolio: PortfolioReport) -> dict[str, Any]:
    figures = portfolio.figures
    earned = Yield.of(report, portfolio)
    return {
        "decisions": [
            {"command": row.command, "outcome": row.outcome, "bound_by": row.bound_by or None, "count": count}
            for row in decision_counts(report)
            if (count := row.counts[number])
        ],
        "retries": figures.retries,
        "expired": figures.expired,
        "late_fills": figures.late_fills,
        "entries": figures.entries,
        "exits": figures.exits,
        "open_positions": portfolio.open_positions,
        "open_usd": decimal_text(portfolio.open_usd),
        "exposure": {
            scope: {
                "cap_usd": decimal_text(cap),
                "highest_by_grants_usd": decimal_text(peaks[number].by_grants_usd),
                "highest_overage_usd": decimal_text(peaks[number].overage_usd),
            }
            for scope, cap, peaks in scope_peaks(report)
        },
        "overages": dict(figures.overages),
        "funding_usd": decimal_text(figures.funding),
        "average_exposure_usd": decimal_text(earned.average_usd),
        "funding_per_dollar": _text(earned.per_dollar),
        "funding_per_dollar_a_year": _text(earned.a_year),
        "basis_usd": decimal_text(figures.basis),
        "turnover_usd": decimal_text(figures.turnover),
        "sizes_by_score": [
            {name: _text(value) if name.endswith("_usd") else value for name, value in asdict(row).items()}
            for row in sizes_by_score(figures)
        ],
        "bots": {
            bot.name: {
                "window_bars": bot.window_bars,
                "entry_rate": decimal_text(bot.entry_rate),
                "exit_rate": decimal_text(bot.exit_rate),
                "entries": figures.entries_by_bot[bot.name],
                "funding_usd": decimal_text(figures.funding_by_bot.get(bot.name, Decimal(0))),
            }
            for bot in report.plan.strategies
        },
        "head": {"seq": portfolio.head[0], "hash": portfolio.head[1]},
    }


def _text(value: Decimal | None) -> str | None:
    return None if value is None else decimal_text(value)
