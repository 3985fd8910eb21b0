"""What an account showed of the coins that the ledger holds: kept with the run, for the net of each coin."""

import json
from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, select, update

from ledger_sizer.exchanges.market_rules import USD_QUOTES
from ledger_sizer.exchanges.snapshot import Snapshot, rounded_price
from ledger_sizer.model.market_names import coins_of_symbol, parse_symbol, split_factor
from ledger_sizer.model.units import decimal_text, exact_arithmetic
from ledger_sizer.reconcile.ledger_side import LedgerSide
from ledger_sizer.storage.tables import ReconciliationRow

ZERO = Decimal(0)
SHOWN = "shown"
"""Name of it in an account's entry of `Run.fetched`, as it is stored. Only a portfolio's last run keeps it."""

Shown = dict[str, tuple[str, str, str | None]]
"""By coin: coins bought, coins sold, and the last price, USD per coin."""


def held_coins(ledger_side: LedgerSide) -> set[str]:
    """Return the coins that the ledger holds, or counts for the exchange."""
    return {market.base for market in (*ledger_side.open, *ledger_side.external)}


def shown_by_coin(snapshot: Snapshot, coins: Collection[str], baselines: Mapping[str, Decimal]) -> Shown | None:
    """Return what an account showed of these coins, without its baselines; None unless it was read whole."""
    if snapshot.positions is None or snapshot.balances is None:
        return None
    long: dict[str, Decimal] = {}
    short: dict[str, Decimal] = {}
    prices: dict[str, Decimal] = {}
    with exact_arithmetic():
        for position in snapshot.positions:
            factor, coin = coins_of_symbol(position.symbol)
            if coin is None or coin not in coins:
                continue
            side = long if position.side == "long" else short
            side[coin] = side.get(coin, ZERO) + position.coins
            said = parse_symbol(position.symbol)
            if said is not None and said.quote in USD_QUOTES and position.mark_price is not None:
                factor = factor if position.multiplier is None else position.multiplier
                price = rounded_price(position.mark_price / factor)
                prices |= {} if price is None else {coin: price}
        for balance in snapshot.balances:
            factor, coin = split_factor(balance.earns or balance.asset)
            if coin not in coins:
                continue
            baseline = baselines.get(f"{snapshot.venue}/{snapshot.account}/{balance.asset}", ZERO)
            more = balance.coins - baseline * split_factor(balance.asset)[0]
            side = long if more >= 0 else short
            side[coin] = side.get(coin, ZERO) + abs(more)
            if (price := snapshot.prices.get(coin)) is not None:
                prices[coin] = price
    return {
        coin: (
            decimal_text(long.get(coin, ZERO)), decimal_text(short.get(coin, ZERO)),
            decimal_text(prices[coin]) if coin in prices else None,
        )
        for coin in sorted({*long, *short})
    }  # fmt: skip


def without_shown(fetched: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return the entries of a run without what the accounts showed."""
    return tuple({name: value for name, value in entry.items() if name != SHOWN} for entry in fetched)


def forget_shown_before(connection: Connection, portfolio: str, run_id: int) -> None:
    """Remove what the accounts showed from the run before this one, so that only the last run of a portfolio has it."""
    table = ReconciliationRow
    query = select(table.id, table.fetched).where(table.portfolio == portfolio, table.id < run_id)
    before = connection.execute(query.order_by(table.id.desc()).limit(1)).one_or_none()
    if before is not None and f'"{SHOWN}"' in before.fetched:
        kept = json.dumps(without_shown(json.loads(before.fetched)))
        connection.execute(update(table).where(table.id == before.id).values(fetched=kept))
