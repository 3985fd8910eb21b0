"""Runs the code of docs/bots: the whole bot of own-bot.md at the paper venue, with a kill, and hummingbot's recipe."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ledger_sizer import Ledger
from ledger_sizer.paper import PaperServer
from tests.support.ledgers import assert_verified

D = Decimal
PAGES = Path(__file__).resolve().parent.parent.parent / "docs" / "bots"


def _block(page: str, which: int) -> str:
    return str(re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)[which])


@pytest.mark.parametrize("killed_at", ["usd = desk.ask", "    desk.settle(open_positions())\nprint"])
def test_own_bot_when_killed_and_started_again_then_the_ledger_equals_the_exchange_below_the_cap(
    tmp_path: Path, killed_at: str
) -> None:
    """It is killed right after its first ask, or between its first order and the settlement."""
    code = _block("own-bot.md", -1)
    line = next(line for line in code.splitlines() if line.strip().startswith(killed_at.strip().splitlines()[0]))
    kill = "    import os; os.kill(os.getpid(), 9)"
    killed = code.replace(line, f"{line}\n{kill}" if "ask" in line else f"{kill}\n{line}")
    assert killed != code
    url = f"sqlite:///{tmp_path}/ledger.db"
    with PaperServer() as venue, Ledger.open(url) as ledger:
        ledger.set_cap(key="cap", cap=D(250))

        def run(source: str) -> int:
            command = [sys.executable, "-c", source, venue.url, url]
            return subprocess.run(command, cwd=tmp_path, timeout=120, check=False).returncode

        assert run(killed) == -9
        assert len(ledger.positions("main", state="held")) == 1
        assert run(code) == 0
        before = ledger.exposure()
        assert (before.open, before.overage) == (D("249.95"), 0)
        assert [(one.tags["symbol"], one.state) for one in ledger.positions("main", state="live")] == [
            ("BTC/USDT", "open"), ("ETH/USDT", "open"), ("SOL/USDT", "open"),
        ]  # fmt: skip
        assert run(code) == 0
        assert ledger.exposure().open == before.open, "a third start buys nothing"
        assert_verified(ledger)


def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put hummingbot's names where the recipe imports them from; return them."""
    common, actions = ModuleType("common"), ModuleType("actions")
    common.PositionAction = SimpleNamespace(OPEN="OPEN", CLOSE="CLOSE", NIL="NIL")  # type: ignore[attr-defined]
    common.PriceType = SimpleNamespace(MidPrice="mid")  # type: ignore[attr-defined]
    common.TradeType = SimpleNamespace(BUY="BUY", SELL="SELL")  # type: ignore[attr-defined]
    actions.CreateExecutorAction = type("CreateExecutorAction", (SimpleNamespace,), {})  # type: ignore[attr-defined]
    names = {
        "hummingbot": ModuleType("hummingbot"), "hummingbot.core": ModuleType("core"),
        "hummingbot.core.data_type": ModuleType("data_type"), "hummingbot.core.data_type.common": common,
        "hummingbot.strategy_v2": ModuleType("strategy_v2"), "hummingbot.strategy_v2.models": ModuleType("models"),
        "hummingbot.strategy_v2.models.executor_actions": actions,
    }  # fmt: skip
    for name, module in names.items():
        monkeypatch.setitem(sys.modules, name, module)
    return actions.CreateExecutorAction


class _Config(SimpleNamespace):
    """An executor's configuration, as pydantic copies it."""

    def model_copy(self, update: dict[str, Any]) -> _Config:
        return _Config(**{**vars(self), **update})


class _Controller:
    """Sends what it is told to, as `ControllerBase` does."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.executors_info: list[Any] = []
        self.positions_held: list[Any] = []
        self.sent: list[Any] = []
        self.market_data_provider = SimpleNamespace(get_price_by_type=lambda *_: D(50000))

    async def send_actions(self, executor_actions: list[Any]) -> None:
        self.sent = executor_actions

    async def control_task(self) -> None:
        """It proposes nothing by itself."""


async def test_hummingbot_recipe_when_executors_are_proposed_and_fill_then_the_ledger_follows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    create = _stand_ins(monkeypatch)
    monkeypatch.setenv("LEDGER_URL", f"sqlite:///{tmp_path}/ledger.db")
    recipe: dict[str, Any] = {}
    exec(compile(_block("hummingbot.md", 1), "ledger_desk.py", "exec"), recipe)
    controller = type("MyController", (recipe["DeskController"], _Controller), {})(SimpleNamespace(id="c1"))

    def proposal(name: str, side: str = "BUY") -> Any:
        market = {"connector_name": "bybit_perpetual", "trading_pair": "BTC-USDT"}
        config = _Config(id=name, amount=D("0.01"), entry_price=D(50000), side=side, **market)
        return create(executor_config=config)

    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.set_cap(key="cap", cap=D(800))
        await controller.send_actions(
            [proposal("e1"), proposal("e2"), proposal("e3"), SimpleNamespace(executor_id="e0")]
        )
        amounts = [one.executor_config.amount for one in controller.sent[:-1]]
        assert (amounts, controller.sent[-1].executor_id) == ([D("0.01"), D("0.006")], "e0")
        assert ledger.exposure().held == 800

        def info(action: Any, filled: Decimal, *, active: bool = True) -> Any:
            average = {"current_position_average_price": D(50000)}
            return SimpleNamespace(
                config=action.executor_config, is_active=active, filled_amount_quote=filled, custom_info=average
            )

        first, second = controller.sent[:2]
        controller.executors_info = [info(first, D(500)), info(second, D(100))]
        await controller.control_task()
        assert (ledger.exposure().open, ledger.exposure().held) == (600, 200)
        # Its closing order doubles what the first has filled until it is done, then the second is all there is.
        controller.executors_info = [info(first, D(900)), info(second, D(300))]
        await controller.control_task()
        assert (ledger.exposure().open, ledger.exposure().held) == (800, 0)
        controller.executors_info = [info(first, D(1000), active=False), info(second, D(300))]
        await controller.control_task()
        assert ledger.exposure().open == 300
        held = SimpleNamespace(
            connector_name="bybit_perpetual", trading_pair="BTC-USDT", side="BUY", amount=D("0.006"),
            breakeven_price=D(50000),
        )  # fmt: skip
        controller.executors_info, controller.positions_held = [], [held]
        await controller.control_task()
        assert (ledger.exposure().open, ledger.exposure().overage) == (300, 0)
        await asyncio.to_thread(controller.desk.close)
        assert_verified(ledger)
