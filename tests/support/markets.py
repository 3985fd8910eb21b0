"""Markets whose rules a test's database knows by name: multiplied coins, contracts, other names of a coin."""

from __future__ import annotations

from decimal import Decimal

from ledger_sizer import InstrumentInfo, LedgerSettings
from ledger_sizer.exchanges.instrument_cache import record_rules
from ledger_sizer.model.instruments import MarketRules
from ledger_sizer.storage.database import make_engine

D = Decimal


def rules_of(venue: str, symbol: str, step: str, *, active: bool = True, **figures: object) -> MarketRules:
    """Return the rules of a market: the smallest order is a step, the largest 10^9 steps."""
    given: dict[str, object] = {"min_qty": D(step), "max_qty": D(step) * 10**9, "qty_step": D(step), **figures}
    named = InstrumentInfo(symbol, listed_as=f"{venue}:{symbol}", **given)  # type: ignore[arg-type]
    assert named.kind is not None
    return MarketRules(venue, symbol, named.kind, active, named)


MARKETS = [
    rules_of("bybit", "BTC/USDT", "0.00001", min_notional=D(5)),
    rules_of("bybit", "BTC/USDT:USDT", "0.001", min_notional=D(5)),
    rules_of("bybit", "BTC/USDC:USDC", "0.001"),
    rules_of("bybit", "BTC/USDT:USDT-261225", "0.001"),
    rules_of("bybit", "BTC/USD:BTC", "1"),
    rules_of("bybit", "ETH/USDT:USDT", "0.01"),
    rules_of("bybit", "OLD/USDT:USDT", "1", active=False),
    rules_of("okx", "BTC/USDT:USDT", "0.1", contract_size=D("0.01")),
    rules_of("okx", "币安人生/USDT:USDT", "1"),
    rules_of("binance", "PEPE/USDT", "1"),
    rules_of("binance", "1000PEPE/USDT:USDT", "1", multiplier=D(1000)),
    rules_of("binance", "1000SHIB/USDT:USDT", "1"),
    rules_of("binance", "SHIB/USDT", "1"),
    rules_of("hyperliquid", "UBTC/USDC", "0.00001"),
    rules_of("hyperliquid", "BTC/USDC:USDC", "0.00001"),
    rules_of("gate", "BTC/USDT", "0.00001", buys_by_cost=True),
    *(rules_of(f"venue{number}", "BTC/USDT:USDT", "0.001") for number in range(16)),
]
"""1000SHIB: its rules lack the factor in its name."""


def record_markets(url: str, markets: list[MarketRules] = MARKETS, *, now_us: int = 1) -> None:
    """Record the rules in a database, as a refresh from the exchanges does."""
    engine = make_engine(url, LedgerSettings())
    for venue in dict.fromkeys(rules.venue for rules in markets):
        record_rules(engine, venue, [rules for rules in markets if rules.venue == venue], now_us)
    engine.dispose()
