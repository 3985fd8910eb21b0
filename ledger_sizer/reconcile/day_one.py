"""Takes over what accounts hold and the ledger lacks: each hedge one position. A look first, then one decision each.

It is a run of the reconciliation whose excess is adopted at once. So it finds what a run finds, nothing is counted
twice at any moment, and a repetition finds what is left.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine

from ledger_sizer.config import AppSettings
from ledger_sizer.exchanges.snapshot import Snapshot
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.domain import Position
from ledger_sizer.model.drift_outcomes import DRIFTS_MAX, DriftOutcome
from ledger_sizer.model.errors import InvalidRequest, NotFound, WrongState
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.market_names import coin_of
from ledger_sizer.model.reconciliation import Drift, Finding, Market
from ledger_sizer.model.tags import NO_TAGS, GivenTags, Tags, tags_of
from ledger_sizer.model.units import exact_arithmetic, usd, usd_ceil_e8
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.adopted_tags import adopted_tags
from ledger_sizer.reconcile.adoption import PAIRED_KINDS, adoption_key, counting_leg, legs_of_piece
from ledger_sizer.reconcile.compare import Comparison
from ledger_sizer.reconcile.decided_policies import effective_policies, read_decided
from ledger_sizer.reconcile.inspection import Account, Clock, InspectionRequest, LocalInspector
from ledger_sizer.reconcile.ledger_reads import find_decisions
from ledger_sizer.reconcile.left_out import LeftOut, Reasons
from ledger_sizer.reconcile.pairing import Piece, connected, holding_of, paired
from ledger_sizer.reconcile.run import Observe, Reconciler
from ledger_sizer.rules.filling import counted

ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class NewPosition:
    """A position that an import makes, or made. quantity: coins. price: USD per coin. usd: what it counts."""

    legs: tuple[Leg, ...]
    quantity: Decimal
    price: Decimal
    usd: Decimal
    tags: Tags
    position_id: str | None = None


def new_position(legs: tuple[Leg, ...], tags: Tags) -> NewPosition:
    """Return the position that these legs make. Each has a price."""
    main = counting_leg(legs)
    assert main.price is not None, "what has no price is left out"
    return NewPosition(legs, main.quantity, main.price, usd(usd_ceil_e8(counted(legs)[0], "quantity x price")), tags)


@dataclass(frozen=True, slots=True)
class Import:
    """What an import takes over for one portfolio.

    problems: of accounts that could not be read whole; then nothing may be taken. exposure_before, exposure_after: USD,
    before and with these positions, without what they take the place of.
    """

    portfolio: str
    positions: tuple[NewPosition, ...]
    left_out: tuple[LeftOut, ...]
    problems: tuple[str, ...]
    cap: Decimal
    exposure_before: Decimal
    exposure_after: Decimal

    @property
    def usd(self) -> Decimal:
        """The sum of its positions."""
        with exact_arithmetic():
            return sum((one.usd for one in self.positions), ZERO)

    @property
    def headroom(self) -> Decimal:
        """What the cap leaves with these positions; below zero what is above it."""
        with exact_arithmetic():
            return self.cap - self.exposure_after


class _Kept:
    """An account that keeps the snapshot it gave last."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self.venue, self.account, self.portfolio = account.venue, account.account, account.portfolio
        self.last: Snapshot | None = None

    def snapshot(self, now_us: Callable[[], int]) -> Snapshot:
        self.last = self._account.snapshot(now_us)
        return self.last

    def __getattr__(self, name: str) -> Any:
        return getattr(self._account, name)

    def snapshot_with_new_rules(self, now_us: Callable[[], int]) -> Snapshot | None:
        fetch = getattr(self._account, "snapshot_with_new_rules", None)
        found: Snapshot | None = None if fetch is None else fetch(now_us)
        self.last = found or self.last
        return found


@dataclass(frozen=True, slots=True)
class Choice:
    """What of the accounts to take: of one portfolio, venue, account or coin, or of all; with which tags.

    symbol: a coin, or a market of it. tags: beside those that are filled in. A hedge of which one leg is chosen is
    taken whole.
    """

    portfolio: str | None = None
    venue: str | None = None
    account: str | None = None
    symbol: str | None = None
    tags: Tags = NO_TAGS

    def has_place(self, market: Market) -> bool:
        """Whether a market is at a chosen account."""
        return self.venue in (None, market.venue) and self.account in (None, market.account)

    def has(self, market: Market) -> bool:
        """Whether a market is at a chosen account, and of the chosen coin."""
        return self.has_place(market) and (self.symbol is None or coin_of(self.symbol) == market.base)


