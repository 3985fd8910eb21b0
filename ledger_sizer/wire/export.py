"""Decisions as CSV and NDJSON lines, decimals exact, for exports over HTTP and from the command line.

In full, an exported line has everything its place in the audit chain depends on: `decision_from_json` makes the same
record of an NDJSON line again, whose hash can then be checked against its predecessor's.
"""

from collections.abc import Callable, Iterable

from pydantic_core import to_json

from ledger_sizer.records import Decision
from ledger_sizer.wire.answers import decision_to_json

COLUMNS = (
    "portfolio", "seq", "command", "key", "outcome", "reason", "position_id", "budget", "quantity", "fraction",
    "raw_budget", "headroom_before", "exposure_before", "exposure_after", "binding", "expires_at", "decided_at", "hash",
)  # fmt: skip
FULL_COLUMNS = ("held_change", "open_change", "tags", "request", "trace")

Lines = Callable[[Iterable[Decision]], bytes]
"""Turns the next decisions into the next bytes of one export."""


def ndjson_lines(*, full: bool) -> Lines:
    """One JSON object a line."""

    def write(decisions: Iterable[Decision]) -> bytes:
        return b"".join([to_json(decision_to_json(decision, full=full)) + b"\n" for decision in decisions])

    return write


def csv_lines(*, full: bool) -> Lines:
    """A head line, then one line each, as RFC 4180 has it; what is empty is none."""
    columns = COLUMNS + FULL_COLUMNS if full else COLUMNS
    head = [",".join(columns) + "\r\n"]

    def write(decisions: Iterable[Decision]) -> bytes:
        lines, head[:] = head[:], []
        for decision in decisions:
            form = decision_to_json(decision, full=full)
            for name in _FREE_TEXT:
                if name in form:
                    form[name] = _quoted(form[name])
            lines.append(",".join(["" if form[name] is None else str(form[name]) for name in columns]) + "\r\n")
        return "".join(lines).encode()

    return write


_FREE_TEXT = ("key", "binding", "tags", "request", "trace")
"""The columns in which a comma or a quote may stand; the csv module looks for them letter by letter in all."""


def _quoted(text: str | None) -> str | None:
    if text is None or not ("," in text or '"' in text or "\n" in text or "\r" in text):
        return text
    return '"' + text.replace('"', '""') + '"'
