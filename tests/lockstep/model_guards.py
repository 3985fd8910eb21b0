"""Guards of the reference model: what the sender of a command may do, and what a request must say.

An API key that is bound to tags has them filled in and acts on nothing else. Settings may require tags, and that a
portfolio is declared by its cap before it is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ledger_sizer import Adopt, Remark, Reserve, Retag, SetCap
from ledger_sizer.model.arguments import NOT_GIVEN
from tests.lockstep.model_answers import AboutPosition, Administration, Command, RefusedError
from tests.lockstep.model_positions import WHOLE, Holding, Tags, pairs_of, values_of
from tests.lockstep.model_sizing import plans_of, with_legs

if TYPE_CHECKING:
    from tests.lockstep.model import PortfolioModel


def tags_under(bound: Tags, command: Reserve | Adopt | Retag) -> dict[str, Any]:
    """Return the tags that a command gives, with those that its sender is bound to, where it or its legs give none."""
    given = pairs_of(command.tags.items())
    known, kept = given, set()
    if isinstance(command, Reserve):
        known = with_legs(given, plans_of(command))
    elif isinstance(command, Retag):
        kept = {"venue", "symbol"}
    else:
        kept = {"venue" for leg in command.legs or () if ("venue", leg.venue) in bound}
    for name in _names(bound):
        if not {*values_of(known, name)} <= {*values_of(bound, name)}:
            raise RefusedError("forbidden")
    missing = [name for name in _names(bound) if name not in kept and not values_of(known, name)]
    return {**command.tags, **{name: values_of(bound, name) for name in missing}}


def require_own(portfolio: PortfolioModel, command: Command, bound: Tags) -> None:
    """Refuse a command about a scope or a position that does not carry the tags that its sender is bound to."""
    if isinstance(command, Administration) and not isinstance(command, Remark):
        if bound and (isinstance(command, SetCap) or command.scope not in [f"{name}={value}" for name, value in bound]):
            raise RefusedError("forbidden")
    elif isinstance(command, AboutPosition | Reserve):
        one = _about(portfolio, command)
        if one is not None and _names(bound) != _names(pair for pair in bound if pair in one.tags):
            raise RefusedError("forbidden")


def require_declared(portfolio: PortfolioModel, command: Command) -> None:
    """Refuse what would begin a portfolio that nobody declared."""
    if not portfolio.figures.declared or portfolio.answers:
        return
    if not isinstance(command, SetCap) or command.scope != WHOLE or command.cap is NOT_GIVEN:
        raise RefusedError("invalid_request" if command.creates else "not_found")


def require_tags(portfolio: PortfolioModel, command: Command) -> None:
    """Refuse new money without the tags that are required, and to take them off. What was only found may lack them."""
    lacks: set[str] = set()
    if isinstance(command, Reserve) and command.number is None:
        lacks = {*portfolio.figures.required} - _names(with_legs(pairs_of(command.tags.items()), plans_of(command)))
    elif isinstance(command, Adopt) and "external" not in command.tags:
        lacks = {*portfolio.figures.required} - {*command.tags, *("venue" for leg in command.legs or () if leg.venue)}
    elif isinstance(command, Retag):
        one = _about(portfolio, command)
        had = set() if one is None else _names(one.tags)
        lacks = {*portfolio.figures.required} & (had - {*command.tags, "venue", "symbol"})
    if lacks:
        raise RefusedError("invalid_request")


def _about(portfolio: PortfolioModel, command: AboutPosition | Reserve) -> Holding | None:
    return None if command.number is None else portfolio.positions.get(command.number)


def _names(tags: Iterable[tuple[str, str]]) -> set[str]:
    return {name for name, _ in tags}
