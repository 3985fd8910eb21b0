"""`ledger-sizer replay`: replays market history through the ledger."""

from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledger_sizer.cli import errors, options, output
from ledger_sizer.cli.help_text import help_epilog
from ledger_sizer.cli.options import Json

if TYPE_CHECKING:
    from ledger_sizer.replay import Plan, Report, Source

REPLAY_HELP = help_epilog(
    "replay --bars 90",
    "replay --bots 20 --cap 20000 --seed 11 --bars 60 --json",
    exits={1: "failure, or the ledger it made does not verify", 3: ""},
)

KEPT_URL = "sqlite:///replay.db"


def replay(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="CSV or CSV.gz of 8-hour bars with the columns time, exchange, pair, contract, open, high, low, close "
            "and funding rate. Without one a market is generated from the seed.",
        ),
    ] = None,
    bots: Annotated[str, typer.Option("--bots", metavar="N", help="How many compete for the cap, 1 to 200.")] = "8",
    cap: Annotated[
        str | None,
        typer.Option("--cap", metavar="USD", help="Of each portfolio; else SIZING_MAX_PORTFOLIO_EXPOSURE."),
    ] = None,
    venue_cap: Annotated[
        str | None, typer.Option("--venue-cap", metavar="USD", help="Of each venue; else 40 % of the cap.")
    ] = None,
    max_position: Annotated[
        str | None,
        typer.Option("--max-position", metavar="USD", help="Of one position; else TRADING_MAX_POSITION_SIZE_USD."),
    ] = None,
    bars: Annotated[
        str | None,
        typer.Option("--bars", metavar="N", help="The first N only; a generated market has 540 unless told."),
    ] = None,
    seed: Annotated[
        str, typer.Option("--seed", metavar="N", help="Of what befalls the orders, and of the generated market.")
    ] = "7",
    database_url: Annotated[
        str | None,
        typer.Option(
            "--database-url",
            metavar="URL",
            help="Record it here, in a database without an earlier replay; else in a temporary one. "
            "LEDGER_DATABASE_URL is left alone on purpose.",
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help=f"The same as --database-url {KEPT_URL}.")] = False,
    as_json: Json = False,
) -> int:
    """Replay market history through the ledger, with bots that compete for one cap.

    At each bar every bot scores each market by its funding rates, reserves, confirms what was filled, and closes when
    the rate falls; orders fail, come late and get lost. It is done twice in one ledger with the same events, once sized
    by score and once flat. The same file gives the same decisions, hash for hash.
    """
    from ledger_sizer.replay import file_source, generated_source

    plan = _plan(bots, cap, venue_cap, max_position, seed)
    count = None if bars is None else options.whole_number(bars, "bars", least=1)
    source = generated_source(plan.seed, count) if file is None else file_source(file, count)
    target = KEPT_URL if keep and database_url is None else database_url
    report = _run_replay(source, plan, target, as_json=as_json)
    if as_json:
        from ledger_sizer.replay.report_json import report_document

        output.write_json(report_document(report))
    else:
        _show_report(report)
        if target is not None:
            from sqlalchemy.engine import make_url

            where = make_url(target).render_as_string(hide_password=True)
            output.note(f"kept; look at it with: ledger-sizer history -p replay-dynamic --database-url {where}")
    return errors.DONE if report.ok else errors.FAILED


def _plan(bots: str, cap: str | None, venue_cap: str | None, max_position: str | None, seed: str) -> "Plan":
    """Build the plan from the options, and from the settings where an option was not given."""
    from ledger_sizer.cli.ledger_session import load_settings
    from ledger_sizer.replay import Plan, default_venue_cap

    def given(text: str | None, field: str, default: Decimal) -> Decimal:
        return default if text is None else options.decimal(text, field)

    settings = load_settings()
    cap_usd = given(cap, "cap", settings.sizing.max_portfolio_exposure)
    return Plan(
        bots=options.whole_number(bots, "bots"),
        cap=cap_usd,
        venue_cap=given(venue_cap, "venue_cap", default_venue_cap(cap_usd)),
        max_position=given(max_position, "max_position", settings.trading.max_position_size_usd),
        min_fraction=settings.sizing.min_allocation_fraction,
        max_fraction=settings.sizing.max_allocation_fraction,
        seed=options.whole_number(seed, "seed"),
    )


def _run_replay(source: "Source", plan: "Plan", url: str | None, *, as_json: bool) -> "Report":
    """Replay into the database at `url`, or into a temporary one that is deleted afterwards."""
    import tempfile
    import time

    from ledger_sizer.replay import replay as run_replay

    with ExitStack() as stack:
        if url is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ledger-sizer-replay-"))
            url = f"sqlite:///{Path(folder) / 'replay.db'}"
        progress = stack.enter_context(output.progress_bar("replay", total=source.bars, as_json=as_json))
        return run_replay(source, plan, url, timer=time.perf_counter, progress=progress)


def _show_report(report: "Report") -> None:
    from ledger_sizer.replay.summary import lines

    if not output.on_terminal():
        for _, text in lines(report):
            output.write(text.rstrip())
        return
    from rich.console import Console
    from rich.text import Text

    styles = {"title": "bold", "head": "bold", "text": "", "good": "bold green", "bad": "bold red"}
    console = Console(highlight=False, markup=False, emoji=False)
    for style, text in lines(report):
        console.print(Text(text.rstrip(), style=styles[style]), soft_wrap=True)
