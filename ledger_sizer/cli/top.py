"""`ledger-sizer top`: shows the dashboard's overview in a terminal, live."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ledger_sizer.cli import errors, options, output
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import AnyPortfolio, DatabaseUrl, Json
from ledger_sizer.model.errors import LedgerError

if TYPE_CHECKING:
    from ledger_sizer.model.overview import Overview, OverviewQuery

    Read = Callable[[], Overview]

KEY_VARIABLE = "LEDGER_SIZER_API_KEY"
TOP_HELP = help_epilog("top --once", "top --once --json --portfolio main", exits=NEVER_DENIED)

_ROWS = 50
_SECONDS_MIN, _SECONDS_MAX = 0.1, 3600


def top(
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help=f"Ask this service; {KEY_VARIABLE} holds the API key.")
    ] = None,
    portfolio: AnyPortfolio = None,
    hours: Annotated[str, typer.Option("--hours", metavar="N", help="How far the line of exposure goes back.")] = "24",
    interval: Annotated[str, typer.Option("--interval", metavar="SECONDS", help="Time between looks.")] = "1",
    once: Annotated[
        bool, typer.Option("--once", help="Look once and print it, as wherever the output is no terminal.")
    ] = False,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Watch the ledger: caps, reservations, positions and decisions, live until Ctrl-C.

    Looks at a service (--url) or at a database. One portfolio is shown in full, the first unless one is named. --json
    prints one look.
    """
    from ledger_sizer.model.overview import OverviewQuery

    query = OverviewQuery(portfolio, rows=_ROWS, hours=options.whole_number(hours, "hours"))
    seconds = _seconds(interval)
    with _reader(url, database_url, query) as (read, source):
        if as_json:
            from ledger_sizer.wire.overviews import overview_to_json

            output.write_json(overview_to_json(read()))
        elif once or not output.on_terminal():
            _print(read(), source)
        else:
            _watch(read, source, seconds)
    return errors.DONE


def _seconds(text: str) -> float:
    value = float(options.decimal(text, "interval"))
    if not _SECONDS_MIN <= value <= _SECONDS_MAX:
        errors.bad_input(f"interval must be {_SECONDS_MIN} to {_SECONDS_MAX} seconds, got {text!r}", "interval")
    return value


@contextmanager
def _reader(url: str | None, database_url: str | None, query: "OverviewQuery") -> "Iterator[tuple[Read, str]]":
    """Yield the function that reads an overview, and the address it reads from."""
    if url is not None:
        if database_url is not None:
            errors.bad_input("give --url or --database-url, not both", "url")
        from ledger_sizer.client import LedgerClient, RetryPolicy

        policy = RetryPolicy(attempts_max=2, give_up_seconds=3)
        with LedgerClient(url, os.environ.get(KEY_VARIABLE), patience=policy) as client:
            yield lambda: client.overview(query), client.base_url
        return
    from ledger_sizer.cli.ledger_session import ledger_at
    from ledger_sizer.storage.database import database_url as parsed
    from ledger_sizer.storage.database import redacted_url

    with ledger_at(database_url) as ledger:
        yield lambda: ledger.overview(query), redacted_url(parsed(database_url or ledger.settings.ledger.database_url))


def _print(overview: "Overview", source: str) -> None:
    from rich.console import Console

    from ledger_sizer.dashboard.overview_screen import render_overview

    console = Console(highlight=False, markup=False, emoji=False, width=None if output.on_terminal() else 160)
    console.print(render_overview(overview, source=source, width=console.width, height=None))


def _watch(read: "Read", source: str, seconds: float) -> None:
    """Read and draw every `seconds` until Ctrl-C. A retryable error is shown above the last overview."""
    from rich.console import Console
    from rich.live import Live

    from ledger_sizer.dashboard.overview_screen import render_overview

    console = Console(highlight=False, markup=False, emoji=False)
    overview = read()
    problem = ""
    try:
        with Live(console=console, auto_refresh=False, screen=True) as display:
            while True:
                screen = render_overview(
                    overview, source=source, width=console.width, height=console.height, problem=problem
                )
                display.update(screen, refresh=True)
                time.sleep(seconds)
                try:
                    overview, problem = read(), ""
                except LedgerError as error:
                    if not error.retryable:
                        raise
                    problem = f"no answer: {error}"
    except KeyboardInterrupt:
        return
