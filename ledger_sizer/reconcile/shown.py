"""What an account showed of the coins that the ledger holds: kept with the run, for the net of each coin."""

import json
from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, select, update

from ledger_sizer.exchanges.snapshot import Snapshot, rounded_price
from ledger_sizer.model.asset_policies import DOLLARS
from ledger_sizer.model.market_names import coins_of_symbol, parse_symbol
from ledger_sizer.model.reconciliation import Market
from ledger_sizer.model.units import decimal_text, exact_arithmetic
from ledger_sizer.reconcile.ledger_side import LedgerSide
from ledger_sizer.storage.tables import ReconciliationRow

ZERO = Decimal(0)
SHOWN = "shown"
"""Name of it in an account's entry of `Run.fetched`, as it is stored. Only a portfolio's last run keeps it."""

Shown = dict[str, tuple[str, str, str | None] | None]
"""By coin: coins bought, coins sold, and the last price, USD per coin; None where a row of it could not be read."""


def held_coins(ledger_side: LedgerSide) -> set[str]:
    """Return the coins that the ledger holds, or counts for the exchange."""
    return {market.base for market in (*ledger_side.open, *ledger_side.external)}


def shown_by_coin(
    shown: Mapping[Market, Decimal],
    snapshot: Snapshot,
    coins: Collection[str],
    accepted: Mapping[Market, Decimal],
    unread: Collection[Market] = (),
) -> Shown:
    """Return what an account showed of these coins.

    shown: what was compared, by market: without baselines. accepted: the excess that a person acknowledged, which is
    left out. snapshot: has the prices. unread: markets whose rows could not be read.
    """
    sides: dict[str, dict[str, Decimal]] = {}
    with exact_arithmetic():
        for market, quantity in shown.items():
            if market.base in coins:
                left = max(abs(quantity) - accepted.get(market, ZERO), ZERO)
                side = market.side if quantity >= 0 else market.opposite.side
                one = sides.setdefault(market.base, {"long": ZERO, "short": ZERO})
                one[side] += left
        prices = _last_prices(snapshot, sides)
    found: Shown = {
        coin: (decimal_text(one["long"]), decimal_text(one["short"]), prices.get(coin))
        for coin, one in sorted(sides.items())
    }  # fmt: skip
    return found | dict.fromkeys({market.base for market in unread} & {*coins})


def _last_prices(snapshot: Snapshot, coins: Collection[str]) -> dict[str, str]:
    """Return the last price of each coin that an exchange told, USD per coin: of a derivative its mark price."""
    prices = {coin: price for coin, price in snapshot.prices.items() if coin in coins}
    for position in snapshot.positions or ():
        factor, coin = coins_of_symbol(position.symbol)
        said = parse_symbol(position.symbol)
        if coin not in coins or coin is None or said is None or said.quote not in DOLLARS:
            continue
        if position.mark_price is not None:
            price = rounded_price(position.mark_price / (position.multiplier or factor))
            prices |= {} if price is None else {coin: price}
    return {coin: decimal_text(price) for coin, price in prices.items()}


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
