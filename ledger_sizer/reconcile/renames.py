"""Plans the decision that a coin has another name: which positions it concerns, and whether the last run fits it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine, select

from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.command_base import GROUP_MAX
from ledger_sizer.model.commands import AnyCommand, Remark, Rename
from ledger_sizer.model.domain import Position
from ledger_sizer.model.errors import WrongState
from ledger_sizer.model.market_names import coin_of, renamed_symbol
from ledger_sizer.model.reconciliation import QUANTITY_KINDS, Drift, Market
from ledger_sizer.model.renames import RenamedCoin
from ledger_sizer.model.tags import EXTERNAL_TAG
from ledger_sizer.model.units import decimal_text, exact_arithmetic
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.effects import note_of, release_of
from ledger_sizer.reconcile.ledger_reads import read_ledger, read_moves
from ledger_sizer.reconcile.ledger_side import LedgerSide, ledger_side_of
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.lookups import portfolio_id
from ledger_sizer.storage.tables import DecisionRow, ReconciliationRow
from ledger_sizer.views.attribution import AccountKey, AccountResolver, known_since

ZERO = Decimal(0)

_Place = tuple[str, str, str]
"""Venue, account, and the market's name without its side."""


@dataclass(frozen=True, slots=True)
class CoinRename:
    """A decision that a coin has another name. coin: the old one. ratio: new coins for one old.

    venue: the only one whose positions it concerns; None for all. force: whether it is made also where the last run
    does not fit it.
    """

    portfolio: str
    coin: str
    asset: str
    ratio: Decimal
    venue: str | None
    reason: str
    force: bool

    @property
    def words(self) -> str:
        """What is decided."""
        return f"1 {self.coin} is {decimal_text(self.ratio)} {self.asset}"


@dataclass(slots=True)
class _Sight:
    """The last run of the portfolio: its number, 0 without one, its beginning and its accounts."""

    run_id: int = 0
    seen_us: int = 0
    accounts: list[AccountKey] = field(default_factory=list)


