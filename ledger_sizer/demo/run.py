"""Runs the demonstration from start to end."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from random import Random
from threading import Event

from sqlalchemy import Engine

from ledger_sizer.client import LedgerClient, RetryPolicy
from ledger_sizer.demo.bots import BOTS, PORTFOLIO
from ledger_sizer.demo.drift_injection import DriftInjector, InjectionResult
from ledger_sizer.demo.processes import READY_SECONDS_MAX, Fleet, Service
from ledger_sizer.demo.summary import Summary, read_reconciliation, summarize
from ledger_sizer.demo.venue import running_venue, running_venue_bot, service_settings
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.domain import HistoryFilters
from ledger_sizer.model.errors import Unavailable
from ledger_sizer.model.overview import Detail, Overview, OverviewQuery
from ledger_sizer.storage.database import make_engine

POLL_SECONDS = 0.25
KILL_EVERY_SECONDS = 7
ROWS_SHOWN = 14
EXTRA_SECONDS_MAX = 40
"""Longest extension of a run that was too short (or on too slow a machine) to show everything."""
_REQUIRED_DECISIONS: tuple[HistoryFilters, ...] = (
    {"command": "reserve", "outcome": "denied"},
    {"command": "confirm", "outcome": "applied"},
    {"command": "release", "outcome": "applied"},
    {"command": "expire", "outcome": "applied"},
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Parameters of a demonstration.

    seconds: how long the bots trade at least, None until stopped. seed: of the bots' behaviour. cap: of the portfolio,
    USD. venue_cap: of venue okx, USD.
    """

    seconds: float | None = 60
    seed: int = 7
    cap: Decimal = Decimal(4_000)
    venue_cap: Decimal = Decimal(1_500)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State at one moment. seconds_left: None when it runs until stopped. run_numbers: starts of each bot.

    reconciliation: the present injection, as text; None without a venue.
    """

    seconds: float
    seconds_left: float | None
    url: str
    overview: Overview
    alive: Mapping[str, bool]
    run_numbers: Mapping[str, int]
    deaths: Mapping[str, int]
    replays: int
    reconciliation: str | None = None

    @property
    def detail(self) -> Detail:
        """The demonstration's portfolio."""
        assert self.overview.detail is not None, "its caps were set before the first snapshot"
        return self.overview.detail


def demonstrate(plan: Plan, show: Callable[[Snapshot], None], stop: Event) -> Summary:
    """Run the demonstration and return its results. Calls `show` a few times a second; setting `stop` ends it early.

    Raises `Unavailable` when the service cannot be started or stops answering.
    """
    with tempfile.TemporaryDirectory(prefix="ledger-demo-") as name:
        folder = Path(name)
        with running_venue(folder) as venue_url:
            service = Service(folder, {} if venue_url is None else service_settings(venue_url))
            graceful = False
            try:
                service.wait_until_ready()
                deaths, events, injected = _run_bots(plan, service, venue_url, folder, show, stop)
            finally:
                graceful = service.stop()
        with Ledger.open(service.database_url) as ledger, _read_engine(service.database_url) as reads:
            reconciliation = None if venue_url is None else read_reconciliation(reads, injected)
            graceful = graceful and service.exit_code == 0
            return summarize(ledger, plan.cap, deaths, events, graceful=graceful, reconciliation=reconciliation)


@contextmanager
def _read_engine(url: str) -> Iterator[Engine]:
    """Open a read-only engine for the length of a block."""
    reads = make_engine(url, read_only=True)
    try:
        yield reads
    finally:
        reads.dispose()


def _run_bots(
    plan: Plan,
    service: Service,
    venue_url: str | None,
    folder: Path,
    show: Callable[[Snapshot], None],
    stop: Event,
) -> tuple[dict[str, int], dict[str, int], list[InjectionResult]]:
    """Start the bots, watch them, kill one now and then, stop them.

    Returns their exits by cause, their events, and the injections.
    """
    with LedgerClient(service.url, patience=RetryPolicy(give_up_seconds=10)) as client:
        client.set_cap(key="demo/cap", portfolio=PORTFOLIO, cap=plan.cap)
        client.set_cap(key="demo/cap/okx", portfolio=PORTFOLIO, scope="venue=okx", cap=plan.venue_cap)
        with running_venue_bot(client, venue_url, folder, plan.seed) as injector:
            fleet = Fleet(service.url, list(BOTS), folder, plan.seed)
            try:
                _wait_for_all(fleet, stop)
                _loop(plan, client, fleet, injector, show, stop)
            finally:
                fleet.stop()
    return dict(fleet.deaths), dict(fleet.events()), [] if injector is None else injector.injected


def _wait_for_all(fleet: Fleet, stop: Event) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while fleet.events()["ready"] < len(fleet.names) and not stop.wait(0.1):
        fleet.restart_exited()
        if time.monotonic() > deadline:
            raise Unavailable(f"not all bots came to life within {READY_SECONDS_MAX} s: {fleet.log_tails()}")


def _loop(
    plan: Plan,
    client: LedgerClient,
    fleet: Fleet,
    injector: DriftInjector | None,
    show: Callable[[Snapshot], None],
    stop: Event,
) -> None:
    random = Random(plan.seed)
    began = time.monotonic()
    next_kill = 1.0
    next_replacement = 1.0
    while not stop.wait(POLL_SECONDS):
        seconds = time.monotonic() - began
        if (
            plan.seconds is not None
            and seconds >= plan.seconds
            and (seconds >= plan.seconds + EXTRA_SECONDS_MAX or _all_shown(client, fleet, injector))
        ):
            return
        if seconds >= next_kill:
            fleet.kill(random.choice([name for name, alive in fleet.alive().items() if alive] or fleet.names))
            next_kill += KILL_EVERY_SECONDS
        if seconds >= next_replacement:
            fleet.restart_exited()
            next_replacement = seconds + 1
        if injector is not None:
            injector.tick()
        show(_take_snapshot(plan, client, fleet, injector, seconds))


def _all_shown(client: LedgerClient, fleet: Fleet, injector: DriftInjector | None) -> bool:
    """Whether everything was shown that a demonstration is for.

    Each end that a hold can have, a denial, a bot killed, a bot restarted, a replayed answer; and, with a venue, the
    first injection, which starts after both sides agreed.
    """
    events = fleet.events()
    restarts = events["ready"] - len(fleet.names)
    if not (fleet.deaths["killed"] and restarts > 0 and events["replayed"]):
        return False
    if injector is not None and not injector.injected:
        return False
    return all(client.history(PORTFOLIO, limit=1, **filters).items for filters in _REQUIRED_DECISIONS)


def _take_snapshot(
    plan: Plan,
    client: LedgerClient,
    fleet: Fleet,
    injector: DriftInjector | None,
    seconds: float,
) -> Snapshot:
    return Snapshot(
        seconds=seconds,
        seconds_left=None if plan.seconds is None else max(plan.seconds - seconds, 0),
        url=client.base_url,
        overview=client.overview(OverviewQuery(PORTFOLIO, rows=ROWS_SHOWN)),
        alive=fleet.alive(),
        run_numbers={name: fleet.run_number(name) for name in fleet.names},
        deaths=dict(fleet.deaths),
        replays=fleet.events()["replayed"],
        reconciliation=None if injector is None else injector.status,
    )
