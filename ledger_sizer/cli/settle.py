"""The command that brings the ledger in line with a bot's book."""

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from ledger_sizer.cli import options, output
from ledger_sizer.cli.errors import bad_input
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import DatabaseUrl, Json, Portfolio
from ledger_sizer.cli.output import Cell, Column

if TYPE_CHECKING:
    from ledger_sizer import Decision

SETTLE_HELP = help_epilog(
    "settle --tag bot=a --open BTC/USDT=0.5@50000 --resting ETH/USDT",
    "settle --tag bot=a --tag venue=bybit --open BTC/USDT:USDT=2@50000,sell",
    "settle --tag bot=a --flat --json",
    exits=NEVER_DENIED,
)


def settle(
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="NAME=VALUE", help="A tag of the bot's positions; repeatable, all must match."),
    ] = None,
    opened: Annotated[
        list[str] | None,
        typer.Option(
            "--open",
            metavar="MARKET=QTY@PRICE[,SIDE]",
            help="What is open in a market, or of a position id: coins and average entry price; repeatable.",
        ),
    ] = None,
    flat: Annotated[bool, typer.Option("--flat", help="Nothing is open: instead of --open.")] = False,
    resting: Annotated[
        list[str] | None,
        typer.Option("--resting", metavar="MARKET", help="A market where an entry order rests; repeatable."),
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            "--as-of",
            metavar="TIME",
            help="When this was so; holds granted later stay. Else the default life of a hold ago.",
        ),
    ] = None,
    portfolio: Portfolio = "main",
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="TEXT", help="A text of your own; it is kept with each decision."),
    ] = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Bring what the ledger has under these tags in line with what a bot has open.

    A market that is not named is flat: what the ledger has open there is closed. Holds are filled by what is open
    beyond the ledger's figure, kept where an order rests, and freed otherwise, unless they are younger than the default
    life of a hold. What is equal changes nothing.
    """
    from ledger_sizer.cli.json_forms import decision_form
    from ledger_sizer.cli.ledger_session import ledger_at

    if flat == bool(opened):
        bad_input("say what is open, such as --open BTC/USDT=0.5@50000, or --flat where nothing is", "open")
    book = dict(_entry(text) for text in opened or ())
    moment = options.timestamp(as_of, "as_of")
    with ledger_at(database_url) as ledger:
        made = ledger.settle(options.tags(tag), book, resting or (), portfolio, as_of=moment, reference=reference)
        if as_json:
            output.write_json_list((decision_form(one) for one in made), lambda: None)
        else:
            output.table(_COLUMNS, [_row(one) for one in made], empty="nothing had to change")
    return 0


_COLUMNS = [
    Column("position"),
    Column("did"),
    Column("quantity", priority=2),
    Column("held USD", usd=True),
    Column("open USD", usd=True),
    Column("decision", priority=3),
]


def _row(one: "Decision") -> tuple[Cell, ...]:
    from ledger_sizer.model.units import usd

    record = one.record
    return one.position_id, one.command, one.quantity, usd(record.held_delta_e8), usd(record.open_delta_e8), one.seq


def _entry(text: str) -> tuple[str, tuple[Decimal | str, ...]]:
    """Read `MARKET=QTY@PRICE`, perhaps with `,sell`."""
    market, equals, figures = text.rpartition("=")
    figures, _, side = figures.partition(",")
    quantity, at, price = figures.partition("@")
    if not (equals and market and at):
        bad_input(f"must look like BTC/USDT=0.5@50000, got {text!r}", "open")
    entry = (options.decimal(quantity, "open", "quantity"), options.decimal(price, "open", "price"))
    return market, (*entry, side) if side else entry
