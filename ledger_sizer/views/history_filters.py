"""Checks the filters of the history that callers give."""

from typing import get_args

from ledger_sizer.history.history import Filters
from ledger_sizer.model.arguments import label_text
from ledger_sizer.model.caller import ACTOR_LENGTH_MAX
from ledger_sizer.model.choices import Outcome
from ledger_sizer.model.command_base import KEY_LENGTH_MAX
from ledger_sizer.model.commands import VERBS
from ledger_sizer.model.denials import DENIAL_REASONS
from ledger_sizer.model.domain import HistoryFilters, require_history_filters
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.names import split_position_id
from ledger_sizer.model.times import to_us


def _position_number(portfolio: str, position_id: object) -> int:
    owner, number = split_position_id(position_id)
    if owner != portfolio:
        raise InvalidRequest(f"position_id {position_id!r} is not of portfolio {portfolio!r}", field="position_id")
    return number


_CHOICES = {
    "command": VERBS,
    "outcome": get_args(Outcome),
    "reason": DENIAL_REASONS,
}


def _require_choice(value: object, name: str) -> str:
    if isinstance(value, str) and value in _CHOICES[name]:
        return value
    raise InvalidRequest(f"{name} must be one of {', '.join(_CHOICES[name])}, got {value!r}", field=name)


def parse_filters(portfolio: str, given: HistoryFilters, client: str | None) -> Filters:
    """Return the filters. client: the only one whose keys count; None: everybody's. Raises `InvalidRequest`."""
    require_history_filters(given)
    chosen = {name: value for name, value in given.items() if value is not None}
    position_id, key = chosen.get("position_id"), chosen.get("key")
    return Filters(
        **{name: _require_choice(chosen[name], name) for name in _CHOICES if name in chosen},
        tags={name: label_text(chosen[name], name) for name in ("symbol", "strategy") if name in chosen},
        actor=label_text(chosen["actor"], "actor", length_max=ACTOR_LENGTH_MAX) if "actor" in chosen else None,
        key=None if key is None else label_text(key, "key", length_max=KEY_LENGTH_MAX),
        client=client,
        position=None if position_id is None else _position_number(portfolio, position_id),
        since_us=to_us(chosen["since"], "since") if "since" in chosen else None,
        until_us=to_us(chosen["until"], "until") if "until" in chosen else None,
    )


def is_ascending(given: HistoryFilters) -> bool:
    """Return whether the oldest come first. Raises `InvalidRequest`."""
    ascending = given.get("ascending", False)
    if not isinstance(ascending, bool):
        raise InvalidRequest(f"ascending must be True or False, got {ascending!r:.100}", field="ascending")
    return ascending
