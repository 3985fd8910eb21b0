"""The command tree: each command's name, and its place in `--help`. Its module says what it does."""

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import typer

from ledger_sizer import __version__
from ledger_sizer.cli import (
    admin,
    audit,
    database,
    demo,
    instruments,
    keys,
    queries,
    reconciliation,
    replay,
    serve,
    top,
    trading,
)

app = typer.Typer(
    name="ledger-sizer",
    # Plain help: rendering it with rich would triple the time `--help` takes.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

_EPILOG = """\b
A first trade:
  ledger-sizer caps set main 5000
  ledger-sizer reserve --tag venue=bybit --tag symbol=BTC --signal-score 0.9
  ledger-sizer confirm main-2 --quantity 0.018 --price 50100
  ledger-sizer exposure
  ledger-sizer release main-2
  ledger-sizer verify

\b
The database is sqlite:///ledger.db here unless --database-url or LEDGER_DATABASE_URL names another.
Exit codes: 0 done, 1 failure, 2 bad input, 3 denied. --json prints one JSON document; errors go to stderr.
"""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ledger-sizer {__version__}")
        raise typer.Exit


@app.callback(epilog=_EPILOG)
def group(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The capital desk for trading bots: how much may go on a position, held under caps that no grant breaches."""


app.command(epilog=trading.RESERVE_HELP)(trading.reserve)
app.command(epilog=trading.CONFIRM_HELP)(trading.confirm)
app.command(epilog=trading.RELEASE_HELP)(trading.release)
app.command(epilog=trading.EXTEND_HELP)(trading.extend)
app.command(epilog=trading.ADOPT_HELP)(trading.adopt)
app.command(epilog=queries.EXPOSURE_HELP)(queries.exposure)
app.command(epilog=queries.POSITIONS_HELP)(queries.positions)
app.command(epilog=queries.HISTORY_HELP)(queries.history)
app.command(epilog=queries.EXPLAIN_HELP)(queries.explain)
app.command(epilog=audit.VERIFY_HELP)(audit.verify)
app.command(epilog=audit.ARCHIVE_HELP)(audit.archive)
app.command(epilog=top.TOP_HELP)(top.top)
app.add_typer(admin.caps, name="caps")
app.command(epilog=admin.HALT_HELP)(admin.halt)
app.command(epilog=admin.RESUME_HELP)(admin.resume)
app.command(epilog=admin.FREEZE_HELP)(admin.freeze)
app.command(epilog=admin.THAW_HELP)(admin.thaw)
app.command(epilog=admin.SWEEP_HELP)(admin.sweep)
app.command(epilog=reconciliation.RECONCILE_HELP)(reconciliation.reconcile)
app.add_typer(reconciliation.drifts, name="drifts")
app.command(epilog=replay.REPLAY_HELP)(replay.replay)
app.command(epilog=serve.SERVE_HELP)(serve.serve)
app.command(epilog=demo.DEMO_HELP)(demo.demo)
app.add_typer(instruments.instruments, name="instruments")
app.add_typer(keys.keys, name="keys")
app.add_typer(database.db, name="db")


@cache
def root_command() -> Callable[..., Any]:
    """Return the command tree as Click runs it. Building it takes 30 ms, so each process builds it once."""
    return typer.main.get_command(app)
