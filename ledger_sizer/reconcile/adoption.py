"""Computes the commands that adopt a drift, so that the ledger matches the exchange. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import ROUND_UP, Decimal

from ledger_sizer.model.choices import DriftKind
from ledger_sizer.model.commands import Adopt, AnyCommand, Confirm, Release
from ledger_sizer.model.domain import Position
from ledger_sizer.model.drift_words import holds_named
from ledger_sizer.model.errors import InvalidRequest, WrongState
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.reconciliation import QUANTITY_KINDS, Drift, Market
from ledger_sizer.model.tags import EXTERNAL_TAG, NO_TAGS, Tags
from ledger_sizer.model.tags import tags_of as valid_tags
from ledger_sizer.model.units import E8_MAX, decimal_text, exact_arithmetic
from ledger_sizer.reconcile.adopted_tags import adopted_tags
from ledger_sizer.reconcile.effects import NOTE_LENGTH_MAX, leg_of, release_of
from ledger_sizer.reconcile.ledger_reads import Moves
from ledger_sizer.reconcile.ledger_side import ledger_side_of, unfilled_of
from ledger_sizer.reconcile.pairing import Piece, connected, holding_of, paired
from ledger_sizer.rules.filling import remaining_leg_quantity
from ledger_sizer.rules.leg_sizing import is_pair
from ledger_sizer.views.attribution import AccountResolver, order_market

ZERO = Decimal(0)

PAIRED_KINDS: frozenset[DriftKind] = frozenset({"unknown_position", "quantity_differs"})
"""Kinds whose excess may be one side of a hedge that nobody told the ledger."""

_PART_UNIT = Decimal("1e-30")
"""Rounding unit of partial releases. Legs are rounded to 1e-18, so it is too small to affect any leg."""


class Adoption:
    """Adoption of one drift.

    positions: of the portfolio, oldest first, including those closed since `seen_us`. accounts: those of the run that
    saw the drift last. Only these reproduce the drift's quantities: a position that names no account is at its venue's
    only one. seen_us: start of that run, which did not judge what moved before it read the ledger. live: the
    portfolio's drifts that are not resolved. holds: those that explain the drift, with their late fills. moves: what
    moved open positions since `seen_us`.
    """

    def __init__(
        self,
        drift: Drift,
        positions: Sequence[Position],
        accounts: AccountResolver,
        seen_us: int,
        live: Sequence[Drift],
        holds: Sequence[Position] = (),
        moves: Moves | None = None,
    ) -> None:
        self._positions = positions
        self._holds = holds
        self._resolver = accounts
        # With these bounds `settling` has whatever moved since the run began, including what is closed by now.
        self._ledger = ledger_side_of(
            positions, accounts, seq_before=2**62, settled_us=seen_us - 1, expired_us=2**62, moves=moves
        )
        self._live = live
        self._drift = self._with_current_ledger(drift)

    def releases(self) -> list[AnyCommand]:
        """Return the releases of the external positions that count the drift."""
        return [release_of(position) for position in self._ledger.external.get(self._drift.market, ())]

    def together(self, tolerance: Decimal, may_pair: Callable[[Drift], bool]) -> list[Drift]:
        """Return the drifts that one decision adopts, by number: this one, and those whose excess hedges it.

        They are of the same run and coin, on the other side, and what else these hedge. tolerance: see `paired`.
        may_pair: which others to look at.
        """
        drift = self._drift
        if drift.kind not in PAIRED_KINDS or drift.excess <= 0:
            return [drift]
        others = {
            one.market: one
            for one in self._live
            if one.market.base == drift.market.base and one.market != drift.market and one.kind in PAIRED_KINDS
            and one.live and one.last_run == drift.last_run and one.excess > 0 and may_pair(one)
            and not self._ledger_moved(one)
        }  # fmt: skip
        pieces = paired(map(holding_of, (drift, *others.values())), tolerance)
        group = next(
            group for group in connected(pieces) if any(one.market == drift.market for piece in group for one in piece)
        )
        markets = {one.market for piece in group for one in piece}
        return sorted([drift, *(others[one] for one in markets if one in others)], key=lambda one: one.id)

    def commands(
        self, price: Decimal | None, group: Sequence[Drift] = (), tolerance: Decimal = ZERO, tags: Tags = NO_TAGS
    ) -> list[AnyCommand]:
        """Return the commands that adopt the drift: they release a shortfall, and make an excess a position.

        A flipped side needs both in one decision: where the exchange nets, the new side cannot agree while the old one
        is open. A late fill is confirmed: it becomes the hold's, with its tags. price: USD per coin of what is filled,
        required for an excess. group: the drifts that are adopted with it, see `together`; none is it alone. tags: of
        the position that an excess becomes, beside those of its markets. Raises `WrongState` if there is nothing to
        adopt, or if the ledger moved since the drift was seen; `InvalidRequest` for a price or tags that do not fit.
        """
        drift = self._drift
        late = self._late_fills()
        if drift.excess <= 0 and not drift.shortfall and not late:
            raise WrongState(f"{drift.name} is {drift.kind}: there is nothing to adopt; ignore it, or wait for its end")
        commands: list[AnyCommand] = []
        for one in [drift, *self._other_side()]:
            self._require_unmoved(one)
            commands += self._releases_of_shortfall(one)
        if drift.excess <= 0 or late:
            _require_no_tags(drift, tags)
        if drift.excess <= 0 and not late:
            return commands
        if late:
            leg = replace(leg_of(holding_of(drift)), price=self._required(price), account=drift.account)
            commands += [*self.releases(), *(self._confirmation(hold, coins, leg) for hold, coins in late)]
            return commands
        return [*commands, *self._adopted_positions(group or [drift], price, tolerance, tags)]

    def _required(self, price: Decimal | None) -> Decimal:
        if price is None:
            raise InvalidRequest(f"the exchange names no price for {self._drift.subject}; give one", field="price")
        return price

    def _adopted_positions(
        self, group: Sequence[Drift], price: Decimal | None, tolerance: Decimal, tags: Tags
    ) -> list[AnyCommand]:
        """Return the commands that make the excess of these drifts positions, and count it no longer as external."""
        holdings = [holding_of(one) for one in group]
        if price is not None:
            holdings = [one._replace(price=price) if one.market == self._drift.market else one for one in holdings]
        commands: list[AnyCommand] = [
            release_of(position) for one in group for position in self._ledger.external.get(one.market, ())
        ]
        note = " and ".join(one.name for one in group)
        for number, piece in enumerate(paired(holdings, tolerance)):
            legs = legs_of_piece(piece)
            main = counting_leg(legs)
            commands.append(Adopt(
                key=adoption_key(group[0], number), portfolio=self._drift.portfolio, quantity=main.quantity,
                price=self._required(main.price), tags=adopted_tags(tags, legs, piece[0].market.account),
                legs=legs, note=note[:NOTE_LENGTH_MAX],
            ))  # fmt: skip
        return commands

    def _late_fills(self) -> list[tuple[Position, Decimal]]:
        """Return the holds that a late fill belongs to, with their coins; none where they explain nothing any more."""
        drift = self._drift
        names = holds_named(drift.detail) if drift.kind == "late_fill" else ()
        by_name = {one.position_id: one for one in self._holds}
        with exact_arithmetic():
            left = drift.excess
            if not drift.excess:
                left = abs((drift.venue_quantity or ZERO) - (drift.ledger_quantity or ZERO))
            late = []
            for hold in [by_name[name] for name in names if name in by_name]:
                coins = min(left, self._unfilled(hold)) if hold.pending else left
                if coins > 0 and self._may_fill(hold):
                    late.append((hold, coins))
                    left -= coins
        return late

    def _may_fill(self, hold: Position) -> bool:
        """Whether a fill of it can be recorded: its hold is live, or is over and no late fill was its last."""
        late = [one for one in self._holds if one.origin == hold.number]
        if hold.live:
            return hold.pending or (hold.fills is not None and hold.fills.more)
        return hold.state != "closed" and all(
            one.state == "open" and one.fills is not None and one.fills.more for one in late
        )

    def _unfilled(self, hold: Position) -> Decimal:
        """Return the coins that a live hold may still fill in the drift's market; without legs, without a bound."""
        sold = not self._drift.market.is_swap and (self._drift.venue_quantity or 0) < (self._drift.ledger_quantity or 0)
        wanted = self._drift.market.opposite if sold else self._drift.market
        planned = [
            unfilled_of(hold, leg)
            for leg, market in self._resolver.legs(hold) if market is not None and order_market(market, leg) == wanted
        ]  # fmt: skip
        return sum(planned, ZERO) if hold.legs else Decimal(E8_MAX)

    def _confirmation(self, hold: Position, coins: Decimal, leg: Leg) -> Confirm:
        assert leg.price is not None, "a fill has a price"
        return Confirm(
            key=self._key("confirm", hold), position_id=hold.position_id, quantity=coins, price=leg.price,
            legs=[replace(leg, quantity=coins)], rest="hold",
        )  # fmt: skip

    def _other_side(self) -> list[Drift]:
        """Return the drift about the old side of a flip; empty if the ledger holds nothing there.

        Spot has one market for both signs, so there the drift itself covers both sides.
        """
        drift, other = self._drift, self._drift.market.opposite
        if drift.kind != "side_flipped" or drift.excess <= 0 or not self._held(other):
            return []
        for one in map(self._with_current_ledger, self._live):
            if one.market == other and one.last_run == drift.last_run and one.shortfall:
                return [one]
        raise self._moved_error(drift, other)

    def _with_current_ledger(self, drift: Drift) -> Drift:
        """Return an ignored drift with the ledger's current quantity; any other drift unchanged.

        An ignored drift keeps the quantities it was ignored with, because every run compares with those. The ledger's
        quantity may have changed since. The last run confirmed only the difference, apart from fills of holds. If the
        ledger is now on the other side of an ignored excess of coins, the difference is ambiguous: the drift is
        returned unchanged, and then cannot be adopted.
        """
        if drift.state != "acknowledged" or drift.kind not in QUANTITY_KINDS:
            return drift
        before, venue, held = drift.ledger_quantity or ZERO, drift.venue_quantity or ZERO, self._held(drift.market)
        with exact_arithmetic():
            difference = venue - before
            if drift.excess > 0:
                if before * venue < 0 or held * difference < 0:
                    return drift
                difference = drift.excess.copy_sign(difference)
            now = held + difference
            if drift.market.is_swap:
                now = max(now, ZERO)
            excess = abs(now) if held * now < 0 else max(abs(now) - abs(held), ZERO)
        return replace(drift, ledger_quantity=held, venue_quantity=now, excess=excess)

    def _require_unmoved(self, drift: Drift) -> None:
        if self._ledger_moved(drift):
            raise self._moved_error(drift, drift.market)

    def _ledger_moved(self, drift: Drift) -> bool:
        """Whether the ledger moved since the drift was seen. Its ledger quantity is one side, or the net of both."""
        held = self._held(drift.market)
        with exact_arithmetic():
            net = max(held - self._held(drift.market.opposite), ZERO)
        # A close and a new position may add up to the same quantity, so `settling` is checked too.
        return drift.ledger_quantity not in (held, net) or drift.market in self._ledger.settling

    def _moved_error(self, drift: Drift, market: Market) -> WrongState:
        return WrongState(
            f"the ledger moved since run {drift.last_run} saw {drift.name}: "
            f"it holds {decimal_text(self._held(market))} "
            f"{market.subject} {market.side} now, so what the run found is over; reconcile again, then decide"
        )

    def _releases_of_shortfall(self, drift: Drift) -> list[AnyCommand]:
        """Release the newest positions with a leg in the market, the last one in part if that is enough.

        Their other legs go on counting in positions of their own, as far as the exchange still shows them.
        """
        commands: list[AnyCommand] = []
        remaining, side = drift.shortfall, _leg_side(drift)
        shortfalls = self._shortfalls_of_run(drift)
        with exact_arithmetic():
            for position in reversed(self._positions):
                if remaining <= 0:
                    break
                if position.state != "open" or position.quantity is None or EXTERNAL_TAG in position.tags:
                    continue
                held = ZERO
                for leg, market in self._resolver.legs(position):
                    if market == drift.market:
                        held += leg.filled if leg.side == side else -leg.filled
                if held <= 0:
                    continue
                whole = remaining >= held
                part = position.quantity if whole else _part_to_release(position.quantity, held, remaining)
                # The quantity is given even for a whole release: after a partial close meanwhile, nothing is done.
                key = self._key("release", position)
                commands.append(Release(key=key, position_id=position.position_id, quantity=part))
                commands += self._keep_other_legs(position, part, drift.market, shortfalls)
                remaining -= held
        return commands

    def _shortfalls_of_run(self, drift: Drift) -> dict[tuple[Market, str], Decimal]:
        """Return the shortfalls of all live drifts of the same run, base units by market and leg side.

        Leaves out those where the ledger moved since: what is not known to be gone goes on counting.
        """
        return {
            (one.market, _leg_side(one)): one.shortfall
            for one in self._live
            if one.live and one.last_run == drift.last_run and one.shortfall and not self._ledger_moved(one)
        }

    def _keep_other_legs(
        self,
        position: Position,
        part: Decimal,
        released_market: Market,
        shortfalls: dict[tuple[Market, str], Decimal],
    ) -> list[AnyCommand]:
        """Adopt what is left at the exchange of a released part, at the position's price and with its tags.

        The new position counts the same share of the part as the largest share kept of any leg. It hedges nothing any
        more, which the comparison tells by its key (see `ledger_reads.KEEP_KEY`). Consumes `shortfalls`.
        """
        assert position.quantity is not None and position.price is not None, "an open position has a fill"
        legs, share = [], ZERO
        for leg, market in self._resolver.legs(position):
            if leg.planned_only or market == released_market:
                continue
            released = leg.quantity - remaining_leg_quantity(leg, position.quantity, position.quantity - part)
            if released <= 0:
                continue
            kept = released
            if market is not None and (shortfall := shortfalls.get((market, leg.side))):
                kept -= min(shortfall, released)
                shortfalls[market, leg.side] = shortfall - (released - kept)
            if kept > 0:
                account = leg.account if market is None else market.account
                venue = leg.venue if market is None else market.venue
                legs.append(Leg(venue, leg.symbol, leg.kind, leg.side, kept, leg.price, account=account))
                share = max(share, kept / released)
        if not legs:
            return []
        quantity = part if share == 1 else (part * share).quantize(_PART_UNIT, ROUND_UP)
        kept_position = Adopt(
            key=self._key("keep", position), portfolio=position.portfolio, quantity=quantity, price=position.price,
            tags=_tags_of_legs(position.tags, legs), legs=legs,
            note=f"{self._drift.name}: what is left of {position.position_id}",
        )  # fmt: skip
        return [kept_position]

    def _key(self, action: str, position: Position) -> str:
        return f"drift:{self._drift.id}:{self._drift.revision}:{action}:{position.number}"

    def _held(self, market: Market) -> Decimal:
        return self._ledger.open.get(market, ZERO)


