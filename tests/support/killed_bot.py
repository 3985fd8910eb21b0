"""Runs the example bot, kills it at each step, and starts it again: `python -m tests.support.killed_bot URL FOLDER`.

A step is the moment before or after a call to the ledger or to the venue. Each life is a process of its own that is
killed with SIGKILL. The bot that is killed at step n trades in the portfolio `p<n>` and at the venue of FOLDER/p<n>;
its second life finds other prices in the same funding period. Prints a line of JSON for each step.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import orchestrator  # type: ignore[import-not-found]  # noqa: E402
import paper_venue  # type: ignore[import-not-found]  # noqa: E402

from ledger_sizer import AppSettings, DynamicSizingSettings, Ledger, LedgerSettings  # noqa: E402
from ledger_sizer.client import AsyncLedgerClient  # noqa: E402
from tests.support.programs import say  # noqa: E402

CYCLES = 4
CAP_USD = Decimal(1_190)
"""Two pairs leave less of it than the smallest order of a third costs, which is denied."""
PRICES = {"BTC": Decimal(50_000), "ETH": Decimal(3_000), "SOL": Decimal(150)}
SEED = 6


def settings() -> Any:
    """Return settings under that cap."""
    return AppSettings(
        sizing=DynamicSizingSettings(enabled=True, max_portfolio_exposure=CAP_USD), ledger=LedgerSettings(client="bot")
    )


class Venue(paper_venue.PaperVenue):  # type: ignore[misc]
    """The paper venue, whose prices moved in the life after the first."""

    moved = Decimal(1)

    def __init__(self, folder: Path, name: str, life: int = 1) -> None:
        super().__init__(SEED, PRICES, delay_seconds=0.001, file=folder / name)
        self.moved = Decimal(1) + Decimal("0.003") * (life - 1)

    def _quote(self, pair: str) -> Any:
        quote = super()._quote(pair)
        spot, perp = ((price * self.moved).quantize(paper_venue.TICK) for price in (quote.spot_price, quote.perp_price))
        return paper_venue.Quote(pair, spot, perp, quote.funding_rate)


class Stepping:
    """Calls the methods of `of`, with a step before and after each."""

    def __init__(self, of: Any, names: set[str] | None, step: Callable[[], None]) -> None:
        self._of, self._names, self._step = of, names, step

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        if not callable(found) or (self._names is not None and name not in self._names):
            return found

        async def call(*arguments: Any, **named: Any) -> Any:
            self._step()
            answer = found(*arguments, **named)
            answer = await answer if inspect.isawaitable(answer) else answer
            self._step()
            return answer

        return call


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Any]:
    """Open a ledger in this process, or a client of a service."""
    if url.startswith("http"):
        async with AsyncLedgerClient(url) as client:
            yield client
    else:
        with Ledger.open(url, settings=settings()) as ledger:
            yield ledger


async def live(url: str, folder: Path, name: str, life: int, kill_at: int) -> None:
    """Trade until `CYCLES` periods are over, or until the step at which the process is killed; 0: not at all."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    venue = Venue(folder, name, life)
    async with opened(url) as ledger:
        bot = orchestrator.Orchestrator(
            Stepping(ledger, None, step), Stepping(venue, {"place", "balance", "find"}, step), name
        )
        await bot.recover()
        while venue.period < CYCLES:
            await bot.cycle()
            venue.next_period()


def run(url: str, folder: Path, name: str, life: int, kill_at: int) -> int:
    """Run one life in a process of its own. Return how it ended: 0, or the signal below zero."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException), contextlib.redirect_stdout(sys.stderr):
            asyncio.run(live(url, folder, name, life, kill_at))
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Kill the bot at each step until a life has fewer steps than that."""
    url, folder = sys.argv[1], Path(sys.argv[2])
    kill_at, first = 0, -signal.SIGKILL
    while first == -signal.SIGKILL:
        kill_at += 1
        name = f"p{kill_at}"
        first = run(url, folder, name, 1, kill_at)
        second = run(url, folder, name, 2, 0)
        say(name=name, first=first, second=second)


if __name__ == "__main__":
    main()
