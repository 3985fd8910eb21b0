"""Creates a long history through the ledger's own commands and commits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from benchmarks.measure import BenchmarkError

if TYPE_CHECKING:
    from ledger_sizer import Ledger

PORTFOLIO = "main"
CYCLES_PER_ROUND = 250
VENUES = ("bybit", "binance", "okx")
COINS = ("BTC", "ETH", "SOL", "XRP", "DOGE", "ADA", "AVAX", "LINK", "LTC", "BNB")
STRATEGIES = ("funding", "basis")
PRICE_USD = Decimal(50)
QUANTITY = Decimal(13)
RARE_SYMBOL = "RARE"
ROUNDS_PER_RARE_EVENT = 400
"""Every so many rounds a rare event happens, which a filter has to find among all others."""


def fill(ledger: Ledger, decisions: int, step: Callable[[int], object] = lambda _done: None) -> int:
    """Trade until the portfolio has at least that many decisions: cycles of reserve, confirm and release.

    One cycle in ten is denied (its venue's cap is 0), one in ten is released unconfirmed, the others fill and close.
    Every 400 rounds a rare symbol trades, a scope is halted and resumed, and a position is adopted. Returns the last
    seq.
    """
    ledger.set_cap(key="cap", portfolio=PORTFOLIO, cap=Decimal(10**7))
    ledger.set_cap(key="cap/full", portfolio=PORTFOLIO, scope="venue=full", cap=Decimal(0))
    seq = 2
    for number in _rounds(decisions):
        for commands in _round(number, ledger):
            answers = ledger.submit(commands)
            for answer in answers:
                if not hasattr(answer, "seq"):
                    raise BenchmarkError(f"the history could not be made: {answer}")
            seq = max(seq, *[answer.seq or 0 for answer in answers if not isinstance(answer, Exception)])
        step(seq)
        if seq >= decisions:
            break
    return seq


def _rounds(decisions: int) -> Iterator[int]:
    yield from range(decisions)


def _round(number: int, ledger: Ledger) -> Iterator[list[Any]]:
    """Yield the commands of one round, in lists: each list needs the answers to the one before."""
    from ledger_sizer import Adopt, Confirm, Halt, Release, Reserve, Resume

    cycles = [f"{number}/{n}" for n in range(CYCLES_PER_ROUND)]
    sizing = _sizing_arguments()
    reserves = [
        Reserve(key=key, portfolio=PORTFOLIO, tags=_tags(number, n), signal_score=Decimal("0.5"), **sizing)
        for n, key in enumerate(cycles)
    ]
    if number % ROUNDS_PER_RARE_EVENT == 0:
        reserves[1] = Reserve(key=cycles[1], portfolio=PORTFOLIO, tags={"symbol": RARE_SYMBOL}, **sizing)
        adopted = Adopt(
            key=f"{number}/adopt", portfolio=PORTFOLIO, quantity=QUANTITY, price=PRICE_USD, tags={"symbol": "BTC"}
        )
        yield [adopted, Halt(key=f"{number}/halt", portfolio=PORTFOLIO, scope="venue=idle")]
        yield [Resume(key=f"{number}/resume", portfolio=PORTFOLIO, scope="venue=idle")]
    made: list[str] = []
    answers = ledger.submit(reserves)
    for answer in answers:
        if isinstance(answer, Exception):
            raise BenchmarkError(f"the history could not be made: {answer}")
        if answer.position_id is not None:
            made.append(answer.position_id)
    filled = [name for n, name in enumerate(made) if n % 10]
    yield [
        Confirm(key=f"{name}/fill", position_id=name, quantity=QUANTITY, price=PRICE_USD, spot_price=PRICE_USD)
        for name in filled
    ]
    yield [Release(key=f"{name}/exit", position_id=name) for name in made]


def _tags(number: int, n: int) -> dict[str, str]:
    venue = "full" if n % 10 == 0 else VENUES[n % len(VENUES)]
    return {"venue": venue, "symbol": COINS[(number + n) % len(COINS)], "strategy": STRATEGIES[n % len(STRATEGIES)]}


def _sizing_arguments() -> dict[str, Any]:
    from ledger_sizer import InstrumentInfo

    step, most, least = Decimal("0.1"), Decimal(1000), Decimal(5)
    return {
        "price": PRICE_USD,
        "available_balance": Decimal(10_000),
        "spot_instrument": InstrumentInfo("spot", step, most, step, least),
        "perp_instrument": InstrumentInfo("perpetual", step, most, step, least),
        "ttl_seconds": 3600,
    }
