"""`ledger-sizer instruments`: the market rules that reservations can name."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledger_sizer.cli import output
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.ledger_session import ledger_engine_at
from ledger_sizer.cli.options import DatabaseUrl, Json
from ledger_sizer.cli.output import Column

if TYPE_CHECKING:
    from ledger_sizer.exchanges.instrument_cache import RulesVersion

instruments = typer.Typer(rich_markup_mode=None)

INSTRUMENTS_HELP = help_epilog("instruments list --venue bybit", "instruments list --json", exits=NEVER_DENIED)


@instruments.callback(epilog=INSTRUMENTS_HELP)
def group() -> None:
    """Load, list and show the market rules of exchanges.

    A reservation may then name its markets (`--spot bybit:BTC/USDT --perp bybit:BTC/USDT:USDT`) instead of carrying
    their rules. `serve` loads them on a schedule for every exchange account in the settings; each change is kept, with
    its time.
    """


@instruments.command("refresh", epilog=help_epilog("instruments refresh --help", exits=NEVER_DENIED))
def refresh(
    venue: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VENUE]...", help="ccxt exchange ids; else those of the accounts in the settings."),
    ] = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Load the rules of all spot, perpetual and dated future markets and record what changed.

    Market rules are public: an exchange needs no API key for this. EXCHANGE_BASE_URL applies to the account it stands
    with.
    """
    from ledger_sizer.cli.ledger_session import load_settings
    from ledger_sizer.exchanges.accounts import ExchangeAccount
    from ledger_sizer.exchanges.instrument_refresh import refresh_rules
    from ledger_sizer.model.exchange_account import ExchangeAccountSettings

    exchange = load_settings().exchange
    # Accounts with credentials come first: the flat settings name a venue even where nobody set them.
    known = {found.id: found for found in reversed((*exchange.every(), exchange.flat(), *exchange.accounts))}
    wanted = venue or sorted({found.id for found in exchange.every()}) or [exchange.id]
    forms = []
    with ledger_engine_at(database_url, create=True) as engine:
        for name in wanted:
            account = ExchangeAccount(known.get(name) or ExchangeAccountSettings(id=name))
            try:
                changes = refresh_rules(engine, account)
            finally:
                account.close()
            forms.append({
                "venue": name, "added": list(changes.added), "changed": list(changes.changed),
                "gone": list(changes.gone), "same": changes.same,
            })  # fmt: skip
    if as_json:
        output.write_json({"venues": forms})
        return 0
    for form in forms:
        counts = ", ".join(f"{len(form[name])} {name}" for name in ("added", "changed", "gone"))  # type: ignore[arg-type]
        output.headline(f"{form['venue']}: {counts}, {form['same']} as before", "ok")
    return 0


@instruments.command("list", epilog=help_epilog("instruments list", "instruments list --venue okx", exits=NEVER_DENIED))
def list_all(
    venue: Annotated[str | None, typer.Option("--venue", metavar="NAME", help="Only this exchange's.")] = None,
    usable: Annotated[bool, typer.Option("--usable", help="Only markets that a reservation can name now.")] = False,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Show the present rules of all known markets; quantities in the exchange's own unit.

    One such unit is contract_size x multiplier coins.
    """
    from ledger_sizer.exchanges.instrument_cache import list_rules

    with ledger_engine_at(database_url) as engine:
        found = list_rules(engine, venue)
    if usable:
        found = [version for version in found if version.rules.active and version.rules.instrument is not None]
    if as_json:
        output.write_json_list((_rules_form(version) for version in found), lambda: None)
        return 0
    _write_rules_table(found, Column("name"), [version.rules.name for version in found])
    return 0


@instruments.command("show", epilog=help_epilog("instruments show --help", exits=NEVER_DENIED))
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `instruments list` shows it: bybit:BTC/USDT:USDT.")],
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Show every version of one market's rules, oldest first, with the time from which it was known."""
    from ledger_sizer.cli.errors import Failure
    from ledger_sizer.exchanges.instrument_cache import rules_history
    from ledger_sizer.model.times import from_us

    with ledger_engine_at(database_url) as engine:
        found = rules_history(engine, name)
    if not found:
        hint = f"look for it with: ledger-sizer instruments list; load it: instruments refresh {name.partition(':')[0]}"
        raise Failure("not_found", f"the rules of {name} are not known", hint=hint)
    if as_json:
        output.write_json_list((_rules_form(version) for version in found), lambda: None)
        return 0
    _write_rules_table(found, Column("since"), [from_us(version.since_us) for version in found])
    return 0


def _write_rules_table(found: "list[RulesVersion]", first: Column, labels: "Sequence[str | datetime]") -> None:
    from ledger_sizer.model.instruments import FIGURES
    from ledger_sizer.model.units import decimal_text

    columns = [first, *(Column(name, priority=5, right=True) for name in FIGURES), Column("state")]
    rows = []
    for label, version in zip(labels, found, strict=True):
        rules = version.rules
        # As text: figures of different markets need no common number of decimals.
        numbers = [getattr(rules.instrument, name, None) for name in FIGURES]
        figures = [None if number is None else decimal_text(number) for number in numbers]
        state = f"refused: {rules.refused}" if rules.refused else "open" if rules.active else "closed for trading"
        rows.append((label, *figures, state))
    output.table(columns, rows, empty="no rules yet; load them with: ledger-sizer instruments refresh")


def _rules_form(version: "RulesVersion") -> dict[str, Any]:
    from ledger_sizer.model.arguments import to_json

    rules = version.rules
    return {
        "name": rules.name,
        "kind": rules.kind,
        "active": rules.active,
        "rules": None if rules.instrument is None else to_json(rules.instrument),
        "refused": rules.refused,
        "since": _time_text(version.since_us),
        "until": _time_text(version.until_us),
    }


def _time_text(us: int | None) -> str | None:
    from ledger_sizer.wire.responses import time_text_of

    return None if us is None else time_text_of(us)
