"""`ledger-sizer drifts rename`: one decision for a coin that has another name."""

from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer

from ledger_sizer.cli import errors, output
from ledger_sizer.cli.help_text import help_epilog
from ledger_sizer.cli.options import DatabaseUrl, Json, Portfolio
from ledger_sizer.model.units import decimal_text, exact_arithmetic, parse_decimal

RENAME_HELP = help_epilog(
    "drifts rename FTM S --force --reason 'FTM is S now'", "drifts rename FTM NEW --ratio 24000 --force --reason split",
    exits={1: "failure: there is nothing to rename, or the last run does not fit", 3: ""},
)  # fmt: skip

_RATIO_DECIMALS = Decimal("1e-36")


def rename(
    coin: Annotated[str, typer.Argument(metavar="OLD", help="The old name of the coin.")],
    asset: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the audit chain.")],
    ratio: Annotated[
        str, typer.Option("--ratio", metavar="COINS", help="New coins for one old coin, such as 24000 or 1/100.")
    ] = "1",
    portfolio: Portfolio = "main",
    venue: Annotated[
        str | None, typer.Option("--venue", metavar="VENUE", help="Only positions with a leg there; else all.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also where the last run saw something else.")] = False,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Say that a coin has another name: all its open positions get it, in one decision.

    What they count, their other tags and their age stay. It is refused where the last run did not see as much of the
    new name as is missing of the old one. The drifts of both names end with the next run.
    """
    from ledger_sizer.cli.ledger_session import engine_at, ledger_at
    from ledger_sizer.reconcile.operator import Operator
    from ledger_sizer.wire.reconciliation import renamed_to_json

    exact = _ratio(ratio)
    with ledger_at(database_url) as ledger, engine_at(database_url) as engine:
        done = Operator(ledger, engine).rename(
            coin, asset, reason=reason, ratio=exact, portfolio=portfolio, venue=venue, force=force
        )
    if as_json:
        output.write_json(renamed_to_json(done))
        return 0
    output.headline(f"{done.coin} is {done.asset} in {done.portfolio}, {decimal_text(done.ratio)} for one", "ok")
    output.details(
        [("renamed", ", ".join(done.positions)), ("released", ", ".join(done.released) or None),
         *(("differs", one) for one in done.differences)]
    )  # fmt: skip
    return 0


def _ratio(text: str) -> Decimal:
    """Read a number, or a quotient of two: it is rounded down to 36 decimals."""
    try:
        numbers = [parse_decimal(part) for part in text.split("/")]
        with exact_arithmetic():
            if len(numbers) == 1:
                return numbers[0]
            above, below = numbers
            return (above / below).quantize(_RATIO_DECIMALS).normalize()
    except (InvalidOperation, ValueError, ZeroDivisionError):
        errors.bad_input(f"ratio must be a number such as 24000, or two such as 1/100, got {text!r:.40}", "ratio")
