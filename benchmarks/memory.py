"""Compares deciding alone with a ledger in memory and with one in a SQLite file: CPU of one command of a lone caller.

All forms live the same lives in turns: a reserve, a confirm and a release, of a plain budget or sized for two markets.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import count
from statistics import median
from time import perf_counter, process_time_ns
from typing import TYPE_CHECKING, Any, Protocol

from rich.table import Table

from benchmarks.measure import BenchmarkError
from benchmarks.ours import bench_settings, sizing_arguments
from benchmarks.report import Plan as SharedPlan
from benchmarks.report import new_table, progress, run_plan
from benchmarks.servers import Host, scratch
from ledger_sizer.model.caller import EMBEDDED
from ledger_sizer.model.commands import AnyCommand, Confirm, Release, Reserve, SetCap
from ledger_sizer.model.decisions import Decision
from ledger_sizer.rules.batch import Group, decide_batch
from ledger_sizer.rules.policy import Policy
from ledger_sizer.rules.repeats import BatchDenials, DenialMemory
from ledger_sizer.rules.state import PortfolioState
from ledger_sizer.storage.state_cache import StateCache
from ledger_sizer.storage.write_store import needs_of

if TYPE_CHECKING:
    from ledger_sizer import Ledger

CAP_USD = Decimal(1_000_000_000)
VERBS = 3
"""A life is a reserve, a confirm and a release."""
ALONE = "decided on cached state"
"""The form that the others are compared with."""
READ_LIVES = 1_000
READS = 100
TAGS = {"bot": "a", "venue": "bybit", "symbol": "BTC"}
ASKED: dict[str, dict[str, Any]] = {"plain": {"amount_usd": Decimal(100)}, "sized": sizing_arguments()}
FILL: dict[str, Any] = {"quantity": Decimal("0.006"), "price": Decimal(50_010), "spot_price": Decimal(50_000)}
FILLED: dict[str, dict[str, Any]] = {"plain": {"quantity": Decimal(1), "price": Decimal(99)}, "sized": FILL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(SharedPlan):
    """Parameters. rounds: of turns, each of every form. lives: of a turn."""

    rounds: int
    lives: int = 300


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. ratio: to `ALONE` in the same round, the median; None for what no other form has."""

    life: str
    form: str
    figure: float
    unit: str
    ratio: float | None


class Runner(Protocol):
    """Answers commands."""

    def run(self, command: AnyCommand) -> Decision: ...


class RulesAlone:
    """The rules on one state: what no ledger can do without. Nothing is looked up, and nothing kept."""

    def __init__(self) -> None:
        self._policy = Policy.of(bench_settings())
        self._state = PortfolioState.begun(1, "main", 10**18)
        self._state.begin_next_batch()
        self._now_us = 0

    def run(self, command: AnyCommand) -> Decision:
        self._now_us += 1
        result = decide_batch({"main": self._state}, [Group((command,))], self._now_us, self._policy)[0][0]
        self._state.begin_next_batch()
        return _decision(result)


class CachedState:
    """The rules on a writer's cached state, with its memory of denials, as a ledger decides. Nothing is stored."""

    def __init__(self) -> None:
        self._policy = Policy.of(bench_settings())
        self._denials = DenialMemory(10)
        self._cache = StateCache()
        state = PortfolioState.begun(1, "main", 10**18)
        state.scopes_known = {f"{name}={value}" for name, value in TAGS.items()}
        self._cache.put(state)
        self._now_us = 0

    def run(self, command: AnyCommand) -> Decision:
        self._now_us += 1
        groups = [Group((command,), caller=EMBEDDED)]
        states = self._cache.take(needs_of(groups), self._now_us)
        assert states is not None, "it has all that a life needs"
        denials = BatchDenials(self._denials, locked=False)
        result = decide_batch(states, groups, self._now_us, self._policy, frozenset(), denials)[0][0]
        self._cache.put(states["main"])
        return _decision(result)


def run(plan: Plan) -> None:
    """Measure and report all forms, and what a ledger in memory takes beside its commands."""
    turns = f"{plan.rounds} rounds of turns, {plan.lives} times reserve, confirm and release a turn; one caller"
    run_plan(plan, 1, {"turns": turns}, partial(_rows, plan), _table, asdict)


