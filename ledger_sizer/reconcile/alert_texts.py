"""Bodies of alerts: one for all drifts that a run confirmed, one for all that it ended, with a text for a person.

A body names its event. `text` says what, where, how much, what is frozen and what to do; the other fields say the same
for programs.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from ledger_sizer.model.drift_words import to_do
from ledger_sizer.model.reconciliation import Drift, Run
from ledger_sizer.model.times import time_text
from ledger_sizer.model.units import decimal_text, exact_arithmetic
from ledger_sizer.wire.reconciliation import drift_to_json, run_to_json

LISTED_MAX = 100
"""Most drifts that one alert lists; it counts all."""

LINES_MAX = 20
"""Most lines of its text about single drifts."""

Coins = Mapping[int, frozenset[str]]
"""The coins that a drift is about, by drift id."""

_DONE_BY_POLICY = {"adopt": "it is adopted now", "close": "its close is requested now"}


def unreadable_body(run: Run, out: Sequence[Drift], stale_after_seconds: int | None) -> dict[str, Any]:
    """Return the body of `run_failed`. out: the drifts of the accounts that cannot be read, as several runs agree."""
    if stale_after_seconds is None:
        end = "Grants go on all the same: RECONCILE_STALE_AFTER_SECONDS is empty."
    else:
        end = f"Reservations with a leg there are denied {stale_after_seconds} s after it was last read."
    lines = [
        f"{run.portfolio}: {_named(out)} cannot be read. What stands there is not known and not judged. {end}",
        *_lines(out, lambda one: f"{one.where}, since {time_text(one.opened_at)}: {one.detail}"),
        *_frozen_lines(out),
        "Do: look at the key's rights, the network, the exchange's status and its rate limits. The next run that"
        " reads it ends this.",
    ]
    return _body("run_failed", run, out, lines) | {"accounts": [_account_json(one) for one in out[:LISTED_MAX]]}


def readable_body(run: Run, back: Sequence[Drift], still_out: Sequence[Drift]) -> dict[str, Any]:
    """Return the body of the all-clear: `run_good_again`, or `account_readable` while other accounts are still out."""
    lines = [
        f"{run.portfolio}: {_named(back)} can be read again.",
        *_lines(back, lambda one: f"{one.where} was out since {time_text(one.opened_at)}"),
    ]
    if still_out:
        lines.append(f"Still not read: {_named(still_out)}.")
    body = _body("account_readable" if still_out else "run_good_again", run, back, lines)
    return body | {
        "accounts": [_account_json(one) for one in back[:LISTED_MAX]],
        "still_unreadable": [_account_json(one) for one in still_out[:LISTED_MAX]],
    }


def confirmed_body(run: Run, confirmed: Sequence[Drift]) -> dict[str, Any]:
    """Return the body of `drift_confirmed`, the gravest first."""
    ordered = sorted(confirmed, key=_gravity)
    lines = [
        f"{run.portfolio}: {_drifts(len(ordered))} confirmed by run {run.id}{_total_usd(ordered)}.",
        *_lines(ordered, lambda one: f"{describe(one)}. Do: {_to_do(one)}"),
        *_frozen_lines(ordered),
        "Decide: ledger-sizer drifts list --state live, then drifts adopt, close or ignore with its number.",
    ]
    return _body("drift_confirmed", run, ordered, lines)


def resolved_body(
    run: Run, resolved: Sequence[Drift], live: Sequence[Drift], still_out: Sequence[Drift], coins: Coins
) -> dict[str, Any]:
    """Return the body of `drift_resolved`. live: what is left. still_out: of accounts not read. coins: by drift.

    `all_clear` is true only where nothing is left of the coins that the ended drifts were about: what one drift no
    longer says, another one may say now.
    """
    ended_coins = {coin for one in resolved for coin in coins.get(one.id, ())}
    left = sorted((one for one in live if not ended_coins.isdisjoint(coins.get(one.id, ()))), key=_gravity)
    elsewhere = len(live) - len(left)
    lines = [
        f"{run.portfolio}: {_drifts(len(resolved))} ended with run {run.id}{_total_usd(resolved)}.",
        *_lines(resolved, lambda one: f"{describe(one)}: {one.reason}"),
    ]
    if left:
        about = sorted(ended_coins & {coin for one in left for coin in coins[one.id]})
        lines.append(f"NOT all clear: of {', '.join(about)} there is still:")
        lines += _lines(left, lambda one: f"{describe(one)}. Do: {_to_do(one)}")
    else:
        lines.append("All clear: nothing is left of it.")
    if elsewhere:
        lines.append(f"Of other coins {_drifts(elsewhere)} {'is' if elsewhere == 1 else 'are'} not over.")
    if still_out:
        lines.append(f"What stands at {_named(still_out)} is not known: it cannot be read.")
    lines += _frozen_lines([*live, *still_out])
    body = _body("drift_resolved", run, resolved, lines)
    return body | {"all_clear": not left, "left": [drift_to_json(one) for one in left[:LISTED_MAX]]}


def describe(drift: Drift) -> str:
    """Return one line about a drift: what, where, both quantities and USD."""
    if drift.ledger_quantity is None and drift.venue_quantity is None:
        said = drift.detail
    elif drift.kind == "legs_unequal":
        long, short = (decimal_text(one or Decimal(0)) for one in (drift.ledger_quantity, drift.venue_quantity))
        said = f"{long} long against {short} short"
    else:
        ours, theirs = (decimal_text(one or Decimal(0)) for one in (drift.ledger_quantity, drift.venue_quantity))
        said = f"ledger {ours}, exchange {theirs}"
    usd = drift.usd
    return f"{drift.name} {drift.kind} {drift.where}: {said}{'' if usd is None else f', {_usd(usd)}'}"


def _body(event: str, run: Run, about: Sequence[Drift], lines: Iterable[str]) -> dict[str, Any]:
    """Return the fields of every alert of a run. `drift` is the first of `drifts`, for receivers that read one."""
    listed = [drift_to_json(one) for one in about[:LISTED_MAX]]
    return {
        "event": event, "portfolio": run.portfolio, "text": "\n".join(lines), "count": len(about),
        "left_out": len(about) - len(listed), "drift": listed[0], "drifts": listed, "run": run_to_json(run),
    }  # fmt: skip


def _lines(about: Sequence[Drift], say: Any) -> list[str]:
    lines = [f"- {say(one)}" for one in about[:LINES_MAX]]
    more = len(about) - len(lines)
    return [*lines, f"- and {more} more"] if more else lines


def _frozen_lines(about: Iterable[Drift]) -> list[str]:
    scopes = sorted({scope for one in about if one.freezes for scope in one.frozen_scopes})
    said = ", ".join(scopes)
    return [f"Frozen: {said}. New reservations there are denied; confirm, release and extend work."] if scopes else []


def _to_do(drift: Drift) -> str:
    if drift.policy in _DONE_BY_POLICY and drift.excess > 0:
        return f"{_DONE_BY_POLICY[drift.policy]} by policy; look why it was there"
    return to_do(drift)


def _gravity(drift: Drift) -> tuple[int, Decimal, int]:
    """Return a key that sorts the gravest drift first: what freezes, then the largest."""
    with exact_arithmetic():
        return (0 if drift.freezes else 1, -(drift.usd or Decimal(0)), drift.id)


def _total_usd(about: Sequence[Drift]) -> str:
    with exact_arithmetic():
        # Two unequal sides are another drift's difference seen again.
        known = [usd for one in about if one.kind != "legs_unequal" and (usd := one.usd) is not None]
        return f", {_usd(sum(known, Decimal(0)))} in all" if len(known) > 1 else ""


def _usd(amount: Decimal) -> str:
    return f"{amount:,.2f} USD"


def _drifts(count: int) -> str:
    return f"{count} drift{'' if count == 1 else 's'}"


def _named(about: Sequence[Drift]) -> str:
    names = [f"{one.venue}/{one.account}" for one in about]
    rest = len(names) - LINES_MAX
    return ", ".join(names[:LINES_MAX]) + (f" and {rest} more" if rest > 0 else "")


def _account_json(drift: Drift) -> dict[str, str]:
    return {
        "venue": drift.venue, "account": drift.account, "since": time_text(drift.opened_at), "detail": drift.detail
    }  # fmt: skip
