"""Guards of the reference model: what the sender of a command may do, and what a request must say.

An API key that is bound to tags has them filled in and acts on nothing else. Settings may require tags, and that a
portfolio is declared by a set_cap before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ledger_sizer import Adopt, Reserve, Retag, SetCap
from tests.lockstep.model_answers import AboutPosition, Command, RefusedError
from tests.lockstep.model_positions import Tags, pairs_of, values_of

if TYPE_CHECKING:
    from tests.lockstep.model import PortfolioModel


def tags_under(bound: Tags, command: Reserve | Adopt | Retag) -> dict[str, Any]:
    """Return the tags that a command gives, with those that its sender is bound to."""
    given = pairs_of(command.tags.items())
    for name, value in bound:
        if values_of(given, name) not in ([], [value]):
            raise RefusedError("forbidden")
    return {**command.tags, **dict(bound)}


def require_own(portfolio: PortfolioModel, command: Command, bound: Tags) -> None:
    """Refuse a command about what does not carry the tags that its sender is bound to."""
    if not bound or (isinstance(command, Reserve | Adopt) and command.number is None):
        return
    if not isinstance(command, AboutPosition | Reserve):
        raise RefusedError("forbidden")
    one = portfolio.positions.get(command.number or 0)
    if one is not None and not {*bound} <= {*one.tags}:
        raise RefusedError("forbidden")


def require_declared(portfolio: PortfolioModel, command: Command) -> None:
    """Refuse what would begin a portfolio that nobody declared."""
    if portfolio.figures.declared and not portfolio.answers and not isinstance(command, SetCap):
        raise RefusedError("invalid_request" if command.creates else "not_found")


def require_tags(portfolio: PortfolioModel, tags: Tags) -> None:
    """Refuse new money without the tags that the settings require. What only an exchange shows may lack them."""
    if not values_of(tags, "external") and any(not values_of(tags, name) for name in portfolio.figures.required):
        raise RefusedError("invalid_request")
