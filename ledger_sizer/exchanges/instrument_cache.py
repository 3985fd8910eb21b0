"""Stores the market rules of exchanges in the database: every version, with the time from which it was known.

A refresh writes only what changed, so the table is the history of rule changes. `InstrumentResolver` looks up names for
`reserve` before the command is queued, so that the recorded request contains the rules the decision was based on.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, insert, select, update

from ledger_sizer.model.choices import MarketKind
from ledger_sizer.model.commands import AnyCommand, Reserve
from ledger_sizer.model.errors import Busy, InvalidRequest, LedgerError, Unavailable
from ledger_sizer.model.instruments import InstrumentInfo, MarketRules, instrument_from_json, instrument_to_json
from ledger_sizer.model.market_names import coins_of_symbol
from ledger_sizer.storage.database import Conflict, read_transaction, write_transaction
from ledger_sizer.storage.lookups import decision_by_key
from ledger_sizer.storage.tables import InstrumentRow

NOT_LISTED = "no longer listed by the exchange"
CACHE_SECONDS = 5
"""How long a process caches rules, and so may use them after another process recorded newer ones."""

_TABLE: Any = InstrumentRow.__table__
_SHRINK_FACTOR_MAX = 2
"""A refresh that loses more than half of a venue's spot or swap markets is rejected as an incomplete response."""


@dataclass(frozen=True, slots=True)
class RulesVersion:
    """One version of a market's rules, valid from `since_us` until `until_us` (None for the current one)."""

    rules: MarketRules
    since_us: int
    until_us: int | None


@dataclass(frozen=True, slots=True)
class RulesChanges:
    """Result of a refresh: names of the markets that are new, changed or gone, and the number of unchanged ones."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]
    same: int


# --- writing -----------------------------------------------------------------------------------------------------


def record_rules(engine: Engine, venue: str, found: Sequence[MarketRules], now_us: int) -> RulesChanges:
    """Record the current rules of all markets of an exchange. Unchanged ones are not written again.

    Raises `Unavailable` when most of the known markets are missing: that is an incomplete response, not a delisting.
    Raises `Busy` when another process refreshes the same venue.
    """
    try:
        with write_transaction(engine, f"record the rules of {venue}") as connection:
            return _record(connection, venue, found, now_us)
    except Conflict:
        raise Busy(f"the rules of {venue} are being refreshed by another process; try again") from None


def _record(connection: Connection, venue: str, found: Sequence[MarketRules], now_us: int) -> RulesChanges:
    current = {row.symbol: row for row in connection.execute(_select_current(venue))}
    known = {symbol: _version_of(row).rules for symbol, row in current.items()}
    listed = {rules.symbol: rules for rules in found}
    _require_complete(venue, known, listed)
    gone = [
        replace(rules, active=False, instrument=None, refused=NOT_LISTED)
        for symbol, rules in known.items()
        if symbol not in listed and rules.refused != NOT_LISTED
    ]
    changed = [rules for symbol, rules in listed.items() if symbol in known and known[symbol] != rules]
    added = [rules for symbol, rules in listed.items() if symbol not in known]
    for rules in (*changed, *gone):
        ended = max(now_us, current[rules.symbol].since_us + 1)
        connection.execute(
            update(InstrumentRow)
            .where(InstrumentRow.venue == venue, InstrumentRow.symbol == rules.symbol, InstrumentRow.until_us.is_(None))
            .values(until_us=ended)
        )
        connection.execute(insert(_TABLE), [_row(rules, ended)])
    if added:
        connection.execute(insert(_TABLE), [_row(rules, now_us) for rules in added])
    same = len(listed) - len(added) - len(changed)
    return RulesChanges(_names(added), _names(changed), _names(gone), same)


def _require_complete(venue: str, known: dict[str, MarketRules], listed: dict[str, MarketRules]) -> None:
    for kind in ("spot", "swap"):
        before = [s for s, rules in known.items() if rules.kind == kind and rules.refused != NOT_LISTED]
        left = [symbol for symbol in before if symbol in listed]
        if len(left) * _SHRINK_FACTOR_MAX < len(before):
            raise Unavailable(
                f"{venue} listed {len(left)} of the {len(before)} {kind} markets it had: taken for half an answer, "
                "nothing was recorded; try again"
            )
    if not listed:
        raise Unavailable(f"{venue} listed no spot, swap or future market at all; nothing was recorded")


def _names(rules: Iterable[MarketRules]) -> tuple[str, ...]:
    return tuple(sorted(one.name for one in rules))


def _row(rules: MarketRules, since_us: int) -> dict[str, Any]:
    numbers = None
    if rules.instrument is not None:
        form = instrument_to_json(rules.instrument)
        numbers = json.dumps({name: value for name, value in form.items() if name not in ("symbol", "venue")})
    return {
        "venue": rules.venue, "symbol": rules.symbol, "since_us": since_us, "until_us": None, "kind": rules.kind,
        "active": rules.active, "rules": numbers, "refused": rules.refused,
    }  # fmt: skip


# --- reading -----------------------------------------------------------------------------------------------------


def list_rules(engine: Engine, venue: str | None = None) -> list[RulesVersion]:
    """Return the current rules of all markets, or of one venue, sorted by name."""
    with read_transaction(engine) as connection:
        return [_version_of(row) for row in connection.execute(_select_current(venue))]


def rules_history(engine: Engine, name: str) -> list[RulesVersion]:
    """Return every version of one market's rules, oldest first; empty for an unknown name."""
    venue, _, symbol = name.partition(":")
    query = select(_TABLE).where(_TABLE.c.venue == venue, _TABLE.c.symbol == symbol).order_by(_TABLE.c.since_us)
    with read_transaction(engine) as connection:
        return [_version_of(row) for row in connection.execute(query)]


