"""The caps of a portfolio and its scopes, and the sweep of its expired holds."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from ledger_sizer.cli import caps_file, options, output
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import AnyPortfolio, DatabaseUrl, Json
from ledger_sizer.cli.output import Column
from ledger_sizer.cli.verb_commands import verb_command
from ledger_sizer.model.commands import SetCap

if TYPE_CHECKING:
    from ledger_sizer import ScopeExposure

caps = typer.Typer(rich_markup_mode=None)

CAPS_HELP = help_epilog("caps", "caps --portfolio main --json")


@caps.callback(invoke_without_command=True, epilog=CAPS_HELP)
def list_caps(
    context: typer.Context, portfolio: AnyPortfolio = None, as_json: Json = False, database_url: DatabaseUrl = None
) -> int:
    """Show the caps, guarantees and largest positions, or set, remove, export and apply them.

    A cap is the most exposure (held and open, USD) a portfolio or one of its scopes may have. The scope `venue=*` is
    the default of every venue that has no cap of its own.
    """
    if context.invoked_subcommand is not None:
        options.require_none_before(context)
        return 0
    from ledger_sizer.cli.ledger_session import ledger_at

    with ledger_at(database_url) as ledger:
        names = ledger.portfolios() if portfolio is None else [*ledger.heads(portfolio)]  # one nobody used has no caps
        exposures = [ledger.exposure(name) for name in names]
    rows = [(exposure.portfolio, row) for exposure in exposures for row in exposure.scopes if _is_set(row)]
    if as_json:
        from ledger_sizer.cli.json_forms import cap_form

        output.write_json_list((cap_form(name, row) for name, row in rows), lambda: None)
        return 0
    columns: list[tuple[Column, Callable[[ScopeExposure], output.Cell]]] = [
        (Column("scope"), lambda row: row.scope),
        (Column("cap USD", usd=True), lambda row: row.cap),
        (Column("cap from"), lambda row: row.cap_from),
        (Column("share of equity"), lambda row: row.share_of_equity),
        (Column("guarantee USD", usd=True), lambda row: row.guarantee),
        (Column("largest position USD", usd=True), lambda row: row.max_position_usd),
        (Column("exposure USD", usd=True), lambda row: row.exposure),
        (Column("headroom USD", usd=True, priority=5), lambda row: row.headroom),
        (Column("overage USD", usd=True, alert=True), lambda row: row.overage),
        (Column("status"), lambda row: row.status),
    ]
    shown = [
        (column, value)
        for column, value in columns
        if column.title not in _ONLY_WHERE_SET or any(value(row) is not None for _, row in rows)
    ]
    output.table(
        [Column("portfolio"), *(column for column, _ in shown)],
        [(name, *(value(row) for _, value in shown)) for name, row in rows],
        empty="no caps",
    )
    return 0


_ONLY_WHERE_SET = {"cap from", "share of equity", "guarantee USD", "largest position USD"}


def _is_set(row: "ScopeExposure") -> bool:
    """Whether a scope has a setting that `caps set` sets: a cap of its own, a guarantee or a largest position."""
    own_cap = row.cap is not None and row.cap_from is None
    return own_cap or row.guarantee is not None or row.max_position_usd is not None


caps.command("set", epilog=help_epilog(*SetCap.examples))(verb_command(SetCap, positional=("portfolio", "cap")))


_REMOVE = """Remove the cap of a scope, which is then only counted.

The portfolio's own cap can be changed but not removed."""

caps.command("remove", epilog=help_epilog("caps remove main --scope venue=bybit"))(
    verb_command(SetCap, positional=("portfolio",), fixed={"cap": None}, help_text=_REMOVE)
)


caps.command("export", epilog=caps_file.EXPORT_HELP)(caps_file.export_caps)
caps.command("apply", epilog=caps_file.APPLY_HELP)(caps_file.apply_caps)

SWEEP_HELP = help_epilog("sweep", "sweep --portfolio main --json", exits=NEVER_DENIED)


def sweep(portfolio: AnyPortfolio = None, as_json: Json = False, database_url: DatabaseUrl = None) -> int:
    """Free the holds whose time is over.

    Every write frees some of its portfolio's; a sweep frees all, also where nobody writes.
    """
    from ledger_sizer.cli.ledger_session import ledger_at

    with ledger_at(database_url) as ledger:
        freed = ledger.sweep(portfolio)
    if as_json:
        output.write_json({"freed": freed})
    else:
        output.write(f"freed {output.count(freed, 'expired hold')}")
    return 0
