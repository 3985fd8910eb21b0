"""A paper venue: a local server that speaks the REST formats of Bybit, Binance and OKX and trades with play money.

    python -m ledger_sizer.paper --port 8400

The real ccxt client, or a bot that uses it, talks to it as to the exchange itself: it signs its requests, and a wrong
signature gets the exchange's own error. Accounts live in memory. What no exchange lets you do on demand stands under
`/paper`: deposits, manual closes, liquidations, rate limits, answers that never come. See docs/paper-venue.md.
"""

from ledger_sizer.paper.control import PaperControl
from ledger_sizer.paper.server import PaperServer

__all__ = ["PaperControl", "PaperServer"]
