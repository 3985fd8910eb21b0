"""The caps of a portfolio and its scopes, and the sweep of its expired holds."""

import typer

from ledger_sizer.cli import output
from ledger_sizer.cli.errors import bad_input
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import AnyPortfolio, DatabaseUrl, Json
from ledger_sizer.cli.output import Column
from ledger_sizer.cli.verb_commands import verb_command
from ledger_sizer.model.commands import SetCap

caps = typer.Typer(rich_markup_mode=None)

CAPS_HELP = help_epilog("caps", "caps --portfolio main --json")


@caps.callback(invoke_without_command=True, epilog=CAPS_HELP)
def list_caps(
    context: typer.Context, portfolio: AnyPortfolio = None, as_json: Json = False, database_url: DatabaseUrl = None
) -> int:
    """Show the caps, or set and remove them.

    A cap is the most exposure (held and open, USD) a portfolio or one of its scopes may have.
    """
    if context.invoked_subcommand is not None:
        if portfolio is not None or as_json or database_url is not None:
            usage = f"ledger-sizer caps {context.invoked_subcommand} ... OPTIONS"
            bad_input(f"options before the subcommand are not for it; write: {usage}", "options")
        return 0
    from ledger_sizer.cli.ledger_session import ledger_at

    with ledger_at(database_url) as ledger:
        names = ledger.portfolios() if portfolio is None else [portfolio]
        exposures = [ledger.exposure(name) for name in names]
    rows = [(exposure.portfolio, row) for exposure in exposures for row in exposure.scopes if row.cap is not None]
    if as_json:
        from ledger_sizer.cli.json_forms import cap_form

        output.write_json_list((cap_form(name, row) for name, row in rows), lambda: None)
        return 0
    output.table(
        [
            Column("portfolio"),
            Column("scope"),
            Column("cap USD", usd=True),
            Column("exposure USD", usd=True),
            Column("headroom USD", usd=True, priority=5),
            Column("overage USD", usd=True, alert=True),
            Column("status"),
        ],
        [(name, row.scope, row.cap, row.exposure, row.headroom, row.overage, row.status) for name, row in rows],
        empty="no caps",
    )
    return 0


caps.command("set", epilog=help_epilog(*SetCap.examples))(verb_command(SetCap, positional=("portfolio", "cap")))


_REMOVE = """Remove the cap of a scope, which is then only counted.

The portfolio's own cap can be changed but not removed."""

caps.command("remove", epilog=help_epilog("caps remove main --scope venue=bybit"))(
    verb_command(SetCap, positional=("portfolio",), fixed={"cap": None}, help_text=_REMOVE)
)


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
