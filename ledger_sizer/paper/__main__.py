"""`python -m ledger_sizer.paper`: run the paper venue."""

from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer

from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.extras import require_service
from ledger_sizer.model.units import parse_decimal
from ledger_sizer.paper.control import DEFAULT_KEY, DEFAULT_PASSPHRASE, DEFAULT_SECRET
from ledger_sizer.paper.markets import VENUES

app = typer.Typer(
    rich_markup_mode=None, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)

_EPILOG = """\b
Point the ledger at it (any of bybit, binance, okx):
  export EXCHANGE_ID=bybit EXCHANGE_BASE_URL=http://127.0.0.1:8400
  export EXCHANGE_API_KEY=paper EXCHANGE_API_SECRET=paper-secret EXCHANGE_PASSWORD=paper-passphrase

\b
Point a bot at it, ccxt or freqtrade: its ccxt settings are
  curl http://127.0.0.1:8400/paper/bybit/ccxt-config

\b
Make things happen that an exchange would not do for you:
  curl -d '{"asset": "BTC", "price": "48000"}' http://127.0.0.1:8400/paper/bybit/price
  curl -d '{"symbol": "BTC/USDT:USDT", "side": "short", "quantity": "0.01"}' http://127.0.0.1:8400/paper/bybit/open
  curl -d '{"kind": "rate_limit", "times": 3}' http://127.0.0.1:8400/paper/bybit/fault
  curl http://127.0.0.1:8400/paper/bybit
"""


def _decimal(text: str) -> Decimal:
    try:
        value = parse_decimal(text)
    except InvalidOperation:
        raise typer.BadParameter(f"{text!r} is no number") from None
    if not value.is_finite() or value < 0:
        raise typer.BadParameter(f"{text!r} is not 0 or above")
    return value


@app.command(epilog=_EPILOG)
def paper(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 picks a free one.", min=0, max=65535)] = 8400,
    spot_fee_rate: Annotated[Decimal, typer.Option(parser=_decimal, help="Fee of a spot fill, a fraction.")] = Decimal(
        0
    ),
    swap_fee_rate: Annotated[Decimal, typer.Option(parser=_decimal, help="Fee of a swap fill, a fraction.")] = Decimal(
        0
    ),
    balance_usdt: Annotated[
        Decimal, typer.Option(parser=_decimal, help="What each venue's account begins with.")
    ] = Decimal(100_000),
) -> None:
    """Run a paper venue: Bybit, Binance and OKX in their own REST formats, with play money, on this machine only.

    Real ccxt clients trade on it; requests must be signed with the key it prints. Nothing is kept when it stops.
    """
    try:
        require_service()
    except InvalidRequest as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    from ledger_sizer.paper.server import PaperServer

    server = PaperServer(port=port, spot_fee_rate=spot_fee_rate, swap_fee_rate=swap_fee_rate, balance_usdt=balance_usdt)
    typer.echo(f"paper venues {', '.join(VENUES)} at {server.url}")
    typer.echo(f"api key {DEFAULT_KEY}, secret {DEFAULT_SECRET}, passphrase (OKX) {DEFAULT_PASSPHRASE}")
    typer.echo(f"control and state at {server.url}/paper; Ctrl-C stops it")
    server.serve()


if __name__ == "__main__":
    app(prog_name="python -m ledger_sizer.paper")
