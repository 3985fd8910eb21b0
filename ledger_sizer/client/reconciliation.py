"""The HTTP calls for runs and drifts, as generators of `Call` (see `endpoints`)."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ledger_sizer.client.endpoints import Call, Calls, query_of
from ledger_sizer.client.responses import value_of
from ledger_sizer.model.asset_policies import AssetRule
from ledger_sizer.model.choices import AssetPolicy
from ledger_sizer.model.domain import Page
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.reconciliation import Drift, Run
from ledger_sizer.model.tags import NO_TAGS, GivenTags, tags_of
from ledger_sizer.model.units import decimal_text
from ledger_sizer.wire.codec import page_from_json
from ledger_sizer.wire.reconciliation import drift_from_json, rule_from_json, run_from_json


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
    cursor: str | None = None,
    limit: int = 100,
) -> Calls[Page[Drift]]:
    """Drifts, newest first. state: `open`, `confirmed`, `acknowledged`, `resolved`, or `live` (open and confirmed)."""
    page: Page[Drift] = yield Call(
        "GET", "/v1/drifts", lambda reply: value_of(reply, lambda form: page_from_json(form, drift_from_json)),
        query_of(portfolio=portfolio, state=state, kind=kind, cursor=cursor, limit=limit),
    )  # fmt: skip
    return page


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
