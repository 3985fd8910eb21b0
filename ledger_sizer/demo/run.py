"""The demonstration from beginning to end."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from threading import Event

from sqlalchemy import Engine

from ledger_sizer.client import LedgerClient, RetryPolicy
from ledger_sizer.demo.bots import BOTS, PORTFOLIO
from ledger_sizer.demo.drift_injection import DriftInjector, InjectionResult
from ledger_sizer.demo.processes import READY_SECONDS_MAX, Fleet, Service
from ledger_sizer.demo.summary import Summary, reconciled_at, summarised
from ledger_sizer.demo.venue import settings_at, trading, venue_in
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Exposure, HistoryFilters, Position
from ledger_sizer.model.errors import Unavailable
from ledger_sizer.storage.database import make_engine

LOOK_SECONDS = 0.25
KILL_EVERY_SECONDS = 7
DECISIONS_SHOWN = 14
SHOW_SECONDS_MAX = 40
"""How much longer it goes on, where its time was too short (or the machine too slow) to show what it is there for."""
_TO_SHOW: tuple[HistoryFilters, ...] = (
    {"command": "reserve", "outcome": "denied"},
    {"command": "confirm", "outcome": "applied"},
    {"command": "release", "outcome": "applied"},
    {"command": "expire", "outcome": "applied"},
)


@dataclass(frozen=True, slots=True)
class Plan:
    """seconds: how long the bots trade at least, None for as long as nobody stops them. seed: of what they do.

    cap: of the portfolio, venue_cap: of one venue, in USD.
    """

    seconds: float | None = 60
    seed: int = 7
    cap: Decimal = Decimal(4_000)
    venue_cap: Decimal = Decimal(1_500)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What can be seen at one moment. seconds_left: None when it goes on until stopped.

    reconciliation: how the ledger and the paper venue stand, in words; None without a venue.
    """

    seconds: float
    seconds_left: float | None
    url: str
    exposure: Exposure
    held: tuple[Position, ...]
    decisions: tuple[Decision, ...]
    alive: Mapping[str, bool]
    lives: Mapping[str, int]
    deaths: Mapping[str, int]
    replays: int
    now: datetime
    reconciliation: str | None = None


def demonstrate(plan: Plan, show: Callable[[Snapshot], None], stop: Event, now: Callable[[], datetime]) -> Summary:
    """Run it, and say what came of it. `show` is called a few times a second; setting `stop` ends it early.

    Raises `Unavailable` when the service cannot be started or stops answering.
    """
    with tempfile.TemporaryDirectory(prefix="ledger-demo-") as name:
        folder = Path(name)
        with venue_in(folder) as venue_url:
            service = Service(folder, {} if venue_url is None else settings_at(venue_url))
            graceful = False
            try:
                service.wait_until_ready()
                deaths, events, injected = _watched(plan, service, venue_url, folder, show, stop, now)
            finally:
                graceful = service.end()
        with Ledger.open(service.database_url) as ledger, _reading(service.database_url) as reads:
            reconciled = None if venue_url is None else reconciled_at(reads, injected)
            graceful = graceful and service.exit_code == 0
            return summarised(ledger, plan.cap, deaths, events, graceful=graceful, reconciled=reconciled)


@contextmanager
def _reading(url: str) -> Iterator[Engine]:
    """An engine that only reads, for the length of a block."""
    reads = make_engine(url, read_only=True)
    try:
        yield reads
    finally:
        reads.dispose()


def _watched(
    plan: Plan,
    service: Service,
    venue_url: str | None,
    folder: Path,
    show: Callable[[Snapshot], None],
    stop: Event,
    now: Callable[[], datetime],
) -> tuple[dict[str, int], dict[str, int], list[InjectionResult]]:
    """Start the bots, watch them, kill one now and then, end them.

    Returns how they died, what they told, and what was done at the venue.
    """
    with LedgerClient(service.url, patience=RetryPolicy(give_up_seconds=10)) as client:
        client.set_cap(key="demo/cap", portfolio=PORTFOLIO, cap=plan.cap)
        client.set_cap(key="demo/cap/okx", portfolio=PORTFOLIO, scope="venue=okx", cap=plan.venue_cap)
        with trading(client, venue_url, folder, plan.seed) as meddler:
            fleet = Fleet(service.url, list(BOTS), folder, plan.seed)
            try:
                _wait_for_all(fleet, stop)
                _loop(plan, client, fleet, meddler, show, stop, now)
            finally:
                fleet.end()
    return dict(fleet.deaths), dict(fleet.events()), [] if meddler is None else meddler.injected


def _wait_for_all(fleet: Fleet, stop: Event) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while fleet.events()["ready"] < len(fleet.names) and not stop.wait(0.1):
        fleet.replace_the_dead()
        if time.monotonic() > deadline:
            raise Unavailable(f"not all bots came to life within {READY_SECONDS_MAX} s: {fleet.last_words()}")


def _loop(
    plan: Plan,
    client: LedgerClient,
    fleet: Fleet,
    meddler: DriftInjector | None,
    show: Callable[[Snapshot], None],
    stop: Event,
    now: Callable[[], datetime],
) -> None:
    dice = Random(plan.seed)
    began = time.monotonic()
    next_kill = 1.0
    next_replacement = 1.0
    while not stop.wait(LOOK_SECONDS):
        seconds = time.monotonic() - began
        if (
            plan.seconds is not None
            and seconds >= plan.seconds
            and (seconds >= plan.seconds + SHOW_SECONDS_MAX or _shown(client, fleet, meddler))
        ):
            return
        if seconds >= next_kill:
            fleet.kill(dice.choice([name for name, lives in fleet.alive().items() if lives] or fleet.names))
            next_kill += KILL_EVERY_SECONDS
        if seconds >= next_replacement:
            fleet.replace_the_dead()
            next_replacement = seconds + 1
        if meddler is not None:
            meddler.tick()
        show(_seen(plan, client, fleet, meddler, seconds, now))


def _shown(client: LedgerClient, fleet: Fleet, meddler: DriftInjector | None) -> bool:
    """Whether all was seen that a demonstration is for.

    Each end that a hold can have, a bot that was killed and one that came back, an answer replayed; and, where there is
    a venue, that both sides agreed, so that somebody began to meddle.
    """
    told = fleet.events()
    back = told["ready"] - len(fleet.names)
    if not (fleet.deaths["killed"] and back > 0 and told["replayed"]):
        return False
    if meddler is not None and not meddler.injected:
        return False
    return all(client.history(PORTFOLIO, limit=1, **filters).items for filters in _TO_SHOW)


def _seen(
    plan: Plan,
    client: LedgerClient,
    fleet: Fleet,
    meddler: DriftInjector | None,
    seconds: float,
    now: Callable[[], datetime],
) -> Snapshot:
    return Snapshot(
        seconds=seconds,
        seconds_left=None if plan.seconds is None else max(plan.seconds - seconds, 0),
        url=client.base_url,
        exposure=client.exposure(PORTFOLIO),
        held=client.positions(PORTFOLIO, state="held").items,
        decisions=client.history(PORTFOLIO, limit=DECISIONS_SHOWN).items,
        alive=fleet.alive(),
        lives={name: fleet.life(name) for name in fleet.names},
        deaths=dict(fleet.deaths),
        replays=fleet.events()["replayed"],
        now=now(),
        reconciliation=None if meddler is None else meddler.doing,
    )
