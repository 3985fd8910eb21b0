"""The HTTP calls for runs and drifts, as generators of `Call` (see `endpoints`)."""

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from ledger_sizer.client.endpoints import Call, Calls, query_of
from ledger_sizer.client.responses import value_of
from ledger_sizer.model.account_activity import DriftActivity
from ledger_sizer.model.asset_policies import AssetRule
from ledger_sizer.model.choices import AssetPolicy
from ledger_sizer.model.domain import Page
from ledger_sizer.model.drift_outcomes import DriftOutcome, DriftOutcomes, outcomes_of
from ledger_sizer.model.drift_reports import DriftReport
from ledger_sizer.model.drift_words import applies
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.reconciliation import Drift, Run
from ledger_sizer.model.renames import RenamedCoin
from ledger_sizer.model.tags import NO_TAGS, GivenTags, tags_of
from ledger_sizer.model.units import decimal_text, positive
from ledger_sizer.wire.activity import drift_activity_from_json
from ledger_sizer.wire.codec import page_from_json
from ledger_sizer.wire.reconciliation import (
    drift_from_json,
    outcomes_from_json,
    renamed_from_json,
    report_of_drift_from_json,
    rule_from_json,
    run_from_json,
)

_PART = 200
"""Drifts of one call."""


def reconciliations(portfolio: str | None = None, *, cursor: str | None = None, limit: int = 100) -> Calls[Page[Run]]:
    """Reconciliation runs, newest first."""
    page: Page[Run] = yield Call(
        "GET", "/v1/reconciliations", lambda reply: value_of(reply, lambda form: page_from_json(form, run_from_json)),
        query_of(portfolio=portfolio, cursor=cursor, limit=limit),
    )  # fmt: skip
    return page


def reconcile(*, dry_run: bool = False) -> Calls[list[Run]]:
    """Compare the ledger with the exchange now: one run for each portfolio that has an account. Needs an admin key.

    dry_run: compare and record nothing. `Run.found` counts the differences; `drifts` has the state of each.
    """
    body = json.dumps({"dry_run": dry_run})
    runs: list[Run] = yield Call("POST", "/v1/reconciliations", lambda reply: value_of(reply, _runs), body=body)
    return runs


