"""Decisions as CSV and NDJSON lines, decimals exact, for exports over HTTP, from the command line and from Python.

In full, an exported line has everything its place in the audit chain depends on: `decision_from_json` makes the same
record of an NDJSON line again, whose hash can then be checked against its predecessor's.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Literal, get_args

from pydantic_core import to_json

from ledger_sizer.domain import position_id
from ledger_sizer.errors import InvalidRequest
from ledger_sizer.records import DecisionRecord
from ledger_sizer.units import usd_text
from ledger_sizer.wire.answers import decision_to_json, time_text_of

COLUMNS = (
    "portfolio", "seq", "command", "key", "outcome", "reason", "position_id", "budget", "quantity", "fraction",
    "raw_budget", "headroom_before", "exposure_before", "exposure_after", "binding", "expires_at", "decided_at", "hash",
)  # fmt: skip
FULL_COLUMNS = ("held_change", "open_change", "tags", "request", "trace")

ExportForm = Literal["csv", "ndjson"]
Lines = Callable[[Iterable[DecisionRecord]], bytes]
"""Turns the next records into the next bytes of one export."""


def export_lines(form: ExportForm, *, full: bool) -> Lines:
    """The lines of an export in this form. Raises `InvalidRequest` for one that does not exist."""
    if form not in get_args(ExportForm):
        raise InvalidRequest(f"form must be one of {', '.join(get_args(ExportForm))}, got {form!r}", field="form")
    return csv_lines(full=full) if form == "csv" else ndjson_lines(full=full)


def ndjson_lines(*, full: bool) -> Lines:
    """One JSON object a line."""

    def write(records: Iterable[DecisionRecord]) -> bytes:
        return b"".join([to_json(decision_to_json(record.decision(), full=full)) + b"\n" for record in records])

    return write


def csv_lines(*, full: bool) -> Lines:
    """A head line, then one line each, as RFC 4180 has it; what is empty is none."""
    head = [",".join(COLUMNS + FULL_COLUMNS if full else COLUMNS)]

    def write(records: Iterable[DecisionRecord]) -> bytes:
        lines, head[:] = head[:], []
        lines += [_csv_line(record, full) for record in records]
        return "".join([f"{line}\r\n" for line in lines]).encode()

    return write


def _csv_line(record: DecisionRecord, full: bool) -> str:
    """Straight from the record, because an export of a million lines is mostly this.

    Only what is quoted here can have a comma or a quote in it; the csv module would look for them in all.
    """
    (
        portfolio, seq, command, key, outcome, reason, position, tags, budget_e8, quantity, fraction, raw_budget,
        held_e8, open_e8, headroom_e8, before_e8, binding, expires_us, decided_us, request, trace, link,
    ) = record  # fmt: skip
    line = (
        f"{portfolio},{seq},{command},{_quoted(key)},{outcome},{reason or ''},"
        f"{'' if position is None else position_id(portfolio, position)},{_usd(budget_e8)},{quantity or ''},"
        f"{fraction or ''},{raw_budget or ''},{_usd(headroom_e8)},{_usd(before_e8)},"
        f"{_usd(before_e8 + held_e8 + open_e8)},{_quoted(binding or '')},"
        f"{'' if expires_us is None else time_text_of(expires_us)},{time_text_of(decided_us)},{link}"
    )
    if full:
        return f"{line},{_usd(held_e8)},{_usd(open_e8)},{_quoted(tags)},{_quoted(request)},{_quoted(trace)}"
    return line


@lru_cache(maxsize=8192)
def _usd(e8: int | None) -> str:
    """Cached, because neighbours in a history share most of their amounts."""
    return "" if e8 is None else usd_text(e8)


def _quoted(text: str) -> str:
    if '"' in text:
        return '"' + text.replace('"', '""') + '"'
    return f'"{text}"' if "," in text or "\n" in text or "\r" in text else text