def choice_of(
    portfolio: str | None = None, venue: str | None = None, account: str | None = None, symbol: str | None = None,
    tags: GivenTags = NO_TAGS,
) -> Choice:  # fmt: skip
    """Return a choice with valid tags."""
    return Choice(portfolio, venue, account, symbol, tags_of(tags))


class Importer:
    """Imports what accounts show. clock: for tests. observe: called with the report of the run that an import is."""

    def __init__(
        self, ledger: Ledger, engine: Engine, accounts: Sequence[Account], settings: AppSettings, *,
        clock: Clock | None = None, observe: Sequence[Observe] = (),
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._engine = engine
        self._settings = settings
        self._accounts = [_Kept(one) for one in accounts]
        self._inspector = LocalInspector(engine, self._accounts, settings, clock=clock)
        self._reconciler = Reconciler(ledger, engine, self._inspector, settings, clock=clock, observe=observe)

    def plan(self, choice: Choice) -> list[Import]:
        """Look, and return what an import would take. Records nothing.

        Raises `WrongState` without an account, `InvalidRequest` where no account is chosen, or for tags that contradict
        what is there.
        """
        found = []
        for portfolio in self._portfolios(choice):
            inspection = self._inspector.inspect(InspectionRequest(portfolio, "demand", 0))
            ignored = {
                one.market: one for one in drifts.live_drifts(self._engine, portfolio) if one.state == "acknowledged"
            }
            findings = [one for one in inspection.comparison.findings if one.market not in ignored]
            groups = self._groups(portfolio, findings, choice)
            positions = tuple(self._position(piece, choice) for group in groups for piece in group)
            taken = {one.market for group in groups for piece in group for one in piece}
            left = self._left_out(portfolio, inspection.comparison, ignored, taken, choice)
            found.append(self._import(portfolio, positions, left, inspection.external or {}, taken))
        return found

    def apply(self, choice: Choice, *, reason: str) -> list[Import]:
        """Take over what `plan` tells: one decision for each hedge and for what is alone. reason: kept with each.

        Raises what `plan` raises, `WrongState` too where an account cannot be read whole: half of a hedge would be
        taken for all of it; `InvalidRequest` where a tag is missing that every position needs; `Busy` while another
        run is under way.
        """
        plans = self.plan(choice)
        for plan in plans:
            self._require_ready(plan)
        if not any(plan.positions for plan in plans):
            return plans
        live = {report.run.portfolio: report.live for report in self._reconciler.run()}
        done = []
        for plan in plans:
            positions = tuple(self._adopt_all(plan.portfolio, live[plan.portfolio], choice, reason))
            done.append(replace(plan, positions=positions, exposure_after=self._exposure(plan.portfolio)[1]))
        return done

    def _require_ready(self, plan: Import) -> None:
        if plan.problems:
            raise WrongState(
                f"{plan.problems[0]}; what is there cannot be paired while a part of it is unknown: repeat the import "
                "when every account can be read"
            )
        for one in plan.positions:
            for name in self._settings.ledger.required_tags:
                if name not in one.tags:
                    raise InvalidRequest(
                        f"tags.{name} is missing, which every position here has (LEDGER_REQUIRED_TAGS); add --tag "
                        f"{name}=...",
                        field=f"tags.{name}",
                    )

    def _portfolios(self, choice: Choice) -> list[str]:
        if not self._accounts:
            raise WrongState("no exchange account is configured; set EXCHANGE_API_KEY and EXCHANGE_API_SECRET")
        chosen = [one for one in self._accounts if choice.has_place(Market(one.venue, one.account, "", ""))]
        found = sorted({one.portfolio for one in chosen if choice.portfolio in (None, one.portfolio)})
        if found:
            return found
        known = ", ".join(f"{one.venue}/{one.account} of {one.portfolio}" for one in self._accounts)
        field = "venue" if choice.venue is not None else "account" if choice.account is not None else "portfolio"
        raise InvalidRequest(f"no account fits this {field}; there are {known}", field=field)

    # --- what is taken ---------------------------------------------------------------------------

    def _groups(self, portfolio: str, found: Iterable[Finding] | Iterable[Drift], choice: Choice) -> list[list[Piece]]:
        """Return the positions that the excess makes, in groups, of which one decision each takes them over."""
        prices = self._prices(portfolio)
        holdings = []
        for one in found:
            if one.kind in PAIRED_KINDS and one.excess > 0:
                price = prices.get(one.market.base) if one.price is None else one.price
                holdings.append(holding_of(one)._replace(price=price))
        groups = connected(paired(holdings, self._settings.trading.delta_drift_tolerance))
        return [
            group for group in groups
            if any(choice.has(one.market) for piece in group for one in piece) and group[0][0].price is not None
        ]  # fmt: skip

    def _position(self, piece: Piece, choice: Choice) -> NewPosition:
        legs = tuple(legs_of_piece(piece))
        return new_position(legs, adopted_tags(choice.tags, legs, piece[0].market.account))

    def _adopt_all(self, portfolio: str, live: Iterable[Drift], choice: Choice, reason: str) -> Iterable[NewPosition]:
        by_market = {one.market: one for one in live if one.live and one.kind in PAIRED_KINDS and one.excess > 0}
        groups = self._groups(portfolio, by_market.values(), choice)
        by_first: dict[int, list[Piece]] = {}
        ids = []
        for group in groups:
            members = sorted(by_market[one].id for one in {part.market for piece in group for part in piece})
            by_first[members[0]] = group
            ids += members
        done: dict[int, DriftOutcome] = {}
        for start in range(0, len(ids), DRIFTS_MAX):
            part = ids[start : start + DRIFTS_MAX]
            outcomes = self._reconciler.operator.act_all("adopt", part, reason=reason, tags=choice.tags)
            done |= {one.drift_id: one for one in outcomes.items}
        refused = next((one for one in done.values() if one.outcome == "refused"), None)
        if refused is not None:
            raise WrongState(f"drift-{refused.drift_id}: {refused.words}; what else was found is imported, repeat it")
        made = self._made_by(portfolio, {first: done[first].drift for first in by_first}, by_first)
        for first, group in by_first.items():
            for number, piece in enumerate(group):
                yield replace(self._position(piece, choice), position_id=made.get((first, number)))

    def _made_by(
        self, portfolio: str, firsts: Mapping[int, Drift | None], groups: Mapping[int, Sequence[Piece]]
    ) -> dict[tuple[int, int], str]:
        """Return the positions by the first drift of their decision, and their place in it."""
        keys = {
            adoption_key(drift, number): (drift.id, number)
            for drift in firsts.values() if drift is not None for number in range(len(groups[drift.id]))
        }  # fmt: skip
        found = find_decisions(self._engine, portfolio, [*keys])
        return {keys[key]: f"{portfolio}-{record.position}" for key, record in found.items()}

    def _import(
        self, portfolio: str, positions: tuple[NewPosition, ...], left: tuple[LeftOut, ...],
        external: Mapping[Market, Sequence[Position]], taken: set[Market],
    ) -> Import:  # fmt: skip
        cap, before = self._exposure(portfolio)
        with exact_arithmetic():
            replaced = sum((one.open for market in taken for one in external.get(market, ())), ZERO)
            after = before - replaced + sum((one.usd for one in positions), ZERO)
        snapshots = self._snapshots(portfolio)
        problems = tuple(text for one in snapshots if not one.whole for text in one.problems or ("not read whole",))
        return Import(portfolio, positions, left, problems, cap, before, after)

    def _exposure(self, portfolio: str) -> tuple[Decimal, Decimal]:
        """Return the cap and the exposure of a portfolio."""
        try:
            whole = self._ledger.exposure_page(portfolio, limit=1).exposure.whole
        except NotFound:  # nobody used it yet
            return self._settings.sizing.max_portfolio_exposure, ZERO
        assert whole.cap is not None, "a portfolio has a cap"
        return whole.cap, whole.exposure

    # --- what is left out ------------------------------------------------------------------------

    def _snapshots(self, portfolio: str) -> list[Snapshot]:
        return [one.last for one in self._accounts if one.portfolio == portfolio and one.last is not None]

    def _prices(self, portfolio: str) -> dict[str, Decimal]:
        """Return USD per coin as the exchanges told it, by coin."""
        return {coin: price for one in self._snapshots(portfolio) for coin, price in one.prices.items()}

    def _left_out(
        self, portfolio: str, comparison: Comparison, ignored: Mapping[Market, Drift], taken: set[Market],
        choice: Choice,
    ) -> tuple[LeftOut, ...]:  # fmt: skip
        findings = comparison.findings
        by_market = {one.market: one for one in findings}
        prices = {one.market.base: one.price for one in findings if one.price is not None}
        for snapshot in self._snapshots(portfolio):
            for position in snapshot.positions or ():
                if position.coin_price is not None:
                    prices.setdefault(Market("", "", position.symbol, "").base, position.coin_price)
        prices = self._prices(portfolio) | prices
        policies = effective_policies(self._settings.reconcile, read_decided(self._engine, [portfolio]))
        reasons = Reasons(self._settings, policies, comparison, by_market, ignored, prices)
        left = []
        for snapshot in self._snapshots(portfolio):
            for one in reasons.of(snapshot):
                market = Market(one.venue, one.account, one.subject, one.side)
                left += [one] if market not in taken and choice.has(market) else []
        return tuple(left)
