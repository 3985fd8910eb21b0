"""Programs that tests run as separate processes: `python -m tests.support.programs PROGRAM URL JSON`.

Each opens its own ledger, prints `ready`, waits for a line on standard input, and then prints each answer at once as
one line of JSON. It ends when it is done, or when it is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from ledger_sizer import (
    AppSettings,
    Closed,
    Decision,
    DynamicSizingSettings,
    InstrumentInfo,
    Ledger,
    LedgerError,
    LedgerSettings,
    LegPlan,
    Reserve,
    TradingSettings,
)
from ledger_sizer.model.release_all import ReleaseAll
from tests.support import pool_bots

Params = dict[str, Any]
_STEP = Decimal("0.01")
LEGS_AT_TWO_VENUES = [
    LegPlan(InstrumentInfo("BTC/USDT:USDT", _STEP, Decimal(100), _STEP, venue="bybit"), "buy"),
    LegPlan(InstrumentInfo("BTC/USDT:USDT", _STEP, Decimal(100), _STEP, venue="okx"), "sell"),
]


def settings_of(cap_usd: object = 500, **ledger: Any) -> AppSettings:
    """Return settings with a small cap (USD) and these `LedgerSettings`."""
    return AppSettings(
        sizing=DynamicSizingSettings(max_portfolio_exposure=Decimal(str(cap_usd))),
        trading=TradingSettings(max_position_size_usd=Decimal(1_000_000)),
        ledger=LedgerSettings(**ledger),
    )


def say(**what: Any) -> None:
    """Print one line of JSON for the test, and flush."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def say_answer(key: str, answer: Decision | LedgerError) -> None:
    """Print the answer to a command."""
    if isinstance(answer, Decision):
        say(key=key, outcome=answer.outcome, reason=answer.reason, seq=answer.seq, hash=answer.hash,
            replayed=answer.replayed, position_id=answer.position_id)  # fmt: skip
    else:
        say(key=key, outcome="error", reason=answer.code)


def answered(ask: Callable[..., Decision], key: str, **request: Any) -> Decision | LedgerError:
    """Send a command, print the answer and return it. Retries retryable errors with the same key, as a bot would."""
    while True:
        answer: Decision | LedgerError
        try:
            answer = ask(key=key, **request)
        except LedgerError as error:
            if error.retryable:
                continue
            answer = error
        say_answer(key, answer)
        return answer


def reserve_many(ledger: Ledger, params: Params) -> None:
    """Reserve 10 USD `count` times, whatever the answers are."""
    for number in range(params["count"]):
        answered(ledger.reserve, f"{params['name']}-{number}", available_balance=Decimal(10), ttl_seconds=3600)


def reserve_legs(ledger: Ledger, params: Params) -> None:
    """Reserve 10 USD of legs at two venues `count` times, whatever the answers are."""
    for number in range(params["count"]):
        answered(
            ledger.reserve, f"{params['name']}-{number}", price=Decimal(100), legs=LEGS_AT_TWO_VENUES,
            amount_usd=Decimal(10), ttl_seconds=3600,
        )  # fmt: skip


def same_key(ledger: Ledger, params: Params) -> None:
    """Reserve at once with keys that all bots share."""

    async def ask(key: str) -> Decision | LedgerError:
        try:
            return await ledger.reserve_async(key=key, available_balance=Decimal(10), ttl_seconds=3600)
        except LedgerError as error:
            return error

    async def ask_all() -> None:
        keys = [f"shared-{number}" for number in range(params["count"])]
        for key, answer in zip(keys, await asyncio.gather(*map(ask, keys)), strict=True):
            say_answer(key, answer)

    asyncio.run(ask_all())


