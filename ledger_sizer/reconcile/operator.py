"""Decisions about drifts, by a person or a policy: adopt, ignore, close. Each is recorded in the audit chain."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal

from sqlalchemy import Engine, select

from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.arguments import label_text
from ledger_sizer.model.asset_policies import AssetRule, asset_policy
from ledger_sizer.model.caller import RECONCILE, calling_as, reconcile_for
from ledger_sizer.model.commands import AnyCommand, Remark
from ledger_sizer.model.decisions import Decision, DecisionRecord
from ledger_sizer.model.drift_outcomes import DRIFTS_MAX, DriftOutcome, DriftOutcomes, outcomes_of
from ledger_sizer.model.drift_words import holds_named
from ledger_sizer.model.errors import InvalidRequest, KeyReused, NotFound, WrongState
from ledger_sizer.model.names import portfolio_name
from ledger_sizer.model.reconciliation import QUANTITY_KINDS, Drift
from ledger_sizer.model.renames import RenamedCoin
from ledger_sizer.model.tags import NO_TAGS, GivenTags, Tags, tags_of
from ledger_sizer.model.units import decimal_text, positive
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.adoption import Adoption
from ledger_sizer.reconcile.bulk import Bulk
from ledger_sizer.reconcile.closing import close_details, require_closable
from ledger_sizer.reconcile.decided_policies import get_decided, remove_decided, store_decided
from ledger_sizer.reconcile.deciding import (
    ASSET_POLICY,
    EVENTS,
    UNRESOLVED,
    changes_of,
    desk_remark,
    first_of,
    remark_of,
    remarks_of,
    require_same,
    require_tags_of,
    require_unresolved,
)
from ledger_sizer.reconcile.effects import Effects
from ledger_sizer.reconcile.ledger_reads import find_decisions, read_ledger, read_moves, read_with_late_fills
from ledger_sizer.reconcile.renames import CoinRename, RenamePlan
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.tables import ReconciliationRow
from ledger_sizer.views.attribution import AccountResolver, known_since

ACTIONS = ("adopt", "ignore", "close")

Decided = tuple[list[AnyCommand], list[Drift]]
"""The commands of a decision, and the drifts that it is about, by number."""

Progress = Callable[[int, int], None]


def _require_action(action: str) -> None:
    if action not in ACTIONS:
        raise InvalidRequest(f"action must be one of {', '.join(ACTIONS)}, got {action!r}", field="action")


def _require_for_adopt(action: str, **given: bool) -> None:
    for name, is_given in given.items():
        if is_given and action != "adopt":
            raise InvalidRequest(f"{name} is for adopt, not for {action}", field=name)


class Operator:
    """Carries out decisions about drifts. The ledger's caller makes them. reason: 1 to 300 characters.

    The ledger's commands come first, in one commit with a remark that records the decision, and for a person's decision
    a second one in the desk's chain; then the drift's row. A retry with the same reason after a failure in between
    finds the remark and writes the row. With another reason, or by somebody else, it raises `WrongState`.
    """

    def __init__(self, ledger: Ledger, engine: Engine) -> None:
        self._ledger = ledger
        self._engine = engine

    def act(
        self, action: str, drift_id: int, *, reason: str, price: Decimal | None = None, tags: GivenTags = NO_TAGS,
        pair: bool = True, asset: bool = False, policy: str | None = None,
    ) -> Drift:  # fmt: skip
        """Run `adopt`, `ignore` or `close` by name. price, tags, pair: see `adopt`. asset, policy: `ignore_asset`."""
        _require_action(action)
        if action != "ignore" and (asset or policy is not None):
            raise InvalidRequest(f"asset and policy are for ignore, not for {action}", field="asset")
        _require_for_adopt(action, price=price is not None, tags=bool(tags), pair=not pair)
        if action == "adopt":
            return self.adopt(drift_id, reason=reason, price=price, tags=tags, pair=pair)
        if policy is not None and not asset:
            raise InvalidRequest("policy is for a whole asset; say so: asset=True, or --asset", field="policy")
        if asset:
            return self.ignore_asset(drift_id, reason=reason, policy="ignore" if policy is None else policy)
        return getattr(self, action)(drift_id, reason=reason)  # type: ignore[no-any-return]

    def adopt(
        self, drift_id: int, *, reason: str, price: Decimal | None = None, tags: GivenTags = NO_TAGS, pair: bool = True
    ) -> Drift:
        """Make the ledger match what the exchange shows.

        An excess at the exchange becomes a position of the ledger and is no longer external. Where another live drift
        of the same run and coin has an excess on the other side, both become the two legs of one position, which counts
        once, and both drifts are resolved (see `pairing.paired`); with `pair=False` this side alone does. The late fill
        of a hold, live or over, is confirmed as the hold's. For a shortfall, the newest positions of that market are
        released until the ledger holds no more than the exchange; after a flip, also those of the old side.
        price: USD per base unit, if the exchange gave none. tags: of the position, beside its venue, account and
        symbol, such as its strategy. Raises `WrongState` if there is nothing to adopt, or if the ledger moved since the
        run that saw the drift: then another run must look first; `InvalidRequest` for tags that contradict the markets.
        """
        more = tags_of(tags)
        drift = drifts.get_drift(self._engine, drift_id)
        if drift.state == "resolved" and self._was_adopted(drift, reason, more):
            return drift
        require_unresolved(drift)
        adopt_price = drift.price if price is None else positive(price, "price")

        def decided() -> Decided:
            adoption = self._adoption(drift)
            group = adoption.together(self._tolerance, self._may_pair(drift)) if pair else [drift]
            return adoption.commands(adopt_price, group, self._tolerance, more), group

        return self._decide(drift, "adopted", decided, reason)

    @property
    def _tolerance(self) -> Decimal:
        return self._ledger.settings.trading.delta_drift_tolerance

    def _may_pair(self, drift: Drift) -> Callable[[Drift], bool]:
        """Return which drifts a decision may adopt beside this one: a policy none that it would not adopt itself."""
        by_policy = self._ledger.caller == RECONCILE
        return lambda one: not by_policy or (one.state, one.policy) == ("confirmed", drift.policy)

    def _was_adopted(self, drift: Drift, reason: str, tags: Tags) -> bool:
        """Whether this caller adopted a resolved drift for this reason, alone or with the other side of a hedge.

        Raises `WrongState` where it has other tags by that decision.
        """
        actor = reconcile_for(self._ledger.caller.actor).actor
        if actor == RECONCILE.actor:  # a policy names its kind as the reason, and two of a hedge may be of two kinds
            reason = drift.reason or ""
        if (drift.actor, drift.reason) != (actor, reason):
            return False
        found = self._find(remark_of(drift, EVENTS["adopt"], reason))
        if found is None:
            return False
        require_tags_of(self._engine, drift, first_of(found), tags)
        return True

    def ignore(self, drift_id: int, *, reason: str) -> Drift:
        """Acknowledge the difference: until it changes, it counts no longer and freezes nothing."""
        drift = self._unresolved(drift_id)

        def decided() -> Decided:
            return self._adoption(drift).releases(), [drift]

        return self._decide(drift, "ignored", decided, reason)

    def ignore_asset(self, drift_id: int, *, reason: str, policy: str = "ignore") -> Drift:
        """Decide whose money the asset of a drift is, once: `ignore`, `fees` or `cash`.

        It holds for this asset of this account from now on, whatever its quantity, until it is taken back. All drifts
        that it covers are resolved. What the ledger itself holds must still be there, unless it is `cash`. Raises
        `WrongState` where that is missing, or where the drift is not about an asset.
        """
        drift = self._unresolved(drift_id)
        chosen = asset_policy(policy, "policy")
        if chosen == "position":
            raise InvalidRequest("policy must be one of cash, fees, ignore; for a position adopt it", field="policy")
        _require_coverable(drift, chosen)
        covered = [
            one for one in drifts.live_drifts(self._engine, drift.portfolio)
            if one.market == drift.market and one.kind in QUANTITY_KINDS
        ]  # fmt: skip

        def decided() -> Decided:
            releases = [release for one in covered for release in self._adoption(one).releases()]
            return list({release.key: release for release in releases}.values()), [drift]

        pattern = "/".join((drift.venue, drift.account, drift.subject))

        def store(actor: str, decided_us: int) -> None:
            rule = AssetRule(pattern, chosen, "decided", None, drift.portfolio, actor, reason, decided_us)
            store_decided(self._engine, rule)

        details = {"pattern": pattern, "policy": chosen}
        return self._decide(drift, ASSET_POLICY, decided, reason, details, store=store, also=covered)

    def decided_policy(self, policy_id: int) -> AssetRule:
        """Return one decided policy. Raises `NotFound`."""
        return get_decided(self._engine, policy_id)

    def take_back(self, policy_id: int, *, reason: str) -> AssetRule:
        """End a decided policy: the settings hold again. What the exchange shows is a drift again in the next run."""
        rule = get_decided(self._engine, policy_id)
        label_text(reason, "reason", length_max=300)
        caller = reconcile_for(self._ledger.caller.actor)
        assert rule.portfolio is not None, "a decided policy is of a portfolio"
        remark = Remark(
            key=f"asset-policy:{rule.id}:{rule.decided_us}:taken_back", portfolio=rule.portfolio, note=reason,
            about=f"asset-policy-{rule.id}", event="asset_policy_taken_back",
            details={"pattern": rule.pattern, "policy": rule.policy},
        )  # fmt: skip
        with calling_as(caller):
            if self._find(remark) is None:
                self._submit_once([*([] if caller == RECONCILE else [desk_remark(remark)]), remark], remark)
        remove_decided(self._engine, rule)
        return rule

    def close(self, drift_id: int, *, reason: str) -> Drift:
        """Ask the orchestrator to close it at the exchange. It counts until the exchange shows that it is gone.

        Raises `WrongState` if it is ignored, because then it does not count, and if there is nothing to close.
        """
        drift = self._unresolved(drift_id)
        require_closable(drift)
        details = close_details(self._engine, drift)
        return self._decide(drift, "close_requested", lambda: ([], [drift]), reason, details)

    def act_all(
        self, action: str, ids: Sequence[int], *, reason: str, tags: GivenTags = NO_TAGS, pair: bool = True,
        dry_run: bool = False, progress: Progress | None = None,
    ) -> DriftOutcomes:  # fmt: skip
        """Run `adopt`, `ignore` or `close` for many drifts; each is decided independently, and none stops the others.

        Its work grows with the drifts, not with their number times the positions. What of it is done stays done: sent
        again with the same reason, it completes. tags, pair: see `adopt`; what hedges one of them is decided too.
        dry_run: tell what would be done; each drift for itself. progress: called with how many are decided, and of how
        many. Raises `InvalidRequest` for what concerns all of them.
        """
        _require_action(action)
        _require_for_adopt(action, tags=bool(tags), pair=not pair)
        label_text(reason, "reason", length_max=300)
        if not ids or len(ids) > DRIFTS_MAX:
            raise InvalidRequest(f"give 1 to {DRIFTS_MAX:,} drifts, got {len(ids):,}", field="ids")
        found = {drift.id: drift for drift in drifts.read_drifts(self._engine, [*map(drifts.drift_number, ids)])}
        items = [
            DriftOutcome(one, "refused", f"no drift {one}", NotFound.code)
            for one in sorted({*ids} - found.keys())
        ]  # fmt: skip
        total = len(items) + len(found)
        for portfolio in sorted({drift.portfolio for drift in found.values()}):
            numbers = [drift.id for drift in found.values() if drift.portfolio == portfolio]
            bulk = Bulk(
                self._ledger, self._engine, portfolio, action, reason, tags=tags_of(tags), pair=pair, dry_run=dry_run
            )

            def tell(done: int, before: int = len(items)) -> None:
                if progress is not None:
                    progress(before + done, total)

            items += bulk.run(numbers, tell)
        return outcomes_of(items)

    def rename(
        self, coin: str, asset: str, *, reason: str, ratio: Decimal = Decimal(1), portfolio: str = "main",
        venue: str | None = None, force: bool = False,
    ) -> RenamedCoin:  # fmt: skip
        """Say that a coin has another name: every open position of it gets it, with `ratio` new coins for each.

        All in one commit; what they count, their tags and their age stay. venue: only positions with a leg there. The
        drifts of both names end with the next run that agrees. Raises `WrongState` where the last run saw something
        else than that, unless `force`.
        """
        label_text(reason, "reason", length_max=300)
        asked = CoinRename(
            portfolio_name(portfolio), label_text(coin, "coin"), label_text(asset, "asset"), positive(ratio, "ratio"),
            None if venue is None else label_text(venue, "venue"), reason, force,
        )  # fmt: skip
        plan = RenamePlan(self._ledger, self._engine, asked)
        caller = reconcile_for(self._ledger.caller.actor)
        with calling_as(caller):
            if self._find(plan.remark) is not None:
                return plan.done_before()
            commands, done = plan.commands()
            by_person = [] if caller == RECONCILE else [desk_remark(plan.remark)]
            self._submit_once([*commands, *by_person, plan.remark], plan.remark)
        return done

    def _unresolved(self, drift_id: int) -> Drift:
        drift = drifts.get_drift(self._engine, drift_id)
        require_unresolved(drift)
        return drift

    def _adoption(self, drift: Drift) -> Adoption:
        """Read the current positions and live drifts for an adoption."""
        query = select(ReconciliationRow.fetched, ReconciliationRow.started_us)
        with read_transaction(self._engine) as connection:
            fetched, seen_us = connection.execute(query.where(ReconciliationRow.id == drift.last_run)).one()
        keys = [(one["venue"], one["account"]) for one in json.loads(fetched)]
        live = drifts.live_drifts(self._engine, drift.portfolio)
        positions, scopes = read_ledger(self._engine, drift.portfolio, since_us=seen_us)
        accounts = AccountResolver(keys, known_since(scopes))
        moves = read_moves(self._engine, drift.portfolio, positions, settled_us=seen_us - 1, sighted_us=seen_us - 1)
        numbers = [int(name.rpartition("-")[2]) for name in holds_named(drift.detail)]
        holds = read_with_late_fills(self._engine, drift.portfolio, numbers) if drift.kind == "late_fill" else []
        return Adoption(drift, positions, accounts, seen_us, live, holds, moves)

    def _decide(
        self,
        drift: Drift,
        event: str,
        decide: Callable[[], Decided],
        reason: str,
        details: Mapping[str, str] | None = None,
        *,
        store: Callable[[str, int], None] | None = None,
        also: Iterable[Drift] = (),
    ) -> Drift:
        """Record a decision and carry it out.

        details: more about it, for the chain. store: called with the actor and the time, between the chain and the
        drift's row. also: other drifts whose rows change with it.
        """
        label_text(reason, "reason", length_max=300)
        caller = reconcile_for(self._ledger.caller.actor)
        remark = remark_of(drift, event, reason, details)
        with calling_as(caller):
            found, group, decided_us = self._find(remark), [drift], 0
            if found is None:
                commands, group = decide()
                remarks = remarks_of(group, event, reason, details)
                by_person = [] if caller == RECONCILE else [*map(desk_remark, remarks)]
                try:
                    decided_us = self._submit([*commands, *by_person, *remarks])
                except KeyReused:
                    found = self._find(remark)
                    if found is None:
                        raise
            if found is not None:  # before, or by a concurrent call
                decided_us, group = found.decided_us, self._group_of(drift, found, event, reason)
        if store is not None:
            store(caller.actor, decided_us)
        changes = changes_of(event, caller.actor, reason, decided_us)
        numbers = sorted({one.id for one in (*group, *also)})
        drifts.update_drifts(self._engine, [drifts.DriftUpdate(number, changes, UNRESOLVED) for number in numbers])
        with calling_as(RECONCILE):
            Effects(self._ledger, self._engine, drift.portfolio).freeze_and_thaw()
        return drifts.get_drift(self._engine, drift.id)

    def _group_of(self, drift: Drift, found: DecisionRecord, event: str, reason: str) -> list[Drift]:
        """Return the drifts that a decision made before is about, of those that are not resolved."""
        first = first_of(found)
        if first is None:
            return [drift]
        live = [
            one for one in drifts.live_drifts(self._engine, drift.portfolio) if one.market.base == drift.market.base
        ]
        keys = {one.id: remark_of(one, event, reason).key for one in live}
        made = find_decisions(self._engine, drift.portfolio, [*keys.values()])
        return [drift, *(
            one for one in live if one.id != drift.id and keys[one.id] in made and first_of(made[keys[one.id]]) == first
        )]  # fmt: skip

    def _submit(self, commands: Sequence[AnyCommand]) -> int:
        """Submit the commands of a decision, all or none. Returns its time."""
        results = self._ledger.submit(commands, atomic=True)
        return max(result.record.decided_us for result in results if isinstance(result, Decision))

    def _submit_once(self, commands: Sequence[AnyCommand], remark: Remark) -> None:
        """Submit the commands of a decision, unless a concurrent call made the same."""
        try:
            self._submit(commands)
        except KeyReused:
            if self._find(remark) is None:
                raise

    def _find(self, remark: Remark) -> DecisionRecord | None:
        """Return this decision, None if it was not made. Raises `WrongState` for another actor or reason."""
        record = find_decisions(self._engine, remark.portfolio, [remark.key]).get(remark.key)
        if record is not None:
            require_same(record, remark, reconcile_for(self._ledger.caller.actor).actor)
        return record


def _require_coverable(drift: Drift, policy: str) -> None:
    """Raise `WrongState` unless a policy of its asset can end a drift."""
    if drift.kind not in QUANTITY_KINDS or drift.market.is_swap:
        raise WrongState(f"{drift.name} is {drift.kind} of {drift.subject}: it is not about an asset of a wallet")
    if drift.kind == "late_fill":
        raise WrongState(f"{drift.name} is the late fill of an order: confirm its hold, or adopt it")
    if policy != "cash" and drift.shortfall:
        raise WrongState(
            f"{drift.name}: of the {decimal_text(drift.ledger_quantity or Decimal(0))} {drift.subject} that the ledger "
            f"holds, {decimal_text(drift.shortfall)} are missing, which policy {policy} does not cover; adopt it, or "
            "release the position"
        )
