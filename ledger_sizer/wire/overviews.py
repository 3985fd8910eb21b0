"""Converts an `Overview` to JSON and back."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from typing import Any

from ledger_sizer.model.overview import (
    Detail,
    DriftLine,
    ExposureLine,
    ExposurePoint,
    Overview,
    OverviewQuery,
    PortfolioLine,
    Reconciliation,
)
from ledger_sizer.model.units import decimal_text
from ledger_sizer.wire.responses import (
    FORM_ERRORS,
    Json,
    decision_from_json,
    decision_to_json,
    page_from_json,
    page_to_json,
    position_from_json,
    position_to_json,
    scope_from_json,
    scope_to_json,
    time_text,
    unreadable_form,
)


def overview_query_to_params(query: OverviewQuery) -> Json:
    """Return the query of `GET /v1/overview`. Without `only`: the service decides which portfolios a key may see."""
    return {name: value for name, value in asdict(query).items() if value is not None and name != "only"}


def overview_to_json(overview: Overview) -> Json:
    """A snapshot of the ledger; `detail` is null while there is no portfolio."""
    return {
        "read_at": time_text(overview.read_at),
        "portfolios": page_to_json(overview.portfolios, _portfolio_to_json),
        "detail": None if overview.detail is None else _detail_to_json(overview.detail),
    }


def overview_from_json(form: Mapping[str, Any]) -> Overview:
    """Convert the output of `overview_to_json` back."""
    try:
        return Overview(
            read_at=datetime.fromisoformat(form["read_at"]),
            portfolios=page_from_json(form["portfolios"], _portfolio_from_json),
            detail=None if form["detail"] is None else _detail_from_json(form["detail"]),
        )
    except FORM_ERRORS as error:
        raise unreadable_form("overview", error) from None


def _portfolio_to_json(line: PortfolioLine) -> Json:
    whole = scope_to_json(line.whole)
    del whole["scope"]
    return {"portfolio": line.name, **whole}


def _portfolio_from_json(form: Mapping[str, Any]) -> PortfolioLine:
    return PortfolioLine(form["portfolio"], scope_from_json({"scope": "portfolio", **form}))


def _detail_to_json(detail: Detail) -> Json:
    return {
        "portfolio": detail.name,
        "seq": detail.seq,
        "scopes": [scope_to_json(scope) for scope in detail.scopes],
        "scopes_left_out": detail.scopes_left_out,
        "held": {"count": detail.held_count, **page_to_json(detail.held, position_to_json)},
        "open": {"count": detail.open_count, **page_to_json(detail.open, position_to_json)},
        "decisions": page_to_json(detail.decisions, lambda decision: decision_to_json(decision, full=True)),
        "line": {
            "since": time_text(detail.line.since),
            "exact_from": None if detail.line.exact_from is None else time_text(detail.line.exact_from),
            "points": [_point_to_json(point) for point in detail.line.points],
        },
        "reconciliation": _reconciliation_to_json(detail.reconciliation),
    }


def _detail_from_json(form: Mapping[str, Any]) -> Detail:
    line = form["line"]
    return Detail(
        name=form["portfolio"],
        seq=form["seq"],
        scopes=tuple(scope_from_json(scope) for scope in form["scopes"]),
        scopes_left_out=form["scopes_left_out"],
        held=page_from_json(form["held"], position_from_json),
        held_count=form["held"]["count"],
        open=page_from_json(form["open"], position_from_json),
        open_count=form["open"]["count"],
        decisions=page_from_json(form["decisions"], decision_from_json),
        line=ExposureLine(
            datetime.fromisoformat(line["since"]),
            tuple(_point_from_json(point) for point in line["points"]),
            None if line["exact_from"] is None else datetime.fromisoformat(line["exact_from"]),
        ),
        reconciliation=_reconciliation_from_json(form["reconciliation"]),
    )


def _reconciliation_to_json(found: Reconciliation) -> Json:
    return {
        "run_at": None if found.run_at is None else time_text(found.run_at),
        "outcome": found.outcome,
        "drift_count": found.drift_count,
        "drifts": [
            {
                **asdict(drift),
                "ledger_quantity": None if drift.ledger_quantity is None else decimal_text(drift.ledger_quantity),
                "venue_quantity": None if drift.venue_quantity is None else decimal_text(drift.venue_quantity),
                "excess": decimal_text(drift.excess),
                "opened_at": time_text(drift.opened_at),
            }
            for drift in found.drifts
        ],
    }


def _reconciliation_from_json(form: Mapping[str, Any]) -> Reconciliation:
    run_at = None if form["run_at"] is None else datetime.fromisoformat(form["run_at"])
    drifts = tuple(
        DriftLine(
            **{
                **drift,
                "ledger_quantity": None if drift["ledger_quantity"] is None else Decimal(drift["ledger_quantity"]),
                "venue_quantity": None if drift["venue_quantity"] is None else Decimal(drift["venue_quantity"]),
                "excess": Decimal(drift["excess"]),
                "opened_at": datetime.fromisoformat(drift["opened_at"]),
            }
        )
        for drift in form["drifts"]
    )
    return Reconciliation(run_at, form["outcome"], drifts, form["drift_count"])


def _point_to_json(point: ExposurePoint) -> Json:
    cap = None if point.cap is None else decimal_text(point.cap)
    figures = {name: decimal_text(getattr(point, name)) for name in ("exposure", "low", "high")}
    return {"at": time_text(point.at), "seq": point.seq, "cap": cap, **figures}


def _point_from_json(form: Mapping[str, Any]) -> ExposurePoint:
    cap = None if form["cap"] is None else Decimal(form["cap"])
    exposure, low, high = (Decimal(form[name]) for name in ("exposure", "low", "high"))
    return ExposurePoint(datetime.fromisoformat(form["at"]), form["seq"], exposure, cap, low, high)
