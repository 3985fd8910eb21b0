"""Says what a decision did to its position: orders, fills, the hold, other scopes, another price."""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Position
from ledger_sizer.model.fills import fills_of_json
from ledger_sizer.model.legs import Leg, OrderLeg, legs_of_json, order_to_json
from ledger_sizer.model.tags import NO_TAGS, Tags, stored_tags, tags_from_json
from ledger_sizer.model.times import from_us, time_text
from ledger_sizer.model.units import decimal_text, exact_arithmetic, usd, usd_text

Form = Mapping[str, Any]


class Told(NamedTuple):
    """A decision with its request and its trace, both parsed."""

    decision: Decision
    request: Form
    trace: Form

    @property
    def after(self) -> Position | None:
        """The position as the decision left it, where the trace has its figures: without its state, held and open."""
        entry = self.trace.get("entry")
        if entry is None:
            return None
        record = self.decision.record
        quantity, price = [None if entry[name] is None else Decimal(entry[name]) for name in ("quantity", "price")]
        filled = price is not None and quantity
        return Position(
            record.portfolio, record.position or 0, "open" if filled else "held" if entry["expires_us"] else "closed",
            NO_TAGS, quantity=quantity, price=price, legs=self.legs, expires_us=entry["expires_us"],
            fills=fills_of_json(entry["fills"]),
        )  # fmt: skip

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The legs after the decision."""
        return legs_of_json(self.trace.get("legs", ()))

    @property
    def moved(self) -> tuple[Tags, Tags] | None:
        """The tags of the position before and after, where the decision changed them."""
        before = self.trace.get("moved")
        return None if before is None else (tags_from_json(before["tags"]), stored_tags(self.decision.record.tags))

    @property
    def scopes_left(self) -> str:
        """The scopes that the position left, in words; empty for none."""
        return _scopes_that(*self.moved) if self.moved is not None else ""

    @property
    def scopes_entered(self) -> str:
        """The scopes that the position counts in from now on and did not before, in words; empty for none."""
        return _scopes_that(*reversed(self.moved)) if self.moved is not None else ""

    @property
    def held_change(self) -> Decimal:
        """USD that are held more, below zero for less."""
        return usd(self.decision.record.held_delta_e8)

    @property
    def open_change(self) -> Decimal:
        """USD that are open more, below zero for less."""
        return usd(self.decision.record.open_delta_e8)


def position_data(told: Told) -> dict[str, Any]:
    """Return what a decision did to its position, as data: decimals as strings."""
    after, moved = told.after, told.moved
    ended = None
    if told.trace.get("note") == "late_fill":
        ended = {"position_id": told.request.get("position_id"), "state": told.trace.get("ended", "expired")}
    return {
        "held_change": decimal_text(told.held_change),
        "open_change": decimal_text(told.open_change),
        "legs": [order_to_json(leg) for leg in told.decision.legs],
        "position": None if after is None else _position_data(after),
        "moved": None if moved is None else {"from": moved[0].to_json(), "to": moved[1].to_json()},
        "late_fill_of": ended,
    }


def _position_data(after: Position) -> dict[str, Any]:
    figures = ("quantity", "price", "cost", "filled", "unfilled")
    form: dict[str, Any] = {name: _text(getattr(after, name)) for name in figures}
    form["expires_at"] = None if after.expires_at is None else time_text(after.expires_at)
    form["until_known"] = after.until_known
    return form


def position_lines(told: Told) -> list[str]:
    """Return what a decision did to its position, in words; nothing for one that is about none."""
    words = _WORDS.get(told.decision.command)
    if words is None:
        return []
    lines = _denied_lines(told) if told.decision.outcome == "denied" else words(told)
    return [line for line in (*lines, *_late_lines(told)) if line]


def _denied_lines(told: Told) -> Iterator[str]:
    # A fill that an atomic group denied names legs too, but asks for none.
    asked = _asked_legs(told.request) if told.decision.command == "reserve" else []
    if asked:
        yield f"Legs asked for: {', '.join(asked)}."
    if told.decision.command == "retag":
        before, after = stored_tags(told.decision.record.tags), tags_from_json(told.request["tags"])
        yield f"It would have entered {_scopes_that(after, before) or 'no other scope'}."


def _asked_legs(request: Form) -> list[str]:
    pairs = [("buy", request.get("spot_instrument")), ("sell", request.get("perp_instrument"))]
    pairs = [(leg["side"], leg["instrument"]) for leg in request["legs"]] if "legs" in request else pairs
    return [
        f"{side} {form if isinstance(form, str) else form.get('listed_as') or form['symbol']}"
        for side, form in pairs
        if form is not None
    ]


# --- reservations ------------------------------------------------------------------------------------------------


def _reserve_lines(told: Told) -> Iterator[str]:
    decision, after = told.decision, told.after
    for number, leg in enumerate(decision.legs, 1):
        yield f"Order {number}: {_order_words(leg)}"
    if after is not None:
        yield (
            f"More of {decision.position_id}, which counted {_grown_usd(told.trace)} USD: it now has "
            f"{_coins(after.filled)} filled, and {_coins(after.unfilled)} to fill."
            if after.unfilled is not None
            else f"More of {decision.position_id}, which counted {_grown_usd(told.trace)} USD."
        )
    elif "grows" in told.trace:
        yield f"More of {decision.position_id}, which counted {_grown_usd(told.trace)} USD."
    yield _until_words(decision)


def _grown_usd(trace: Form) -> str:
    grows = trace.get("grows", {})
    return usd_text(grows.get("held", 0) + grows.get("open", 0))


def _order_words(order: OrderLeg) -> str:
    where = f" at {order.venue}" if order.venue else ""
    where += f", account {order.account}" if order.account else ""
    amount, quantity = decimal_text(order.order_amount), decimal_text(order.quantity)
    if order.order_cost is not None:
        what = f"its cost, {decimal_text(order.order_cost)} USD, for {quantity} coins"
    elif order.order_amount == order.quantity:
        what = f"amount {amount}"
    else:
        with exact_arithmetic():
            unit = order.quantity / order.order_amount
        what = f"amount {amount} of {decimal_text(unit)} coins each, {quantity} coins"
    return (
        f"{order.side} {order.symbol} ({order.kind}{where}): {what}, sized at {decimal_text(order.price)} USD a coin."
    )


def _until_words(decision: Decision) -> str:
    if decision.until_known:
        return (
            "The hold never ends by time, because the fate of an order is not known: a fill, a release or the "
            "reconciliation decides it."
        )
    return "" if decision.expires_at is None else f"Held until {time_text(decision.expires_at)}."


# --- fills -------------------------------------------------------------------------------------------------------


def _fill_lines(told: Told) -> Iterator[str]:
    decision, after = told.decision, told.after
    if told.trace.get("note") == "known":
        yield f"The fill of {decision.position_id} was known already: nothing changed."
        return
    price = "" if "price" not in told.request else f" at {told.request['price']} USD a coin"
    if decision.command == "fill":
        so_far = told.request["filled_quantity"]
        yield (
            f"Filled: {_coins(decision.quantity)} beyond what was known, {so_far} in all{price} on average. "
            f"{_change_words(told)}"
        )
    else:
        yield f"Filled: {_coins(decision.quantity)}{price}. {_change_words(told)}"
    yield from (f"Leg that filled: {_leg_words(leg)}." for leg in told.request.get("legs", ()))
    if after is not None:
        yield f"{decision.position_id} has {_open_words(after)}."
        yield _rest_words(after)
    elif told.held_change:
        yield "The rest of its hold was freed."
    yield from _moved_lines(told, "A leg filled elsewhere than planned")


def _leg_words(form: Form) -> str:
    """Return one leg of a request in words."""
    price = f" at {form['price']} USD a coin" if form.get("price") else ""
    return f"{form['side']} {form['quantity']} coins, {form['symbol']} ({form['kind']} at {form['venue']}){price}"


def _open_words(after: Position) -> str:
    if not after.quantity or after.price is None:
        return "nothing open"
    return (
        f"{_coins(after.quantity)} open at {decimal_text(after.price)} USD a coin on average, "
        f"which cost {decimal_text(after.cost)} USD"
    )


def _rest_words(after: Position) -> str:
    if not after.pending:
        return "Nothing is held for it any more."
    rest = "The rest of its budget" if after.unfilled is None else f"The rest, {_coins(after.unfilled)},"
    if after.until_known:
        return f"{rest} stays held until its fate is known."
    return f"{rest} stays held until {time_text(from_us(after.expires_us or 0))}."


def _late_lines(told: Told) -> Iterator[str]:
    if told.trace.get("note") != "late_fill" or told.decision.outcome == "denied":
        return
    fact = "the fill is a fact, so it was recorded as a new position"
    ended = told.trace.get("ended", "expired")
    if ended == "closed":
        yield f"{told.request['position_id']} was closed before the fill: {fact}."
    else:
        how = "been released" if ended == "released" else "expired"
        yield f"The hold of {told.request['position_id']} had {how} before the fill: {fact}."


def _adopt_lines(told: Told) -> Iterator[str]:
    request = told.request
    yield f"Took over {request['quantity']} coins at {request['price']} USD a coin. {_change_words(told)}"


# --- the end of it -----------------------------------------------------------------------------------------------


def _release_lines(told: Told) -> Iterator[str]:
    decision, after = told.decision, told.after
    if told.open_change:
        yield f"Closed: {_coins(decision.quantity)}. {_change_words(told)}"
    else:
        yield f"The hold was freed. {_change_words(told)}"
    if after is not None:
        yield f"{decision.position_id} has {_open_words(after)}."
        if after.pending:
            yield _rest_words(after)


def _expire_lines(told: Told) -> Iterator[str]:
    after = told.after
    yield f"The hold ran out of time. {_change_words(told)}"
    if after is not None:
        yield f"What was filled stays: {told.decision.position_id} has {_open_words(after)}."


# --- holds, scopes and prices ------------------------------------------------------------------------------------


def _extend_lines(told: Told) -> Iterator[str]:
    yield _until_words(told.decision)


def _retag_lines(told: Told) -> Iterator[str]:
    yield from _moved_lines(told, f"{told.decision.position_id} has other tags")
    if told.moved is None:
        yield f"{told.decision.position_id} had these tags already."


def _moved_lines(told: Told, why: str) -> Iterator[str]:
    words = [f"it left {told.scopes_left}"] if told.scopes_left else []
    words += [f"it counts in {told.scopes_entered} from now on"] if told.scopes_entered else []
    if words:
        yield f"{why}: {', and '.join(words)}."


def _scopes_that(some: Tags, others: Tags) -> str:
    """Return the scopes of some tags that the other tags do not have."""
    return ", ".join(name for name in some.scopes if name not in others.scopes)


def _reprice_lines(told: Told) -> Iterator[str]:
    after, price = told.after, told.request["price"]
    yield f"It counts {price} USD a coin from now on. {_change_words(told)}"
    if after is not None:
        yield f"What it cost stays: {decimal_text(after.cost)} USD."


def _rename_lines(told: Told) -> Iterator[str]:
    position, request = told.decision.position_id, told.request
    yield f"{position} is of {request['asset']} from now on, {request.get('ratio', '1')} for each coin it had."
    yield from _moved_lines(told, "Its tag follows")
    if told.after is not None:
        yield f"It has {_coins(told.after.quantity)}. What it counts and what it cost stay."


def _change_words(told: Told) -> str:
    """Say how much more or less is held and open."""
    changes = [(told.open_change, "open"), (told.held_change, "held")]
    words = [f"{_amount(change)} {'more' if change > 0 else 'less'} {name}" for change, name in changes if change]
    return f"{', '.join(words)}." if words else "What it counts is the same."


def _amount(change: Decimal) -> str:
    return f"{decimal_text(change.copy_abs())} USD"


def _coins(quantity: Decimal | None) -> str:
    return "nothing" if quantity is None else f"{decimal_text(quantity)} coins"


def _text(value: Decimal | None) -> str | None:
    return None if value is None else decimal_text(value)


_WORDS = {
    "reserve": _reserve_lines,
    "confirm": _fill_lines,
    "fill": _fill_lines,
    "adopt": _adopt_lines,
    "release": _release_lines,
    "expire": _expire_lines,
    "extend": _extend_lines,
    "retag": _retag_lines,
    "reprice": _reprice_lines,
    "rename": _rename_lines,
}
"""Words of the verbs about positions."""
