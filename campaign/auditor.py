"""Compares what clients were told with what the ledger has, and the ledger with its own rules. Shares no code with it.

It reads the tables with plain SQL, and computes exposure, caps and expiries by itself, so that a defect of the ledger's
own `verify` (which it runs too) hides nothing.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from campaign.clients import Told
from campaign.processes import run_command

US_PER_SECOND = 1_000_000
LATE_SECONDS_MAX = 15.0
"""A hold may be seen this long after its end, in a service that runs: sweeps come each second, and retry."""
SHOWN_MAX = 8

_COLUMNS = (
    "portfolio_id, seq, command, key, outcome, position, tags, held_delta_e8, open_delta_e8, exposure_e8, expires_us, "
    "decided_us, hash"
)
_DECISIONS = f"SELECT {_COLUMNS} FROM decisions ORDER BY portfolio_id, seq"  # noqa: S608 - a constant
_OVERDUE = "SELECT portfolio_id, number, expires_us FROM positions WHERE state = 'held' AND expires_us < %d"


class Row(NamedTuple):
    """One stored decision, `portfolio` by its name."""

    portfolio: str
    seq: int
    command: str
    key: str
    outcome: str
    position: int | None
    tags: str
    held_delta_e8: int
    open_delta_e8: int
    exposure_e8: int
    expires_us: int | None
    decided_us: int
    hash: str


@dataclass
class Audit:
    """What was found. acknowledged: decisions that were told, each key counted once."""

    decisions: int = 0
    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def audit(url: str, told: Iterable[Told], caps: Mapping[str, int], *, folder: Path, holds_end: bool = True) -> Audit:
    """Check the ledger at `url` against these answers. Returns everything that is wrong with it.

    caps: 1e-8 USD by scope (`portfolio`, `venue=okx`), of each portfolio, constant since its first decision.
    holds_end: no hold may be overdue now; False where no service ran to end them.
    """
    found = Audit()
    with _opened(url) as query:
        names = {row[0]: row[1] for row in query("SELECT id, name FROM portfolios")}
        rows = [Row(names[row[0]], *row[1:]) for row in query(_DECISIONS)]
        overdue = list(query(_OVERDUE % int((time.time() - LATE_SECONDS_MAX) * US_PER_SECOND))) if holds_end else []
    found.decisions = len(rows)
    for portfolio in names.values():
        mine = [row for row in rows if row.portfolio == portfolio]
        found.problems += _order_problems(mine)
        found.problems += _exposure_problems(mine, caps)
        found.problems += _expiry_problems(mine)
    found.problems += [f"{names[row[0]]}-{row[1]} is held, its time was over {_late(row[2]):.1f} s ago" for row in overdue]
    _compare(found, rows, told)
    verified = run_command("verify", "--database-url", url, folder=folder)
    if verified.returncode != 0:
        found.problems.append(f"verify: status {verified.returncode}: {(verified.stdout + verified.stderr)[-400:]}")
    return found


def decisions_of(url: str) -> list[Any]:
    """Return all stored decisions in their order, for comparing a copy with its source."""
    with _opened(url) as query:
        return list(query(_DECISIONS))


class _opened:
    """Runs SQL on a ledger, read-only, during a `with` block."""

    def __init__(self, url: str) -> None:
        self._connection: Any
        if url.startswith("sqlite"):
            path = url.removeprefix("sqlite:///")
            self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20)
        else:
            self._connection = psycopg.connect(url.replace("postgresql+psycopg", "postgresql"))

    def __enter__(self) -> _Query:
        return _Query(self._connection)

    def __exit__(self, *_: object) -> None:
        self._connection.close()


class _Query:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __call__(self, statement: str) -> Iterator[Any]:
        with closing(self._connection.execute(statement)) as cursor:
            yield from cursor.fetchall()


def _late(expires_us: int) -> float:
    return time.time() - expires_us / US_PER_SECOND


def _order_problems(rows: list[Row]) -> Iterator[str]:
    """Gapless seq, each key once, time never backwards."""
    keys: dict[str, int] = {}
    last_us = 0
    for expected, row in enumerate(rows, start=1):
        if row.seq != expected:
            yield f"gap: {row.portfolio} has seq {row.seq} where {expected} is due"
            return
        if row.key in keys:
            yield f"key {row.key!r} of {row.portfolio} twice: seq {keys[row.key]} and {row.seq}"
        keys[row.key] = row.seq
        if row.decided_us < last_us:
            yield f"time goes backwards at {row.portfolio} seq {row.seq}"
        last_us = row.decided_us


def _exposure_problems(rows: list[Row], caps: Mapping[str, int]) -> Iterator[str]:
    """Exposure before each decision is the sum of all changes so far, and no grant leaves a scope above its cap."""
    exposure: dict[str, int] = {}
    tags_of: dict[int, list[str]] = {}
    for row in rows:
        if row.exposure_e8 != exposure.get("portfolio", 0):
            yield f"{row.portfolio} seq {row.seq}: exposure before is {row.exposure_e8}, not {exposure.get('portfolio', 0)}"
            exposure["portfolio"] = row.exposure_e8
        if row.position is None:
            continue
        if row.position not in tags_of:
            tags = json.loads(row.tags or "{}")
            tags_of[row.position] = ["portfolio", *[f"{name}={value}" for name, value in tags.items()]]
        for scope in tags_of[row.position]:
            exposure[scope] = exposure.get(scope, 0) + row.held_delta_e8 + row.open_delta_e8
            if row.outcome == "granted" and exposure[scope] > caps.get(scope, exposure[scope]):
                yield f"above the cap: {row.portfolio} seq {row.seq} leaves {scope} at {exposure[scope]} of {caps[scope]}"


def _expiry_problems(rows: list[Row]) -> Iterator[str]:
    """No hold ends by its time before the latest time that was promised for it."""
    promised: dict[int, int] = {}
    for row in rows:
        if row.position is None:
            continue
        if row.command in ("reserve", "extend") and row.outcome != "denied" and row.expires_us is not None:
            promised[row.position] = row.expires_us
        elif row.command == "expire" and row.decided_us < promised.get(row.position, 0):
            early = (promised[row.position] - row.decided_us) / US_PER_SECOND
            yield f"expired early: {row.portfolio} seq {row.seq}, by {early:.3f} s"


def _compare(found: Audit, rows: list[Row], answers: Iterable[Told]) -> None:
    """Every decision that was told is stored under its key as it was told, and was told the same each time."""
    stored = {(row.portfolio, row.key): (row.seq, row.hash, row.outcome) for row in rows}
    told: dict[tuple[str, str], tuple[int, str, str]] = {}
    for answer in answers:
        name = (answer.portfolio, answer.key)
        this = (answer.seq, answer.hash, answer.outcome)
        before = told.setdefault(name, this)
        if before != this:
            found.doubled.append(f"{answer.portfolio} key {answer.key!r} was told as seq {before[0]} and as seq {this[0]}")
    for (portfolio, key), this in told.items():
        kept = stored.get((portfolio, key))
        if kept is None:
            found.lost.append(f"{portfolio} key {key!r}, told as seq {this[0]}, is not there")
        elif kept != this:
            found.lost.append(f"{portfolio} key {key!r}, told as seq {this[0]} {this[2]}, is seq {kept[0]} {kept[2]}")
    found.acknowledged = len(told)
