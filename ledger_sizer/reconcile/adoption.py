"""Adopting a drift: the commands after which the ledger says what the exchange shows. Pure, from one reading of it."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import ROUND_UP, Decimal

from ledger_sizer.model.commands import Adopt, AnyCommand, Release
from ledger_sizer.model.domain import Position
from ledger_sizer.model.errors import InvalidRequest, WrongState
from ledger_sizer.model.reconciliation import QUANTITY_KINDS, Drift, Market
from ledger_sizer.model.tags import EXTERNAL_TAG
from ledger_sizer.model.units import decimal_text, exact_arithmetic
from ledger_sizer.reconcile.effects import leg_of, release_of, tags_at
from ledger_sizer.reconcile.ledger_side import Place, Places, ledger_side_of
from ledger_sizer.rules.decide import remaining_leg_quantity

ZERO = Decimal(0)

_PART_UNIT = Decimal("1e-30")
"""What a part of a position is rounded to: far below the 1e-18 that a leg is kept to, so that no leg shows it."""


class Adoption:
    """Makes the commands, from the positions as they are now.

    positions: of the portfolio, oldest first, with those that were closed since `seen_us`. places: the accounts of the
    run that saw the drift last; by them alone its figures can be told again, because what names no account stands in a
    venue's only one. seen_us: when that run began; what moved before it read the ledger it did not judge.
    live: the portfolio's drifts that are not resolved.
    """

    def __init__(
        self, drift: Drift, positions: Sequence[Position], places: Sequence[Place], seen_us: int, live: Sequence[Drift]
    ) -> None:
        self._positions = positions
        self._places = Places(places)
        # Whatever moved since the run began, or at that moment, is settling in this book, also what is closed.
        self._book = ledger_side_of(positions, places, seq_before=2**62, settled_us=seen_us - 1, expired_us=2**62)
        self._live = live
        self._drift = self._as_now(drift)

    def releases(self) -> list[AnyCommand]:
        """Give up the external positions that count the drift."""
        return [release_of(position) for position in self._book.external.get(self._drift.market, ())]

    def commands(self, price: Decimal | None) -> list[AnyCommand]:
        """What is lacking at the exchange is released, what is more there becomes a position.

        Where a side flipped both are one decision: netted at the exchange, the new side would not agree beside the old.
        price: USD per base unit to adopt at, if need be. Raises `WrongState` where nothing is to be adopted, and where
        the ledger moved since the drift was seen.
        """
        drift = self._drift
        if drift.excess <= 0 and not _lacking(drift):
            raise WrongState(f"{drift.name} is {drift.kind}: there is nothing to adopt; ignore it, or wait for its end")
        commands: list[AnyCommand] = []
        for one in [drift, *self._other_side()]:
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

    def _other_side(self) -> list[Drift]:
        """The drift of what the ledger holds on the side that the exchange shows no more; none where it holds nothing.

        Spot has one market for both signs, so the drift itself says it.
        """
        drift, other = self._drift, self._drift.market.opposite
        if drift.kind != "side_flipped" or drift.excess <= 0 or not self._held(other):
            return []
        for one in map(self._as_now, self._live):
            if one.market == other and one.last_run == drift.last_run and _lacking(one):
                return [one]
        raise self._refusal(drift, other)

    def _as_now(self, drift: Drift) -> Drift:
        """The drift beside what the ledger holds now.

        An ignored one keeps the figures it was ignored with, so that every run compares with those. The ledger's own
        share of them may be another one by now; what the last run saw again is the difference, beyond what holds were.
        Where the ledger is on the other side of an ignored excess of coins, two figures would be that difference, so
        the drift stays as it was, and is not adopted.
        """
        if drift.state != "acknowledged" or drift.kind not in QUANTITY_KINDS:
            return drift
        was, venue, held = drift.ledger_quantity or ZERO, drift.venue_quantity or ZERO, self._held(drift.market)
        with exact_arithmetic():
            beyond = venue - was
            if drift.excess > 0:
                if was * venue < 0 or held * beyond < 0:
                    return drift
                beyond = drift.excess.copy_sign(beyond)
            now = held + beyond
            if drift.market.is_swap:
                now = max(now, ZERO)
            excess = abs(now) if held * now < 0 else max(abs(now) - abs(held), ZERO)
        return replace(drift, ledger_quantity=held, venue_quantity=now, excess=excess)

    def _require_unmoved(self, drift: Drift) -> None:
        if self._moved(drift):
            raise self._refusal(drift, drift.market)

    def _moved(self, drift: Drift) -> bool:
        """A drift's own figure is of one side, or what is left of it where the exchange nets both sides."""
        held = self._held(drift.market)
        with exact_arithmetic():
            net = max(held - self._held(drift.market.opposite), ZERO)
        # One position closed and another opened may add up to the same.
        return drift.ledger_quantity not in (held, net) or drift.market in self._book.settling

    def _refusal(self, drift: Drift, market: Market) -> WrongState:
        return WrongState(
            f"the ledger moved since run {drift.last_run} saw {drift.name}: "
            f"it holds {decimal_text(self._held(market))} "
            f"{market.subject} {market.side} now, so what the run found is over; reconcile again, then decide"
        )

    def _given_up(self, drift: Drift) -> list[AnyCommand]:
        """Release the newest positions that have a leg in the market, in part where that is enough.

        What their other legs are at the exchange goes on counting, in positions of its own.
        """
        commands: list[AnyCommand] = []
        lacking, side = _lacking(drift), _side(drift)
        gone_too = self._gone_too(drift)
        with exact_arithmetic():
            for position in reversed(self._positions):
                if lacking <= 0:
                    break
                if position.state != "open" or position.quantity is None or EXTERNAL_TAG in position.tags:
                    continue
                held = ZERO
                for leg, market in self._places.markets(position):
                    if market == drift.market:
                        held += leg.quantity if leg.side == side else -leg.quantity
                if held <= 0:
                    continue
                part = position.quantity if lacking >= held else _part(position.quantity, held, lacking)
                # The quantity is named also where it is all: closed in part meanwhile, nothing of this is done.
                key = self._key("release", position)
                commands.append(Release(key=key, position_id=position.position_id, quantity=part))
                commands += self._kept(position, part, drift.market, gone_too)
                lacking -= held
        return commands

    def _gone_too(self, drift: Drift) -> dict[tuple[Market, str], Decimal]:
        """Base units that other drifts of the same run say are lacking, by market and side of their legs.

        Only while the ledger did not move there since: what is not known to be gone goes on counting.
        """
        return {
            (one.market, _side(one)): _lacking(one)
            for one in self._live
            if one.live and one.last_run == drift.last_run and _lacking(one) and not self._moved(one)
        }

    def _kept(
        self, position: Position, part: Decimal, given_up: Market, gone_too: dict[tuple[Market, str], Decimal]
    ) -> list[AnyCommand]:
        """What a released part of a position still is at the exchange, as a position at its price and with its tags.

        It counts what the part counted: as much of it as the largest share of a leg that is left. gone_too is used up.
        """
        assert position.quantity is not None and position.price is not None, "an open position has a fill"
        legs, share = [], ZERO
        for leg, market in self._places.markets(position):
            released = leg.quantity - remaining_leg_quantity(leg, position.quantity, position.quantity - part)
            if market == given_up or released <= 0:
                continue
            kept = released
            if market is not None and (lacking := gone_too.get((market, leg.side))):
                kept -= min(lacking, released)
                gone_too[market, leg.side] = lacking - (released - kept)
            if kept > 0:
                legs.append(replace(leg, quantity=kept))
                share = max(share, kept / released)
        if not legs:
            return []
        quantity = part if share == 1 else (part * share).quantize(_PART_UNIT, ROUND_UP)
        kept_position = Adopt(
            key=self._key("keep", position), portfolio=position.portfolio, quantity=quantity, price=position.price,
            tags=position.tags, legs=legs, note=f"{self._drift.name}: what is left of {position.position_id}",
        )  # fmt: skip
        return [kept_position]

    def _key(self, act: str, position: Position) -> str:
        return f"drift:{self._drift.id}:{self._drift.revision}:{act}:{position.number}"

    def _held(self, market: Market) -> Decimal:
        return self._book.open.get(market, ZERO)


def _side(drift: Drift) -> str:
    """Side of the legs that make what the ledger holds: of an asset, whether its coins were bought or sold."""
    sold = drift.market.side == "short" if drift.market.is_swap else (drift.ledger_quantity or ZERO) < 0
    return "sell" if sold else "buy"


def _lacking(drift: Drift) -> Decimal:
    """Base units that the ledger holds and the exchange does not: all of them, where it shows the other sign."""
    if drift.kind not in QUANTITY_KINDS:
        return ZERO
    ledger, venue = drift.ledger_quantity or ZERO, drift.venue_quantity or ZERO
    with exact_arithmetic():
        return abs(ledger) if ledger * venue < 0 else max(abs(ledger) - abs(venue), ZERO)


def _part(quantity: Decimal, held: Decimal, lacking: Decimal) -> Decimal:
    """How much of a position to release so that `lacking` of the `held` in one of its markets goes, and no more.

    The ledger scales a leg by what is left of the position and rounds it down: where the share is no finite decimal,
    a unit less is released, or the leg would end below what the exchange shows.
    """
    part = (lacking * quantity / held).quantize(_PART_UNIT)
    left_of_held = (quantity - part) / quantity * held
    return part if held == quantity or left_of_held >= held - lacking else part - _PART_UNIT
