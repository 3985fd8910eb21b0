"""Measures the ledger's writes without its decisions: the upper bound for any program that keeps the same records.

The ledger's committer decides all commands beforehand, on a store that records the changes instead of writing them.
The benchmark measures the ledger's real store as it writes these changes, one commit each, as for a single caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.baselines import PORTFOLIO
from benchmarks.measure import BenchmarkError, Caller, Pace, Samples, run_threads
from benchmarks.ours import OURS, SCORE, TAGS, TTL_SECONDS, bench_settings
from benchmarks.servers import Database

if TYPE_CHECKING:
    from ledger_sizer.storage.write_store import PortfolioChanges, WriteStore

_PAIRS_PER_SECOND_MAX = 6_000


@dataclass(frozen=True, slots=True)
class RowsForm:
    """The store alone as a form, for one caller."""

    name: str = "ledger's writes alone"

    def prepare(self, database: Database, open_positions: int) -> None:
        OURS.prepare(database, open_positions)

    def run(self, database: Database, callers: int, pace: Pace) -> Samples:
        if callers != 1:
            raise BenchmarkError(f"{self.name} is for one caller, not {callers}")
        pairs = int((pace.warmup_seconds + pace.measured_seconds) * _PAIRS_PER_SECOND_MAX)
        with _store(database) as store:
            changes_left = iter(_decide_pairs(store, pairs))

            @contextmanager
            def open_caller() -> Iterator[Caller]:
                yield _WritingCaller(store, changes_left)

            return run_threads(open_caller, callers, pace)

    def check(self, database: Database, open_positions: int) -> None:
        OURS.check(database, open_positions)


@dataclass(frozen=True, slots=True)
class _WritingCaller:
    store: WriteStore
    changes_left: Iterator[PortfolioChanges]

    def reserve(self, _key: str) -> None:
        self._next()

    def release(self, _key: str, _handle: None) -> None:
        self._next()

    def _next(self) -> None:
        change = next(self.changes_left, None)
        if change is None:
            raise BenchmarkError(f"more than {_PAIRS_PER_SECOND_MAX} pairs a second were written")
        self.store.write([change], locked=False)


def _decide_pairs(store: WriteStore, pairs: int) -> list[PortfolioChanges]:
    """Return the changes of `pairs` reserves and releases, alternating. Writes nothing."""
    from ledger_sizer import Decision, Release, Reserve
    from ledger_sizer.ledger.committer import Committer
    from ledger_sizer.rules.batch import Group
    from ledger_sizer.rules.policy import Policy

    changes_left: list[PortfolioChanges] = []
    committer = Committer(_RecordingStore(store, changes_left), Policy.of(bench_settings()), lambda: None, 0)

    def decide(command: Any) -> Decision:
        (answer,) = committer.answer([Group((command,))])
        if not isinstance(answer, list) or not isinstance(answer[0], Decision) or answer[0].outcome == "denied":
            raise BenchmarkError(f"a command that fits was not answered: {answer}")
        return answer[0]

    for n in range(pairs):
        held = decide(
            Reserve(key=f"r/{n}", portfolio=PORTFOLIO, tags=TAGS, signal_score=SCORE, ttl_seconds=TTL_SECONDS)
        )
        decide(Release(key=f"x/{n}", position_id=str(held.position_id)))
    return changes_left


class _RecordingStore:
    """A store that records changes instead of writing them."""

    def __init__(self, store: WriteStore, changes_left: list[PortfolioChanges]) -> None:
        self._store = store
        self._recorded = changes_left
        self.clock_us, self.begin, self.rollback = store.clock_us, store.begin, store.rollback
        self.reset, self.classify_error, self.close = store.reset, store.classify_error, store.close

    def write(self, changes: Any, *, locked: bool) -> None:
        self._recorded += changes
        if locked:
            self._store.rollback()


@contextmanager
def _store(database: Database) -> Iterator[WriteStore]:
    from ledger_sizer.storage.database import make_engine
    from ledger_sizer.storage.postgresql import PostgresStore
    from ledger_sizer.storage.sqlite import SqliteStore

    settings = bench_settings().ledger
    engine = make_engine(database.url, settings)
    store: WriteStore = (
        SqliteStore(engine) if database.engine == "sqlite"
        else PostgresStore(engine, lock_timeout_seconds=settings.busy_timeout_seconds)
    )  # fmt: skip
    with closing(store):
        yield store
    engine.dispose()


ROWS = RowsForm()
