"""Calls the embedded ledger and both clients, sync and async, with `await`, so that one test fits all three."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any

from ledger_sizer import AppSettings, DynamicSizingSettings, InstrumentInfo, Ledger
from ledger_sizer.client import AsyncLedgerClient, LedgerClient, Patience
from tests.support.ledgers import TAGS
from tests.support.services import served

INTERFACES = ("embedded", "client", "async_client")
FAST_RETRIES = Patience(attempts_max=4, give_up_seconds=5, pause_seconds=0.01, pause_seconds_max=0.05)

SETTINGS = AppSettings(sizing=DynamicSizingSettings(enabled=True))
"""Dynamic sizing is on, so that the signal score changes the answer."""

SPOT = InstrumentInfo("BTC/USDT", Decimal("0.0001"), Decimal(100), Decimal("0.0001"), Decimal(5))
PERP = InstrumentInfo("BTC/USDT:USDT", Decimal("0.001"), Decimal(100), Decimal("0.001"), Decimal(5))
ASK: dict[str, Any] = {
    "tags": TAGS,
    "signal_score": Decimal("0.9"),
    "price": Decimal(50_000),
    "available_balance": Decimal(10_000),
    "spot_instrument": SPOT,
    "perp_instrument": PERP,
    "ttl_seconds": Decimal("30.5"),
}
FILL: dict[str, Any] = {"quantity": Decimal("0.018"), "price": Decimal("50100.5"), "spot_price": Decimal(50_090)}


class Interface:
    """Wraps one interface of the ledger. Every method of it is awaitable here."""

    def __init__(self, kind: str, ledger: Ledger | LedgerClient | AsyncLedgerClient, behind: Ledger) -> None:
        self.kind = kind
        self.raw = ledger
        self.behind = behind
        """The embedded ledger that decides, in this process."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.raw, name)

        async def call(*arguments: Any, **named: Any) -> Any:
            answer = method(*arguments, **named)
            return await answer if inspect.isawaitable(answer) else answer

        return call

    async def export(self, *arguments: Any, **named: Any) -> bytes:
        """Return the whole export."""
        parts = self.raw.export(*arguments, **named)
        return b"".join([part async for part in parts] if isinstance(parts, AsyncIterator) else parts)

    @asynccontextmanager
    async def hold(self, **request: Any) -> AsyncIterator[Any]:
        """Enter the interface's `hold`, and yield its value with awaitable methods."""
        if isinstance(self.raw, AsyncLedgerClient):
            async with self.raw.hold(**request) as held:
                yield Interface(self.kind, held, self.behind)  # type: ignore[arg-type]
        else:
            with self.raw.hold(**request) as held:
                yield Interface(self.kind, held, self.behind)  # type: ignore[arg-type]


@asynccontextmanager
async def opened(
    kind: str, database_url: str, clock: Callable[[], datetime] | None, settings: AppSettings = SETTINGS
) -> AsyncIterator[Interface]:
    """Open a ledger through one of the `INTERFACES`."""
    if kind == "embedded":
        with Ledger.open(database_url, settings=settings, clock=clock) as ledger:
            yield Interface(kind, ledger, ledger)
        return
    with served(database_url, settings=settings, clock=clock) as service:
        if kind == "client":
            with LedgerClient(service.url, patience=FAST_RETRIES) as client:
                yield Interface(kind, client, service.ledger)
        else:
            async with AsyncLedgerClient(service.url, patience=FAST_RETRIES) as client:
                yield Interface(kind, client, service.ledger)


async def open_position(ledger: Interface, key: str = "a") -> str:
    """Reserve and confirm, and return the position id."""
    granted = await ledger.reserve(key=key, **ASK)
    await ledger.confirm(key=f"{key}/fill", position_id=granted.position_id, **FILL)
    position_id: str = granted.position_id
    return position_id


class Name(str, Enum):  # noqa: UP042 - a StrEnum formats as its value
    """A str enum, as bots use for names: equal to its value, but an f-string formats it as `Name.BYBIT`."""

    MAIN = "main"
    VENUE = "venue"
    BYBIT = "bybit"
    SCOPE = "venue=bybit"
    BTC = "BTC"
    HELD = "held"
    HALTED = "halted"