def _rows(plan: Plan, hosts: list[Host]) -> Iterator[Row]:
    from ledger_sizer import Ledger

    with ExitStack() as stack, progress(len(ASKED) + 1) as step:
        database = stack.enter_context(scratch(hosts[0]))
        clock = _Minutes()
        forms: dict[str, Runner] = {
            "rules alone": RulesAlone(),
            ALONE: CachedState(),
            "in memory": stack.enter_context(Ledger.in_memory(settings=bench_settings())),
            "in memory, a minute after each": stack.enter_context(
                Ledger.in_memory(settings=bench_settings(), clock=clock)
            ),
            "SQLite file": stack.enter_context(Ledger.open(database.url, settings=bench_settings())),
        }
        ledgers = [form for form in forms.values() if isinstance(form, Ledger)]
        for ledger in ledgers:
            ledger.run(SetCap(key="cap", cap=CAP_USD))
        numbers = count()
        for life in ASKED:
            step(f"{life} lives")
            yield from _compared(plan, life, forms, numbers, clock)
        for ledger in ledgers:
            if not ledger.verify().ok:
                raise BenchmarkError("verify found something")
        step("the rest")
        yield from _beside()


def _compared(
    plan: Plan, life: str, forms: dict[str, Runner], numbers: Iterator[int], clock: _Minutes
) -> Iterator[Row]:
    spent = dict[str, list[float]]((name, []) for name in forms)
    for number in range(-1, plan.rounds):
        for name in [*forms][:: 1 if number % 2 else -1]:
            cpu_us = _turn(forms[name], life, plan.lives, numbers, clock)
            if number >= 0:  # the first round warms up
                spent[name].append(cpu_us)
    for name, own in spent.items():
        ratio = median(one / other for one, other in zip(own, spent[ALONE], strict=True))
        yield Row(life, name, median(own), "us", ratio)


class _Minutes:
    """A clock that a turn moves by a minute after each life, so that every hold of the life before is overdue."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self._now

    def pass_on(self) -> None:
        self._now += timedelta(seconds=61)


def _turn(form: Runner, life: str, lives: int, numbers: Iterator[int], clock: _Minutes) -> float:
    """Live so many lives. Returns the CPU of a command, microseconds."""
    gc.collect()
    begun = process_time_ns()
    for _ in range(lives):
        _live(form.run, life, next(numbers))
        clock.pass_on()
    return (process_time_ns() - begun) / 1e3 / lives / VERBS


def _live(run_command: Callable[[AnyCommand], Decision], life: str, number: int) -> None:
    reserved = run_command(Reserve(key=f"{number}", tags=TAGS, **ASKED[life]))
    if reserved.position_id is None:
        raise BenchmarkError(f"a reserve that fits was not granted: {reserved}")
    run_command(Confirm(key=f"{number}/fill", position_id=reserved.position_id, **FILLED[life]))
    run_command(Release(key=f"{number}/exit", position_id=reserved.position_id))


def _decision(result: object) -> Decision:
    assert isinstance(result, Decision), result
    return result


def _beside() -> Iterator[Row]:
    """Measure what a ledger in memory takes to open, to be read from the first time, and to keep."""
    from ledger_sizer import Ledger

    settings, begun = bench_settings(), perf_counter()
    ledger = Ledger.in_memory(settings=settings)
    yield Row("", "open a ledger in memory", (perf_counter() - begun) * 1e6, "us", None)
    tracemalloc.start()
    kept = tracemalloc.get_traced_memory()[0]
    for number in range(READ_LIVES):
        _live(ledger.run, "sized", number)
    kept = tracemalloc.get_traced_memory()[0] - kept
    tracemalloc.stop()
    commands = READ_LIVES * VERBS
    yield Row("", "kept of a decision", kept / commands / 1024, "KiB", None)
    yield from _reads(ledger, commands)
    ledger.close()


def _reads(ledger: Ledger, commands: int) -> Iterator[Row]:
    begun = process_time_ns()
    ledger.exposure()
    yield Row("", "the first read, a decision before it", (process_time_ns() - begun) / 1e3 / commands, "us", None)
    begun = process_time_ns()
    for _ in range(READS):
        ledger.exposure()
    yield Row("", "a read with nothing new", (process_time_ns() - begun) / 1e3 / READS, "us", None)


def _table(rows: list[Row]) -> Table:
    title = f"CPU of a command, the median of all rounds; the ratio to `{ALONE}` in the same round, the median."
    table = new_table(title, ("life", "form"), ("figure", "unit", "ratio"))
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}x"
        table.add_row(row.life, row.form, f"{row.figure:,.1f}", row.unit, ratio)
    return table
