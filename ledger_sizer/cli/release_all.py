"""The command that frees what a dead bot held."""

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledger_sizer.cli import options, output
from ledger_sizer.cli.errors import Failure, bad_input
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import DatabaseUrl, Json, Portfolio
from ledger_sizer.cli.output import Cell, Column

if TYPE_CHECKING:
    from ledger_sizer import Decision, Ledger, Position
    from ledger_sizer.model.release_all import ReleaseAll

RELEASE_ALL_HELP = help_epilog(
    "release-all --tag bot=a --dry-run",
    "release-all --tag bot=a --tag venue=bybit --key bot-a-died",
    "release-all --everything --portfolio main --json",
    exits=NEVER_DENIED,
)


def release_all(
    portfolio: Portfolio = "main",
    tag: Annotated[
        list[str] | None,
        typer.Option(
            "--tag", metavar="NAME=VALUE", help="A tag of the bot's positions; repeatable, and all must match."
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="Every hold of the portfolio, instead of tags.")
    ] = False,
    unknown: Annotated[
        bool,
        typer.Option("--unknown", help="Also holds that never end by time: no order of them is live any more."),
    ] = False,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="TEXT", help="A text of your own; it is kept with each decision."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be freed, and free nothing.")] = False,
    key: options.IntentionKey = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Free the holds of all positions that carry these tags: what a dead bot held.

    What is open stays open. A hold that never ends by time is left alone, because an order of it may be live. Run again
    with the same key it frees what is left.
    """
    from ledger_sizer.cli.ledger_session import ledger_at, new_key
    from ledger_sizer.model.release_all import ReleaseAll

    if everything == bool(tag):
        bad_input(
            "name the bot's tags, such as --tag bot=a, or say --everything for every hold of the portfolio", "tags"
        )
    request = ReleaseAll(
        key=key or new_key(), portfolio=portfolio, tags=options.tags(tag), unknown=unknown, reference=reference
    )
    with ledger_at(database_url) as ledger:
        held = _holds(ledger, request)
        found = held if dry_run else _released(ledger, request, len(held), as_json)
        if as_json:
            _write_json(found)
        else:
            _write_table(found, dry_run=dry_run)
            _note_unknown(ledger, request)
            if not dry_run:
                output.details([("key", request.key)])
    return 0


def _holds(ledger: "Ledger", request: "ReleaseAll") -> "list[Position]":
    found: list[Position] = []
    cursor: str | None = None
    while True:
        page = ledger.holds_of(request, cursor)
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return found


def _released(ledger: "Ledger", request: "ReleaseAll", total: int, as_json: bool) -> "list[Decision]":
    """Free the holds, with a progress bar. An error in the middle names the key to go on with."""
    from ledger_sizer.model.errors import LedgerError

    found: list[Decision] = []
    with output.progress_bar("freeing", total=total, unit="holds", as_json=as_json) as show:
        try:
            for page in ledger.release_all_in_pages(request):
                found += page
                if show is not None:
                    show("freeing", len(found), total)
        except LedgerError as error:
            again = f"run the same command with --key {shlex.quote(request.key)} to free the others"
            hint = f"{len(found)} were freed; {again}" if error.retryable else None
            raise Failure.from_error(error, hint=hint, key=request.key) from error
    return found


def _write_json(found: "list[Any]") -> None:
    from ledger_sizer.cli.json_forms import decision_form
    from ledger_sizer.model.decisions import Decision
    from ledger_sizer.wire.responses import position_to_json

    forms = (decision_form(one) if isinstance(one, Decision) else position_to_json(one) for one in found)
    output.write_json_list(forms, lambda: None)


def _write_table(found: "list[Any]", *, dry_run: bool) -> None:
    columns = [
        Column("position"),
        Column("held USD" if dry_run else "freed USD", usd=True),
        Column("ends at", priority=3) if dry_run else Column("decision", priority=3),
        Column("tags", priority=2),
    ]
    output.table(columns, [_row(one) for one in found], empty="no such holds")
    if found:
        held = output.count(len(found), "hold")
        output.write(f"{held} would be freed" if dry_run else f"freed {held}")


def _row(one: "Any") -> tuple[Cell, ...]:
    from ledger_sizer.model.decisions import Decision
    from ledger_sizer.model.tags import stored_tags
    from ledger_sizer.model.units import usd

    if isinstance(one, Decision):
        last: Cell = one.seq
        held, tags = usd(-one.record.held_delta_e8), stored_tags(one.record.tags)
    else:
        last = output.end_of_hold(one)
        held, tags = one.held, one.tags
    return one.position_id, held, last, " ".join(f"{name}={value}" for name, value in tags.pairs) or None


def _note_unknown(ledger: "Ledger", request: "ReleaseAll") -> None:
    """Say how many holds were left alone because an order of them may be live."""
    if request.unknown:
        return
    page = ledger.positions(request.portfolio, state="until_known", tags=request.tags, limit=1000)
    if page.items:
        number = f"{output.count(len(page), 'hold')}{' or more' if page.cursor else ''}"
        output.note(
            f"{number} left alone: an order may be live; ledger-sizer positions --state until_known lists them, "
            "--unknown frees them too"
        )
