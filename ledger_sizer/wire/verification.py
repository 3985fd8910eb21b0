"""Converts what a verification read and found to JSON and back."""

from ledger_sizer.model.verification import Finding, VerifyReport
from ledger_sizer.wire.codec import Codec
from ledger_sizer.wire.responses import heads_from_json, heads_to_json

FINDING = Codec(Finding)
REPORT = Codec(
    VerifyReport,
    "ok decisions positions heads first findings",
    write={"heads": lambda report: heads_to_json(report.heads)["heads"]},
    read={"heads": heads_from_json},
)
"""What a verification read and found."""
