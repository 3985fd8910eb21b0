"""Plans what brings the ledger in line with a bot's book: the fills, closes and longer holds, one after the other.

Each step is decided and applied before the next is planned, so that every step sees the state after its predecessors.
"""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from ledger_sizer.model.choices import Rest
from ledger_sizer.model.command_base import SYSTEM_KEY_PREFIX
from ledger_sizer.model.commands import Adopt, Confirm, Extend, Fill, Release
from ledger_sizer.model.domain import Position
from ledger_sizer.model.errors import InvalidRequest, NotFound
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.market_names import parse_symbol
from ledger_sizer.model.names import split_position_id
from ledger_sizer.model.settle import BookEntry, Settle
from ledger_sizer.model.tags import EXTERNAL_TAG, Tags
from ledger_sizer.model.times import to_us
from ledger_sizer.model.units import decimal_text, exact_arithmetic, usd
from ledger_sizer.rules.filling import filled_so_far
from ledger_sizer.rules.state import PortfolioState

_KEY = "settle"
"""Stands for the key while the command is made: its real one is the ledger's own (see `Step`)."""

_OWN_KEY = f"{SYSTEM_KEY_PREFIX}settle:"

_FLAT = BookEntry(Decimal(0), Decimal(0))
_ZERO = Decimal(0)
_PRICE_STEP = Decimal("1e-18")
_PRICE_FACTOR_MAX = 2
"""The price of what is added may be so many times the book's, or a part of it. Beyond that the two sides differ in what
they count, and the book's own price is taken."""

SettleCommand = Confirm | Fill | Adopt | Release | Extend


class SettleTask(NamedTuple):
    """A request and its caller's tags. young_us: holds younger than this stay where the request has no `as_of`."""

    request: Settle
    tags: Tags
    young_us: int

    def as_of_us(self, now_us: int) -> int:
        """Return the time after which a grant is newer than the book."""
        return now_us - self.young_us if self.request.as_of is None else to_us(self.request.as_of)

    @property
    def numbers(self) -> dict[str, int]:
        """Return the numbers of the positions that the book, or the list of resting orders, names by their ids."""
        found = {}
        for name in (*self.request.entries, *self.request.resting):
            number = _number_in(name, self.request.portfolio)
            if number is not None:
                found[name] = number
        return found


class Step(NamedTuple):
    """A command to be decided now. key: says position, its last decision and what the step is for."""

    key: str
    command: SettleCommand


def steps(state: PortfolioState, task: SettleTask, now_us: int) -> Iterator[Step]:
    """Yield what is to be done, in order: market by market, the positions named by their ids first.

    The caller applies each step to the state before it takes the next. Raises `NotFound` and `InvalidRequest` for a
    position id that is not one of the bot's, before the first step.
    """
    numbers = task.numbers
    for name, number in numbers.items():
        _require_own(state, task, name, number)
    groups = _grouped(state, task)
    as_of_us = task.as_of_us(now_us)
    for name in sorted(
        {*task.request.entries, *task.request.resting, *groups}, key=lambda one: (one not in numbers, one)
    ):
        yield from _Market(state, task, name, groups.get(name, ()), as_of_us).steps()


def carries_all(tags: Tags, wanted: Tags) -> bool:
    """Whether a position with these tags has every value of the wanted ones."""
    return all(value in tags.values_of(name) for name, value in wanted.pairs)


def _number_in(name: str, portfolio: str) -> int | None:
    try:
        found, number = split_position_id(name)
    except InvalidRequest:
        return None
    return number if found == portfolio else None


def _require_own(state: PortfolioState, task: SettleTask, name: str, number: int) -> None:
    position = state.positions.get(number)
    if position is None:
        raise NotFound(f"no position {name!r}, which the book names")
    if not carries_all(position.tags, task.tags):
        raise InvalidRequest(
            f"book: {name} has the tags {dict(position.tags)!r}, not {dict(task.tags)!r}; name positions of this bot",
            field="book",
        )


