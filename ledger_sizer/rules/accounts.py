"""Finds the exchange accounts whose money a position uses, and how much of it.

The reconciliation tells the ledger which accounts a portfolio has and what is free in them (`account_seen`). Each is a
scope, `account=bybit/main`. What grants and fills use after a look is `promised_e8` there, until a later look shows it.
A spot buy needs its whole value, a contract its margin, a spot sale nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from math import ceil
from typing import NamedTuple

from ledger_sizer.model.domain import Position
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.plans import Plan
from ledger_sizer.model.tags import EXTERNAL_TAG, Tags, account_of_scope
from ledger_sizer.model.units import E8, exact_arithmetic, usd_ceil_e8
from ledger_sizer.rules.scope_state import ScopeState

_ZERO = Decimal(0)
_ONE = Decimal(1)

Accounts = Mapping[str, Sequence[ScopeState]]
"""The scopes of the accounts that a portfolio has, by venue, and there by name."""


class Place(NamedTuple):
    """An account that a request uses.

    share: USD of its money for each USD of the budget; 0 where it only sells coins there. legs: the place of each leg
    there, with the part of its value that it needs.
    """

    account: ScopeState
    share: Decimal
    legs: Sequence[tuple[int, Decimal]] = ()

    @property
    def left_e8(self) -> int | None:
        """What of its free balance is not promised, 1e-8 USD, below zero for a debt; None where nobody saw any."""
        settings = self.account.settings
        return None if settings.free_e8 is None else settings.free_e8 - (settings.promised_e8 or 0)

    def need_e8(self, plans: Sequence[Plan], ordered: Sequence[Decimal]) -> int:
        """Return what these orders need here, 1e-8 USD."""
        with exact_arithmetic():
            return usd_ceil_e8(sum([ordered[n] * plans[n].price * part for n, part in self.legs], _ZERO))


def accounts_of(scopes: Mapping[str, ScopeState], names: Iterable[str], number: int | None = None) -> Accounts:
    """Return the accounts among these scopes. number: those that the ledger knew when it made this position.

    An account that came later got no part of an older position, so that it gets nothing back from it either.
    """
    found: dict[str, list[ScopeState]] = {}
    for name in names:
        scope = scopes[name]
        since = scope.settings.since_seq
        if since is not None and (number is None or since < number):
            found.setdefault(account_of_scope(name)[0], []).append(scope)
    return found


def places_of(known: Accounts, tags: Tags, plans: Sequence[Plan] | None) -> list[Place]:
    """Return the accounts that a request uses. plans: its legs; without any, it may be wherever its tags allow.

    Raises `InvalidRequest` for a request at a venue with several accounts that names none of them.
    """
    if not known:
        return []
    if plans is None:
        venues = tags.values_of("venue")
        if not venues:
            return [Place(account, _ONE) for here in known.values() for account in here]
        return [Place(_only(venue, None, tags, known, "tags.account"), _ONE) for venue in venues if venue in known]
    legs: dict[str, list[tuple[int, Decimal]]] = {}
    accounts: dict[str, ScopeState] = {}
    for number, plan in enumerate(plans):
        venue = plan.instrument.venue or tags.only("venue") or ""
        if venue in known:
            account = _only(venue, plan.account, tags, known, f"legs.{number}.account")
            accounts[account.name] = account
            part = _part_of_value(plan.kind, plan.side, account)
            legs.setdefault(account.name, []).append((number, part))
    return [Place(account, _share(plans, legs[name]), legs[name]) for name, account in accounts.items()]


def _share(plans: Sequence[Plan], legs: Iterable[tuple[int, Decimal]]) -> Decimal:
    """Return what these legs need for each USD that all legs together count, a fee in base included."""
    with exact_arithmetic():
        prices = [plan.price / (_ONE - plan.fee_rate) if plan.fee_rate else plan.price for plan in plans]
        bought = sum([price for price, plan in zip(prices, plans, strict=True) if plan.side == "buy"], _ZERO)
        sold = sum([price for price, plan in zip(prices, plans, strict=True) if plan.side == "sell"], _ZERO)
        return sum([prices[number] * part for number, part in legs], _ZERO) / max(bought, sold)


def _part_of_value(kind: str, side: str, account: ScopeState) -> Decimal:
    """Return which part of an order's value it needs of the account's money."""
    if kind == "spot":
        return _ZERO if side == "sell" else _ONE
    margin_e8 = account.settings.margin_e8
    return _ONE if margin_e8 is None else Decimal(margin_e8) / E8


def _candidates(venue: str, account: str | None, tags: Tags, known: Accounts) -> Sequence[ScopeState]:
    """Return the accounts at a venue where a leg may be.

    With several venues in the tags, their account may be another venue's.
    """
    here = known.get(venue, ())
    names = tags.values_of("account") if account is None else (account,)
    named = [one for one in here if account_of_scope(one.name)[1] in names]
    if named or account is not None:
        return named
    return here if not names or any(other != venue for other in tags.values_of("venue")) else ()


def _only(venue: str, account: str | None, tags: Tags, known: Accounts, field: str) -> ScopeState:
    found = _candidates(venue, account, tags, known)
    if len(found) == 1:
        return found[0]
    names = ", ".join(account_of_scope(one.name)[1] for one in known[venue])
    if found:
        said = f"it has several accounts ({names}), and this names none"
    else:
        said = f"it has no account {account or ' or '.join(tags.values_of('account'))!r}; there are {names}"
    raise InvalidRequest(
        f"{field}: {venue} cannot be told where the position is to be: {said}; give each leg its account, or the tag "
        "account, or the reconciliation would count what it fills a second time",
        field=field,
    )


def is_doubtful(whole: ScopeState, account: ScopeState, now_us: int) -> bool:
    """Whether an account is not known to agree with the exchange, in a portfolio that asks for it."""
    settings = account.settings
    return settings.frozen or (whole.settings.fresh_until_us is not None and account.unreconciled(now_us))


# --- what positions use ------------------------------------------------------------------------------------------


class _Use(NamedTuple):
    """Money of an account, 1e-8 USD: what orders to come need, and what fills cost."""

    planned_e8: int = 0
    spent_e8: int = 0


_NO_USE = _Use()


def promised_after(
    scopes: Mapping[str, ScopeState], names: Iterable[str], before: Position | None, after: Position
) -> dict[str, int]:
    """Return what each account has promised once a position changed, 1e-8 USD, by scope; only where that differs.

    A grant promises what its orders need, and what is freed of it gives it back. A fill stays promised, and a fill of
    nothing that was granted is added: the balance that was seen before does not show them. A close gives nothing back:
    what it pays is seen by the next look.
    """
    known = accounts_of(scopes, names, after.number)
    if not known:
        return {}
    uses_before = {} if before is None else _uses(before, known)
    uses_after = _uses(after, known)
    changed = {}
    for name in {**uses_before, **uses_after}:
        old, new = uses_before.get(name, _NO_USE), uses_after.get(name, _NO_USE)
        more = new.planned_e8 - old.planned_e8 + max(new.spent_e8 - old.spent_e8, 0)
        if more:
            changed[name] = max((scopes[name].settings.promised_e8 or 0) + more, 0)
    return changed


def unsettled_e8(position: Position, known: Accounts, recent: Decimal) -> dict[str, int]:
    """Return what a look at an exchange need not show yet of a position, 1e-8 USD by scope: its orders to come.

    recent: the part of it that was filled so lately that the look may not show what it cost either, 0 to 1.
    """
    uses = _uses(position, known)
    with exact_arithmetic():
        return {name: use.planned_e8 + ceil(use.spent_e8 * recent) for name, use in uses.items()}


def _uses(position: Position, known: Accounts) -> dict[str, _Use]:
    if EXTERNAL_TAG in position.tags:
        return {}  # what an exchange showed is in its balance
    unfilled = [leg.fills.unfilled_usd for leg in position.legs if leg.fills is not None]
    held_e8 = position.held_e8 if position.pending else 0
    if not position.legs or (held_e8 and not unfilled):
        accounts = _anywhere(position, known)
        return {one.name: _Use(held_e8, 0 if position.legs else position.open_e8) for one in accounts}
    planned: dict[str, Decimal] = {}
    spent: dict[str, Decimal] = {}
    with exact_arithmetic():
        for leg in position.legs:
            found = _candidates(leg.venue or position.tags.only("venue") or "", leg.account, position.tags, known)
            if len(found) != 1:
                continue
            name, part = found[0].name, _part_of_value(leg.kind, leg.side, found[0])
            more = leg.fills.unfilled_usd if leg.fills is not None and position.pending else _ZERO
            planned[name] = planned.get(name, _ZERO) + more * part
            spent[name] = spent.get(name, _ZERO) + leg.cost * part
        return {name: _Use(usd_ceil_e8(planned[name]), usd_ceil_e8(spent[name])) for name in planned}


def _anywhere(position: Position, known: Accounts) -> list[ScopeState]:
    """Return every account where a position that names no market may be."""
    venues = {leg.venue for leg in position.legs} or {*position.tags.values_of("venue")} or {*known}
    return [one for venue in sorted(venues) for one in _candidates(venue, None, position.tags, known)]
