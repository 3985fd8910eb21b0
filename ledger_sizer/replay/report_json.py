"""A replay's report as one JSON document: decimals as strings, absent figures as null."""

from decimal import Decimal
from typing import Any

from ledger_sizer.model.units import plain
from ledger_sizer.replay.accounting import BUCKETS, Figures
from ledger_sizer.replay.run import Plan, PortfolioReport, Report
from ledger_sizer.replay.source import Source
from ledger_sizer.replay.statistics import Yield, average_usd, decision_counts, scope_peaks


def document(report: Report) -> dict[str, Any]:
    """Everything the report knows. Only `timing` differs between two runs of one replay."""
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
        "cap_usd": plain(plan.cap),
        "venue_cap_usd": plain(plan.venue_cap),
        "max_position_usd": plain(plan.max_position),
        "min_notional_usd": plain(plan.min_notional),
        "min_fraction": plain(plan.min_fraction),
        "max_fraction": plain(plan.max_fraction),
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
        "open_usd": plain(portfolio.open_usd),
        "exposure": {
            scope: {
                "cap_usd": plain(cap),
                "highest_by_grants_usd": plain(peaks[number].by_grants_usd),
                "highest_overage_usd": plain(peaks[number].overage_usd),
            }
            for scope, cap, peaks in scope_peaks(report)
        },
        "overages": dict(figures.overages),
        "funding_usd": plain(figures.funding),
        "average_exposure_usd": plain(earned.average_usd),
        "funding_per_dollar": _text(earned.per_dollar),
        "funding_per_dollar_a_year": _text(earned.a_year),
        "basis_usd": plain(figures.basis),
        "turnover_usd": plain(figures.turnover),
        "sizes_by_score": _sizes(figures),
        "bots": {
            bot.name: {
                "window_bars": bot.window_bars,
                "entry_rate": plain(bot.entry_rate),
                "exit_rate": plain(bot.exit_rate),
                "entries": figures.entries_by_bot[bot.name],
                "funding_usd": plain(figures.funding_by_bot.get(bot.name, Decimal(0))),
            }
            for bot in report.plan.strategies
        },
        "head": {"seq": portfolio.head[0], "hash": portfolio.head[1]},
    }


def _sizes(figures: Figures) -> list[dict[str, Any]]:
    return [
        {
            "score": name,
            "grants": bucket.grants,
            "formula_usd": _text(average_usd(bucket.formula_e8, bucket.grants)),
            "granted_usd": _text(average_usd(bucket.granted_e8, bucket.grants)),
            "filled_usd": _text(average_usd(bucket.filled_e8, bucket.fills)),
            "funding_usd": plain(bucket.funding),
        }
        for name, bucket in zip(BUCKETS, figures.buckets, strict=True)
    ]


def _text(value: Decimal | None) -> str | None:
    return None if value is None else plain(value)