def drifts(
    portfolio: str | None = None,
    *,
    state: str | None = None,
    kind: str | None = None,
    venue: str | None = None,
    account: str | None = None,
    symbol: str | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> Calls[Page[Drift]]:
    """Drifts, newest first. state: `open`, `confirmed`, `acknowledged`, `resolved`, or `live` (open and confirmed).

    symbol: a market (`BTC/USDT:USDT`), an asset, or the coin of markets (`BTC`).
    """
    page: Page[Drift] = yield Call(
        "GET", "/v1/drifts", lambda reply: value_of(reply, lambda form: page_from_json(form, drift_from_json)),
        query_of(
            portfolio=portfolio, state=state, kind=kind, venue=venue, account=account, symbol=symbol, cursor=cursor,
            limit=limit,
        ),
    )  # fmt: skip
    return page


def drift_activity(drift_id: int) -> Calls[DriftActivity]:
    """Ask the exchange what explains a drift: what happened there since the last good run. Needs an admin key."""
    _whole_number(drift_id, "drift_id", "a drift")
    found: DriftActivity = yield Call(
        "GET", f"/v1/drifts/{drift_id}/activity", lambda reply: value_of(reply, drift_activity_from_json)
    )
    return found


def drift(drift_id: int) -> Calls[DriftReport]:
    """One drift in full: what it means, what the ledger has there, what happened to it, what to do next."""
    found: DriftReport = yield Call(
        "GET", f"/v1/drifts/{_whole_number(drift_id, 'drift_id', 'a drift')}",
        lambda reply: value_of(reply, report_of_drift_from_json),
    )  # fmt: skip
    return found


def adopt_drift(
    drift_id: int, *, reason: str, price: Decimal | None = None, tags: GivenTags = NO_TAGS, pair: bool = True
) -> Calls[Drift]:
    """Make the ledger agree with the exchange, with both sides of a hedge in one position.

    price: USD per base unit; needed where the exchange reports none. tags: of the position, such as its strategy; its
    venue, account and symbol are filled in. pair: False for this side alone.
    """
    form = {
        "reason": reason,
        "price": None if price is None else decimal_text(price),
        "tags": tags_of(tags).to_json() or None,
        "pair": None if pair else False,
    }
    return (yield from _decide(drift_id, "adopt", form))


def ignore_drift(drift_id: int, *, reason: str, asset: bool = False, policy: AssetPolicy | None = None) -> Calls[Drift]:
    """Accept the difference as it is: it neither counts nor freezes anything until it changes.

    asset: decide about the asset of this account instead, whatever its quantity, until it is taken back. policy: what
    it is then, `ignore` (the default), `fees` or `cash`.
    """
    form = {"reason": reason, "asset": asset or None, "policy": policy}
    return (yield from _decide(drift_id, "ignore", form))


def asset_policies(portfolio: str | None = None) -> Calls[list[AssetRule]]:
    """Whose money each asset is: what was decided about drifts, then the settings and the defaults."""
    rules: list[AssetRule] = yield Call(
        "GET", "/v1/asset-policies", lambda reply: value_of(reply, _rules), query_of(portfolio=portfolio)
    )
    return rules


def take_back_asset_policy(policy_id: int, *, reason: str) -> Calls[AssetRule]:
    """End a decided policy, by its number: what the exchange shows of the asset is compared again."""
    path = f"/v1/asset-policies/{_whole_number(policy_id, 'policy_id', 'a decided policy')}/take-back"
    body = json.dumps({"reason": reason})
    rule: AssetRule = yield Call("POST", path, lambda reply: value_of(reply, rule_from_json), body=body)
    return rule


def close_drift(drift_id: int, *, reason: str) -> Calls[Drift]:
    """Ask the orchestrator (event `remark`, `close_requested`) to close the difference at the exchange."""
    return (yield from _decide(drift_id, "close", {"reason": reason}))


def rename_coin(
    coin: str, asset: str, *, reason: str, ratio: Decimal = Decimal(1), portfolio: str = "main",
    venue: str | None = None, force: bool = False,
) -> Calls[RenamedCoin]:  # fmt: skip
    """Say that a coin has another name: every open position of it gets it, in one decision. Needs an admin key.

    ratio: new coins for one old. venue: only positions with a leg there. `WrongState` where the last run saw something
    else than a renamed coin, unless `force`.
    """
    form = {
        "coin": coin, "asset": asset, "reason": reason, "ratio": decimal_text(positive(ratio, "ratio")),
        "portfolio": portfolio, "venue": venue, "force": force,
    }  # fmt: skip
    body = json.dumps({name: value for name, value in form.items() if value is not None})
    found: RenamedCoin = yield Call(
        "POST", "/v1/drifts/rename", lambda reply: value_of(reply, renamed_from_json), body=body
    )
    return found


def adopt_drifts(
    ids: Iterable[int] | None = None,
    *,
    reason: str,
    portfolio: str | None = None,
    state: str | None = None,
    kind: str | None = None,
    venue: str | None = None,
    account: str | None = None,
    symbol: str | None = None,
    tags: GivenTags = NO_TAGS,
    pair: bool = True,
    dry_run: bool = False,
) -> Calls[DriftOutcomes]:
    """Make the ledger agree with the exchange for many drifts, each independently. See `DriftOutcomes.refused`.

    ids: their numbers; None for all to which it applies, as far as they match every filter given. state: without it,
    live ones. tags, pair: see `adopt_drift`; what hedges one of them is adopted too. dry_run: only tell what would be
    done. They are sent in parts; what of them is done stays done, and a repetition with the same reason completes.
    """
    chosen = {"portfolio": portfolio, "state": state, "kind": kind, "venue": venue, "account": account}
    more = {"tags": tags_of(tags).to_json(), "pair": pair}
    return (yield from _decide_many("adopt", ids, chosen | {"symbol": symbol}, reason, dry_run, more))


def ignore_drifts(
    ids: Iterable[int] | None = None,
    *,
    reason: str,
    portfolio: str | None = None,
    state: str | None = None,
    kind: str | None = None,
    venue: str | None = None,
    account: str | None = None,
    symbol: str | None = None,
    dry_run: bool = False,
) -> Calls[DriftOutcomes]:
    """Accept many differences as they are. The arguments are those of `adopt_drifts`."""
    chosen = {"portfolio": portfolio, "state": state, "kind": kind, "venue": venue, "account": account}
    return (yield from _decide_many("ignore", ids, chosen | {"symbol": symbol}, reason, dry_run))


def close_drifts(
    ids: Iterable[int] | None = None,
    *,
    reason: str,
    portfolio: str | None = None,
    state: str | None = None,
    kind: str | None = None,
    venue: str | None = None,
    account: str | None = None,
    symbol: str | None = None,
    dry_run: bool = False,
) -> Calls[DriftOutcomes]:
    """Ask the orchestrator to close many differences at the exchange. The arguments are those of `adopt_drifts`."""
    chosen = {"portfolio": portfolio, "state": state, "kind": kind, "venue": venue, "account": account}
    return (yield from _decide_many("close", ids, chosen | {"symbol": symbol}, reason, dry_run))


def _decide_many(
    action: str,
    ids: Iterable[int] | None,
    chosen: Mapping[str, str | None],
    reason: str,
    dry_run: bool,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Calls[DriftOutcomes]:
    """Decide in parts, each of which the service answers within a call's time."""
    if ids is None:
        numbers = yield from _numbers(action, chosen)
    else:
        numbers = sorted({*ids})
        if any(value is not None for value in chosen.values()):
            raise InvalidRequest("filters are for all drifts, without ids; with ids every drift is named", field="ids")
        for number in numbers:
            _whole_number(number, "drift_id", "a drift")
        if not numbers:
            raise InvalidRequest("give at least one drift", field="ids")
    items: dict[int, DriftOutcome] = {}
    for start in range(0, len(numbers), _PART):
        form = {"ids": numbers[start : start + _PART], "reason": reason, "dry_run": dry_run, **more}
        part: DriftOutcomes = yield Call(
            "POST", f"/v1/drifts/{action}", lambda reply: value_of(reply, outcomes_from_json), body=json.dumps(form)
        )
        for one in part.items:  # what hedges one of a part may be of the next
            items.setdefault(one.drift_id, one)
    return outcomes_of([*items.values()])


def _numbers(action: str, chosen: Mapping[str, str | None]) -> Calls[list[int]]:
    """Return the numbers of the drifts that match, and to which the action applies."""
    numbers: list[int] = []
    cursor = None
    filters = {"state": "live", **{name: value for name, value in chosen.items() if value is not None}}
    portfolio = filters.pop("portfolio", None)
    while True:
        page = yield from drifts(portfolio, **filters, cursor=cursor, limit=1000)
        numbers += [drift.id for drift in page if applies(action, drift)]
        cursor = page.cursor
        if cursor is None:
            return sorted(numbers)


def _decide(drift_id: int, action: str, form: Mapping[str, Any]) -> Calls[Drift]:
    path = f"/v1/drifts/{_whole_number(drift_id, 'drift_id', 'a drift')}/{action}"
    body = json.dumps({name: value for name, value in form.items() if value is not None})
    found: Drift = yield Call("POST", path, lambda reply: value_of(reply, drift_from_json), body=body)
    return found


def _whole_number(number: int, field: str, what: str) -> int:
    if type(number) is not int or number < 1:
        raise InvalidRequest(f"{what} has a number from 1, got {number!r}", field=field)
    return number


def _rules(form: Any) -> list[AssetRule]:
    return [rule_from_json(item) for item in form["items"]]


def _runs(form: Any) -> list[Run]:
    return [run_from_json(item["run"]) for item in form["items"]]
