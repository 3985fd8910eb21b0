"""The commands that steer a portfolio: caps, halt, resume, freeze, thaw, sweep."""

from typing import Annotated

import typer

from ledger_sizer.cli import options, output
from ledger_sizer.cli.errors import bad_input
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import AnyPortfolio, DatabaseUrl, Json, Key, Mode, Note, Portfolio, Scope
from ledger_sizer.cli.output import Column

caps = typer.Typer(rich_markup_mode=None)

_PORTFOLIO = typer.Argument(metavar="PORTFOLIO", help="The pot of capital, e.g. main.")

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


@caps.command("set", epilog=help_epilog("caps set main 5000", "caps set main 2000 --scope venue=bybit"))
def set_cap(
    portfolio: Annotated[str, _PORTFOLIO],
    cap: Annotated[str, typer.Argument(metavar="CAP", help="USD.")],
    scope: Scope = "portfolio",
    key: Key = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Set the cap of a portfolio, or of one of its scopes.

    A cap below the present exposure is legal: the excess is overage, and nothing is granted until it is gone.
    """
    from ledger_sizer.cli.ledger_session import new_key, run_verb
    from ledger_sizer.model.commands import SetCap

    key = new_key() if key is None else key
    command = SetCap(key=key, portfolio=portfolio, cap=options.decimal(cap, "cap"), scope=scope)
    return run_verb(command, url=database_url, as_json=as_json, create=True)


@caps.command("remove", epilog=help_epilog("caps remove main --scope venue=bybit"))
def remove_cap(
    portfolio: Annotated[str, _PORTFOLIO],
    scope: Annotated[str, typer.Option("--scope", metavar="SCOPE", help="Like venue=bybit.")],
    key: Key = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Remove the cap of a scope, which is then only counted.

    The portfolio's own cap can be changed but not removed.
    """
    from ledger_sizer.cli.ledger_session import new_key, run_verb
    from ledger_sizer.model.commands import SetCap

    command = SetCap(key=new_key() if key is None else key, portfolio=portfolio, cap=None, scope=scope)
    return run_verb(command, url=database_url, as_json=as_json)


HALT_HELP = help_epilog("halt --note 'venue maintenance'", "halt --scope venue=bybit --mode reducing")


def halt(
    portfolio: Portfolio = "main",
    scope: Scope = "portfolio",
    mode: Annotated[
        Mode, typer.Option("--mode", help="halted: no new holds, none extended; reducing: holds may be extended.")
    ] = "halted",
    note: Note = None,
    key: Key = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Stop new reservations in a portfolio or in one scope.

    Confirming and releasing always work, so that what is on can be finished and closed.
    """
    from ledger_sizer.cli.ledger_session import new_key, run_verb
    from ledger_sizer.model.commands import Halt

    key = new_key() if key is None else key
    command = Halt(key=key, portfolio=portfolio, scope=scope, mode=mode, note=note)
    return run_verb(command, url=database_url, as_json=as_json)


RESUME_HELP = help_epilog("resume", "resume --scope venue=bybit --note 'maintenance over'")


def resume(
    portfolio: Portfolio = "main",
    scope: Scope = "portfolio",
    note: Note = None,
    key: Key = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Allow new reservations again after a halt."""
    from ledger_sizer.cli.ledger_session import new_key, run_verb
    from ledger_sizer.model.commands import Resume

    command = Resume(key=new_key() if key is None else key, portfolio=portfolio, scope=scope, note=note)
    return run_verb(command, url=database_url, as_json=as_json)


FREEZE_HELP = help_epilog("freeze --note 'orders look wrong'", "freeze --scope venue=bybit")


def freeze(
    portfolio: Portfolio = "main",
    scope: Scope = "portfolio",
    note: Note = None,
    key: Key = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Deny new reservations as `unreconciled`, as the reconciliation does for a drift.

    It stays until it is thawed, by `thaw` or by the reconciliation when the last drift there is over. To stop trading
    for reasons of your own use `halt`.
    """
    from ledger_sizer.cli.ledger_session import new_key, run_verb
    from ledger_sizer.model.commands import Freeze

    command = Freeze(key=new_key() if key is None else key, portfolio=portfolio, scope=scope, note=note)
    return run_verb(command, url=database_url, as_json=as_json)


THAW_HELP = help_epilog("thaw --note 'checked by hand'", "thaw --scope venue=bybit")


def thaw(
    portfolio: Portfolio = "main",
    scope: Scope = "portfolio",
    note: Note = None,
    key: Key = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Allow new reservations again after a freeze.

    The drift that froze it stays as it is, and does not freeze again. A reconciliation that is too old is not cured
    by this: that takes a good run.
    """
    from ledger_sizer.cli.ledger_session import new_key, run_verb
    from ledger_sizer.model.commands import Thaw

    command = Thaw(key=new_key() if key is None else key, portfolio=portfolio, scope=scope, note=note)
    return run_verb(command, url=database_url, as_json=as_json)


SWEEP_HELP = help_epilog("sweep", "sweep --portfolio main --json", exits=NEVER_DENIED)


def sweep(portfolio: AnyPortfolio = None, as_json: Json = False, database_url: DatabaseUrl = None) -> int:
    """Free the holds whose time is over.

    Every write does this for the portfolio it touches; a sweep is for those nobody writes to.
    """
    from ledger_sizer.cli.ledger_session import ledger_at

    with ledger_at(database_url) as ledger:
        freed = ledger.sweep(portfolio)
    if as_json:
        output.write_json({"freed": freed})
    else:
        output.write(f"freed {output.count(freed, 'expired hold')}")
    return 0
