"""Adopting a drift: the commands after which the ledger says what the exchange shows. Pure, from one reading of it."""

from collections.abc import Iterable, Sequence
from decimal import Decimal

from ledger_sizer.batch import AnyCommand
from ledger_sizer.commands import Adopt, Release
from ledger_sizer.domain import Position
from ledger_sizer.errors import InvalidRequest, WrongState
from ledger_sizer.reconcile.book import Book, Place, book_of
from ledger_sizer.reconcile.effects import leg_of, release_of, tags_at
from ledger_sizer.reconcile.kinds import Drift, Market
from ledger_sizer.units import exactly, plain

ZERO = Decimal(0)
_MAY_LACK = ("missing_position", "quantity_differs", "side_flipped")
"""Kinds in which the exchange may show less than the ledger holds."""

_PART_UNIT = Decimal("1e-30")
"""What a released part is rounded to: far below the 1e-18 that a leg is kept to, so that no leg shows it."""


class Adoption:
    """Makes the commands, from the positions as they are now.

    positions: of the portfolio, oldest first. places: the accounts of the run that saw the drift last; by them alone
    its figures can be told again, because what names no account stands in a venue's only one. seen_us: when it did.
    """

    def __init__(self, drift: Drift, positions: Sequence[Position], places: Sequence[Place], seen_us: int) -> None:
        self._drift = drift
        self._seen_us = seen_us
        self._positions = positions
        self._places = places
        self._book = self._book_of(positions)

    def releases(self) -> list[AnyCommand]:
        """Give up the external positions that count the drift."""
        return [release_of(position) for position in self._book.external.get(self._drift.market, ())]

    def commands(self, live: Iterable[Drift], price: Decimal | None) -> list[AnyCommand]:
        """What is lacking at the exchange is released, what is more there becomes a position.

        Where a side flipped both are one decision: netted at the exchange, the new side would not agree beside the old.
        live: the portfolio's drifts, to find the other side's. price: USD per base unit to adopt at, if need be.
        Raises `WrongState` where nothing is to be adopted, and where the ledger moved since the drift was seen.
        """
        drift = self._drift
        if drift.excess <= 0 and not _lacking(drift):
            raise WrongState(f"{drift.name} is {drift.kind}: there is nothing to adopt; ignore it, or wait for its end")
        commands: list[AnyCommand] = []
        for one in [drift, *self._other_side(live)]:
            self._require_unmoved(one)
            commands += self._given_up(one)
        if drift.excess > 0:
            if price is None:
                raise InvalidRequest(f"the exchange names no price for {drift.subject}; give one", field="price")
            taken = Adopt(
                key=f"drift:{drift.id}:{drift.revision}:adopt", portfolio=drift.portfolio, quantity=drift.excess,
                price=price, tags=tags_at(drift.market), legs=[leg_of(drift, price)], note=drift.name,
            )  # fmt: skip
            commands += [*self.releases(), taken]
        return commands

    def _other_side(self, live: Iterable[Drift]) -> list[Drift]:
        """The drift of what the ledger holds on the side that the exchange shows no more; none where it holds nothing.

        Spot has one market for both signs, so the drift itself says it.
        """
        drift, other = self._drift, self._drift.market.opposite
        if drift.kind != "side_flipped" or drift.excess <= 0 or not self._held(other):
            return []
        for one in live:
            if one.market == other and one.last_run == drift.last_run and _lacking(one):
                return [one]
        raise self._moved(drift, other)

    def _require_unmoved(self, drift: Drift) -> None:
        """A drift's own figure is of one side, or what is left of it where the exchange nets both sides."""
        held = self._held(drift.market)
        with exactly():
            net = max(held - self._held(drift.market.opposite), ZERO)
        # One position closed and another opened may add up to the same.
        newer = [one for one in self._positions if one.state == "open" and one.updated_us > self._seen_us]
        if drift.ledger_quantity not in (held, net) or drift.market in self._book_of(newer).open:
            raise self._moved(drift, drift.market)

    def _moved(self, drift: Drift, market: Market) -> WrongState:
        return WrongState(
            f"the ledger moved since run {drift.last_run} saw {drift.name}: it holds {plain(self._held(market))} "
            f"{market.subject} {market.side} now, so what the run found is over; reconcile again, then decide"
        )

    def _given_up(self, drift: Drift) -> list[AnyCommand]:
        """Release the newest positions that have a leg in the market, in part where that is enough."""
        commands: list[AnyCommand] = []
        lacking = _lacking(drift)
        sold = (drift.ledger_quantity or ZERO) < 0
        with exactly():
            for position in reversed(self._positions):
                if lacking <= 0:
                    break
                if position.state != "open" or position.quantity is None:
                    continue
                held = self._book_of([position]).open.get(drift.market, ZERO) * (-1 if sold else 1)
                if held <= 0:
                    continue
                part = None if lacking >= held else _part(position.quantity, held, lacking)
                key = f"drift:{self._drift.id}:{self._drift.revision}:release:{position.number}"
                commands.append(Release(key=key, position_id=position.position_id, quantity=part))
                lacking -= held
        return commands

    def _held(self, market: Market) -> Decimal:
        return self._book.open.get(market, ZERO)

    def _book_of(self, positions: Sequence[Position]) -> Book:
        """What they are at these accounts, whenever they moved."""
        return book_of(positions, self._places, seq_before=2**62, settled_us=2**62, expired_us=2**62)


def _lacking(drift: Drift) -> Decimal:
    """Base units that the ledger holds and the exchange does not: all of them, where it shows the other sign."""
    if drift.kind not in _MAY_LACK:
        return ZERO
    ledger, venue = drift.ledger_quantity or ZERO, drift.venue_quantity or ZERO
    with exactly():
        return abs(ledger) if ledger * venue < 0 else max(abs(ledger) - abs(venue), ZERO)


def _part(quantity: Decimal, held: Decimal, lacking: Decimal) -> Decimal:
    """How much of a position to release so that `lacking` of the `held` in one of its markets goes, and no more.

    The ledger scales a leg by what is left of the position and rounds it down: where the share is no finite decimal,
    a unit less is released, or the leg would end below what the exchange shows.
    """
    part = (lacking * quantity / held).quantize(_PART_UNIT)
    left_of_held = (quantity - part) / quantity * held
    return part if held == quantity or left_of_held >= held - lacking else part - _PART_UNIT
