"""Compares commands of a portfolio without pools with those of one with three guaranteed pools: CPU of this process.

Both portfolios are in one ledger, and are measured in turns. Bots of each pool and one outside of them reserve, confirm
and release with the same tags and figures in both.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import partial
from itertools import count
from statistics import median
from time import process_time_ns
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks.measure import BenchmarkError
from benchmarks.ours import bench_settings, sizing_arguments
from benchmarks.report import Plan as SharedPlan
from benchmarks.report import new_table, progress, run_plan
from benchmarks.servers import Engine, Host, scratch

if TYPE_CHECKING:
    from ledger_sizer import Decision, Ledger

PORTFOLIOS = ("plain", "pools")
BOTS = ("a", "b", "c", "x")
"""Values of the tag `bot`; all but the last are guaranteed in `pools`."""
GUARANTEE_USD = Decimal(1_000_000)
CAP_USD = Decimal(1_000_000_000)
CALLERS = (1, 64)
LIVES_OF_A_TURN = 256
VERBS = 3
"""A life is a reserve, a confirm and a release."""
FILL: dict[str, Any] = {"quantity": Decimal("0.006"), "price": Decimal(50_010), "spot_price": Decimal(50_000)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(SharedPlan):
    """Parameters. pairs: of turns, each of both portfolios. lives: of a turn, shared by its callers."""

    pairs: int
    lives: int = LIVES_OF_A_TURN


@dataclass(frozen=True, slots=True)
class Row:
    """CPU of one command in both portfolios, the least of all turns, and how they compare.

    ratio: the median of all pairs. least_ratio: of the two leasts, which a busy machine affects less.
    """

    engine: Engine
    callers: int
    plain_us: float
    pools_us: float
    ratio: float
    least_ratio: float


def run(plan: Plan) -> None:
    """Measure and report both portfolios, on each engine, with one caller and with many."""
    turns = f"{plan.pairs} pairs of turns, {plan.lives} times reserve, confirm and release a turn"
    run_plan(plan, max(CALLERS), {"turns": turns}, partial(_rows, plan), _table, asdict)


def _rows(plan: Plan, hosts: list[Host]) -> Iterator[Row]:
    with progress(len(hosts) * len(CALLERS)) as step:
        for host in hosts:
            for callers in CALLERS:
                step(f"{host.engine}: {callers} callers")
                yield _measured(plan, host, callers)


def _measured(plan: Plan, host: Host, callers: int) -> Row:
    from ledger_sizer import Ledger
    from ledger_sizer.storage.database import upgrade

    with scratch(host) as database:
        upgrade(database.url)
        with Ledger.open(database.url, settings=bench_settings()) as ledger:
            for portfolio in PORTFOLIOS:
                ledger.set_cap(key="cap", portfolio=portfolio, cap=CAP_USD)
            for bot in BOTS[:-1]:
                ledger.set_cap(key=bot, portfolio="pools", scope=f"bot={bot}", guarantee=GUARANTEE_USD)
            numbers = count()
            spent = dict[str, list[float]]((portfolio, []) for portfolio in PORTFOLIOS)
            for pair in range(-1, plan.pairs):
                for portfolio in PORTFOLIOS[:: 1 if pair % 2 else -1]:
                    cpu_us = _turn(ledger, portfolio, callers, plan.lives, numbers)
                    if pair >= 0:  # the first pair warms up
                        spent[portfolio].append(cpu_us)
    plain, pools = spent.values()
    ratio = median(two / one for one, two in zip(plain, pools, strict=True))
    return Row(host.engine, callers, min(plain), min(pools), ratio, min(pools) / min(plain))


def _turn(ledger: Ledger, portfolio: str, callers: int, lives: int, numbers: Iterator[int]) -> float:
    """Live so many lives in a portfolio. Returns the CPU of a command, microseconds."""
    gc.collect()
    begun = process_time_ns()
    if callers == 1:
        for _ in range(lives):
            _live(ledger, portfolio, next(numbers))
    else:
        asyncio.run(_live_together(ledger, portfolio, callers, lives // callers, numbers))
    return (process_time_ns() - begun) / 1e3 / lives / VERBS


def _live(ledger: Ledger, portfolio: str, number: int) -> None:
    reserved = ledger.reserve(**_request(portfolio, number))
    ledger.confirm(key=f"{number}/fill", position_id=_granted(reserved), **FILL)
    ledger.release(key=f"{number}/exit", position_id=_granted(reserved))


async def _live_together(ledger: Ledger, portfolio: str, callers: int, lives: int, numbers: Iterator[int]) -> None:
    async def caller() -> None:
        for _ in range(lives):
            number = next(numbers)
            reserved = await ledger.reserve_async(**_request(portfolio, number))
            await ledger.confirm_async(key=f"{number}/fill", position_id=_granted(reserved), **FILL)
            await ledger.release_async(key=f"{number}/exit", position_id=_granted(reserved))

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())


def _request(portfolio: str, number: int) -> dict[str, Any]:
    return {
        "key": str(number), "portfolio": portfolio, "signal_score": Decimal("0.5"),
        "tags": {"bot": BOTS[number % len(BOTS)], "venue": "bybit", "symbol": "BTC"}, **_SIZING,
    }  # fmt: skip


def _granted(decision: Decision) -> str:
    if decision.position_id is None:
        raise BenchmarkError(f"a reserve that fits was not granted: {decision}")
    return decision.position_id


_SIZING = sizing_arguments()


def _table(rows: list[Row]) -> Table:
    title = "CPU of a command without pools and with three; the ratio of each pair, the median, and that of the leasts."
    table = new_table(title, ("engine", "callers"), ("plain us", "pools us", "ratio", "of leasts"))
    for row in rows:
        figures = (f"{row.plain_us:,.0f}", f"{row.pools_us:,.0f}", f"{row.ratio:.3f}x", f"{row.least_ratio:.3f}x")
        table.add_row(row.engine, str(row.callers), *figures)
    return table
