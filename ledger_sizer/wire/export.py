"""Writes decisions as CSV and NDJSON lines with exact decimals, for exports over HTTP, from the CLI and from Python.

A full line has every field that the hash chain covers: `decision_from_json` rebuilds the record of an NDJSON line, and
its hash can then be checked against the previous one. So `tags`, `request` and `trace` are the texts that are hashed.
No line has `legs`, which are read from `trace`. A CSV has no `granted` and `replayed`, and its `until_known` is `true`
or empty.

Spreadsheets run a cell that begins with `=` or one of its like as a formula. A text in a CSV that begins with one of
`FORMULA_STARTS` gets an apostrophe in front; a reader takes one leading apostrophe away from every cell that has one.
Numbers stay numbers, and NDJSON has the texts as they are.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from json.encoder import encode_basestring
from typing import get_args

from ledger_sizer.model.choices import ExportForm
from ledger_sizer.model.decisions import Fields
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.names import position_id
from ledger_sizer.model.times import UNTIL_KNOWN_US
from ledger_sizer.model.units import usd_text
from ledger_sizer.wire.responses import time_text_of

COLUMNS = (
    "portfolio", "seq", "command", "key", "outcome", "reason", "position_id", "budget", "quantity", "fraction",
    "raw_budget", "headroom_before", "exposure_before", "exposure_after", "binding", "expires_at", "until_known",
    "decided_at", "actor", "client", "reference", "hash",
)  # fmt: skip
FULL_COLUMNS = ("held_change", "open_change", "tags", "request", "trace")

FORMULA_STARTS = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20'")
"""What a spreadsheet may take for a formula's begin, also in full width; the apostrophe, so that it can be undone."""

Lines = Callable[[Iterable[Fields]], bytes]
"""Converts the next records into the next bytes of one export."""


def export_lines(form: ExportForm, *, full: bool) -> Lines:
    """Return the writer of an export form. Raises `InvalidRequest` for an unknown form."""
    if form not in get_args(ExportForm):
        raise InvalidRequest(f"form must be one of {', '.join(get_args(ExportForm))}, got {form!r}", field="form")
    return csv_lines(full=full) if form == "csv" else ndjson_lines(full=full)


def ndjson_lines(*, full: bool) -> Lines:
    """Return a writer of one JSON object a line: a decision's JSON without `legs`, `tags` and its like as texts."""

    def write(records: Iterable[Fields]) -> bytes:
        return "".join([_ndjson_line(record, full) for record in records]).encode()

    return write


def csv_lines(*, full: bool) -> Lines:
    """Return a writer of RFC 4180 lines: a header, then one line for each decision. None is an empty field."""
    head = [",".join(COLUMNS + FULL_COLUMNS if full else COLUMNS)]

    def write(records: Iterable[Fields]) -> bytes:
        lines, head[:] = head[:], []
        lines += [_csv_line(record, full) for record in records]
        return "".join([f"{line}\r\n" for line in lines]).encode()

    return write


# Lines are formatted straight from the fields, because an export of a million lines spends most of its time here.
# Values that repeat often are cached as formatted text: amounts, times, and short texts such as tags.


