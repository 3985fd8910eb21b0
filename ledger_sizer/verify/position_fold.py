"""Computes a position from its decisions. Verification compares the result with the stored row, column by column.

This does not use `rules`, on purpose. `rules` say what a command does to a position, this says what the recorded
decisions add up to, and the two must agree.
"""

import json
from decimal import Decimal
from typing import NamedTuple

from pydantic_core import from_json

from ledger_sizer.model.decisions import Fields
from ledger_sizer.model.units import decimal_text, exact_arithmetic

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode


class FoldedPosition(NamedTuple):
    """A position's columns in the order of `tables.PositionRow`, without its portfolio."""

    number: int
    state: str
    tags: str
    held_e8: int
    open_e8: int
    quantity: str | None
    price: str | None
    legs: str
    expires_us: int | None
    opened_us: int
    updated_us: int
    updated_seq: int
    origin: int | None
    fills: str | None = None
    reference: str | None = None

    @property
    def is_final(self) -> bool:
        """Whether no further decision can change it."""
        return self.state not in ("held", "open")


def fold_position(position: FoldedPosition | None, record: Fields) -> FoldedPosition | None:
    """Return the position after a decision that changed it. position: before it, None if the decision made it."""
    (
        _, seq, command, _, _, _, number, tags, _, quantity, _, _, held_e8, open_e8, _, _, _, expires_us, decided_us,
        request, trace, _, _, reference, _,
    ) = record  # fmt: skip
    price = origin = fills = None
    opened_us = decided_us
    if position is not None:
        held_e8 += position.held_e8
        open_e8 += position.open_e8
        price, origin, opened_us = position.price, position.origin, position.opened_us
        fills = position.fills if command == "extend" else None
        reference = reference or position.reference
    if position is None and command in ("confirm", "fill"):
        origin = int(from_json(request)["position_id"].rpartition("-")[2])
    if '"entry":' in trace:
        quantity, price, expires_us, fills = _entry_in(trace)
    else:
        if command in ("confirm", "adopt"):
            price = decimal_text(Decimal(from_json(request)["price"]))
        quantity = _quantity(position, command, quantity)
        expires_us = _expires_us(position, command, request, expires_us)
    if open_e8:
        state = "open"
    elif command == "expire":
        state = "expired"
    elif expires_us is not None:
        state = "held"
    else:
        state = "closed" if position is not None and position.open_e8 else "released"
    return FoldedPosition(
        number,
        state,
        tags,
        held_e8,
        open_e8,
        quantity,
        price,
        position.legs if position is not None and command == "extend" else legs_in(trace),
        expires_us,
        opened_us,
        decided_us,
        seq,
        origin,
        fills,
        reference,
    )


def changes_position(record: Fields) -> bool:
    """Return whether a decision that was not denied changed its position: a `fill` of what was known did not."""
    command, quantity = record[2], record[9]
    return bool(command != "fill" or quantity != "0")


def _entry_in(trace: str) -> tuple[str | None, str | None, int | None, str | None]:
    """Return quantity, price, expiry and fills of the position after the decision, where its trace says them."""
    entry = from_json(trace)["entry"]
    fills = entry["fills"]
    return entry["quantity"], entry["price"], entry["expires_us"], None if fills is None else _encode(fills)


def _quantity(position: FoldedPosition | None, command: str, decided: str | None) -> str | None:
    if position is None or position.state != "open" or position.quantity is None:
        return decided
    if command != "release" or decided is None:  # a decision about its hold, which closes nothing
        return position.quantity
    if position.quantity == decided:
        return "0"
    with exact_arithmetic():
        return decimal_text(Decimal(position.quantity) - Decimal(decided))


def _expires_us(position: FoldedPosition | None, command: str, request: str, decided_us: int | None) -> int | None:
    if command in ("reserve", "extend"):
        return decided_us
    if position is None or position.expires_us is None:
        return None
    if position.state != "open":
        return position.expires_us if command == "expire" else None
    closes_part = command == "release" and "quantity" in from_json(request)
    return position.expires_us if closes_part else None


def legs_in(trace: str) -> str:
    """Cut the canonical legs out of a trace's canonical text, without parsing the rest.

    Inside a JSON string a quote is escaped by a backslash, so the searched text cannot be part of a name.
    """
    start = trace.find(',"legs":')
    if start < 0:
        return "[]"
    start += len(',"legs":')
    end = trace.find(',"note":', start)
    return trace[start : end if end >= 0 else len(trace) - 1]
