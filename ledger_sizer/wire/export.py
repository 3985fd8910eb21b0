"""Decisions as CSV and NDJSON lines, decimals exact, for exports over HTTP, from the command line and from Python.

In full, an exported line has everything its place in the audit chain depends on: `decision_from_json` makes the same
record of an NDJSON line again, whose hash can then be checked against its predecessor's.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Literal, get_args

from ledger_sizer.model.decisions import Fields
from ledger_sizer.model.domain import position_id
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.units import usd_text
from ledger_sizer.wire.responses import time_text_of

COLUMNS = (
    "portfolio", "seq", "command", "key", "outcome", "reason", "position_id", "budget", "quantity", "fraction",
    "raw_budget", "headroom_before", "exposure_before", "exposure_after", "binding", "expires_at", "decided_at", "hash",
)  # fmt: skip
FULL_COLUMNS = ("held_change", "open_change", "tags", "request", "trace")

ExportForm = Literal["csv", "ndjson"]
Lines = Callable[[Iterable[Fields]], bytes]
"""Turns the next records into the next bytes of one export."""


def export_lines(form: ExportForm, *, full: bool) -> Lines:
    """The lines of an export in this form. Raises `InvalidRequest` for one that does not exist."""
    if form not in get_args(ExportForm):
        raise InvalidRequest(f"form must be one of {', '.join(get_args(ExportForm))}, got {form!r}", field="form")
    return csv_lines(full=full) if form == "csv" else ndjson_lines(full=full)


def ndjson_lines(*, full: bool) -> Lines:
    """One JSON object a line: what `decision_to_json` gives of each, byte for byte."""

    def write(records: Iterable[Fields]) -> bytes:
        return "".join([_ndjson_line(record, full) for record in records]).encode()

    return write


def csv_lines(*, full: bool) -> Lines:
    """A head line, then one line each, as RFC 4180 has it; what is empty is none."""
    head = [",".join(COLUMNS + FULL_COLUMNS if full else COLUMNS)]

    def write(records: Iterable[Fields]) -> bytes:
        lines, head[:] = head[:], []
        lines += [_csv_line(record, full) for record in records]
        return "".join([f"{line}\r\n" for line in lines]).encode()

    return write


# Straight from the fields, because an export of a million lines is mostly this. Texts that few values fill are cached
# as they are written: amounts, and the names of a position's scopes.


def _ndjson_line(record: Fields, full: bool) -> str:
    (
        portfolio, seq, command, key, outcome, reason, position, tags, budget_e8, quantity, fraction, raw_budget,
        held_e8, open_e8, headroom_e8, before_e8, binding, expires_us, decided_us, request, trace, link,
    ) = record  # fmt: skip
    line = (
        f'{{"portfolio":{_json(portfolio)},"seq":{seq},"command":{_json(command)},"key":{encode_basestring(key)},'
        f'"outcome":{_json(outcome)},"reason":{_json(reason)},"granted":{_TRUTH[outcome == "granted"]},'
        f'"replayed":false,"position_id":'
        f"{'null' if position is None else encode_basestring(position_id(portfolio, position))},"
        f'"budget":{_json_usd(budget_e8)},"quantity":{_json(quantity)},"fraction":{_json(fraction)},'
        f'"raw_budget":{_json(raw_budget)},"headroom_before":{_json_usd(headroom_e8)},'
        f'"exposure_before":{_json_usd(before_e8)},"exposure_after":{_json_usd(before_e8 + held_e8 + open_e8)},'
        f'"binding":{_json(binding)},"expires_at":{_json_time(expires_us)},"decided_at":{_json_time(decided_us)},'
        f'"hash":{encode_basestring(link)}'
    )
    if full:
        return (
            f'{line},"held_change":{_json_usd(held_e8)},"open_change":{_json_usd(open_e8)},"tags":{_json(tags)},'
            f'"request":{encode_basestring(request)},"trace":{encode_basestring(trace)}}}\n'
        )
    return f"{line}}}\n"


_TRUTH = ("false", "true")


@lru_cache(maxsize=8192)
def _json(text: str | None) -> str:
    return "null" if text is None else encode_basestring(text)


@lru_cache(maxsize=8192)
def _json_usd(e8: int | None) -> str:
    return "null" if e8 is None else f'"{usd_text(e8)}"'


@lru_cache(maxsize=1024)
def _json_time(us: int | None) -> str:
    return "null" if us is None else f'"{time_text_of(us)}"'


def _csv_line(record: Fields, full: bool) -> str:
    """Only what is quoted here can have a comma or a quote in it; the csv module would look for them in all."""
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
    return "" if e8 is None else usd_text(e8)


def _quoted(text: str) -> str:
    if '"' in text:
        return '"' + text.replace('"', '""') + '"'
    return f'"{text}"' if "," in text or "\n" in text or "\r" in text else text
