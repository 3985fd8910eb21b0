"""The command tree: each command's name, and its place in `--help`. Its module says what it does."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from inspect import getdoc
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
    net,
    queries,
    reconciliation,
    release_all,
    replay,
    serve,
    settle,
    top,
)
from ledger_sizer.cli.command_tree import CommandTree, LazyCommands, Place, built
from ledger_sizer.cli.help_text import help_epilog
from ledger_sizer.cli.verb_commands import verb_command
from ledger_sizer.model.choices import Role
from ledger_sizer.model.commands import COMMANDS, AnyCommand, SetCap

app = typer.Typer(
    name="ledger-sizer",
    cls=CommandTree,
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


def _places() -> Iterator[Place]:
    """Yield the commands in the order of `--help`: trading, reading, steering, running."""
    yield from _verbs("trade")
    yield from (
        Place.of(settle.settle, settle.SETTLE_HELP),
        Place.of(release_all.release_all, release_all.RELEASE_ALL_HELP),
        Place.of(queries.exposure, queries.EXPOSURE_HELP),
        Place.of(net.net, net.NET_HELP),
        Place.of_group(queries.positions_group, "positions"),
        Place.of(queries.history, queries.HISTORY_HELP),
        Place.of(queries.explain, queries.EXPLAIN_HELP),
        Place.of(audit.verify, audit.VERIFY_HELP),
        Place.of(audit.archive, audit.ARCHIVE_HELP),
        Place.of(top.top, top.TOP_HELP),
    )
    yield from _verbs("admin")
    yield from (
        Place.of(admin.sweep, admin.SWEEP_HELP),
        Place.of(reconciliation.reconcile, reconciliation.RECONCILE_HELP),
        Place.of(replay.replay, replay.REPLAY_HELP),
        Place.of(serve.serve, serve.SERVE_HELP),
        Place.of(demo.demo, demo.DEMO_HELP),
        Place.of_group(admin.caps, "caps"),
        Place.of_group(reconciliation.drifts, "drifts"),
        Place.of_group(instruments.instruments, "instruments"),
        Place.of_group(keys.keys, "keys"),
        Place.of_group(database.db, "db"),
    )


def _verbs(role: Role) -> Iterator[Place]:
    """Yield the verbs of a role. `set_cap` is `caps set`."""
    for verb, command in COMMANDS.items():
        if command.role == role and command is not SetCap:
            yield Place(verb.replace("_", "-"), getdoc(command) or "", partial(_verb, command))


def _verb(command: type[AnyCommand]) -> Any:
    return built(verb_command(command), help_epilog(*command.examples))


@cache
def root_command() -> Callable[..., Any]:
    """Return the command tree as Click runs it."""
    tree = typer.main.get_command(app)
    assert isinstance(tree, CommandTree)
    tree.commands = LazyCommands(_places())
    return tree