def trade_randomly(ledger: Ledger, params: Params) -> None:
    """Reserve, confirm, extend, release, close in part and in whole, in random order."""
    rng = random.Random(params["seed"])
    held: list[str | None] = []
    opened: list[str | None] = []
    tags = {"venue": params.get("venue", "bybit")}
    number = 0
    while number < params["count"]:
        number += 1
        key, act = f"{params['name']}-{number}", rng.choice(["reserve", "reserve", "confirm", "release", "extend"])
        if act == "confirm" and held:
            fill = {"quantity": Decimal(rng.choice(["1", "0.9", "1.3"])), "price": Decimal("9.87")}
            position = held.pop()
            if _done(answered(ledger.confirm, key, position_id=position, **fill)):
                opened.append(position)
        elif act == "extend" and held:
            answered(ledger.extend, key, position_id=held[-1], ttl_seconds=3600)
        elif act == "release" and opened and rng.random() < 0.5:
            answered(ledger.release, key, position_id=opened[-1], quantity=Decimal("0.001"))
        elif act == "release" and (opened or held):
            answered(ledger.release, key, position_id=(opened or held).pop())
        else:
            answer = answered(ledger.reserve, key, available_balance=Decimal(10), tags=tags, ttl_seconds=3600)
            if answer.granted and isinstance(answer, Decision):
                held.append(answer.position_id)


def _done(answer: Decision | LedgerError) -> bool:
    return answer.outcome == "applied"


def two_portfolios(ledger: Ledger, params: Params) -> None:
    """Submit atomic groups over the portfolios, in the given order."""
    for number in range(params["count"]):
        key = f"{params['name']}-{number}"
        group = [
            Reserve(key=key, portfolio=portfolio, available_balance=Decimal(1), ttl_seconds=3600)
            for portfolio in params["portfolios"]
        ]
        for answer in ledger.submit(group, atomic=True):
            say_answer(key, answer)


def trade_until_told(ledger: Ledger, params: Params) -> None:
    """Reserve, extend and release in old and new portfolios until a line comes. Then print when each grant was asked
    for and answered.

    Times are of the machine's monotonic clock, which all processes share.
    """
    told = asyncio.Event()

    async def trade(lane: int) -> list[tuple[int, int]]:
        grants = []
        number = 0
        while not told.is_set():
            number += 1
            key = f"{params['name']}-{lane}-{number}"
            portfolio = "main" if lane % 2 else f"{params['name']}-{lane}-{number // 10}"
            try:
                sent = time.monotonic_ns()
                got = await ledger.reserve_async(key=key, portfolio=portfolio, available_balance=Decimal(1))
                if not got.granted:
                    continue
                grants.append((sent, time.monotonic_ns()))
                sent = time.monotonic_ns()
                longer = await ledger.extend_async(key=f"{key}/longer", position_id=got.position_id, ttl_seconds=900)
                grants += [(sent, time.monotonic_ns())] if longer.granted else []
                await ledger.release_async(key=f"{key}/exit", position_id=got.position_id)
            except LedgerError as error:
                if not error.retryable:
                    raise
        return grants

    async def trade_all() -> None:
        lanes = [asyncio.create_task(trade(lane)) for lane in range(params["lanes"])]
        await asyncio.to_thread(sys.stdin.readline)
        told.set()
        say(grants_ns=[times for lane in await asyncio.gather(*lanes) for times in lane])

    asyncio.run(trade_all())


def pause(ledger: Ledger, params: Params) -> None:
    """Stop the process with SIGSTOP, `before` the write is sent or `between` the write and its COMMIT."""
    for number in range(params["warm_up"]):
        ledger.reserve(key=f"warm-up-{number}", available_balance=Decimal(10))
    store = ledger._store
    write, unlocked = store.write, False

    def freeze() -> None:
        say(unlocked=unlocked)
        os.kill(os.getpid(), signal.SIGSTOP)
        sys.stdin.readline()  # blocks this thread until the signal, which may arrive a little late

    def frozen_write(changes: Any, *, locked: bool) -> None:
        nonlocal unlocked
        store.write, unlocked = write, not locked  # type: ignore[method-assign]
        if params["where"] == "before":
            freeze()
        else:
            connection = store._connection()  # type: ignore[attr-defined]
            execute = connection.execute

            def frozen_execute(query: str, *arguments: Any) -> Any:
                if query == "COMMIT":
                    connection.execute = execute
                    freeze()
                return execute(query, *arguments)

            connection.execute = frozen_execute
        write(changes, locked=locked)

    store.write = frozen_write  # type: ignore[method-assign]
    try:
        say_answer("late", ledger.reserve(key="late", available_balance=Decimal(10), ttl_seconds=3600))
    except LedgerError as error:
        say_answer("late", error)


