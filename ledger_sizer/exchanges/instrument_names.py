"""Replaces the names of markets in a reservation by their trading rules."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Engine, select

from ledger_sizer.exchanges.instrument_cache import read_current
from ledger_sizer.model.commands import AnyCommand, Reserve
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.instruments import InstrumentInfo, MarketRules, instrument_from_json
from ledger_sizer.model.legs import LegPlan, plan_from_json
from ledger_sizer.model.units import parse_decimal
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.lookups import decision_by_key
from ledger_sizer.storage.tables import DecisionRow, PortfolioRow, PositionRow

CACHE_SECONDS = 5
"""How long a process caches rules, and so may use them after another process recorded newer ones."""

_INSTRUMENTS = ("spot_instrument", "perp_instrument")
RulesOf = Callable[[str, str], InstrumentInfo]
"""Returns the rules of a market, given its name and the field that names it."""


class InstrumentResolver:
    """Replaces the instrument names of a reservation by rules. Safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cache: dict[str, tuple[float, MarketRules]] = {}

    def is_cached(self, command: AnyCommand) -> bool:
        """Whether `resolve` will return without reading the database."""
        if type(command) is not Reserve:
            return True
        markets = command.markets
        if not markets:
            return command.number is None
        cached = [self._cached(name) for name in markets if isinstance(name, str)]
        return all(rules is not None and rules.active and rules.instrument is not None for rules in cached)

    def resolve(self, command: AnyCommand) -> AnyCommand:
        """Return the command with rules in place of names; a command without names is returned unchanged.

        A reservation of more of a position that names no legs gets those of the position's own reservation.
        Raises `InvalidRequest` for a market that is unknown, closed or unusable, and for legs that do not fit together.
        A retry of an answered key does not raise: it takes the rules of its recorded first request, and so gets the
        same answer.
        """
        if type(command) is not Reserve:
            return command
        if command.number is not None and not command.markets:
            command = self._with_legs_of_position(command)
        if not command.named:
            return command
        try:
            return _with_rules(command, self._rules)
        except InvalidRequest:
            recorded = self._with_recorded_rules(command)
            if recorded is None:
                raise
            return recorded

    def _rules(self, named: str, field: str) -> InstrumentInfo:
        rules = self._cached(named) or self._read(named)
        if rules is None:
            venue = named.partition(":")[0]
            raise InvalidRequest(
                f"{field} {named}: its rules are not known; load them with: ledger-sizer instruments refresh {venue}, "
                "and look for the name with: ledger-sizer instruments list",
                field=field,
            )
        if rules.instrument is None:
            raise InvalidRequest(f"{field} {named} cannot be used: {rules.refused}", field=field)
        if not rules.active:
            raise InvalidRequest(f"{field} {named} is not open for trading at the exchange", field=field)
        return rules.instrument

    def _cached(self, name: str) -> MarketRules | None:
        until, rules = self._cache.get(name, (0.0, None))
        return rules if time.monotonic() < until else None

    def _read(self, name: str) -> MarketRules | None:
        venue, _, symbol = name.partition(":")
        rules = read_current(self._engine, venue, symbol)
        if rules is not None:
            self._cache[name] = (time.monotonic() + CACHE_SECONDS, rules)
        return rules

    def _with_recorded_rules(self, command: Reserve) -> Reserve | None:
        """Return the command with the rules recorded under its key; None without a record of the same names."""
        with read_transaction(self._engine) as connection:
            record = decision_by_key(connection, command.portfolio, command.key)
        recorded = {} if record is None else _rules_in(json.loads(record.request))
        names = [name for name in command.markets if isinstance(name, str)]
        return _with_rules(command, lambda name, _: recorded[name]) if recorded.keys() >= {*names} else None

    def _with_legs_of_position(self, command: Reserve) -> Reserve:
        """Return the command with the legs that its position was reserved with, where these are still in the tables."""
        with read_transaction(self._engine) as connection:
            recorded = _reservation_of(connection, command.portfolio, command.number)
        request = {} if recorded is None else json.loads(recorded)
        if "legs" in request:
            return replace(command, legs=tuple(_named_again(plan_from_json(form)) for form in request["legs"]))
        if "spot_instrument" not in request:
            return command
        spot, perp = [_name_or_rules(instrument_from_json(request[name])) for name in _INSTRUMENTS]
        fee_rate = command.spot_fee_rate
        if fee_rate is None and "spot_fee_rate" in request:
            fee_rate = parse_decimal(request["spot_fee_rate"])
        return replace(command, spot_instrument=spot, perp_instrument=perp, spot_fee_rate=fee_rate)


def _reservation_of(connection: Connection, portfolio: str, number: int | None) -> str | None:
    """Return the request of the reservation that made a position, or made the ended one whose late fill it records."""
    late = select(PositionRow.origin).join(PortfolioRow, PortfolioRow.id == PositionRow.portfolio_id)
    origin = connection.execute(late.where(PortfolioRow.name == portfolio, PositionRow.number == number)).scalar()
    query = select(DecisionRow.request).join(PortfolioRow, PortfolioRow.id == DecisionRow.portfolio_id)
    query = query.where(PortfolioRow.name == portfolio, DecisionRow.seq == (origin or number))
    found: str | None = connection.execute(query.where(DecisionRow.command == Reserve.verb)).scalar()
    return found


def _with_rules(command: Reserve, rules_of: RulesOf) -> Reserve:
    def resolved(named: InstrumentInfo | str, field: str) -> InstrumentInfo:
        return rules_of(named, field) if isinstance(named, str) else named

    if command.legs is None:
        spot, perp = [resolved(named, name) for named, name in zip(command.markets, _INSTRUMENTS, strict=True)]
        return replace(command, spot_instrument=spot, perp_instrument=perp)
    legs = [
        replace(leg, instrument=resolved(leg.instrument, f"legs.{number}.instrument"))
        for number, leg in enumerate(command.legs)
    ]
    return replace(command, legs=legs)


def _rules_in(request: Mapping[str, Any]) -> dict[str, InstrumentInfo]:
    """Return the rules that a recorded request looked up, by name."""
    forms = [request.get(name) for name in _INSTRUMENTS] + [leg["instrument"] for leg in request.get("legs", ())]
    return {
        form["listed_as"]: instrument_from_json(form)
        for form in forms
        if isinstance(form, dict) and "listed_as" in form
    }


def _named_again(plan: LegPlan) -> LegPlan:
    """Return a recorded leg with its market's name, so that the present rules are looked up; without a price."""
    assert isinstance(plan.instrument, InstrumentInfo)
    return replace(plan, instrument=_name_or_rules(plan.instrument), price=None)


def _name_or_rules(instrument: InstrumentInfo) -> InstrumentInfo | str:
    return instrument if instrument.listed_as is None else instrument.listed_as
