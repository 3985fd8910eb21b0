"""Tells fills one by one, is killed at each step, and tells the same again: `python -m tests.support.killed_fills URL`.

A step is the moment before or after a call. The bot that is killed at step n trades in the portfolio `p<n>`. Of its two
positions the one is confirmed in parts, under a key each; of the other it says how much is filled so far. Prints a line
of JSON for each step, and ends when a life has fewer steps.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from ledger_sizer import Ledger
from ledger_sizer.client import LedgerClient
from tests.support.programs import LEGS_AT_TWO_VENUES, say, settings_of

PRICES = [Decimal(100), Decimal("100.3"), Decimal("99.7")]
PARTS = [Decimal("0.25"), Decimal("0.33"), Decimal("0.42")]
CAP_USD = Decimal(1000)


@contextlib.contextmanager
def opened(url: str) -> Iterator[Any]:
    """Open a ledger in this process, or a client of a service."""
    if url.startswith("http"):
        with LedgerClient(url) as client:
            yield client
    else:
        with Ledger.open(url, settings=settings_of(CAP_USD, client="bot")) as ledger:
            yield ledger


def live(url: str, name: str, kill_at: int) -> None:
    """Tell all fills, or die at this step; 0: not at all. A life knows nothing of the one before it."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def call(method: Callable[..., Any], **arguments: Any) -> Any:
        step()
        answer = method(**arguments)
        step()
        return answer

    with opened(url) as ledger:
        ids = [
            call(
                ledger.reserve, key=f"ask-{which}", portfolio=name, price=Decimal(100), legs=LEGS_AT_TWO_VENUES,
                amount_usd=Decimal(100), until_known=True,
            ).position_id
            for which in ("parts", "so far")
        ]  # fmt: skip
        filled = paid = Decimal(0)
        for number, (quantity, price) in enumerate(zip(PARTS, PRICES, strict=True)):
            filled, paid = filled + quantity, paid + quantity * price
            call(ledger.confirm, key=f"fill-{number}", position_id=ids[0], quantity=quantity, price=price, rest="hold")
            call(ledger.fill, key=f"so-far-{number}", position_id=ids[1], filled_quantity=filled, price=paid / filled)


def run(url: str, name: str, kill_at: int) -> int:
    """Run one life in a process of its own. Return how it ended: 0, or the signal below zero."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            live(url, name, kill_at)
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Kill the bot at each step until a life has fewer steps than that."""
    kill_at, first = 0, -signal.SIGKILL
    while first == -signal.SIGKILL:
        kill_at += 1
        first = run(sys.argv[1], f"p{kill_at}", kill_at)
        say(name=f"p{kill_at}", first=first, second=run(sys.argv[1], f"p{kill_at}", 0))


if __name__ == "__main__":
    main()
