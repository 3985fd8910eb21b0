"""What a request to close a drift's excess tells the one who trades: fields that a bot can act on."""

from collections.abc import Iterator
from decimal import Decimal

from sqlalchemy import Engine

from ledger_sizer.exchanges.instrument_cache import read_current
from ledger_sizer.model.asset_policies import DOLLARS
from ledger_sizer.model.errors import WrongState
from ledger_sizer.model.instruments import MarketRules
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.model.units import decimal_text, exact_arithmetic
from ledger_sizer.reconcile.pairing import holding_of

_QUOTES_FIRST = ("USDT", "USDC", "USD")


def require_closable(drift: Drift) -> None:
    """Raise `WrongState` if there is nothing to close, or if it was ignored."""
    if drift.state == "acknowledged":
        raise WrongState(
            f"{drift.name} was ignored by {drift.actor} ({drift.reason}) and counts no longer, so its closing "
            "cannot be requested; adopt it and close the position, or close it at the exchange: then it is resolved"
        )
    if drift.excess <= 0:
        raise WrongState(f"{drift.name} is {drift.kind}: there is nothing more at the exchange that could be closed")


def close_details(engine: Engine, drift: Drift) -> dict[str, str]:
    """Return the details of the request to close a drift's excess, as texts.

    venue, account, symbol: where; of coins, the asset. side: `long` or `short`. quantity: coins to close. price: USD
    per coin, and usd: both multiplied, where a price is known. order_side: `buy` or `sell`. Where the rules of the
    market are known also order_symbol, the market to trade in; order_amount, the quantity in the unit of its orders,
    rounded down to its step; or order_refused, why no order of that size can be placed.
    """
    sold = holding_of(drift).sold
    details = {
        "venue": drift.venue,
        "account": drift.account,
        "symbol": drift.subject,
        "side": drift.side if drift.market.is_swap else ("short" if sold else "long"),
        "quantity": decimal_text(drift.excess),
        "order_side": "buy" if sold else "sell",
    }
    if drift.price is not None:
        with exact_arithmetic():
            details |= {"price": decimal_text(drift.price), "usd": decimal_text(drift.excess * drift.price)}
    return {name: text for name, text in (details | _order(engine, drift)).items() if text}


def _order(engine: Engine, drift: Drift) -> dict[str, str]:
    """Return the fields of the order; nothing where the market's rules are not known."""
    for symbol in _markets(drift):
        rules = read_current(engine, drift.venue, symbol)
        if rules is not None:
            return {"order_symbol": symbol, **_amount(rules, drift.excess)}
    return {}


def _markets(drift: Drift) -> Iterator[str]:
    """Return the markets in which it can be closed: of coins, those against dollars."""
    if drift.market.is_swap:
        yield drift.subject
        return
    for quote in (*_QUOTES_FIRST, *sorted({*DOLLARS}.difference(_QUOTES_FIRST))):
        yield f"{drift.subject}/{quote}"


def _amount(rules: MarketRules, coins: Decimal) -> dict[str, str]:
    instrument = rules.instrument
    if instrument is None:
        return {"order_refused": (rules.refused or "its rules are not usable")[:300]}
    with exact_arithmetic():
        amount = coins // (instrument.unit * instrument.qty_step) * instrument.qty_step
    if amount < instrument.min_qty or amount <= 0:
        return {"order_refused": f"below the smallest order, {decimal_text(instrument.min_qty)}"}
    return {"order_amount": decimal_text(amount)}
