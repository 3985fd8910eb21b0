"""Drives ledger_sizer in the benchmark through its public methods, as a bot does.

The package is imported when a form runs, so that the other forms can run without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from benchmarks.baselines import PORTFOLIO, RESERVED_USD
from benchmarks.measure import BenchmarkError, Caller, Pace, Samples, run_tasks, run_threads
from benchmarks.servers import Database

if TYPE_CHECKING:
    from ledger_sizer import AppSettings, Decision, Ledger

TAGS = {"venue": "bybit", "symbol": "BTC", "strategy": "funding"}
# With fractions 0.3 to 1.0 of 1,000 USD this score asks for 650 USD, the amount the other forms reserve.
SCORE = Decimal("0.5")
TTL_SECONDS = 60
PRICE_USD = Decimal(50_000)
BALANCE_USD = Decimal(10_000)
OPEN_QUANTITY = Decimal("0.01")
OPEN_USD = OPEN_QUANTITY * PRICE_USD
PRELOAD_CHUNK = 1000
PRELOAD_CAP_USD = Decimal(10**9)
COINS = ("BTC", "ETH", "SOL", "XRP", "DOGE", "ADA", "AVAX", "LINK", "LTC", "BNB")


@dataclass(frozen=True, slots=True)
class LedgerForm:
    """The ledger as a form. threaded: sync methods from threads. sized: with price, balance and both instruments.

    random_keys: UUIDs, instead of keys that begin with the caller's number.
    """

    name: str
    threaded: bool = False
    sized: bool = False
    random_keys: bool = False

    def prepare(self, database: Database, open_positions: int) -> None:
        _migrate(database)
        with _open(database) as ledger:
            preload(ledger, open_positions)

    def run(self, database: Database, callers: int, pace: Pace) -> Samples:
        with _open(database) as ledger:
            open_usd = ledger.exposure(PORTFOLIO).open
            # Headroom for exactly one hold per caller: a leaked hold ends in a denial, which fails the cell.
            cap_usd = open_usd + callers * RESERVED_USD
            ledger.set_cap(key="bench/cap", portfolio=PORTFOLIO, cap=cap_usd)
            arguments = (
                {**sizing_arguments(), "ttl_seconds": TTL_SECONDS} if self.sized else {"ttl_seconds": TTL_SECONDS}
            )
            if not self.threaded:
                key_of = _random_key if self.random_keys else str
                return asyncio.run(
                    run_tasks(lambda: AsyncLedgerCaller(ledger, cap_usd, arguments, key_of), callers, pace)
                )

            @contextmanager
            def open_caller() -> Iterator[Caller]:
                yield LedgerCaller(ledger, cap_usd, arguments)

            return run_threads(open_caller, callers, pace)

    def check(self, database: Database, open_positions: int) -> None:
        with _open(database) as ledger:
            exposure = ledger.exposure(PORTFOLIO)
            report = ledger.verify()
        if (exposure.held, exposure.open, exposure.overage) != (Decimal(0), open_positions * OPEN_USD, Decimal(0)):
            raise BenchmarkError(f"{self.name} on {database.engine} left a wrong exposure: {exposure}")
        if not report.ok:
            raise BenchmarkError(f"{self.name} on {database.engine}: verify found {report.first}")


@dataclass(frozen=True, slots=True)
class LedgerCaller:
    """Calls the sync methods. Checks every decision against the cap."""

    ledger: Ledger
    cap_usd: Decimal
    arguments: dict[str, Any]

    def reserve(self, key: str) -> str:
        decision = self.ledger.reserve(key=key, portfolio=PORTFOLIO, tags=TAGS, signal_score=SCORE, **self.arguments)
        return _require_grant(decision, self.cap_usd)

    def release(self, key: str, handle: str) -> None:
        self.ledger.release(key=key, position_id=handle)


@dataclass(frozen=True, slots=True)
class AsyncLedgerCaller:
    """Calls the async methods, all callers in one event loop. Checks every decision against the cap."""

    ledger: Ledger
    cap_usd: Decimal
    arguments: dict[str, Any]
    key_of: Callable[[str], str] = str

    async def reserve(self, key: str) -> str:
        decision = await self.ledger.reserve_async(
            key=self.key_of(key), portfolio=PORTFOLIO, tags=TAGS, signal_score=SCORE, **self.arguments
        )
        return _require_grant(decision, self.cap_usd)

    async def release(self, key: str, handle: str) -> None:
        await self.ledger.release_async(key=self.key_of(key), position_id=handle)


def _random_key(_key: str) -> str:
    return str(uuid4())


def _require_grant(decision: Decision, cap_usd: Decimal) -> str:
    if decision.exposure_after > cap_usd:
        raise BenchmarkError(f"the cap {cap_usd} was breached at seq {decision.seq}: {decision.exposure_after}")
    if not decision.granted or decision.position_id is None or decision.replayed:
        raise BenchmarkError(f"a reserve that fits was not granted: {decision}")
    return decision.position_id


def preload(ledger: Ledger, open_positions: int) -> None:
    """Create `open_positions` open positions, one decision each, spread over ten coins."""
    from ledger_sizer import Adopt

    for start in range(0, open_positions, PRELOAD_CHUNK):
        commands = [_adopt(Adopt, number) for number in range(start, min(start + PRELOAD_CHUNK, open_positions))]
        _require_applied(ledger.submit(commands))


def _adopt(command: Any, number: int) -> Any:
    from ledger_sizer import Leg

    coin = COINS[number % len(COINS)]
    return command(
        key=f"filled/{number}",
        portfolio=PORTFOLIO,
        tags={**TAGS, "symbol": coin},
        quantity=OPEN_QUANTITY,
        price=PRICE_USD,
        legs=[
            Leg("bybit", f"{coin}/USDT", "spot", "buy", OPEN_QUANTITY, PRICE_USD),
            Leg("bybit", f"{coin}/USDT:USDT", "swap", "sell", OPEN_QUANTITY, PRICE_USD),
        ],
    )


def _require_applied(answers: Sequence[Any]) -> None:
    refused = next((answer for answer in answers if answer.outcome != "applied"), None)
    if refused is not None:
        raise BenchmarkError(f"preloading was refused: {refused}")


def _open(database: Database) -> Ledger:
    from ledger_sizer import Ledger

    return Ledger.open(database.url, settings=bench_settings())


def bench_settings() -> AppSettings:
    """Return the ledger's settings: sizing on, and a cap above the preloaded positions."""
    from ledger_sizer import AppSettings, DynamicSizingSettings

    return AppSettings(sizing=DynamicSizingSettings(enabled=True, max_portfolio_exposure=PRELOAD_CAP_USD))


def sizing_arguments() -> dict[str, Any]:
    """Return price, balance and two markets of a reservation with quantities."""
    from ledger_sizer import InstrumentInfo

    spot_step, perp_step, most, min_notional_usd = Decimal("0.000001"), Decimal("0.001"), Decimal(100), Decimal(5)
    return {
        "price": PRICE_USD,
        "available_balance": BALANCE_USD,
        "spot_instrument": InstrumentInfo("BTC/USDT", spot_step, most, spot_step, min_notional_usd),
        "perp_instrument": InstrumentInfo("BTC/USDT:USDT", perp_step, most, perp_step, min_notional_usd),
    }


def _migrate(database: Database) -> None:
    """Migrate a PostgreSQL database, which `Ledger.open` does not do."""
    if database.engine == "postgresql":
        from ledger_sizer.storage.database import upgrade

        upgrade(database.url)


OURS = LedgerForm("ledger, awaited")
OURS_BLOCKING = LedgerForm("ledger, plain calls", threaded=True)
OURS_SIZED = LedgerForm("ledger, quantities", sized=True)
OURS_RANDOM = LedgerForm("ledger, random keys", random_keys=True)
