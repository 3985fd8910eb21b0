"""Exchange accounts of the reference model: their trust, their free balance, what is promised of it; equity caps.

From the documented rules alone. A spot buy needs its whole value of the account's money, a contract its margin, a spot
sale nothing. What is planned is promised and given back when it ends unfilled; what is filled stays promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from ledger_sizer import AccountSeen, EquitySeen
from ledger_sizer.model.arguments import NOT_GIVEN
from tests.lockstep.model_answers import Answer, RefusedError
from tests.lockstep.model_positions import WHOLE, ZERO, Holding, Tags, down, up, values_of
from tests.lockstep.model_sizing import PlannedLeg, Sized, size

if TYPE_CHECKING:
    from tests.lockstep.model import PortfolioModel


@dataclass(frozen=True)
class AccountModel:
    """An account. since: number of the decision that first told of it. free: USD, None where nobody saw it."""

    venue: str
    name: str
    since: int
    free: Fraction | None = None
    margin: Fraction = Fraction(1)
    promised: Fraction = ZERO

    @property
    def scope(self) -> str:
        return f"account={self.venue}/{self.name}"


def account_seen(portfolio: PortfolioModel, command: AccountSeen) -> tuple[Answer, None]:
    scope = command.scope
    venue, _, name = scope.removeprefix("account=").partition("/")
    if command.gone:
        portfolio.accounts.pop(scope, None)
        portfolio.fresh_until.pop(scope, None)
        return Answer("account_seen", "applied", binding=scope), None
    one = portfolio.accounts.get(scope) or AccountModel(venue, name, portfolio.next_seq)
    settled = ZERO if command.settled is None else down(Fraction(command.settled))
    one = replace(one, promised=max(one.promised - settled, ZERO))
    if command.free is not NOT_GIVEN:
        one = replace(one, free=None if command.free is None else down(Fraction(command.free)))
    if command.margin_fraction is not NOT_GIVEN:
        one = replace(one, margin=up(Fraction(command.margin_fraction)))
    if command.fresh_until is None:
        portfolio.fresh_until.pop(scope, None)
    elif command.fresh_until is not NOT_GIVEN:
        portfolio.fresh_until[scope] = command.fresh_until
    portfolio.accounts[scope] = one
    return Answer("account_seen", "applied", binding=scope), None


def equity_seen(portfolio: PortfolioModel, command: EquitySeen) -> tuple[Answer, None]:
    if command.scope not in portfolio.shares:
        raise RefusedError("wrong_state")
    portfolio.caps[command.scope] = down(Fraction(command.equity) * portfolio.shares[command.scope])
    return Answer("equity_seen", "applied", binding=command.scope), None


# --- what requests need ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Purse:
    """An account that a request uses. legs: the place of each leg there, with the part of its value that it needs."""

    account: AccountModel
    legs: Sequence[tuple[int, Fraction]] | None

    def left(self) -> Fraction | None:
        return None if self.account.free is None else self.account.free - self.account.promised

    def need(self, plans: Sequence[PlannedLeg], ordered: Sequence[Fraction]) -> Fraction:
        return up(sum((ordered[n] * plans[n].price * part for n, part in self.legs or ()), ZERO))

    def budget(self, plans: Sequence[PlannedLeg]) -> Fraction | None:
        """Return the budget that what is left allows; None where it bounds nothing."""
        left = self.left()
        if left is None:
            return None
        if self.legs is None:
            return left
        paid = [plan.price / (1 - plan.fee) for plan in plans]
        sides = [sum((paid[n] for n, plan in enumerate(plans) if plan.side == side), ZERO) for side in ("buy", "sell")]
        needed = sum((paid[n] * part for n, part in self.legs), ZERO) / max(sides)
        return down(left / needed) if needed else None


def purses(portfolio: PortfolioModel, tags: Tags, plans: Sequence[PlannedLeg]) -> list[Purse]:
    """Return the accounts of a request. Raises where a venue has several and it names none of them."""
    accounts = sorted(portfolio.accounts.values(), key=lambda one: one.scope)
    if not plans:
        venues = values_of(tags, "venue")
        if not venues:
            return [Purse(one, None) for one in sorted(accounts, key=lambda one: (_first(accounts, one), one.scope))]
        return [Purse(_the_one(accounts, venue, None, tags), None) for venue in venues if _at(accounts, venue)]
    found: dict[str, tuple[AccountModel, list[tuple[int, Fraction]]]] = {}
    named = values_of(tags, "venue")
    for place, plan in enumerate(plans):
        venue = plan.venue or (named[0] if len(named) == 1 else "")
        if _at(accounts, venue):
            one = _the_one(accounts, venue, plan.account, tags)
            found.setdefault(one.scope, (one, []))[1].append((place, _part(plan.kind, plan.side, one)))
    return [Purse(one, legs) for one, legs in found.values()]


def _first(accounts: Sequence[AccountModel], one: AccountModel) -> str:
    return min(other.scope for other in accounts if other.venue == one.venue)


def size_within(plans: Sequence[PlannedLeg], budget: Fraction, wallets: Sequence[Purse]) -> Sized:
    """Size what a budget buys; what rounding a fee up takes beyond an account's money lowers the budget."""
    while True:
        sized = size(list(plans), budget)
        over = ZERO
        for one in wallets:
            left = one.left()
            if sized.small is None and sized.ordered and one.legs and left is not None and any(p for _, p in one.legs):
                over = max(over, one.need(plans, sized.ordered) - left)
        if over <= 0:
            return sized
        budget = max(budget - over, ZERO)


