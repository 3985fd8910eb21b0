"""Converts runs, findings and drifts to JSON, and runs and drifts back."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ledger_sizer.model.names import position_id, split_position_id
from ledger_sizer.model.reconciliation import Drift, Finding, Run
from ledger_sizer.model.times import from_us, to_us
from ledger_sizer.model.units import decimal_text
from ledger_sizer.wire.responses import Json, time_text

if TYPE_CHECKING:
    from ledger_sizer.model.reconciliation import Report

_DRIFT_DECIMALS = ("ledger_quantity", "venue_quantity", "excess", "price")
_DRIFT_TIMES = {"opened_us": "opened_at", "updated_us": "updated_at", "ended_us": "ended_at"}
_RUN_TIMES = {"started_us": "started_at", "finished_us": "finished_at"}


def drift_to_json(drift: Drift) -> Json:
    """Convert a drift. `position_id` is the external position that counts its excess."""
    form: Json = {}
    for name in (field.name for field in fields(drift)):
        value = getattr(drift, name)
        if name in _DRIFT_TIMES:
            form[_DRIFT_TIMES[name]] = None if value is None else time_text(from_us(value))
        elif name == "position":
            form["position_id"] = None if value is None else position_id(drift.portfolio, value)
        else:
            form[name] = decimal_text(value) if isinstance(value, Decimal) else value
    return form


def drift_from_json(form: Mapping[str, Any]) -> Drift:
    """Parse the output of `drift_to_json`."""
    values = dict(form)
    for name, json_name in _DRIFT_TIMES.items():
        values[name] = _optional_us(values.pop(json_name))
    id_text = values.pop("position_id")
    values["position"] = None if id_text is None else split_position_id(id_text)[1]
    for name in _DRIFT_DECIMALS:
        values[name] = None if values[name] is None else Decimal(values[name])
    return Drift(**values)


def run_to_json(run: Run) -> Json:
    """Convert a run. `id` is null for a dry run, which is not recorded."""
    return {
        "id": run.id or None,
        "portfolio": run.portfolio,
        "trigger": run.trigger,
        "outcome": run.outcome,
        **{json_name: time_text(from_us(getattr(run, name))) for name, json_name in _RUN_TIMES.items()},
        "duration_seconds": decimal_text(run.duration_seconds),
        "epoch": run.epoch,
        "fetched": list(run.fetched),
        "found": run.found,
    }


def run_from_json(form: Mapping[str, Any]) -> Run:
    """Parse the output of `run_to_json`."""
    values = {name: value for name, value in form.items() if name != "duration_seconds"}
    for name, json_name in _RUN_TIMES.items():
        values[name] = to_us(datetime.fromisoformat(values.pop(json_name)))
    return Run(**{**values, "id": form["id"] or 0, "fetched": tuple(form["fetched"])})


def finding_to_json(finding: Finding) -> Json:
    """Convert a finding."""
    market = finding.market
    return {
        "venue": market.venue,
        "account": market.account,
        "subject": market.subject,
        "side": market.side,
        "kind": finding.kind,
        "ledger_quantity": _optional_decimal_text(finding.ledger_quantity),
        "venue_quantity": _optional_decimal_text(finding.venue_quantity),
        "excess": decimal_text(finding.excess),
        "price": _optional_decimal_text(finding.price),
        "detail": finding.detail,
    }


def report_to_json(report: "Report") -> Json:
    """Convert a report: the run, its findings, and the live and the resolved drifts."""
    return {
        "run": run_to_json(report.run),
        "findings": [finding_to_json(finding) for finding in report.findings],
        "live": [drift_to_json(drift) for drift in report.live],
        "resolved": [drift_to_json(drift) for drift in report.resolved],
    }


def _optional_decimal_text(value: Decimal | None) -> str | None:
    return None if value is None else decimal_text(value)


def _optional_us(text: str | None) -> int | None:
    return None if text is None else to_us(datetime.fromisoformat(text))