def adoption_key(first: Drift, number: int = 0) -> str:
    """Return the key of a position that is adopted: by the first of the drifts of the decision, whichever was named."""
    key = f"drift:{first.id}:{first.revision}:adopt"
    return f"{key}:{number}" if number else key


def legs_of_piece(piece: Piece) -> list[Leg]:
    """Return the legs of a position. Each of two names its account, which the tags alone may not tell."""
    return [leg_of(one, account=one.market.account if len(piece) > 1 else None) for one in piece]


def counting_leg(legs: Sequence[Leg]) -> Leg:
    """Return the leg whose coins and price the position has: of coins hedged by a contract, the contract."""
    return next(leg for leg in legs if leg.kind != "spot") if is_pair(legs) else max(legs, key=lambda leg: leg.quantity)


def _require_no_tags(drift: Drift, tags: Tags) -> None:
    if tags:
        what = "a late fill has the tags of its hold" if drift.kind == "late_fill" else "nothing becomes a position"
        raise InvalidRequest(
            f"tags are for the position that an excess becomes; {drift.name} is {drift.kind}: {what}; leave them out",
            field="tags",
        )


def _tags_of_legs(tags: Tags, legs: Sequence[Leg]) -> Tags:
    """Return a position's tags for these legs of it: of several venues and accounts, those where the legs are."""
    values = dict(tags)
    for name, of_legs in (("venue", {leg.venue for leg in legs}), ("account", {leg.account for leg in legs})):
        if len(tags.values_of(name)) > 1 and None not in of_legs and "" not in of_legs:
            values[name] = tuple(sorted(map(str, of_legs)))
    return valid_tags(values)


def _leg_side(drift: Drift) -> str:
    """Return the side of the legs that make up the ledger's quantity. For an asset: whether coins were bought."""
    sold = drift.market.side == "short" if drift.market.is_swap else (drift.ledger_quantity or ZERO) < 0
    return "sell" if sold else "buy"


def _part_to_release(quantity: Decimal, held: Decimal, shortfall: Decimal) -> Decimal:
    """Return how much of a position to release so that its `held` base units in a market shrink by `shortfall`.

    The ledger scales a leg by the remaining share of the position and rounds it down. Where that share is no finite
    decimal, one unit less is released, or the leg would end below what the exchange shows.
    """
    part = (shortfall * quantity / held).quantize(_PART_UNIT)
    held_after = (quantity - part) / quantity * held
    return part if held == quantity or held_after >= held - shortfall else part - _PART_UNIT