class RenamePlan:
    """The commands of one decision, from the positions and drifts as they are now."""

    def __init__(self, ledger: Ledger, engine: Engine, asked: CoinRename) -> None:
        self._asked = asked
        self._engine = engine
        self._sight = _last_sight(engine, asked.portfolio)
        self._tolerance = ledger.settings.reconcile.tolerance
        self.remark = Remark(
            key=self._key(), portfolio=asked.portfolio, about=asked.coin, event="renamed",
            note=note_of(f"{asked.words}: {asked.reason}"),
        )  # fmt: skip

    def _key(self, *parts: object) -> str:
        asked = self._asked
        place = () if asked.venue is None else (asked.venue,)
        return ":".join(map(str, ("rename", asked.coin, asked.asset, self._sight.run_id, *place, *parts)))[:200]

    def commands(self) -> tuple[list[AnyCommand], RenamedCoin]:
        """Return the commands, without remarks, and what they do.

        Raises `WrongState` where there is nothing to rename, where the ledger moved since the last run, and, unless it
        is forced, where that run saw something else than a renamed coin.
        """
        asked, sight = self._asked, self._sight
        positions, scopes = read_ledger(self._engine, asked.portfolio, since_us=sight.seen_us)
        accounts = AccountResolver(sight.accounts, known_since(scopes))
        renamed = [one for one in positions if one.state == "open" and self._concerns(one)]
        if not renamed:
            where = "" if asked.venue is None else f" at {asked.venue}"
            raise WrongState(f"{asked.portfolio} has no open position of {asked.coin}{where}")
        if len(renamed) > GROUP_MAX // 2:
            raise WrongState(
                f"{len(renamed)} positions are more than one decision renames ({GROUP_MAX // 2}); do it venue by venue"
            )
        moves = read_moves(
            self._engine, asked.portfolio, positions, settled_us=sight.seen_us - 1, sighted_us=sight.seen_us - 1
        )
        side = ledger_side_of(
            positions, accounts, seq_before=2**62, settled_us=sight.seen_us - 1, expired_us=2**62, moves=moves
        )
        with exact_arithmetic():
            differences = self._differences(renamed, side, accounts)
        if differences and not asked.force:
            raise WrongState(
                f"the last run does not fit that {asked.words}: {'; '.join(differences)}. Reconcile and look again, or "
                "force it"
            )
        released = [] if differences else self._explained(side)
        commands: list[AnyCommand] = [
            Rename(
                key=self._key(one.number), position_id=one.position_id, coin=asked.coin, asset=asked.asset,
                ratio=asked.ratio, note=note_of(asked.reason),
            )
            for one in renamed
        ]  # fmt: skip
        done = RenamedCoin(
            asked.portfolio, asked.coin, asked.asset, asked.ratio, tuple(one.position_id for one in renamed),
            tuple(one.position_id for one in released), tuple(differences),
        )  # fmt: skip
        return [*commands, *map(release_of, released)], done

    def done_before(self) -> RenamedCoin:
        """Return what an equal decision did that was made already."""
        asked = self._asked
        query = select(DecisionRow.command, DecisionRow.position).where(
            DecisionRow.key.startswith(f"{self._key()}:", autoescape=True), DecisionRow.command == Rename.verb
        )
        with read_transaction(self._engine) as connection:
            owner = portfolio_id(connection, asked.portfolio)
            rows = connection.execute(query.where(DecisionRow.portfolio_id == owner).order_by(DecisionRow.seq)).all()
        names = tuple(f"{asked.portfolio}-{row.position}" for row in rows)
        return RenamedCoin(asked.portfolio, asked.coin, asked.asset, asked.ratio, names)

    def _concerns(self, position: Position) -> bool:
        asked = self._asked
        if asked.coin == asked.asset and EXTERNAL_TAG in position.tags:
            return False  # what the exchange shows is in new coins already
        names = [leg.symbol for leg in position.legs] or position.tags.values_of("symbol")
        venues = {leg.venue for leg in position.legs if leg.venue} or {*position.tags.values_of("venue")}
        return asked.coin in map(coin_of, names) and (asked.venue is None or asked.venue in venues)

    def _explained(self, side: LedgerSide) -> list[Position]:
        """Return the external positions that count the new coin where the old one was."""
        here = self._places(side.external)
        return [one for market, found in side.external.items() if market in here for one in found]

    def _places(self, markets: Iterable[Market]) -> set[Market]:
        """Return the markets of the new coin at the venues that it concerns."""
        asked = self._asked
        return {
            one for one in markets if one.base == asked.asset and (asked.venue is None or asked.venue == one.venue)
        }  # fmt: skip

    # --- what the last run saw -------------------------------------------------------------------

    def _differences(self, renamed: Sequence[Position], side: LedgerSide, accounts: AccountResolver) -> list[str]:
        """Return in words where the last run saw something else than that the coin has another name."""
        asked = self._asked
        if not self._sight.run_id:
            return ["no run has looked at the accounts"]
        moved = sorted({market.subject for market in side.settling if market.base == asked.coin})
        words = [f"the ledger moved in {one} since run {self._sight.run_id}" for one in moved]
        ours = self._renamed_by_place(renamed, accounts)
        missing: dict[_Place, Decimal] = {}
        found: dict[_Place, Decimal] = {}
        for drift in drifts.live_drifts(self._engine, asked.portfolio):
            if drift.live and drift.kind in QUANTITY_KINDS and drift.market.base in (asked.coin, asked.asset):
                self._add(missing if drift.market.base == asked.coin else found, drift)
        if asked.coin == asked.asset:  # only their number changed: what is too many is what the ratio adds
            found = {place: ours.get(place, ZERO) - coins for place, coins in missing.items()}
            missing = {place: coins for place, coins in ours.items() if place in found}
        for place in sorted({*ours, *missing}):
            new = (*place[:2], renamed_symbol(place[2], asked.coin, asked.asset))
            wanted = ours.get(place, ZERO) * asked.ratio
            there, gone = found.get(new, ZERO), missing.get(place, ZERO)
            if self._differs(wanted, there) or self._differs(ours.get(place, ZERO), gone):
                words.append(
                    f"{'/'.join(place[:2])} {place[2]}: the ledger has {decimal_text(ours.get(place, ZERO))}, "
                    f"{decimal_text(gone)} of it were missing, and {new[2]} showed {decimal_text(there)} more than the "
                    f"ledger, where {decimal_text(wanted)} are to be expected"
                )
        return words

    def _differs(self, one: Decimal, other: Decimal) -> bool:
        return abs(one - other) > self._tolerance * max(abs(one), abs(other))

    def _renamed_by_place(self, renamed: Sequence[Position], accounts: AccountResolver) -> Mapping[_Place, Decimal]:
        """Return the net coins that get another name, by market. External ones are no coins of the ledger's own."""
        coins: dict[_Place, Decimal] = {}
        for position in renamed:
            if EXTERNAL_TAG in position.tags:
                continue
            for leg, market in accounts.legs(position):
                if market is not None and market.base == self._asked.coin and leg.filled:
                    place = (market.venue, market.account, market.subject)
                    coins[place] = coins.get(place, ZERO) + (leg.filled if leg.side == "buy" else -leg.filled)
        return coins

    def _add(self, to: dict[_Place, Decimal], drift: Drift) -> None:
        """Add what a drift misses of the old coin, or shows beyond the ledger of the new one: net coins."""
        market = drift.market
        off = (drift.venue_quantity or ZERO) - (drift.ledger_quantity or ZERO)
        signed = -off if market.is_swap and market.side == "short" else off
        place = (market.venue, market.account, market.subject)
        to[place] = to.get(place, ZERO) + (signed if market.base == self._asked.asset != self._asked.coin else -signed)


def _last_sight(engine: Engine, portfolio: str) -> _Sight:
    row: Any
    query = select(ReconciliationRow.id, ReconciliationRow.started_us, ReconciliationRow.fetched)
    query = query.where(ReconciliationRow.portfolio == portfolio).order_by(ReconciliationRow.id.desc()).limit(1)
    with read_transaction(engine) as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        return _Sight()
    accounts = [(one["venue"], one["account"]) for one in json.loads(row.fetched)]
    return _Sight(row.id, row.started_us, accounts)
