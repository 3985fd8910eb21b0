"""The commands of a trade's life: reserve, confirm, release, extend, and adopt for what the ledger missed."""

from typing import Annotated

import typer

from ledger_sizer.cli import options
from ledger_sizer.cli.help_text import help_epilog
from ledger_sizer.cli.options import DatabaseUrl, Json, Key, Legs, Note, Portfolio, PositionId, Tag

SPOT = "BTC/USDT,0.0001,100,0.0001,5"
PERP = "BTC/USDT:USDT,0.001,100,0.001,5"

_OKX_PERP = '{"symbol": "BTC-USDT-SWAP", "min_qty": 1, "max_qty": 9000, "qty_step": 1, "contract_size": 0.01}'

RESERVE_HELP = help_epilog(
    "reserve --tag venue=bybit --tag symbol=BTC --signal-score 0.9",
    f"reserve --signal-score 0.9 --price 50000 --balance 10000 --ttl 30 \\\n      --spot {SPOT} --perp {PERP}",
    f"reserve --price 50000 --spot {SPOT} \\\n      --perp '{_OKX_PERP}'",
    "reserve --key cycle-17/BTC --min-notional 100 --json",
    "reserve --signal-score 0.9 --dry-run",
    exits={0: "granted", 3: "denied; the reason is in the decision"},
)

_RULES = (
    "SYMBOL,min_qty,max_qty,qty_step[,min_notional[,tick_size[,contract_size]]], a JSON object of these, or a name "
    "from `instruments list`, like bybit:BTC/USDT"
)