def _select_current(venue: str | None) -> Select[Any]:
    query = select(_TABLE).where(_TABLE.c.until_us.is_(None)).order_by(_TABLE.c.venue, _TABLE.c.symbol)
    return query if venue is None else query.where(_TABLE.c.venue == venue)


def _version_of(row: Row[Any]) -> RulesVersion:
    name = f"{row.venue}:{row.symbol}"
    instrument = None
    if row.rules is not None:
        instrument = instrument_from_json({**json.loads(row.rules), "symbol": row.symbol, "listed_as": name})
    rules = MarketRules(row.venue, row.symbol, row.kind, row.active, instrument, row.refused)
    if row.until_us is None:
        rules = _with_multiplier(rules)
    return RulesVersion(rules, row.since_us, row.until_us)


def _with_multiplier(rules: MarketRules) -> MarketRules:
    """Return the rules, refused if their name has a factor that they lack. Older versions recorded no multipliers.

    The next refresh finds them changed, and records them with their multiplier.
    """
    try:
        if rules.instrument is not None:
            rules.instrument.require_multiplier()
    except InvalidRequest:
        factor, coin = coins_of_symbol(rules.symbol)
        reason = (
            f"its name counts {factor} {coin} a unit, and its rules were recorded without that multiplier; load them "
            f"again with: ledger-sizer instruments refresh {rules.venue}"
        )
        return replace(rules, instrument=None, refused=reason)
    return rules


# --- names in reservations ---------------------------------------------------------------------------------------


class InstrumentResolver:
    """Replaces the instrument names of a reservation by rules. Safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cache: dict[str, tuple[float, MarketRules]] = {}

    def is_cached(self, command: AnyCommand) -> bool:
        """Whether `resolve` will return without reading the database."""
        if type(command) is not Reserve or not command.named:
            return True
        names = [name for name in command.instruments.values() if isinstance(name, str)]
        cached = [self._cached(name) for name in names]
        return all(rules is not None and rules.active and rules.instrument is not None for rules in cached)

    def resolve_all(
        self, commands: Sequence[AnyCommand], atomic: bool
    ) -> tuple[Sequence[AnyCommand], dict[int, LedgerError]]:
        """Resolve many commands. Returns those that resolved, and errors by index. atomic: raise the first error."""
        resolved: list[AnyCommand] = []
        errors: dict[int, LedgerError] = {}
        for index, command in enumerate(commands):
            try:
                resolved.append(self.resolve(command))
            except InvalidRequest as error:
                if atomic:
                    raise
                errors[index] = error
        return resolved, errors

    def resolve(self, command: AnyCommand) -> AnyCommand:
        """Return the command with rules in place of names; a command without names is returned unchanged.

        Raises `InvalidRequest` for a market that is unknown, closed or unusable. A retry of an
        answered key does not raise: it takes the rules of its recorded first request, and so gets the same answer.
        """
        if type(command) is not Reserve or not command.named:
            return command
        try:
            return replace(
                command,
                spot_instrument=self._rules(command.spot_instrument, "spot_instrument", "spot"),
                perp_instrument=self._rules(command.perp_instrument, "perp_instrument", "swap", "future"),
            )
        except InvalidRequest:
            recorded = self._with_recorded_rules(command)
            if recorded is None:
                raise
            return recorded

    def _rules(self, named: InstrumentInfo | str | None, field: str, *kinds: MarketKind) -> InstrumentInfo | None:
        if not isinstance(named, str):
            return named
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
        if rules.kind not in kinds:
            spot = "spot" in kinds
            wanted = "spot market, like bybit:BTC/USDT" if spot else "perpetual, like bybit:BTC/USDT:USDT"
            raise InvalidRequest(f"{field} must be a {wanted}, and {named} is a {rules.kind} market", field=field)
        if not rules.active:
            raise InvalidRequest(f"{field} {named} is not open for trading at the exchange", field=field)
        return rules.instrument

    def _cached(self, name: str) -> MarketRules | None:
        until, rules = self._cache.get(name, (0.0, None))
        return rules if time.monotonic() < until else None

    def _read(self, name: str) -> MarketRules | None:
        venue, _, symbol = name.partition(":")
        with read_transaction(self._engine) as connection:
            row = connection.execute(_select_current(venue).where(_TABLE.c.symbol == symbol)).one_or_none()
        if row is None:
            return None
        rules = _version_of(row).rules
        self._cache[name] = (time.monotonic() + CACHE_SECONDS, rules)
        return rules

    def _with_recorded_rules(self, command: Reserve) -> Reserve | None:
        """Return the command with the rules recorded under its key; None without a record of the same names."""
        with read_transaction(self._engine) as connection:
            record = decision_by_key(connection, command.portfolio, command.key)
        request = {} if record is None else json.loads(record.request)
        resolved: dict[str, Any] = {}
        for field, named in command.instruments.items():
            rules = request.get(field)
            if isinstance(named, str):
                if not isinstance(rules, dict) or rules.get("listed_as") != named:
                    return None
                resolved[field] = instrument_from_json(rules)
        return replace(command, **resolved)
