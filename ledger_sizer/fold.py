"""A position as its decisions tell it: the fold that `verify` compares with the stored row.

Written apart from `rules` on purpose: rules say what a command does to a position, this says what the recorded
decisions add up to, and the two must agree.
"""

import json
from decimal import Decimal

from ledger_sizer.domain import Position, PositionState, split_position_id
from ledger_sizer.instruments import Leg, legs_of
from ledger_sizer.records import DecisionRecord
from ledger_sizer.tags import stored_tags
from ledger_sizer.units import exactly


def fold(position: Position | None, record: DecisionRecord) -> Position | None:
    """The position after `record`, given it before (None for the decision that made it)."""
    if record.outcome == "denied" or record.position is None:
        return position
    held_e8 = (position.held_e8 if position else 0) + record.held_delta_e8
    open_e8 = (position.open_e8 if position else 0) + record.open_delta_e8
    state: PositionState = "held" if held_e8 else "open" if open_e8 else _ended(record.command, position)
    request = json.loads(record.request)
    legs = json.loads(record.trace).get("legs", ())
    price = position.price if position else None
    if record.command in ("confirm", "adopt"):
        price = Decimal(request["price"])
    return Position(
        portfolio=record.portfolio,
        number=record.position,
        state=state,
        tags=stored_tags(record.tags),
        held_e8=held_e8,
        open_e8=open_e8,
        quantity=_quantity(position, record),
        price=price,
        legs=position.legs if position and record.command == "extend" else _legs(legs),
        expires_us=_expires_us(position, record),
        opened_us=position.opened_us if position else record.decided_us,
        updated_us=record.decided_us,
        updated_seq=record.seq,
        origin=position.origin if position else _origin(record, request),
    )


def _ended(command: str, position: Position | None) -> PositionState:
    if command == "expire":
        return "expired"
    return "closed" if position is not None and position.open_e8 else "released"


def _quantity(position: Position | None, record: DecisionRecord) -> Decimal | None:
    stated = None if record.quantity is None else Decimal(record.quantity)
    if position is not None and position.state == "open" and position.quantity is not None and stated is not None:
        with exactly():
            return position.quantity - stated
    return stated


def _expires_us(position: Position | None, record: DecisionRecord) -> int | None:
    if record.command in ("reserve", "extend"):
        return record.expires_us
    return position.expires_us if position is not None and record.command == "expire" else None


def _origin(record: DecisionRecord, request: dict[str, str]) -> int | None:
    return split_position_id(request["position_id"])[1] if record.command == "confirm" else None


def _legs(rows: object) -> tuple[Leg, ...]:
    return legs_of(json.dumps(rows))
