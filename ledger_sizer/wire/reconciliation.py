"""Converts runs, findings, drifts and reports to JSON, and runs and drifts back."""

from operator import attrgetter
from typing import get_type_hints

from ledger_sizer.model.asset_policies import AssetRule
from ledger_sizer.model.drift_outcomes import DriftOutcome, DriftOutcomes
from ledger_sizer.model.drift_reports import DriftEvent, DriftPosition, DriftReport
from ledger_sizer.model.drift_words import Step, hint
from ledger_sizer.model.reconciliation import Drift, Finding, Market, Report, Run
from ledger_sizer.model.renames import RenamedCoin
from ledger_sizer.wire.codec import Codec
from ledger_sizer.wire.responses import number_of

_DOCS = {
    "subject": "A market, an asset, or what else it is about.",
    "excess": "Base units at the exchange beyond what the ledger counts.",
    "position_id": "The external position that counts its excess.",
    "requested": "What the orchestrator was asked to do.",
    "difference": "The exchange's quantity less the ledger's; null without quantities.",
    "usd": "What the difference is worth; null where no price is known.",
    "next": "What to do, in a few words: mostly a command without the leading `ledger-sizer`.",
    "frozen_scope": "The scope it froze, or several parted by commas.",
    "freezes": "Whether it still denies new reservations there.",
}

FINDING = Codec(
    Finding,
    "venue account subject side kind ledger_quantity venue_quantity difference usd excess price detail",
    _DOCS,
    write={name: attrgetter(f"market.{name}") for name in Market._fields},
    types=get_type_hints(Market),
)

DRIFT = Codec(
    Drift,
    "id portfolio venue account subject side kind state policy sightings ledger_quantity venue_quantity difference usd"
    " excess price detail next position_id revision requested frozen_scope freezes first_run last_run opened_at"
    " updated_at ended_at actor reason",
    _DOCS,
    write={"next": hint},
    types={"next": str},
    read={"position": lambda form: number_of(form["position_id"])},
)
drift_to_json, drift_from_json = DRIFT.to_json, DRIFT.from_json

STEP = Codec(Step, docs={"command": "To copy into a shell; null where no command does it."})
DRIFT_POSITION = Codec(DriftPosition, docs={"quantity": "Coins in the drift's market.", "opened_by": "The actor."})
DRIFT_EVENT = Codec(DriftEvent, docs={"event": "Of a remark what happened, else the verb."})
DRIFT_REPORT = Codec(
    DriftReport,
    "drift meaning difference frozen_at first_run_at last_run_at positions positions_left_out holds events steps",
    {
        "meaning": "What its kind means.",
        "difference": "In coins and USD, in words.",
        "positions": "Open ones of the ledger in its market, on both sides, the newest first.",
        "holds": "Those that may explain it.",
        "events": "Decisions in the portfolio's chain about it, oldest first.",
        "steps": "What can be done about it now, the most likely first.",
    },
)
report_of_drift_to_json, report_of_drift_from_json = DRIFT_REPORT.to_json, DRIFT_REPORT.from_json

OUTCOME = Codec(
    DriftOutcome,
    "drift_id outcome words error usd drift",
    {
        "outcome": "repeated: the same decision was made before. planned: a dry run would do it.",
        "words": "What was done, or why it was refused.",
        "error": "Code of the refusal.",
        "drift": "As it is now; null if there is none of this number.",
    },
)
OUTCOMES = Codec(
    DriftOutcomes,
    "items refused usd",
    {"refused": "How many.", "usd": "Worth of those that were not refused, as far as they have a price."},
)
outcomes_to_json, outcomes_from_json = OUTCOMES.to_json, OUTCOMES.from_json

RUN = Codec(
    Run,
    "id portfolio trigger outcome started_at finished_at duration_seconds epoch fetched found",
    {"id": "Null for a dry run.", "found": "Counts, by kind of drift among others."},
    write={"id": lambda run: run.id or None},
    read={"id": lambda form: form["id"] or 0},
    types={"id": int | None},
)
run_to_json, run_from_json = RUN.to_json, RUN.from_json

RENAMED = Codec(
    RenamedCoin,
    docs={
        "ratio": "New coins for one old coin.",
        "positions": "Those that were renamed.",
        "released": "External positions that counted the new coin.",
        "differences": "Where the last run does not fit, in words.",
    },
)
renamed_to_json, renamed_from_json = RENAMED.to_json, RENAMED.from_json

ASSET_RULE = Codec(
    AssetRule,
    "id portfolio pattern policy source actor reason decided_at",
    {
        "pattern": "`venue/account/ASSET`; `*` stands for any text.",
        "source": "`decided` about a drift, from `settings`, or the `default` of dollars.",
        "id": "Of a decided one; null for the others, as are portfolio, actor, reason and decided_at.",
    },
)
rule_to_json, rule_from_json = ASSET_RULE.to_json, ASSET_RULE.from_json

REPORT = Codec(Report, "run findings live resolved")
report_to_json = REPORT.to_json
