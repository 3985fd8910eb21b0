"""Decides who may touch which money: declared portfolios, tags that are required, API keys that are bound to tags.

A refusal is an error: nothing is recorded and the key stays unused. What is refused here is a mistake of the caller (a
mistyped name, another bot's position), not an answer about money.
"""

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from typing import TypeVar

from ledger_sizer.model.caller import RECONCILE, Caller
from ledger_sizer.model.command_base import ScopeCommand
from ledger_sizer.model.commands import Adopt, AnyCommand, Rename, Reserve, Retag, SetCap
from ledger_sizer.model.errors import Forbidden, InvalidRequest, NotFound
from ledger_sizer.model.names import DESK
from ledger_sizer.model.tags import EXTERNAL_TAG, NO_TAGS, PORTFOLIO_SCOPE, Tags, tags_of
from ledger_sizer.rules.policy import Policy
from ledger_sizer.rules.state import PortfolioState

C = TypeVar("C", Reserve, Adopt, Retag)

# --- before the queue: what is asked, with the caller's tags -----------------------------------------------------


def with_bound_tags(command: AnyCommand, caller: Caller) -> AnyCommand:
    """Return the command with the tags that the caller's API key is bound to, so that its recorded request has them.

    Only new positions and new tags of a position have any. Raises `Forbidden` where they name other values.
    """
    if caller.tags is NO_TAGS:
        return command
    if isinstance(command, Reserve):
        if command.number is not None:
            return command  # more of a position: `require_allowed` looks at the position
        return _with_tags(command, caller, command.position_tags)
    if isinstance(command, Adopt):
        at_own_venue = not _venues(command).isdisjoint(caller.tags.values_of("venue"))
        return _with_tags(command, caller, tags_of(command.tags), ("venue",) if at_own_venue else ())
    if isinstance(command, Retag):  # its position keeps venue and symbol
        return _with_tags(command, caller, tags_of(command.tags), ("venue", "symbol"))
    return command


def bound_tags(tags: Tags, caller: Caller, *, known: Tags | None = None, kept: Iterable[str] = ()) -> Tags:
    """Return tags with those of the caller's API key filled in. Raises `Forbidden` where they name other values.

    known: the tags with those that follow from legs; without it, the tags. kept: names that need not be filled in.
    """
    known = tags if known is None else known
    for name in caller.tags:
        own = caller.tags.values_of(name)
        foreign = [value for value in known.values_of(name) if value not in own]
        if foreign:
            raise Forbidden(
                f"tags.{name} is {foreign[0]!r}, and {_bound(caller)}; leave {name} out, it is filled in, or use "
                "another API key",
                field=f"tags.{name}",
            )
        if not known.values_of(name) and name not in kept:
            tags = tags.having(name, own)
    return tags


def carries(tags: Tags, bound: Tags) -> bool:
    """Whether a position with these tags is one that an API key bound to `bound` may touch: it has one of each."""
    return all(not set(tags.values_of(name)).isdisjoint(bound.values_of(name)) for name in bound)


def _with_tags(command: C, caller: Caller, known: Tags, kept: Iterable[str] = ()) -> C:
    given = tags_of(command.tags)
    tags = bound_tags(given, caller, known=known, kept=kept)
    return command if tags is given else replace(command, tags=tags)


# --- in the batch: after the key's replay, before the decision ---------------------------------------------------


def require_allowed(state: PortfolioState, command: AnyCommand, caller: Caller, policy: Policy) -> None:
    """Raise `InvalidRequest`, `NotFound` or `Forbidden` where a guard refuses the command."""
    if policy.declared and not _exists(state):
        _require_declared(state, command)
    if caller.tags is not NO_TAGS:
        _require_own(state, command, caller)
    if policy.required_tags:
        _require_tags(state, command, caller, policy.required_tags)


def require_declared_before(states: Iterable[PortfolioState], policy: Policy, cause: str) -> None:
    """Raise `InvalidRequest` where a denied group, whose denials are recorded, would begin a portfolio.

    cause: why it was denied.
    """
    for state in states:
        if policy.declared and not _exists(state):
            raise InvalidRequest(
                f"the group is denied ({cause}), and the portfolio {state.name!r}, which it declares, does not begin "
                "with denials (LEDGER_PORTFOLIOS=declared); declare it first, in a request of its own",
                field="portfolio",
            )


