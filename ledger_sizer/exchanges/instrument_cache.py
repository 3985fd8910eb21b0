"""Stores the market rules of exchanges in the database: every version, with the time from which it was known.

A refresh writes only what changed, so the table is the history of rule changes. `instrument_names` looks up names for
`reserve` before the command is queued, so that the recorded request contains the rules the decision was based on.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, insert, select, update

from ledger_sizer.model.errors import Busy, InvalidRequest, Unavailable
from ledger_sizer.model.instruments import MarketRules, instrument_from_json, instrument_to_json
from ledger_sizer.model.market_names import coins_of_symbol
from ledger_sizer.storage.database import Conflict, read_transaction, write_transaction
from ledger_sizer.storage.tables import InstrumentRow

NOT_LISTED = "no longer listed by the exchange"

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


def read_current(engine: Engine, venue: str, symbol: str) -> MarketRules | None:
    """Return the current rules of one market; None for an unknown one."""
    with read_transaction(engine) as connection:
        row = connection.execute(_select_current(venue).where(_TABLE.c.symbol == symbol)).one_or_none()
    return None if row is None else _version_of(row).rules
