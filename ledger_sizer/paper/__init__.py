"""Simulates exchanges: a local server that speaks the REST formats of Bybit, Binance and OKX, with play money.

    python -m ledger_sizer.paper --port 8400

The real ccxt client, or a bot that uses it, can use it as an exchange. Requests must be signed, and a wrong signature
gets the exchange's own error. Accounts are kept in memory. Paths below `/paper` do what no exchange does on demand:
deposits, manual closes, liquidations, rate limits, lost answers. See docs/paper-venue.md.

    server    the HTTP server
    accounts  accounts, their wallets, positions and orders
    exchange  prices, orders and fills of one exchange
    markets   the tradable markets and their first prices
    bybit, binance, okx   the REST format of one exchange each, `_orders` and `_quotes` the parts of it
    candles   prices over time
    quotes    order book, trades of others and funding, free of formats
    tickers   tickers in the three formats
    options   rows of option positions
    journal   what happened to an account
    told      what happened, in the three formats
    http      requests and responses, free of the web framework
    actions   the actions below `/paper`
    events    what only an exchange does: delisting, renaming, interest, deleveraging
    control   `PaperControl`, the Python client of the actions
    client_config   how to point a ccxt client at a venue
    faults    injected faults: rate limits, outages, timeouts, broken and lost answers
"""

from typing import TYPE_CHECKING, Any

from ledger_sizer.model.extras import require_service
from ledger_sizer.paper.client_config import ccxt_config
from ledger_sizer.paper.control import PaperControl

if TYPE_CHECKING:
    from ledger_sizer.paper.server import PaperServer

__all__ = ["PaperControl", "PaperServer", "ccxt_config"]


def __getattr__(name: str) -> Any:
    """Import the server when it is first used: a bot that only controls a venue needs no extra."""
    if name != "PaperServer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_service()
    from ledger_sizer.paper.server import PaperServer

    return PaperServer
