"""Reads from freqtrade's own database what a bot has open, where its entry orders rest, and what it wrote down itself.

It reads what is committed, in sessions of its own: another thread's half-done work is not seen, nor disturbed.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from freqtrade.persistence import KeyValueStore, Order, Trade
from freqtrade.persistence.key_value_store import _KeyValueStoreModel
from sqlalchemy import StaticPool, select
from sqlalchemy.orm import Session

from ledger_sizer.model.market_names import coins_of_symbol
from ledger_sizer.model.units import exact_arithmetic

_NOTE_START = "ledger_sizer:"
_NOTHING = Decimal(0)
_PRICE_STEP = Decimal("1e-18")


class Book(NamedTuple):
    """open: by pair the coins, their average entry price in USD, and the side. resting: pairs where entries rest."""

    open: dict[str, tuple[Decimal, Decimal, str]]
    resting: set[str]


class SentOrder(NamedTuple):
    """An entry order that goes out: enough to find it again at the exchange.

    name: of its hold. side: `buy` or `sell`. amount: coins. price: of the order. since: just before it was sent.
    """

    pair: str
    name: str
    side: str
    amount: float
    price: float
    since: datetime


def read_book() -> Book:
    """Return what is open now. A fill of an order that is still open counts."""
    with _reading() as session:
        trades = session.scalars(select(Trade).where(Trade.is_open.is_(True))).unique().all()
        held: dict[str, list[tuple[Decimal, Decimal, str]]] = {}
        resting = set()
        for trade in trades:
            entries = [order for order in trade.open_orders if order.ft_order_side == trade.entry_side]
            if entries:
                resting.add(trade.pair)
            held.setdefault(trade.pair, []).append(_open_in(trade, entries))
    return Book({pair: total for pair, parts in held.items() if (total := _sum(pair, parts))[0]}, resting)


def _open_in(trade: Any, entries: Iterable[Any]) -> tuple[Decimal, Decimal, str]:
    """Return coins, cost and side of one trade, with what its open orders have filled so far."""
    with exact_arithmetic():
        coins = _exact(trade.amount)
        cost = coins * _exact(trade.open_rate)
        for order in entries:
            filled = _exact(order.safe_filled)
            coins += filled
            cost += filled * _exact(order.safe_price)
        exits = [order for order in trade.orders if order.ft_is_open and order.ft_order_side != trade.entry_side]
        left = max(coins - sum([_exact(order.safe_filled) for order in exits], _NOTHING), _NOTHING)
        return left, cost * left / coins if coins else _NOTHING, trade.entry_side


def _sum(pair: str, parts: list[tuple[Decimal, Decimal, str]]) -> tuple[Decimal, Decimal, str]:
    """Return coins, average price and side of all trades of one pair. Longs and shorts both count.

    freqtrade counts 1000PEPE as the exchange names it, the ledger in PEPE.
    """
    with exact_arithmetic():
        coins = sum([part[0] for part in parts], _NOTHING) * coins_of_symbol(pair)[0]
        cost = sum([part[1] for part in parts], _NOTHING)
        return coins, (cost / coins).quantize(_PRICE_STEP) if coins else _NOTHING, max(parts)[2]


def order_state(pair: str, order_id: str) -> bool | None:
    """Return whether freqtrade has this order open; None where it does not know it (any more)."""
    with _reading() as session:
        found = session.scalars(select(Order).where(Order.order_id == order_id, Order.ft_pair == pair)).first()
        return None if found is None else found.ft_is_open


def known_orders(pair: str, side: str, since: datetime) -> dict[str, float | None]:
    """Return the coins of the orders of a pair that freqtrade knows, by id; None where the exchange told none."""
    begin = since.astimezone(UTC).replace(tzinfo=None)
    wanted = Order.ft_pair == pair, Order.ft_order_side == side, Order.order_date >= begin
    with _reading() as session:
        return dict(session.execute(select(Order.order_id, Order.amount).where(*wanted)).tuples().all())


def leverage_of(pair: str) -> float | None:
    """Return the leverage of the open trade of a pair; None without one."""
    with _reading() as session:
        return session.scalars(select(Trade.leverage).where(Trade.pair == pair, Trade.is_open.is_(True))).first()


def write_down(order: SentOrder) -> None:
    """Keep an order that goes out, on disk, until `forget`: a kill may come before freqtrade knows it."""
    when = int(order.since.timestamp() * 1000)
    KeyValueStore.store_value(_key(order.name), f"{order.pair} {order.side} {order.amount!r} {order.price!r} {when}")


def forget(name: str) -> None:
    """Remove what `write_down` kept of an order."""
    KeyValueStore.delete_value(_key(name))


def written_down() -> list[SentOrder]:
    """Return what `write_down` kept."""
    with _reading() as session:
        rows = session.execute(
            select(_KeyValueStoreModel.key, _KeyValueStoreModel.string_value).where(
                _KeyValueStoreModel.key.startswith(_NOTE_START)
            )
        ).all()
    return [_order_from(key.removeprefix(_NOTE_START), text) for key, text in rows if text]


def _order_from(name: str, text: str) -> SentOrder:
    pair, side, amount, price, when = text.split(" ")
    since = datetime.fromtimestamp(int(when) / 1000, UTC)
    return SentOrder(pair, name, side, float(amount), float(price), since)


def _key(name: str) -> Any:
    return f"{_NOTE_START}{name}"


def _exact(figure: float | None) -> Decimal:
    return Decimal(str(figure or 0))


@contextmanager
def _reading() -> Iterator[Session]:
    engine = Trade.session.get_bind()
    if isinstance(engine.pool, StaticPool):  # in memory there is one connection: a session's end would roll all back
        yield Trade.session()
        return
    with Session(engine) as session:
        yield session
