"""A position as its decisions tell it: the fold that `verify` compares with the stored row, column by column, as text.

Written apart from `rules` on purpose: rules say what a command does to a position, this says what the recorded
decisions add up to, and the two must agree.
"""

import json
from decimal import Decimal
from typing import NamedTuple

from ledger_sizer.domain import split_position_id
from ledger_sizer.records import DecisionRecord
from ledger_sizer.units import exactly, plain


class Told(NamedTuple):
    """A position's row in the order of `tables.PositionRow`, without its portfolio."""

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

    @property
    def is_final(self) -> bool:
        """Whether nothing can follow."""
        return self.state not in ("held", "open")


def fold(position: Told | None, record: DecisionRecord) -> Told | None:
    """The position after `record`, given it before (None for the decision that made it)."""
    if record.outcome == "denied" or record.position is None:
        return position
    command = record.command
    held_e8, open_e8 = record.held_delta_e8, record.open_delta_e8
    price = origin = None
    opened_us = record.decided_us
    if position is not None:
        held_e8 += position.held_e8
        open_e8 += position.open_e8
        price, origin, opened_us = position.price, position.origin, position.opened_us
    if command in ("confirm", "adopt"):
        request = json.loads(record.request)
        price = plain(Decimal(request["price"]))
        if position is None and command == "confirm":
            origin = split_position_id(request["position_id"])[1]
    return Told(
        record.position,
        "held" if held_e8 else "open" if open_e8 else _ended(command, position),
        record.tags,
        held_e8,
        open_e8,
        _quantity(position, record),
        price,
        position.legs if position is not None and command == "extend" else legs_in(record.trace),
        _expires_us(position, record),
        opened_us,
        record.decided_us,
        record.seq,
        origin,
    )


def _ended(command: str, position: Told | None) -> str:
    if command == "expire":
        return "expired"
    return "closed" if position is not None and position.open_e8 else "released"


def _quantity(position: Told | None, record: DecisionRecord) -> str | None:
    if position is None or position.state != "open" or position.quantity is None or record.quantity is None:
        return record.quantity
    if position.quantity == record.quantity:
        return "0"
    with exactly():
        return plain(Decimal(position.quantity) - Decimal(record.quantity))


def _expires_us(position: Told | None, record: DecisionRecord) -> int | None:
    if record.command in ("reserve", "extend"):
        return record.expires_us
    return position.expires_us if position is not None and record.command == "expire" else None


def legs_in(trace: str) -> str:
    """The canonical legs in a trace's canonical text, cut out without parsing the rest of it.

    A quote inside a JSON string stands behind a backslash, so what is looked for cannot be part of a name.
    """
    start = trace.find(',"legs":')
    if start < 0:
        return "[]"
    start += len(',"legs":')
    end = trace.find(',"note":', start)
    return trace[start : end if end >= 0 else len(trace) - 1]
