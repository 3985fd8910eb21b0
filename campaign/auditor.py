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

_COLUMNS = (
    "portfolio_id, seq, command, key, outcome, position, tags, held_delta_e8, open_delta_e8, exposure_e8, expires_us, "
    "decided_us, hash"
)
_DECISIONS = f"SELECT {_COLUMNS} FROM decisions ORDER BY portfolio_id, seq"
_HELD = "SELECT portfolio_id, number, expires_us FROM positions WHERE state = 'held'"


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


def audit(url: str, answers: Iterable[Told], caps: Mapping[str, int], *, folder: Path) -> Audit:
    """Check the ledger at `url`, whose service still runs, against these answers. Returns all that is wrong with it.

    caps: 1e-8 USD by scope (`portfolio`, `venue=okx`), of each portfolio, constant since its first decision.
    """
    found = Audit()
    told = list(answers)
    with _Opened(url) as query:
        names = {row[0]: row[1] for row in query("SELECT id, name FROM portfolios")}
        rows = [Row(names[row[0]], *row[1:]) for row in query(_DECISIONS)]
        held = {(names[row[0]], row[1]): row[2] for row in query(_HELD)}
    found.decisions = len(rows)
    for portfolio in names.values():
        mine = [row for row in rows if row.portfolio == portfolio]
        found.problems += _order_problems(mine)
        found.problems += _exposure_problems(mine, caps)
        found.problems += _expiry_problems(mine)
    found.problems += _early_problems(rows, told)
    found.problems += _late_problems(held, told)
    _compare(found, rows, told)
    verified = run_command("verify", "--database-url", url, folder=folder)
    if verified.returncode != 0:
        found.problems.append(f"verify: status {verified.returncode}: {(verified.stdout + verified.stderr)[-400:]}")
    return found


def decisions_of(url: str) -> list[Any]:
    """Return all stored decisions in their order, for comparing a copy with its source."""
    with _Opened(url) as query:
        return list(query(_DECISIONS))


class _Opened:
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
            summed_up = exposure.get("portfolio", 0)
            yield f"{row.portfolio} seq {row.seq}: exposure before is {row.exposure_e8}, not {summed_up}"
            exposure["portfolio"] = row.exposure_e8
        if row.position is None:
            continue
        if row.position not in tags_of:
            tags = json.loads(row.tags or "{}")
            several = {name: value if isinstance(value, list) else [value] for name, value in tags.items()}
            scopes = [f"{name}={value}" for name, values in several.items() for value in values]
            tags_of[row.position] = ["portfolio", *scopes]
        for scope in tags_of[row.position]:
            exposure[scope] = exposure.get(scope, 0) + row.held_delta_e8 + row.open_delta_e8
            is_grant = row.command == "reserve" and row.outcome == "granted"
            if is_grant and exposure[scope] > caps.get(scope, exposure[scope]):
                above = f"{scope} at {exposure[scope]} of {caps[scope]}"
                yield f"above the cap: {row.portfolio} seq {row.seq} leaves {above}"


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


def _early_problems(rows: list[Row], answers: Iterable[Told]) -> Iterator[str]:
    """No hold ended by its time while less than its life has passed on the clock of this process."""
    ended = {(row.portfolio, row.position) for row in rows if row.command == "expire"}
    now = time.monotonic()
    for answer in answers:
        if answer.life is not None and now < answer.begun + answer.life and (answer.portfolio, answer.seq) in ended:
            left = answer.begun + answer.life - now
            yield f"expired early: {answer.portfolio}-{answer.seq} has ended, though {left:.0f} s of its life are left"


def _late_problems(held: Mapping[tuple[str, int], int], answers: Iterable[Told]) -> Iterator[str]:
    """No hold is still there long after its end: neither by its row's time, nor by the clock of this process."""
    ends: dict[tuple[str, int], float] = {}
    for answer in answers:
        if answer.life is not None and answer.position_id is not None:
            name = (answer.portfolio, int(answer.position_id.rpartition("-")[2]))
            ends[name] = max(ends.get(name, 0.0), answer.heard + answer.life)
    for (portfolio, number), expires_us in held.items():
        by_row = time.time() - expires_us / US_PER_SECOND
        by_clock = time.monotonic() - ends.get((portfolio, number), float("inf"))
        if max(by_row, by_clock) > LATE_SECONDS_MAX:
            yield f"not ended: {portfolio}-{number} is held, {max(by_row, by_clock):.0f} s after its time was over"


def _compare(found: Audit, rows: list[Row], answers: Iterable[Told]) -> None:
    """Every decision that was told is stored under its key as it was told, and was told the same each time."""
    stored = {(row.portfolio, row.key): (row.seq, row.hash, row.outcome) for row in rows}
    told: dict[tuple[str, str], tuple[int, str, str]] = {}
    for answer in answers:
        name = (answer.portfolio, answer.key)
        this = (answer.seq, answer.hash, answer.outcome)
        before = told.setdefault(name, this)
        if before != this:
            found.doubled.append(
                f"{answer.portfolio} key {answer.key!r} was told as seq {before[0]} and as seq {this[0]}"
            )
    for (portfolio, key), this in told.items():
        kept = stored.get((portfolio, key))
        if kept is None:
            found.lost.append(f"{portfolio} key {key!r}, told as seq {this[0]}, is not there")
        elif kept != this:
            found.lost.append(f"{portfolio} key {key!r}, told as seq {this[0]} {this[2]}, is seq {kept[0]} {kept[2]}")
    found.acknowledged = len(told)