def _exists(state: PortfolioState) -> bool:
    """Whether the portfolio, or the desk, was there before or began with a decision of this batch."""
    return state.last_seq > 0 or state.name == DESK or state.scope(PORTFOLIO_SCOPE).stored is not None


def _require_declared(state: PortfolioState, command: AnyCommand) -> None:
    if isinstance(command, SetCap) and command.scope == PORTFOLIO_SCOPE and isinstance(command.cap, Decimal):
        return
    if not command.creates:
        raise NotFound(f"no portfolio {state.name!r}")
    raise InvalidRequest(
        f"there is no portfolio {state.name!r}, and LEDGER_PORTFOLIOS=declared; check the name, or let an admin begin "
        f"the portfolio with its cap: ledger-sizer caps set {state.name} CAP",
        field="portfolio",
    )


def _require_own(state: PortfolioState, command: AnyCommand, caller: Caller) -> None:
    """Raise `Forbidden` unless a bound API key asks about its own money."""
    if command.portfolio == DESK:
        raise Forbidden(
            f"the desk (portfolio '*') stands for all money, and {_bound(caller)}; use an API key that is not bound",
            field="portfolio",
        )
    if isinstance(command, SetCap):
        raise Forbidden(
            f"set_cap says how much of the common money a scope gets, and {_bound(caller)}; use an API key that is not "
            "bound",
            field="scope",
        )
    if isinstance(command, ScopeCommand) and command.scope not in caller.tags.scopes[1:]:
        raise Forbidden(
            f"scope {command.scope!r} is more than its own, and {_bound(caller)}; name one of its scopes, or use an "
            "API key that is not bound",
            field="scope",
        )
    if isinstance(command, Rename) and caller.tags.values_of("symbol"):
        raise Forbidden(
            f"rename gives {command.position_id} another symbol, and {_bound(caller)}; use one that is not bound",
            field="asset",
        )
    position = None if command.number is None else state.positions.get(command.number)
    if position is not None and not carries(position.tags, caller.tags):
        raise Forbidden(
            f"{position.position_id} has the tags {_text(position.tags) or 'none'}, and {_bound(caller)}; use an API "
            "key of that bot, or one that is not bound",
            field="position_id",
        )


def _require_tags(state: PortfolioState, command: AnyCommand, caller: Caller, required: tuple[str, ...]) -> None:
    """Raise `InvalidRequest` where a new position lacks a required tag, or a position would lose one."""
    if isinstance(command, Reserve) and command.number is None:
        present = {*command.position_tags}
        missing, what = [name for name in required if name not in present], "is missing"
    elif isinstance(command, Adopt):
        # What an exchange shows belongs to nobody until a person gives it tags.
        external = EXTERNAL_TAG in command.tags or caller.client == RECONCILE.client
        present = {*command.tags, *(["venue"] if _venues(command) else ())}
        missing, what = [name for name in required if name not in present and not external], "is missing"
    elif isinstance(command, Retag) and (position := state.positions.get(command.number)) is not None:
        lost = {*position.tags} - {*command.tags, "venue", "symbol"}  # it keeps these two
        missing, what = [name for name in required if name in lost], f"of {position.position_id} would be lost"
    else:
        return
    if missing:
        raise InvalidRequest(
            f"tags.{missing[0]} {what}: every position here has {', '.join(required)} (LEDGER_REQUIRED_TAGS); give "
            f"{' and '.join(f'{name}=...' for name in missing)} among the tags",
            field=f"tags.{missing[0]}",
        )


def _venues(command: Adopt) -> set[str]:
    """Return the venues where the legs of an adopted position are; it counts there whatever its tags say."""
    return {leg.venue for leg in command.legs or () if leg.venue}


def _bound(caller: Caller) -> str:
    return f"{caller.actor} is bound to {_text(caller.tags)}"


def _text(tags: Tags) -> str:
    return ", ".join(tags.scopes[1:])