def reserve(
    portfolio: Portfolio = "main",
    tag: Tag = None,
    signal_score: Annotated[
        str | None,
        typer.Option(
            "--signal-score", "--score", metavar="0..1", help="Scales the size where SIZING_ENABLED=true; flat without."
        ),
    ] = None,
    price: Annotated[str | None, typer.Option("--price", metavar="USD", help="Per base unit.")] = None,
    available_balance: Annotated[
        str | None,
        typer.Option("--available-balance", "--balance", metavar="USD", help="Free quote balance; never exceeded."),
    ] = None,
    spot: Annotated[
        str | None,
        typer.Option("--spot", "--spot-instrument", metavar="RULES", help=f"Rules of the spot market: {_RULES}."),
    ] = None,
    perp: Annotated[
        str | None,
        typer.Option("--perp", "--perp-instrument", metavar="RULES", help="Rules of the perpetual, written alike."),
    ] = None,
    spot_fee_rate: Annotated[
        str | None,
        typer.Option("--spot-fee-rate", metavar="0..0.1", help="Fee of the spot buy, a fraction, if taken in base."),
    ] = None,
    min_notional: Annotated[
        str | None,
        typer.Option("--min-notional-usd", "--min-notional", metavar="USD", help="Deny rather than grant less."),
    ] = None,
    ttl: Annotated[
        str | None,
        typer.Option("--ttl-seconds", "--ttl", metavar="SECONDS", help="Life of the hold unless it is confirmed."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Answer, but hold and record nothing.")] = False,
    key: Key = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Ask how much may be put on a position, and hold it.

    Grants what fits under the caps of the portfolio and of every tag, and holds it until it is confirmed, released or
    expired. With both instruments and a price it also answers the quantity both legs accept.
    """
    from ledger_sizer.cli.ledger_session import new_key, run_verb
    from ledger_sizer.model.commands import Reserve

    command = Reserve(
        key=new_key() if key is None else key,
        portfolio=portfolio,
        tags=options.tags(tag),
        signal_score=options.optional_decimal(signal_score, "signal_score"),
        price=options.optional_decimal(price, "price"),
        available_balance=options.optional_decimal(available_balance, "available_balance"),
        spot_instrument=options.instrument(spot, "spot_instrument"),
        perp_instrument=options.instrument(perp, "perp_instrument"),
        spot_fee_rate=options.optional_decimal(spot_fee_rate, "spot_fee_rate"),
        min_notional_usd=options.optional_decimal(min_notional, "min_notional_usd"),
        ttl_seconds=options.optional_decimal(ttl, "ttl_seconds"),
        dry_run=dry_run,
    )
    return run_verb(command, url=database_url, as_json=as_json, create=True)


CONFIRM_HELP = help_epilog(
    "confirm main-17 --quantity 0.018 --price 50100 --spot-price 50000",
    "confirm main-17 --quantity 0.018 --price 50100 \\\n      --leg bybit,BTC/USDT,spot,buy,0.018,50000"
    " --leg okx,BTC-USDT-SWAP,swap,sell,0.018,50100",
)


def confirm(
    position_id: PositionId,
    quantity: Annotated[str, typer.Option("--quantity", metavar="QTY", help="Base units filled, all fills together.")],
    price: Annotated[str, typer.Option("--price", metavar="USD", help="The perpetual's average entry price.")],
    spot_price: Annotated[
        str | None, typer.Option("--spot-price", metavar="USD", help="The spot leg's average price; else the same.")
    ] = None,
    leg: Legs = None,
    key: Key = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Record the fill of a reservation.

    It counts quantity x price from now on, and the rest of its hold is freed. A fill is a fact: it is recorded also
    when the hold has expired, or when it lands above the cap (the excess is overage and stops new grants).
    """
    from ledger_sizer.cli.ledger_session import new_key, run_verb
    from ledger_sizer.model.commands import Confirm

    command = Confirm(
        key=new_key() if key is None else key,
        position_id=position_id,
        quantity=options.decimal(quantity, "quantity"),
        price=options.decimal(price, "price"),
        spot_price=options.optional_decimal(spot_price, "spot_price"),
        legs=options.legs(leg),
    )
    return run_verb(command, url=database_url, as_json=as_json)


RELEASE_HELP = help_epilog("release main-17", "release main-18 --quantity 0.008 --key cycle-17/BTC/exit")


def release(
    position_id: PositionId,
    quantity: Annotated[
        str | None, typer.Option("--quantity", metavar="QTY", help="Base units closed; all of it when not given.")
    ] = None,
    key: Key = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Give a hold back, or close an open position, whole or in part.

    Works also while the portfolio is halted or above its cap.
    """
    from ledger_sizer.cli.ledger_session import new_key, run_verb
    from ledger_sizer.model.commands import Release

    command = Release(
        key=new_key() if key is None else key,
        position_id=position_id,
        quantity=options.optional_decimal(quantity, "quantity"),
    )
    return run_verb(command, url=database_url, as_json=as_json)


EXTEND_HELP = help_epilog("extend main-17 --ttl 120", exits={3: "denied: the portfolio or a scope is halted"})


def extend(
    position_id: PositionId,
    ttl: Annotated[
        str | None, typer.Option("--ttl-seconds", "--ttl", metavar="SECONDS", help="Life of the hold from now.")
    ] = None,
    key: Key = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Let a hold live longer; never shorter than it would anyway."""
    from ledger_sizer.cli.ledger_session import new_key, run_verb
    from ledger_sizer.model.commands import Extend

    command = Extend(
        key=new_key() if key is None else key,
        position_id=position_id,
        ttl_seconds=options.optional_decimal(ttl, "ttl_seconds"),
    )
    return run_verb(command, url=database_url, as_json=as_json)


ADOPT_HELP = help_epilog(
    "adopt --tag venue=bybit --tag symbol=ETH --quantity 0.5 --price 3000 \\\n      --note 'opened by hand'",
    "adopt --quantity 0.5 --price 3000 --leg bybit,ETH/USDT:USDT,swap,sell,0.5,3000",
)


def adopt(
    quantity: Annotated[str, typer.Option("--quantity", metavar="QTY", help="Base units.")],
    price: Annotated[str, typer.Option("--price", metavar="USD", help="The perpetual's entry price.")],
    portfolio: Portfolio = "main",
    tag: Tag = None,
    leg: Legs = None,
    note: Note = None,
    key: Key = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Record an open position that the ledger lacks.

    A fact like a fill: no cap refuses it, and what stands above a cap afterwards is overage.
    """
    from ledger_sizer.cli.ledger_session import new_key, run_verb
    from ledger_sizer.model.commands import Adopt

    command = Adopt(
        key=new_key() if key is None else key,
        portfolio=portfolio,
        tags=options.tags(tag),
        quantity=options.decimal(quantity, "quantity"),
        price=options.decimal(price, "price"),
        legs=options.legs(leg),
        note=note,
    )
    return run_verb(command, url=database_url, as_json=as_json, create=True)
