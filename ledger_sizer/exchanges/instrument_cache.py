"""The market rules of exchanges, kept in the database: every version with the time from which it was known.

A refresh writes only what changed, so the table is the history of rule changes. `InstrumentResolver` looks names up for
`reserve`, before the command is queued, so that the recorded request carries the rules the decision rested on.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from ledger_sizer.model.commands import AnyCommand, Reserve
from ledger_sizer.model.errors import Busy, InvalidRequest, LedgerError, Unavailable
from ledger_sizer.model.instruments import InstrumentInfo, Kind, MarketRules
from ledger_sizer.model.units import decimal_text
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.tables import DecisionRow, InstrumentRow, PortfolioRow

NOT_LISTED = "no longer listed by the exchange"
CACHE_SECONDS = 5
"""A process may use rules for this long after another one recorded newer ones."""

_FIGURES = ("min_qty", "max_qty", "qty_step", "min_notional", "tick_size", "contract_size")
_TABLE: Any = InstrumentRow.__table__
_SHARE_LEFT_MIN = 2
"""A refresh that loses more than half of a venue's spot or swap markets is taken for half an answer."""


@dataclass(frozen=True, slots=True)
class RulesVersion:
    """One version of a market's rules: known from `since_us` until `until_us`, which the present one lacks."""

    rules: MarketRules
    since_us: int
    until_us: int | None


@dataclass(frozen=True, slots=True)
class RulesChanges:
    """What a refresh found: names of markets that are new, changed or gone, and how many stayed as they were."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]
    same: int


# --- writing -----------------------------------------------------------------------------------------------------


def record_rules(engine: Engine, venue: str, found: Sequence[MarketRules], now_us: int) -> RulesChanges:
    """Record what an exchange says of all its markets now; nothing is written for those that stayed the same.

    Raises `Unavailable` when most of the known markets are missing: that is half an answer, not a delisting. Raises
    `Busy` when another process did the same at this moment.
    """
    try:
        with engine.begin() as connection:
            return _record(connection, venue, found, now_us)
    except IntegrityError:
        raise Busy(f"the rules of {venue} are being refreshed by another process; try again") from None
    except DBAPIError as error:
        raise Unavailable(f"cannot record the rules of {venue}: {str(error.orig).strip()}") from None


def _record(connection: Connection, venue: str, found: Sequence[MarketRules], now_us: int) -> RulesChanges:
    present = {row.symbol: row for row in connection.execute(_present(venue))}
    known = {symbol: _version(row).rules for symbol, row in present.items()}
    listed = {rules.symbol: rules for rules in found}
    _require_whole(venue, known, listed)
    gone = [
        replace(rules, active=False, instrument=None, refused=NOT_LISTED)
        for symbol, rules in known.items()
        if symbol not in listed and rules.refused != NOT_LISTED
    ]
    changed = [rules for symbol, rules in listed.items() if symbol in known and known[symbol] != rules]
    added = [rules for symbol, rules in listed.items() if symbol not in known]
    for rules in (*changed, *gone):
        ended = max(now_us, present[rules.symbol].since_us + 1)
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


def _require_whole(venue: str, known: dict[str, MarketRules], listed: dict[str, MarketRules]) -> None:
    for kind in ("spot", "swap"):
        before = [s for s, rules in known.items() if rules.kind == kind and rules.refused != NOT_LISTED]
        left = [symbol for symbol in before if symbol in listed]
        if len(left) * _SHARE_LEFT_MIN < len(before):
            raise Unavailable(
                f"{venue} listed {len(left)} of the {len(before)} {kind} markets it had: taken for half an answer, "
                "nothing was recorded; try again"
            )
    if not listed:
        raise Unavailable(f"{venue} listed no spot or swap market at all; nothing was recorded")


def _names(rules: Iterable[MarketRules]) -> tuple[str, ...]:
    return tuple(sorted(found.name for found in rules))


def _row(rules: MarketRules, since_us: int) -> dict[str, Any]:
    figures = None
    if rules.instrument is not None:
        figures = json.dumps({name: decimal_text(getattr(rules.instrument, name)) for name in _FIGURES})
    return {
        "venue": rules.venue, "symbol": rules.symbol, "since_us": since_us, "until_us": None, "kind": rules.kind,
        "active": rules.active, "rules": figures, "refused": rules.refused,
    }  # fmt: skip


# --- reading -----------------------------------------------------------------------------------------------------


def list_rules(engine: Engine, venue: str | None = None) -> list[RulesVersion]:
    """The present rules of all markets, or of one venue's, by name."""
    with read_transaction(engine) as connection:
        return [_version(row) for row in connection.execute(_present(venue))]


def rules_history(engine: Engine, name: str) -> list[RulesVersion]:
    """Every version of one market's rules, oldest first; empty for an unknown name."""
    venue, _, symbol = name.partition(":")
    query = select(_TABLE).where(_TABLE.c.venue == venue, _TABLE.c.symbol == symbol).order_by(_TABLE.c.since_us)
    with read_transaction(engine) as connection:
        return [_version(row) for row in connection.execute(query)]