def fork(ledger: Ledger, params: Params) -> None:
    """Fork with an open ledger. The child tries to use it and then closes it, as the end of a `with` block would."""
    ledger.reserve(key="warm-up", available_balance=Decimal(10))
    say(sessions=_sessions(ledger))
    child = os.fork()
    if child == 0:
        try:
            ledger.reserve(key="child", available_balance=Decimal(10))
        except Closed as error:
            say_answer("child", error)
        ledger.close()
        os._exit(0)
    os.waitpid(child, 0)
    say_answer("parent", ledger.reserve(key="parent", available_balance=Decimal(10)))
    say(sessions=_sessions(ledger))


def _sessions(ledger: Ledger) -> list[int]:
    """Return the PostgreSQL process ids of the writer's and a reader's session. Empty on SQLite."""
    if ledger._read_engine.dialect.name == "sqlite":
        return []
    with ledger._read_engine.connect() as connection:
        reader = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    return [ledger._store._connection().info.backend_pid, reader]  # type: ignore[attr-defined]


def hold_five(ledger: Ledger, params: Params) -> None:
    """Hold five times, fill two of them, and hang."""
    for number in range(5):
        held = answered(
            ledger.reserve, f"bot-{number}", tags=params["tags"], available_balance=Decimal(100), ttl_seconds=3600
        )
        if number < 2 and isinstance(held, Decision):
            fill = {"quantity": Decimal(1), "price": Decimal(10)}
            answered(ledger.confirm, f"bot-{number}/fill", position_id=held.position_id, **fill)
    signal.pause()


def die_releasing(ledger: Ledger, params: Params) -> None:
    """Free the holds with these tags, and kill itself after the first commit."""
    for page in ledger.release_all_in_pages(ReleaseAll(key=params["key"], tags=params["tags"])):
        say(freed=len(page))
        os.kill(os.getpid(), signal.SIGKILL)


def settle_books(ledger: Ledger, params: Params) -> None:
    """Settle books of one coin a market, of two, and of none, in turns, until killed. Say what each took."""
    while True:
        for coins in (1, 2, 0):
            book = {market: (Decimal(coins), Decimal(1)) for market in params["markets"]}
            say(made=len(ledger.settle({"bot": "a"}, book)))


def live_in_pools(ledger: Ledger, params: Params) -> None:
    """Trade in pools, or move their limits, as `pool_bots` does."""

    def send(verb: str, key: str, **request: Any) -> Decision | LedgerError:
        return answered(getattr(ledger, verb), key, **request)

    live = pool_bots.move_limits if params.get("admin") else pool_bots.trade_in_pools
    live(send, params["name"], params["seed"], params["count"])


PROGRAMS = {
    one.__name__: one
    for one in (
        reserve_many, reserve_legs, same_key, trade_randomly, two_portfolios, trade_until_told, pause, fork, hold_five,
        die_releasing, live_in_pools,
        settle_books,
    )
}  # fmt: skip


def main() -> None:
    """Run the program that the command line names."""
    name, url, text = sys.argv[1:]
    params = json.loads(text)
    with Ledger.open(url, settings=settings_of(**params.get("settings", {}))) as ledger:
        say(ready=True)
        sys.stdin.readline()
        PROGRAMS[name](ledger, params)


if __name__ == "__main__":
    main()
