"""Outbox of the webhook: stores alerts in the transaction of the run that raises them. `alerts` delivers them.

One run raises at most one alert of each event, whatever the number of drifts. An account that cannot be read is one
alert when several runs agree on it, and one all-clear when it is read again, however long it lasts: its drift's
changes of state say when, so nothing else is stored.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, insert, select

from ledger_sizer.config import ReconcileSettings
from ledger_sizer.model.legs import Leg, legs_of
from ledger_sizer.model.market_names import coin_of
from ledger_sizer.model.reconciliation import Drift, Run
from ledger_sizer.reconcile.alert_texts import Coins, confirmed_body, readable_body, resolved_body, unreadable_body
from ledger_sizer.storage.lookups import portfolio_id
from ledger_sizer.storage.tables import AlertRow, PositionRow

_POSITIONS_PER_LOOKUP = 500


def told_drifts(
    confirmed: Iterable[Drift], resolved: Iterable[Drift], settings: ReconcileSettings
) -> tuple[list[Drift], list[Drift]]:
    """Return the drifts of a run that are told: those confirmed, and those ended that had been confirmed.

    None of the policy `record`.
    """
    told = [drift for drift in confirmed if drift.policy != "record"]
    ended = [drift for drift in resolved if drift.policy != "record" and drift.sightings >= settings.confirmations]
    return told, ended


def enqueue_alerts(
    connection: Connection,
    run: Run,
    confirmed: Sequence[Drift],
    resolved: Sequence[Drift],
    live: Sequence[Drift],
    settings: ReconcileSettings,
) -> None:
    """Store the alerts of a run, in the transaction that records it. Does nothing without a webhook.

    live: the drifts that the run left unresolved.
    """
    if settings.webhook_url is None:
        return
    told, ended = told_drifts(confirmed, resolved, settings)
    out, told = _apart(told)
    back, ended = _apart(ended)
    still_out, left = _apart(live)
    coins, prices = _coins_and_prices(connection, run.portfolio, [*told, *ended, *left]) if told or ended else ({}, {})
    told, ended, left = (_priced(drifts, coins, prices) for drifts in (told, ended, left))
    bodies: list[dict[str, Any]] = []
    if out:
        bodies.append(unreadable_body(run, out, settings.stale_after_seconds))
    if back:
        bodies.append(readable_body(run, back, still_out))
    if told:
        bodies.append(confirmed_body(run, told))
    if ended:
        bodies.append(resolved_body(run, ended, [drift for drift in left if drift.live], still_out, coins))
    for body in bodies:
        enqueue_event(connection, f"run-{run.id}-{body['event']}", json.dumps(body))


def enqueue_event(connection: Connection, delivery: str, body: str) -> None:
    """Store one delivery. delivery: its idempotency key. body: JSON."""
    connection.execute(insert(AlertRow), {"delivery": delivery, "body": body, "attempts": 0, "due_us": 0})


def _apart(drifts: Iterable[Drift]) -> tuple[list[Drift], list[Drift]]:
    """Return the drifts of accounts that cannot be read, and the others."""
    accounts: list[Drift] = []
    others: list[Drift] = []
    for drift in drifts:
        (accounts if drift.kind == "fetch_failed" else others).append(drift)
    return accounts, others


def _priced(drifts: Sequence[Drift], coins: Coins, prices: Mapping[str, Decimal]) -> list[Drift]:
    """Return the drifts with the price of their coin where two unequal sides have none, so that a text says the USD."""
    priced = []
    for drift in drifts:
        known = [prices[coin] for coin in coins.get(drift.id, ()) if coin in prices]
        missing = drift.kind == "legs_unequal" and drift.price is None and known
        priced.append(replace(drift, price=known[0]) if missing else drift)
    return priced


def _coins_and_prices(
    connection: Connection, portfolio: str, drifts: Sequence[Drift]
) -> tuple[Coins, dict[str, Decimal]]:
    """Return the coins of each drift, of its market or of the position that it names, and USD by coin where known."""
    coins: dict[int, frozenset[str]] = {}
    prices: dict[str, Decimal] = {}
    named: dict[int, int] = {}
    for drift in drifts:
        name = drift.subject.removeprefix(f"{portfolio}-")
        if drift.part == "ledger" and name != drift.subject and name.isdecimal():
            named[drift.id] = int(name)
        elif drift.kind not in ("balance_below_holds", "expired_hold"):
            coins[drift.id] = frozenset((drift.market.base,))
            if drift.price is not None:
                prices[drift.market.base] = drift.price
    legs = _legs_of(connection, portfolio, set(named.values()))
    for drift_id, number in named.items():
        coins[drift_id] = frozenset(coin_of(leg.symbol) for leg in legs.get(number, ()))
        prices |= {coin_of(leg.symbol): leg.price for leg in legs.get(number, ()) if leg.price is not None}
    return coins, prices


def _legs_of(connection: Connection, portfolio: str, numbers: Collection[int]) -> dict[int, tuple[Leg, ...]]:
    owner = portfolio_id(connection, portfolio) if numbers else None
    found: dict[int, tuple[Leg, ...]] = {}
    ordered = sorted(numbers)
    for start in range(0, len(ordered), _POSITIONS_PER_LOOKUP):
        part = ordered[start : start + _POSITIONS_PER_LOOKUP]
        query = select(PositionRow.number, PositionRow.legs)
        query = query.where(PositionRow.portfolio_id == owner, PositionRow.number.in_(part))
        found |= {number: legs_of(text) for number, text in connection.execute(query).all()}
    return found