def _present(venue: str | None) -> Select[Any]:
    query = select(_TABLE).where(_TABLE.c.until_us.is_(None)).order_by(_TABLE.c.venue, _TABLE.c.symbol)
    return query if venue is None else query.where(_TABLE.c.venue == venue)


def _version(row: Row[Any]) -> RulesVersion:
    name = f"{row.venue}:{row.symbol}"
    instrument = None
    if row.rules is not None:
        figures = {figure: Decimal(text) for figure, text in json.loads(row.rules).items()}
        instrument = InstrumentInfo(symbol=row.symbol, listed_as=name, **figures)
    rules = MarketRules(row.venue, row.symbol, row.kind, row.active, instrument, row.refused)
    return RulesVersion(rules, row.since_us, row.until_us)


# --- names in reservations ---------------------------------------------------------------------------------------


class InstrumentResolver:
    """Turns the instrument names of a reservation into rules. Safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[str, tuple[float, MarketRules]] = {}

    def remembers(self, command: AnyCommand) -> bool:
        """Whether `resolved` will answer without reading the database."""
        if type(command) is not Reserve:
            return True
        names = [name for name in (command.spot_instrument, command.perp_instrument) if isinstance(name, str)]
        found = [self._remembered(name) for name in names]
        return all(rules is not None and rules.active and rules.instrument is not None for rules in found)

    def all_resolved(
        self, commands: Sequence[AnyCommand], atomic: bool
    ) -> tuple[Sequence[AnyCommand], dict[int, LedgerError]]:
        """`resolved` for many; what is wrong with one is told by its place. atomic: raise it instead."""
        ready: list[AnyCommand] = []
        wrong: dict[int, LedgerError] = {}
        for place, command in enumerate(commands):
            try:
                ready.append(self.resolved(command))
            except InvalidRequest as error:
                if atomic:
                    raise
                wrong[place] = error
        return ready, wrong

    def resolved(self, command: AnyCommand) -> AnyCommand:
        """The command with rules in the place of names; any command without names as it is.

        Raises `InvalidRequest` for a market that is unknown, closed or cannot be used. A retry of a key that was
        answered before is told the answer all the same: it takes the rules that its first request was recorded with.
        """
        if type(command) is not Reserve or not command.named:
            return command
        try:
            return replace(
                command,
                spot_instrument=self._rules(command.spot_instrument, "spot", "spot_instrument"),
                perp_instrument=self._rules(command.perp_instrument, "swap", "perp_instrument"),
            )
        except InvalidRequest:
            recorded = self._recorded(command)
            if recorded is None:
                raise
            return recorded

    def _rules(self, named: InstrumentInfo | str | None, kind: Kind, field: str) -> InstrumentInfo | None:
        if not isinstance(named, str):
            return named
        rules = self._remembered(named) or self._read(named)
        if rules is None:
            venue = named.partition(":")[0]
            raise InvalidRequest(
                f"{field} {named}: its rules are not known; load them with: ledger-sizer instruments refresh {venue}, "
                "and look for the name with: ledger-sizer instruments list",
                field=field,
            )
        if rules.instrument is None:
            raise InvalidRequest(f"{field} {named} cannot be used: {rules.refused}", field=field)
        if rules.kind != kind:
            wanted = "spot market, like bybit:BTC/USDT" if kind == "spot" else "perpetual, like bybit:BTC/USDT:USDT"
            raise InvalidRequest(f"{field} must be a {wanted}, and {named} is a {rules.kind} market", field=field)
        if not rules.active:
            raise InvalidRequest(f"{field} {named} is not open for trading at the exchange", field=field)
        return rules.instrument

    def _remembered(self, name: str) -> MarketRules | None:
        until, rules = self._known.get(name, (0.0, None))
        return rules if time.monotonic() < until else None

    def _read(self, name: str) -> MarketRules | None:
        venue, _, symbol = name.partition(":")
        with read_transaction(self._engine) as connection:
            row = connection.execute(_present(venue).where(_TABLE.c.symbol == symbol)).one_or_none()
        if row is None:
            return None
        rules = _version(row).rules
        self._known[name] = (time.monotonic() + CACHE_SECONDS, rules)
        return rules

    def _recorded(self, command: Reserve) -> Reserve | None:
        """The command with the rules of the decision that its key has already, if that was about the same names."""
        query = (
            select(DecisionRow.request)
            .join(PortfolioRow, PortfolioRow.id == DecisionRow.portfolio_id)
            .where(PortfolioRow.name == command.portfolio, DecisionRow.key == command.key)
        )
        with read_transaction(self._engine) as connection:
            request = json.loads(connection.execute(query).scalar() or "{}")
        found: dict[str, Any] = {}
        for field in ("spot_instrument", "perp_instrument"):
            named, rules = getattr(command, field), request.get(field)
            if isinstance(named, str):
                if not isinstance(rules, dict) or rules.get("listed_as") != named:
                    return None
                figures = {name: Decimal(rules[name]) for name in _FIGURES}
                found[field] = InstrumentInfo(symbol=rules["symbol"], listed_as=named, **figures)
        return replace(command, **found)