def doubted(portfolio: PortfolioModel, wallets: Sequence[Purse]) -> list[str]:
    """Return the accounts that are not known to agree with their exchange, where the portfolio asks for that."""
    return [
        one.account.scope for one in wallets
        if one.account.scope in portfolio.frozen
        or (WHOLE in portfolio.fresh_until and not portfolio.trusted(one.account.scope))
    ]  # fmt: skip


def _at(accounts: Sequence[AccountModel], venue: str) -> list[AccountModel]:
    return [one for one in accounts if one.venue == venue]


def _where(accounts: Sequence[AccountModel], venue: str, account: str | None, tags: Tags) -> list[AccountModel]:
    here = _at(accounts, venue)
    if account is not None:
        return [one for one in here if one.name == account]
    tagged = values_of(tags, "account")
    named = [one for one in here if one.name in tagged]
    if named:
        return named
    return here if not tagged or any(other != venue for other in values_of(tags, "venue")) else []


def _the_one(accounts: Sequence[AccountModel], venue: str, account: str | None, tags: Tags) -> AccountModel:
    found = _where(accounts, venue, account, tags)
    if len(found) != 1:
        raise RefusedError("invalid_request")
    return found[0]


def _part(kind: str, side: str, account: AccountModel) -> Fraction:
    if kind == "spot":
        return ZERO if side == "sell" else Fraction(1)
    return account.margin


# --- what positions use ------------------------------------------------------------------------------------------


def promise(portfolio: PortfolioModel, before: Holding | None, after: Holding) -> None:
    """Change what accounts have promised when a position changed."""
    accounts = [one for one in portfolio.accounts.values() if one.since < after.number]
    old = {} if before is None else _uses(before, accounts)
    new = _uses(after, accounts)
    for scope in {*old, *new}:
        planned, spent = new.get(scope, (ZERO, ZERO))
        planned_before, spent_before = old.get(scope, (ZERO, ZERO))
        one = portfolio.accounts[scope]
        more = planned - planned_before + max(spent - spent_before, ZERO)
        portfolio.accounts[scope] = replace(one, promised=max(one.promised + more, ZERO))


def _uses(one: Holding, accounts: Sequence[AccountModel]) -> dict[str, tuple[Fraction, Fraction]]:
    """Return what orders to come need and what fills cost, by account's scope."""
    if values_of(one.tags, "external"):
        return {}
    if not one.legs:
        venues = values_of(one.tags, "venue") or sorted({account.venue for account in accounts})
        held = one.held if one.pending else ZERO
        return {
            account.scope: (held, one.open)
            for venue in venues for account in _where(accounts, venue, None, one.tags)
        }  # fmt: skip
    named = values_of(one.tags, "venue")
    planned: dict[str, Fraction] = {}
    spent: dict[str, Fraction] = {}
    for leg in one.legs:
        venue = leg.venue or (named[0] if len(named) == 1 else "")
        found = _where(accounts, venue, leg.account, one.tags)
        if len(found) != 1:
            continue
        scope, part = found[0].scope, _part(leg.kind, leg.side, found[0])
        planned[scope] = planned.get(scope, ZERO) + (leg.unfilled_usd if one.pending else ZERO) * part
        spent[scope] = spent.get(scope, ZERO) + leg.cost * part
    return {scope: (up(planned[scope]), up(spent[scope])) for scope in planned}
