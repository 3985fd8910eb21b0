"""Bars for the rounds: real ones where they lie beside the checkout, else the replay's synthetic market."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ledger_sizer.replay.bars import Bar, BarFile
from ledger_sizer.replay.synthetic_market import BARS_MAX, generated_bars

SYNTHETIC = "synthetic market, seed 1"
_FOLDER_VARIABLE = "LEDGER_SIZER_SHARED_DATA"
_FILE = "funding_8h_2023_2024.csv.gz"


def best_market() -> str:
    """Return the name of the market that `market_bars` has here."""
    return SYNTHETIC if real_bars() is None else f"{_FILE}: Binance, 8-hour bars, 2023 to 2024"


def real_bars() -> Path | None:
    """Return the file of real bars; None where there is none."""
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    path = Path(os.environ.get(_FOLDER_VARIABLE, beside)) / "market" / _FILE
    return path if path.exists() else None


def market_bars(market: str) -> Iterator[Bar]:
    """Return the bars of a market that `best_market` named, from the first."""
    path = real_bars()
    if market == SYNTHETIC or path is None:
        return generated_bars(1, BARS_MAX)
    return iter(BarFile(path))
