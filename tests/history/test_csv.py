"""Tests that no cell of a CSV export is a formula, and that the exact texts can be had again."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from typing import Any

from ledger_sizer import Ledger
from ledger_sizer.model.decisions import GENESIS_HASH, canonical_text, chain_hash
from ledger_sizer.wire.responses import decision_from_json

FORMULAS = [
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("http://x","y")',
    "+1+1",
    "-2",
    "@SUM(1)",
    "'=1",
    "''",
    "\uff1d1",
    "\uff0b1",
    "\uff0d1",
    "\uff201",
]


def test_export_csv_when_texts_look_like_formulas_then_they_are_none_and_the_chain_can_be_recomputed(
    ledger: Ledger,
) -> None:
    for text in FORMULAS:
        ledger.reserve(key=text, tags={"symbol": text})
    ledger.reserve(key="=several", tags={"symbol": FORMULAS[:8], "venue": ['a","b', "☃"]})
    ledger.release(key="-out", position_id="main-1")
    sheet = b"".join(ledger.export(form="csv", ascending=True)).decode()
    rows = list(csv.DictReader(io.StringIO(sheet, newline="")))
    numbers = {"seq", "budget", "quantity", "fraction", "raw_budget", "headroom_before", "exposure_before",
               "exposure_after", "held_change", "open_change"}  # fmt: skip
    keys = [*(["first"] if rows[0]["key"] == "first" else []), *FORMULAS, "=several", "-out"]
    previous = GENESIS_HASH
    for row, key in zip(rows, keys, strict=True):
        for name, cell in row.items():
            if name not in numbers:
                assert cell[:1] not in "=+-@\t\r\uff1d\uff0b\uff0d\uff20" or not cell, (name, cell)
        assert row["key"] == (key if key == "first" else f"'{key}")
        undone = {name: cell.removeprefix("'") for name, cell in row.items()}
        form: dict[str, Any] = {name: cell or None for name, cell in undone.items()}
        record = decision_from_json({**form, "seq": int(row["seq"]), "tags": undone["tags"], "replayed": False}).record
        assert record.key == key
        assert chain_hash(previous, canonical_text(record)) == record.hash
        previous = record.hash
    assert Decimal(rows[-1]["held_change"]) < 0, "a number stays one"
    texts = [json.loads(line)["key"] for line in b"".join(ledger.export(ascending=True)).splitlines()]
    assert texts == keys, "NDJSON has the texts as they are"
