"""Decisions about drifts, by a person or a policy: adopt, ignore, close. Each is recorded in the audit chain."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Engine, select

from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.arguments import label_text
from ledger_sizer.model.asset_policies import AssetRule, asset_policy
from ledger_sizer.model.caller import RECONCILE, calling_as, reconcile_for
from ledger_sizer.model.commands import AnyCommand, Remark
from ledger_sizer.model.decisions import Decision, DecisionRecord
from ledger_sizer.model.errors import InvalidRequest, KeyReused, WrongState
from ledger_sizer.model.names import DESK
from ledger_sizer.model.reconciliation import QUANTITY_KINDS, Drift
from ledger_sizer.model.tags import NO_TAGS, GivenTags, Tags, tags_from_json, tags_of
from ledger_sizer.model.units import decimal_text, positive
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.adopted_tags import FILLED_IN
from ledger_sizer.reconcile.adoption import Adoption
from ledger_sizer.reconcile.decided_policies import get_decided, remove_decided, store_decided
from ledger_sizer.reconcile.effects import Effects, note_of
from ledger_sizer.reconcile.late_fills import holds_named
from ledger_sizer.reconcile.ledger_reads import read_moves, read_positions, read_with_late_fills
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.lookups import decision_by_key
from ledger_sizer.storage.tables import ReconciliationRow

ACTIONS = ("adopt", "ignore", "close")

Decided = tuple[list[AnyCommand], list[Drift]]
"""The commands of a decision, and the drifts that it is about, by number."""


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
        if action not in ACTIONS:
            raise InvalidRequest(f"action must be one of {', '.join(ACTIONS)}, got {action!r}", field="action")
        if action != "ignore" and (asset or policy is not None):
            raise InvalidRequest(f"asset and policy are for ignore, not for {action}", field="asset")
        if action == "adopt":
            return self.adopt(drift_id, reason=reason, price=price, tags=tags, pair=pair)
        for name, given in (("price", price is not None), ("tags", tags), ("pair", not pair)):
            if given:
                raise InvalidRequest(f"{name} is for adopt, not for {action}", field=name)
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
        _require_unresolved(drift)
        adopt_price = drift.price if price is None else positive(price, "price")

        def decided() -> Decided:
            adoption = self._adoption(drift)
            group = adoption.together(self._tolerance, self._may_pair(drift)) if pair else [drift]
            return adoption.commands(adopt_price, group, self._tolerance, more), group

        return self._decide(drift, "adopted", decided, reason, state="resolved")

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
        found = self._find_decision(_remark_of(drift, "adopted", reason), actor)
        if found is None:
            return False
        first = drift if found.first is None else drifts.get_drift(self._engine, found.first)
        with read_transaction(self._engine) as connection:
            adopted = decision_by_key(connection, drift.portfolio, f"drift:{first.id}:{first.revision}:adopt")
        has = NO_TAGS if adopted is None else tags_from_json(json.loads(adopted.request).get("tags", {}))
        if adopted is not None and any(
            not {*tags.values_of(name)} <= {*has.values_of(name)} for name in tags if name not in FILLED_IN
        ):
            raise WrongState(
                f"{drift.name} is adopted already, with the tags {', '.join(has.scopes[1:])}; give its position other "
                "ones with: ledger-sizer retag"
            )
        return True

    def ignore(self, drift_id: int, *, reason: str) -> Drift:
        """Acknowledge the difference: until it changes, it counts no longer and freezes nothing."""
        drift = self._unresolved(drift_id)

        def decided() -> Decided:
            return self._adoption(drift).releases(), [drift]

        return self._decide(drift, "ignored", decided, reason, state="acknowledged")

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
        return self._decide(
            drift, "asset_policy", decided, reason, details=details, store=store, also=covered, state="resolved"
        )

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
            if self._find_decision(remark, caller.actor) is None:
                try:
                    self._submit([*([] if caller == RECONCILE else [_desk_remark(remark)]), remark])
                except KeyReused:  # by a concurrent call
                    if self._find_decision(remark, caller.actor) is None:
                        raise
        remove_decided(self._engine, rule)
        return rule

    def close(self, drift_id: int, *, reason: str) -> Drift:
        """Ask the orchestrator to close it at the exchange. It counts until the exchange shows that it is gone.

        Raises `WrongState` if it is ignored, because then it does not count, and if there is nothing to close.
        """
        drift = self._unresolved(drift_id)
        if drift.state == "acknowledged":
            raise WrongState(
                f"{drift.name} was ignored by {drift.actor} ({drift.reason}) and counts no longer, so its closing "
                "cannot be requested; adopt it and close the position, or close it at the exchange: then it is resolved"
            )
        if drift.excess <= 0:
            raise WrongState(
                f"{drift.name} is {drift.kind}: there is nothing more at the exchange that could be closed"
            )
        return self._decide(drift, "close_requested", lambda: ([], [drift]), reason, requested="close")

    def _unresolved(self, drift_id: int) -> Drift:
        drift = drifts.get_drift(self._engine, drift_id)
        _require_unresolved(drift)
        return drift

    def _adoption(self, drift: Drift) -> Adoption:
        """Read the current positions and live drifts for an adoption."""
        query = select(ReconciliationRow.fetched, ReconciliationRow.started_us)
        with read_transaction(self._engine) as connection:
            fetched, seen_us = connection.execute(query.where(ReconciliationRow.id == drift.last_run)).one()
        accounts = [(one["venue"], one["account"]) for one in json.loads(fetched)]
        live = drifts.live_drifts(self._engine, drift.portfolio)
        positions = read_positions(self._engine, drift.portfolio, since_us=seen_us)
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
        *,
        details: Mapping[str, str] | None = None,
        store: Callable[[str, int], None] | None = None,
        also: Iterable[Drift] = (),
        **changes: Any,
    ) -> Drift:
        """Record a decision and carry it out.

        details: more about it, for the chain. store: called with the actor and the time, between the chain and the
        drift's row. also: other drifts whose rows change with it. changes: of the rows.
        """
        label_text(reason, "reason", length_max=300)
        caller = reconcile_for(self._ledger.caller.actor)
        remark = _remark_of(drift, event, reason, details)
        with calling_as(caller):
            found, group, decided_us = self._find_decision(remark, caller.actor), [drift], 0
            if found is None:
                commands, group = decide()
                together = {"with": group[0].name} if len(group) > 1 else {}
                remarks = [_remark_of(one, event, reason, {**(details or {}), **together} or None) for one in group]
                by_person = [] if caller == RECONCILE else [*map(_desk_remark, remarks)]
                try:
                    decided_us = self._submit([*commands, *by_person, *remarks])
                except KeyReused:
                    found = self._find_decision(remark, caller.actor)
                    if found is None:
                        raise
            if found is not None:  # before, or by a concurrent call
                decided_us, group = found.decided_us, self._group_of(drift, found, remark)
        if store is not None:
            store(caller.actor, decided_us)
        changes |= {"actor": caller.actor, "reason": reason, "updated_us": decided_us}
        changes |= {"ended_us": decided_us} if changes.get("state") == "resolved" else {}
        unresolved = ("open", "confirmed", "acknowledged")
        numbers = sorted({one.id for one in (*group, *also)})
        drifts.update_drifts(self._engine, [drifts.DriftUpdate(number, changes, unresolved) for number in numbers])
        with calling_as(RECONCILE):
            Effects(self._ledger, self._engine, drift.portfolio).freeze_and_thaw()
        return drifts.get_drift(self._engine, drift.id)

    def _group_of(self, drift: Drift, found: "_Found", remark: Remark) -> list[Drift]:
        """Return the drifts that a decision made before is about, of those that are not resolved."""
        group = [drift]
        for one in drifts.live_drifts(self._engine, drift.portfolio) if found.first is not None else ():
            if one.id == drift.id or one.market.base != drift.market.base:
                continue
            same = self._decision_of(_remark_of(one, remark.event, remark.note or ""))
            if same is not None and _first_of(json.loads(same.request)) == found.first:
                group.append(one)
        return group

    def _submit(self, commands: Sequence[AnyCommand]) -> int:
        """Submit the commands of a decision, all or none. Returns its time."""
        results = self._ledger.submit(commands, atomic=True)
        return max(result.record.decided_us for result in results if isinstance(result, Decision))

    def _decision_of(self, remark: AnyCommand) -> DecisionRecord | None:
        with read_transaction(self._engine) as connection:
            return decision_by_key(connection, remark.portfolio, remark.key)

    def _find_decision(self, remark: AnyCommand, actor: str) -> "_Found | None":
        """Return this decision, None if it was not made. Raises `WrongState` for another actor or reason."""
        record = self._decision_of(remark)
        if record is None:
            return None
        made, sent = json.loads(record.request), json.loads(remark.request_text())
        first = _first_of(made)
        made, sent = (_without_partner(one) for one in (made, sent))
        if record.actor is None:  # by a version that named who in the note, and nowhere else
            same = made["note"].endswith(f": {sent['note']}")
        else:
            same = (record.actor, made) == (actor, sent)
        if not same:
            by = made["note"] if record.actor is None else f"{record.actor}: {made['note']}"
            raise WrongState(f"{made['about']}: {made['event'].replace('_', ' ')} already by {by}")
        return _Found(record.decided_us, first)


class _Found(NamedTuple):
    """A decision that was made before. first: the number of the first of several drifts that it is about."""

    decided_us: int
    first: int | None


def _require_unresolved(drift: Drift) -> None:
    if drift.state == "resolved":
        raise WrongState(f"{drift.name} is resolved already: {drift.reason} ({drift.actor})")


def _remark_of(drift: Drift, event: str, reason: str, details: Mapping[str, str] | None = None) -> Remark:
    """Return the record of a decision about a drift. details: `with` names the first of those decided together."""
    return Remark(
        key=f"drift:{drift.id}:{drift.revision}:{event}", portfolio=drift.portfolio, about=drift.name, event=event,
        note=reason, details=details,
    )  # fmt: skip


def _first_of(made: Mapping[str, Any]) -> int | None:
    name = (made.get("details") or {}).get("with")
    return None if name is None else int(name.rpartition("-")[2])


def _without_partner(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request of a remark without what is known only once it is decided: with which drift."""
    details = {name: text for name, text in (request.get("details") or {}).items() if name != "with"}
    return {**request, "details": details or None}


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


_DESK_EVENTS = {"close_requested": "closed"}
"""What the desk's chain calls a decision, where its name differs: `closed` is decided, in the portfolio it is asked."""


def _desk_remark(remark: Remark) -> Remark:
    """Return the desk's record of a person's decision."""
    return Remark(
        key=remark.key, portfolio=DESK, about=remark.about, event=_DESK_EVENTS.get(remark.event, remark.event),
        note=note_of(f"{remark.portfolio}: {remark.note}"), details=remark.details,
    )  # fmt: skip