def _ndjson_line(record: Fields, full: bool) -> str:
    (
        portfolio, seq, command, key, outcome, reason, position, tags, budget_e8, quantity, fraction, raw_budget,
        held_e8, open_e8, headroom_e8, before_e8, binding, expires_us, decided_us, request, trace,
        actor, client, reference, link,
    ) = record  # fmt: skip
    line = (
        f'{{"portfolio":{_json(portfolio)},"seq":{seq},"command":{_json(command)},"key":{encode_basestring(key)},'
        f'"outcome":{_json(outcome)},"reason":{_json(reason)},"granted":{_JSON_BOOLS[outcome == "granted"]},'
        f'"replayed":false,"position_id":'
        f"{'null' if position is None else encode_basestring(position_id(portfolio, position))},"
        f'"budget":{_json_usd(budget_e8)},"quantity":{_json(quantity)},"fraction":{_json(fraction)},'
        f'"raw_budget":{_json(raw_budget)},"headroom_before":{_json_usd(headroom_e8)},'
        f'"exposure_before":{_json_usd(before_e8)},"exposure_after":{_json_usd(before_e8 + held_e8 + open_e8)},'
        f'"binding":{_json(binding)},{_json_expiry(expires_us)},"decided_at":{_json_time(decided_us)},'
        f'"actor":{_json(actor)},"client":{_json(client)},"reference":{_json(reference)},'
        f'"hash":{encode_basestring(link)}'
    )
    if full:
        return (
            f'{line},"held_change":{_json_usd(held_e8)},"open_change":{_json_usd(open_e8)},"tags":{_json(tags)},'
            f'"request":{encode_basestring(request)},"trace":{encode_basestring(trace)}}}\n'
        )
    if command == "remark":  # what it says stands nowhere else
        return f'{line},"request":{encode_basestring(request)}}}\n'
    return f"{line}}}\n"


_JSON_BOOLS = ("false", "true")


@lru_cache(maxsize=8192)
def _json(text: str | None) -> str:
    return "null" if text is None else encode_basestring(text)


@lru_cache(maxsize=8192)
def _json_usd(e8: int | None) -> str:
    return "null" if e8 is None else f'"{usd_text(e8)}"'


@lru_cache(maxsize=1024)
def _json_time(us: int | None) -> str:
    return "null" if us is None else f'"{time_text_of(us)}"'


@lru_cache(maxsize=1024)
def _json_expiry(us: int | None) -> str:
    if us == UNTIL_KNOWN_US:
        return '"expires_at":null,"until_known":true'
    return f'"expires_at":{_json_time(us)},"until_known":false'


def _csv_line(record: Fields, full: bool) -> str:
    """Quote only the fields that may hold a comma or a quote; the csv module would search all of them."""
    (
        portfolio, seq, command, key, outcome, reason, position, tags, budget_e8, quantity, fraction, raw_budget,
        held_e8, open_e8, headroom_e8, before_e8, binding, expires_us, decided_us, request, trace,
        actor, client, reference, link,
    ) = record  # fmt: skip
    line = (
        f"{portfolio},{seq},{command},{_csv_text(key)},{outcome},{reason or ''},"
        f"{'' if position is None else position_id(portfolio, position)},{_usd(budget_e8)},{quantity or ''},"
        f"{fraction or ''},{raw_budget or ''},{_usd(headroom_e8)},{_usd(before_e8)},"
        f"{_usd(before_e8 + held_e8 + open_e8)},{_csv_text(binding or '')},"
        f"{_csv_expiry(expires_us)},{time_text_of(decided_us)},"
        f"{_csv_short(actor)},{_csv_short(client)},{_csv_text(reference or '')},{link}"
    )
    if full:
        return f"{line},{_usd(held_e8)},{_usd(open_e8)},{_csv_text(tags)},{_csv_text(request)},{_csv_text(trace)}"
    return line


@lru_cache(maxsize=1024)
def _csv_expiry(us: int | None) -> str:
    """Return the cells `expires_at` and `until_known`."""
    if us == UNTIL_KNOWN_US:
        return ",true"
    return "," if us is None else f"{time_text_of(us)},"


@lru_cache(maxsize=8192)
def _usd(e8: int | None) -> str:
    return "" if e8 is None else usd_text(e8)


@lru_cache(maxsize=8192)
def _csv_short(text: str | None) -> str:
    return _csv_text(text or "")


def _csv_text(text: str) -> str:
    if text[:1] in FORMULA_STARTS:
        text = f"'{text}"
    if '"' in text:
        return '"' + text.replace('"', '""') + '"'
    return f'"{text}"' if "," in text or "\n" in text or "\r" in text else text
