"""`python -m benchmarks.denials`: what recorded denials cost on disk, for bots that ask again each second.

Two bots ask for `--hours` for a market whose cap is used up, each time with a new key, price, score and balance.
The clock is simulated. Shows the bytes that the database grew by, with each denial recorded and with the default.
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from ledger_sizer import AppSettings, InstrumentInfo, Ledger, LedgerSettings

START = datetime(2026, 1, 1, tzinfo=UTC)
BOTS = ("funding", "basis")
SPOT = InstrumentInfo("BTC/USDT", Decimal("0.0001"), Decimal(100), Decimal("0.0001"), Decimal(5))
PERP = InstrumentInfo("BTC/USDT:USDT", Decimal("0.001"), Decimal(100), Decimal("0.001"), Decimal(5))
DAY_HOURS = 24


def measure(hours: float, repeat_seconds: int) -> tuple[int, int]:
    """Return how many denials were recorded, and the bytes that a SQLite ledger grew by."""
    now = START
    settings = AppSettings(ledger=LedgerSettings(denial_repeat_seconds=repeat_seconds))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        with Ledger.open(f"sqlite:///{path}", settings=settings, clock=lambda: now) as ledger:
            ledger.set_cap(key="cap", cap=Decimal(0))
        before = path.stat().st_size
        with Ledger.open(f"sqlite:///{path}", settings=settings, clock=lambda: now) as ledger:
            for second in range(int(hours * 3600)):
                now = START + timedelta(seconds=second)
                for bot in BOTS:
                    ledger.reserve(
                        key=f"{bot}/{now:%Y%m%dT%H%M%S}/BTC",
                        tags={"venue": "bybit", "symbol": "BTC", "strategy": bot},
                        signal_score=Decimal(second % 100) / 100,
                        price=Decimal(50_000 + second % 97),
                        available_balance=Decimal(9_000 + second % 89),
                        spot_instrument=SPOT,
                        perp_instrument=PERP,
                    )
            recorded = (ledger.exposure().seq or 0) - 1
        return recorded, path.stat().st_size - before


def main() -> None:
    """Print one line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=1, help="hours that the bots ask (1)")
    hours = parser.parse_args().hours
    for repeat_seconds in (0, LedgerSettings().denial_repeat_seconds):
        recorded, size = measure(hours, repeat_seconds)
        print(
            f"LEDGER_DENIAL_REPEAT_SECONDS={repeat_seconds:<3} {int(hours * 3600) * len(BOTS):,} denials, "
            f"{recorded:,} recorded, {size / max(recorded, 1):,.0f} bytes each, "
            f"{size * DAY_HOURS / hours / 1e6:,.1f} MB a day"
        )


if __name__ == "__main__":
    main()
