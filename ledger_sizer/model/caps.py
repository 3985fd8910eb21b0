"""What the scopes of a portfolio are limited to, and the commands that bring them from one state to another."""

from collections.abc import Mapping
from decimal import Decimal
from hashlib import sha256
from typing import Any, NamedTuple

from ledger_sizer.model.command_base import GROUP_MAX
from ledger_sizer.model.commands import SetCap
from ledger_sizer.model.derived_keys import derived_key
from ledger_sizer.model.domain import Exposure
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.tags import PORTFOLIO_SCOPE
from ledger_sizer.model.units import decimal_text, exact_arithmetic


class Limits(NamedTuple):
    """What `set_cap` sets of a scope, USD; None for what is not set. The names are those of its arguments."""

    cap: Decimal | None = None
    guarantee: Decimal | None = None
    max_position_usd: Decimal | None = None
    share_of_equity: Decimal | None = None


NO_LIMITS = Limits()

Caps = Mapping[str, Limits]
"""The limits of a portfolio by scope. A scope without any is not among them."""


_NAME_MAX = 100
"""Longest scope that a key names. A digest stands for a longer one."""


class Change(NamedTuple):
    """One setting of one scope, before and after, USD. setting: its argument of `set_cap`."""

    scope: str
    setting: str
    before: Decimal | None
    after: Decimal | None


def caps_of(exposure: Exposure) -> dict[str, Limits]:
    """Return the limits that the scopes of an exposure have of their own: without default caps."""
    found = {
        row.scope: Limits(
            row.cap if row.cap_from is None and row.share_of_equity is None else None,
            row.guarantee,
            row.max_position_usd,
            row.share_of_equity,
        )
        for row in exposure.scopes
    }
    return {scope: limits for scope, limits in found.items() if limits != NO_LIMITS}


def changes_between(before: Caps, after: Caps) -> list[Change]:
    """Return the settings that differ: the portfolio's first, then by scope."""
    return [
        Change(scope, setting, old, new)
        for scope in sorted({*before, *after}, key=_place)
        for setting, old, new in zip(
            Limits._fields, before.get(scope, NO_LIMITS), after.get(scope, NO_LIMITS), strict=True
        )
        if old != new
    ]


def commands_between(portfolio: str, before: Caps, after: Caps, *, key: str, note: str) -> list[SetCap]:
    """Return the commands that change what differs, one for each scope, each under its own key: `<key>/<scope>`.

    Every command in this order passes the checks of guarantees, if `after` does: first guarantees are lowered, then the
    portfolio's cap is set, and guarantees are raised last. Raises `InvalidRequest` for more than fit in one group.
    """
    asked: dict[str, dict[str, Any]] = {}
    for change in changes_between(before, after):
        asked.setdefault(change.scope, {})[change.setting] = change.after
    for changes in asked.values():
        if changes.get("share_of_equity") is not None:
            changes.pop("cap", None)  # the cap that it replaces
    if len(asked) > GROUP_MAX:
        raise InvalidRequest(
            f"{len(asked)} scopes of portfolio {portfolio!r} change, and all of a portfolio change together, at most "
            f"{GROUP_MAX}; write a file with fewer changes first",
            field="file",
        )
    return [
        SetCap(key=_key_of(key, scope), portfolio=portfolio, scope=scope, note=note, **asked[scope])
        for scope in sorted(asked, key=lambda scope: (_rank(scope, before, after), scope))
    ]


def _key_of(key: str, scope: str) -> str:
    name = scope if len(scope) <= _NAME_MAX else sha256(scope.encode()).hexdigest()
    return derived_key(key, f"/{name}")


def _rank(scope: str, before: Caps, after: Caps) -> int:
    if scope == PORTFOLIO_SCOPE:
        return 1
    old, new = before.get(scope, NO_LIMITS).guarantee or 0, after.get(scope, NO_LIMITS).guarantee or 0
    return 0 if new < old else 2 if new == old else 3


def _place(scope: str) -> tuple[bool, str]:
    return scope != PORTFOLIO_SCOPE, scope


def require_guarantees(caps: Caps) -> None:
    """Check the guarantees of a portfolio as a whole: on one tag name, their sum at most its cap.

    Raises `InvalidRequest` whose field is a scope and its argument, such as `bot=a.guarantee`.
    """
    guarantees = {scope: limits.guarantee for scope, limits in sorted(caps.items()) if limits.guarantee}
    if not guarantees:
        return
    first = next(iter(guarantees))
    for scope, guarantee in guarantees.items():
        if scope.partition("=")[0] != first.partition("=")[0]:
            raise InvalidRequest(
                f"{decimal_text(guarantee)} does not go with the guarantee of {first}: guarantees of a portfolio stand "
                "on one tag name; leave out those of the other",
                field=f"{scope}.guarantee",
            )
    if caps[PORTFOLIO_SCOPE].share_of_equity is not None:
        return  # a cap that follows the equity may fall below them
    with exact_arithmetic():
        total = sum(guarantees.values(), Decimal(0))
    cap = caps[PORTFOLIO_SCOPE].cap or Decimal(0)
    if total > cap:
        raise InvalidRequest(
            f"{decimal_text(cap)} is below the sum of the portfolio's guarantees, {decimal_text(total)} USD; write a "
            "higher cap, or lower guarantees",
            field="cap",
        )
