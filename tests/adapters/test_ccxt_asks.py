"""What `DeskExchange` asks for: units, prices, costs, ways around it, settings."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import ccxt
import pytest

from ledger_sizer import InvalidRequest, Ledger
from ledger_sizer.adapters.ccxt import DeskExchange, OrderDenied, client_order_id
from tests.support.ccxt_desks import CAP, FACES, At, done
from tests.support.paper_clients import PERP, SPOT

pytestmark = pytest.mark.one_engine

D = Decimal
Open = Callable[..., At]
PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "bots" / "ccxt.md"


async def test_order_when_contracts_have_a_size_and_a_factor_then_coins_and_dollars_are_right(at: Open) -> None:
    okx, bybit = at("okx"), at("bybit")
    okx.open().create_order(PERP, "limit", "buy", 1, 40000)
    (hold,) = okx.ledger.positions(state="held", tags={"venue": "okx"})
    assert (hold.quantity, hold.held) == (D("0.01"), 400)
    bybit.open().create_order("1000PEPE/USDT:USDT", "market", "buy", 1000)
    (position,) = okx.ledger.positions(state="open", tags={"venue": "bybit"})
    assert (position.quantity, position.price, position.open) == (1_000_000, D("0.00001"), 10)


async def test_short_when_its_limit_is_below_the_market_then_it_is_held_at_the_markets_price(at: Open) -> None:
    here = at()
    with pytest.raises(OrderDenied):
        here.open().create_order(PERP, "limit", "sell", 0.03, 30000)
    assert here.orders == []


@pytest.mark.parametrize("face", FACES)
async def test_market_buy_when_it_is_given_its_cost_then_the_cost_is_held(at: Open, face: str) -> None:
    here = at()
    exchange = here.open(face)
    with pytest.raises(OrderDenied):
        await done(exchange.create_market_buy_order_with_cost(SPOT, 1001))
    await done(exchange.createMarketBuyOrderWithCost(SPOT, 100))
    assert here.figures() == (0, 100)


async def test_order_when_it_closes_and_opens_then_it_is_refused_with_the_cure(at: Open) -> None:
    here = at()
    exchange = here.open()
    exchange.create_order(PERP, "market", "buy", 0.01)
    with pytest.raises(InvalidRequest, match="two orders"):
        exchange.create_order(PERP, "market", "sell", 0.015)
    assert len(here.orders) == 1


@pytest.mark.parametrize("face", FACES)
async def test_edit_when_an_order_grows_then_the_rest_is_asked_for(at: Open, face: str) -> None:
    here = at()
    exchange = here.open(face)
    order = await done(exchange.create_order(SPOT, "limit", "buy", 0.01, 40000))
    await done(exchange.edit_order(order["id"], SPOT, "limit", "buy", 0.012, 41000))
    assert here.figures() == (492, 0)
    assert [one.state for one in here.orders] == ["canceled", "open"]


async def test_call_when_it_places_orders_by_a_way_of_its_own_then_it_is_refused(at: Open) -> None:
    exchange = at("binance").open()
    with pytest.raises(ccxt.NotSupported):
        exchange.edit_spot_order("1", SPOT, "limit", "buy", 1, 1)
    with pytest.raises(ccxt.NotSupported):
        exchange.create_orders_ws([])
    exchange.verbose = False
    assert exchange.id == "binance"


@pytest.mark.parametrize(
    ("change", "field"), [({"tags": {}}, "tags"), ({"slippage": D(2)}, "slippage"), ({"portfolio": "a b"}, "portfolio")]
)
async def test_open_when_a_setting_is_wrong_then_it_is_named(at: Open, change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        at().open(**change)
    assert error.value.field == field


async def test_program_of_the_page_when_run_then_it_trades_within_the_cap(at: Open, tmp_path: Path) -> None:
    program = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[-1]
    program = program.replace("http://127.0.0.1:8400", at().url).replace("ledger.db", f"{tmp_path}/ledger.db")
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.set_cap(key="cap", cap=CAP)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == "closed"
        assert len(done.stdout.split()) == 2
        assert ledger.exposure().open == 250


def test_client_order_id_when_made_then_it_keeps_every_exchanges_rules() -> None:
    made = client_order_id("okx", "main", "20260101T08/BTC", owner="bot=a")
    assert made == client_order_id("okx", "main", "20260101T08/BTC", owner="bot=a")
    assert made != client_order_id("okx", "main", "20260101T16/BTC", owner="bot=a")
    assert len(made) == 32
    assert made.isalnum()
    assert len(client_order_id("gate", "a")) == 28
    assert int(client_order_id("dydx", "a")) < 2**32
    assert int(client_order_id("woo", "a")) < 2**63


def test_open_when_no_tags_are_given_then_the_bot_is_the_ledgers_client(at: Open) -> None:
    here = at()
    exchange = DeskExchange(here.open()._exchange, here.ledger)
    exchange.create_order(SPOT, "market", "buy", 0.001)
    (position,) = here.ledger.positions(state="open", tags={"bot": "embedded"})
    assert position.quantity