def _grouped(state: PortfolioState, task: SettleTask) -> Mapping[str, Sequence[int]]:
    """Return the numbers of the live positions with these tags, oldest first, by the name that the book has for them.

    Of a position with several legs, and of one whose market nothing says, that is its id.
    """
    named = {number: name for name, number in task.numbers.items()}
    known = {*task.request.entries, *task.request.resting}
    groups: dict[str, list[int]] = {}
    for number, position in sorted(state.positions.items()):
        if not position.live or EXTERNAL_TAG in position.tags or not carries_all(position.tags, task.tags):
            continue
        own = next((named[one] for one in (number, position.origin) if one is not None and one in named), None)
        groups.setdefault(own or _market_of(position, known), []).append(number)
    return groups


def _market_of(position: Position, known: set[str]) -> str:
    if len(position.legs) == 1:
        return position.legs[0].symbol
    symbols = () if position.legs else position.tags.values_of("symbol")
    market = next((symbol for symbol in symbols if symbol in known), None)
    return market or (symbols[0] if symbols else position.position_id)


class _Market:
    """The steps for one market, or for one position that is named by its id.

    Figures are worked out in exact arithmetic before a step is yielded: between two steps the caller's own decimal
    context must be back.
    """

    def __init__(
        self, state: PortfolioState, task: SettleTask, name: str, numbers: Sequence[int], as_of_us: int
    ) -> None:
        self._state = state
        self._task = task
        self._name = name
        self._numbers = numbers
        self._entry = task.request.entries.get(name, _FLAT)
        self._resting = name in task.request.resting
        self._as_of_us = as_of_us
        self._reference = task.request.reference

    def steps(self) -> Iterator[Step]:
        """Yield the steps: fills, then holds, then closes."""
        with exact_arithmetic():
            opened = sum([_open_quantity(one) for one in self._positions()], _ZERO)
            more = self._entry.quantity - opened
            price = self._price_of(more) if more > 0 else _ZERO
        if more > 0:
            yield from self._fills(more, price)
        yield from self._holds()
        if more < 0:
            yield from self._closes(more.copy_abs())

    def _positions(self) -> list[Position]:
        """Return the live positions as they are now."""
        found = [self._state.positions[number] for number in self._numbers]
        return [position for position in found if position.live]

    def _price_of(self, more: Decimal) -> Decimal:
        """Return the price of what is added, so that the average is the book's."""
        price = self._entry.price
        cost = self._entry.quantity * price - sum([one.cost for one in self._positions()], _ZERO)
        if cost == more * price:
            return price
        added = max((cost / more).quantize(_PRICE_STEP), _ZERO)
        return added if price <= added * _PRICE_FACTOR_MAX and added <= price * _PRICE_FACTOR_MAX else price

    def _fills(self, more: Decimal, price: Decimal) -> Iterator[Step]:
        """Yield fills of the holds, and a position for what none of them explains."""
        number = _number_in(self._name, self._task.request.portfolio)
        if number is not None:
            yield self._fill_by_id(number, more, price)
            return
        shares, rest = self._shares(more, price)
        for position, filled in shares:
            yield self._confirm(position, filled, price)
        if rest > 0:
            yield self._adopt(rest, price)

    def _shares(self, more: Decimal, price: Decimal) -> tuple[list[tuple[Position, Decimal]], Decimal]:
        """Return what of `more` each hold explains, the oldest first, and what none of them does."""
        holds = [position for position in self._positions() if position.pending]
        plain = [position for position in holds if position.unfilled is None]
        shares = []
        with exact_arithmetic():
            for position in holds:
                # A budget that names no coins takes whatever its order filled: its price may have moved.
                last = bool(plain) and position is plain[-1]
                filled = more if last else min(more, _room(position, price))
                if filled > 0:
                    more -= filled
                    shares.append((position, filled))
        return shares, more

    def _confirm(self, position: Position, quantity: Decimal, price: Decimal) -> Step:
        legs = None
        if not position.legs and not _open_quantity(position):
            leg = self._leg(position.tags, quantity, price)
            legs = None if leg is None else [leg]
        with exact_arithmetic():
            target = decimal_text(_open_quantity(position) + quantity)
        rest: Rest | None = "hold" if self._stays(position) else None
        return self._step(
            position, target,
            Confirm(
                key=_KEY, position_id=position.position_id, quantity=quantity, price=price, legs=legs, rest=rest,
                reference=self._reference,
            ),
        )  # fmt: skip

    def _fill_by_id(self, number: int, more: Decimal, price: Decimal) -> Step:
        """Return the fill of a position that may have ended: it then makes a late one."""
        root = self._state.positions[number]
        entries = [root, *[self._state.positions[late] for late in self._state.late_fills.get(number, ())]]
        known = [filled_so_far(entry) for entry in entries]
        with exact_arithmetic():
            filled = sum([quantity for quantity, _ in known], _ZERO) + more
            cost = sum([cost for _, cost in known], _ZERO) + more * price
            average = price if filled == more else (cost / filled).quantize(_PRICE_STEP)
        keeps = any(self._stays(entry) for entry in entries if entry.pending)
        return self._step(
            root, decimal_text(filled),
            Fill(
                key=_KEY, position_id=root.position_id, filled_quantity=filled, price=average,
                rest="hold" if keeps else "free", reference=self._reference,
            ),
        )  # fmt: skip

    def _adopt(self, quantity: Decimal, price: Decimal) -> Step:
        tags = self._task.tags.having("symbol", self._name)
        leg = self._leg(tags, quantity, price)
        command = Adopt(
            key=_KEY, portfolio=self._state.name, quantity=quantity, price=price, tags=tags,
            legs=None if leg is None else [leg], note="settle", reference=self._reference,
        )  # fmt: skip
        last = self._state.last_seq
        return Step(f"{_OWN_KEY}{last + 1}:{last}:{decimal_text(quantity)}", command)

    def _leg(self, tags: Tags, quantity: Decimal, price: Decimal) -> Leg | None:
        """Return the leg of this market, where its name and the one venue of the tags say which it is."""
        said, venue = parse_symbol(self._name), tags.only("venue")
        if said is None or venue is None:
            return None
        return Leg(venue, self._name, said.kind, self._entry.side, quantity, price)

    def _holds(self) -> Iterator[Step]:
        """Yield what becomes of the holds: kept for ever beside a resting order, left alone, or freed."""
        for position in self._positions():
            if not position.pending:
                continue
            if self._resting:
                if not position.until_known:
                    command = Extend(
                        key=_KEY, position_id=position.position_id, until_known=True, reference=self._reference
                    )
                    yield self._step(position, "until_known", command)
            elif not self._is_young(position):
                release = Release(key=_KEY, position_id=position.position_id, held_only=True, reference=self._reference)
                yield self._step(position, "held_only", release)

    def _closes(self, less: Decimal) -> Iterator[Step]:
        """Yield closes of what is open beyond the book, the oldest first."""
        closes = []
        with exact_arithmetic():
            for position in self._positions():
                opened = _open_quantity(position)
                newer = self._task.request.as_of is not None and position.opened_us > self._as_of_us
                closing = min(opened, less)
                if closing > 0 and not newer:
                    less -= closing
                    closes.append((position, closing, decimal_text(opened - closing)))
        for position, closing, left in closes:
            command = Release(key=_KEY, position_id=position.position_id, quantity=closing, reference=self._reference)
            yield self._step(position, left, command)

    def _stays(self, position: Position) -> bool:
        """Whether the hold stays: an order of it rests, or it was granted after the book was read."""
        return self._resting or self._is_young(position)

    def _is_young(self, position: Position) -> bool:
        return position.opened_us > self._as_of_us or position.number in self._state.granted_lately

    def _step(self, position: Position, target: str, command: SettleCommand) -> Step:
        return Step(f"{_OWN_KEY}{position.number}:{position.updated_seq}:{target}", command)


def _open_quantity(position: Position) -> Decimal:
    return position.quantity if position.state == "open" and position.quantity is not None else _ZERO


def _room(position: Position, price: Decimal) -> Decimal:
    """Return the coins that the hold's orders may still fill: those that were granted, or what its USD buy."""
    if position.unfilled is not None:
        return position.unfilled
    return (usd(position.held_e8) / price).quantize(_PRICE_STEP)
