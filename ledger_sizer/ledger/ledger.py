"""The public `Ledger`: embedded in a bot, behind the command line, behind HTTP.

    with Ledger.open("sqlite:///ledger.db") as ledger:
        decision = ledger.reserve(key="cycle-17/BTC", portfolio="main", signal_score=Decimal("0.9"))

Writes go through one writer with group commit. Reads have their own connections and never wait for it.
"""

import asyncio
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from sqlalchemy import Engine

from ledger_sizer.config import AppSettings
from ledger_sizer.exchanges.instrument_cache import InstrumentResolver
from ledger_sizer.history.archive_files import archive_files_from
from ledger_sizer.history.archiver import ARCHIVE_FOLDER, ArchiveReport, archive, require_outside_key_window
from ledger_sizer.history.as_of import AsOf
from ledger_sizer.ledger.committer import Committer, Observe
from ledger_sizer.ledger.groups import all_answers, group_of, group_of_one, only_decision
from ledger_sizer.ledger.sweep import sweep_in_slices
from ledger_sizer.ledger.writer import Writer
from ledger_sizer.model.choices import ExportForm
from ledger_sizer.model.commands import AnyCommand, Reserve
from ledger_sizer.model.decisions import Decision, Result
from ledger_sizer.model.domain import Exposure, ExposurePage, HistoryFilters, Page, Position, VerifyReport
from ledger_sizer.model.errors import Closed, Unavailable
from ledger_sizer.model.overview import Overview, OverviewQuery
from ledger_sizer.model.times import from_us, to_us
from ledger_sizer.rules.batch import Group, decide_batch
from ledger_sizer.rules.explain import Explanation, explain
from ledger_sizer.rules.policy import Policy
from ledger_sizer.storage.clock import ClockGuard, ClockJump, ClockJumped, read_clock, warn_if_behind
from ledger_sizer.storage.database import is_sqlite, make_engine, prepare_sqlite, require_head
from ledger_sizer.storage.leases import probe_write
from ledger_sizer.storage.write_store import WriteStore
from ledger_sizer.telemetry import get_logger
from ledger_sizer.verbs.hold import AsyncHold, HoldMethod, hold_async
from ledger_sizer.verbs.methods import AsyncVerbs, Verbs
from ledger_sizer.verbs.submission import commands_of
from ledger_sizer.verify.chain import Head, Heads, Progress, heads_of, verify
from ledger_sizer.views.exposure_series import BlockExtremes
from ledger_sizer.views.overview_query import read_overview
from ledger_sizer.views.queries import Queries
from ledger_sizer.wire.export import export_lines

log = get_logger(__name__)

T = TypeVar("T")
Clock = Callable[[], datetime]

_JUMP_STANDS_SECONDS = 60
"""A jump of the clock that stood this long does not end by itself. A restart mends it, which trusts the new time."""


def _open_store(engine: Engine, settings: AppSettings, guard: ClockGuard) -> WriteStore:
    if is_sqlite(engine.url):
        from ledger_sizer.storage.sqlite import SqliteStore

        return SqliteStore(engine, guard)
    from ledger_sizer.storage.postgresql import PostgresStore

    return PostgresStore(engine, guard, lock_timeout_seconds=settings.ledger.busy_timeout_seconds)


class Ledger(Verbs, AsyncVerbs, HoldMethod):
    """One open ledger. Safe to share between threads and event loops; not across a fork.

    Every verb returns a recorded `Decision` after its commit, or raises a `LedgerError`. The same `key` with the same
    request returns the same decision again (`replayed`), also a denial, also after a restart.
    """

    def __init__(
        self, url: str, settings: AppSettings, clock: Clock | None, *, guard: ClockGuard | None = None
    ) -> None:
        """Use `Ledger.open`. guard: replaced by tests, which set both clocks that it compares."""
        self.created = False
        """Whether `open` created the SQLite file."""
        self.settings = settings
        self._clock = clock
        self._guard = guard or ClockGuard(settings.ledger.clock_jump_seconds)
        self._policy = Policy.of(settings)
        self._block_extremes = BlockExtremes()
        self._write_engine = make_engine(url, settings.ledger)
        self._read_engine = make_engine(url, settings.ledger, read_only=True)
        self._store = _open_store(self._write_engine, settings, self._guard)
        self._files = archive_files_from(settings)
        self._queries = Queries(self._read_engine, self._files)
        self._resolver = InstrumentResolver(self._read_engine)
        self._committer = Committer(
            self._store,
            self._policy,
            self._now_us,
            retries_max=settings.ledger.retries_max,
            retry_seconds_max=2 * settings.ledger.server_timeout_seconds,
        )
        self._writer = Writer(
            self._committer,
            batch_size_max=settings.ledger.batch_size_max,
            queue_size_max=settings.ledger.queue_size_max,
            name="ledger-writer",
            on_stop=self._store.close,
        )
        self._probe_name = f"probe of writes {secrets.token_hex(8)}"
        self._closed = False

    @classmethod
    def open(cls, url: str | None = None, *, settings: AppSettings | None = None, clock: Clock | None = None) -> Self:
        """Open a ledger.

        url: `sqlite:///FILE` or `postgresql://user@host/name`; the settings' `database_url` when None. A SQLite file
        is migrated as needed, and created as `LEDGER_CREATE` says: by default where no ledger was before. An outdated
        PostgreSQL schema is refused with the command to run.
        settings: read from the environment when None. clock: returns an aware UTC datetime; None takes this machine's
        clock for SQLite, and for PostgreSQL the server's clock, which all hosts share.
        Raises `InvalidRequest`, `NotFound` (`LedgerMissing`: the SQLite file is gone), `SchemaOutdated`, `Unavailable`.
        """
        settings = settings or AppSettings()
        url = settings.ledger.database_url if url is None else url
        engine = make_engine(url, settings.ledger, read_only=True)
        try:
            created = is_sqlite(engine.url) and prepare_sqlite(engine, settings.ledger.create)
            require_head(engine)
        finally:
            engine.dispose()
        ledger = cls(url, settings, clock)
        ledger.created = created
        if clock is None:
            with suppress(Unavailable):  # the first command says so
                warn_if_behind(ledger._queries.newest_us(), ledger._read_clock())
        return ledger

    def run(self, command: AnyCommand) -> Decision:
        """Run one command object. The verbs build their command and call this."""
        command = self._resolver.resolve(command)
        if type(command) is Reserve and command.dry_run:
            return self._dry_run(command)
        return only_decision(self._writer.answer(group_of_one(command)))

    async def run_async(self, command: AnyCommand) -> Decision:
        """Async `run`. Cancelling the caller does not undo the command; a retry with its key returns the outcome."""
        command = await self._off_loop((command,), lambda: self._resolver.resolve(command))
        if type(command) is Reserve and command.dry_run:
            return await asyncio.to_thread(self._dry_run, command)
        return only_decision(await self._writer.submit_async(group_of_one(command)))

    def submit(self, commands: Iterable[AnyCommand], *, atomic: bool = False) -> list[Result]:
        """Run the commands of any iterable at once. Return their answers, in the same order and number.

        Independent (the default): each answer is the command's `Decision` or `LedgerError` (an error's `granted` is
        False). atomic: all take effect or none; if one is denied all are, and an error is raised with nothing recorded.
        """
        resolved, wrong = self._resolver.resolve_all(commands_of(commands), atomic)
        group = group_of(resolved, atomic=atomic)
        return all_answers(self._writer.answer(group) if group.commands else [], wrong, atomic=atomic)

    async def submit_async(self, commands: Iterable[AnyCommand], *, atomic: bool = False) -> list[Result]:
        """Async `submit`."""
        asked = commands_of(commands)
        resolved, wrong = await self._off_loop(asked, lambda: self._resolver.resolve_all(asked, atomic))
        group = group_of(resolved, atomic=atomic)
        return all_answers(await self._writer.submit_async(group) if group.commands else [], wrong, atomic=atomic)

    def hold_async(self, **request: Any) -> AbstractAsyncContextManager[AsyncHold]:
        """`hold`, for `async with`."""
        return hold_async(self, lambda name: asyncio.to_thread(self.position, name), request)

    def sweep(self, portfolio: str | None = None) -> int:
        """Expire the overdue holds of one portfolio, or of all. Return how many were freed.

        Every write batch frees a bounded number in its portfolios. A sweep frees all, also where nobody writes.
        """
        return sum(self.sweep_in_slices(portfolio))

    def sweep_in_slices(self, portfolio: str | None = None) -> Iterator[int]:
        """Do what `sweep` does step by step: yield after each commit how many holds it freed. Stop when you like."""
        if portfolio is not None:
            self._reads.require(portfolio)
        names = self._reads.portfolios_with_expired(self._read_clock()) if portfolio is None else [portfolio]
        yield from sweep_in_slices(names, lambda name: len(self._writer.answer(Group((), sweep=name))))

    @property
    def _reads(self) -> Queries:
        if self._closed:
            raise Closed("the ledger is closed; open it again")
        self._writer.require_own_process()  # two processes must not read from the parent's connections
        return self._queries

    # Reads: each has its own connection and one consistent snapshot.

    def portfolios(self) -> list[str]:
        """Names of all portfolios."""
        return self._reads.portfolios()

    def exposure(self, portfolio: str = "main", as_of: AsOf | None = None) -> Exposure:
        """Return cap, held, open, headroom and status of a portfolio and each of its scopes, or raise `NotFound`.

        as_of: a seq or an aware datetime; the exposure is then summed over all decisions up to it, each read once.
        """
        return self._reads.exposure(portfolio, as_of)

    def exposure_page(self, portfolio: str = "main", **filters: Any) -> ExposurePage:
        """Return the whole and a page of the other scopes, where a portfolio has very many.

        Filters: as_of=, dimension=, cursor=, limit= (see `Queries.exposure_page`).
        """
        return self._reads.exposure_page(portfolio, **filters)

    def position(self, position_id: str) -> Position:
        """Return one position by its name. Raise `NotFound`."""
        return self._reads.position(position_id)

    def positions(self, portfolio: str | None = None, **filters: Any) -> Page[Position]:
        """Return positions, oldest first. Filters: state=, tags=, cursor=, limit= (see `Queries.positions`)."""
        return self._reads.positions(portfolio, **filters)

    def history(
        self, portfolio: str = "main", *, cursor: str | None = None, limit: int = 100, **filters: Unpack[HistoryFilters]
    ) -> Page[Decision]:
        """Return decisions of a portfolio, newest first unless `ascending`; filters: see `HistoryFilters`.

        cursor: of the previous page; it stays valid while decisions are added or archived. limit: 1 to 1000.
        """
        return self._reads.history(portfolio, cursor=cursor, limit=limit, **filters)

    def export(
        self,
        portfolio: str = "main",
        form: ExportForm = "ndjson",
        *,
        full: bool = True,
        cursor: str | None = None,
        **filters: Unpack[HistoryFilters],
    ) -> Iterator[bytes]:
        """Return what `history` pages through from the cursor on, as CSV or NDJSON, in parts and constant memory.

        full: include every hashed field, so that a reader of the export can recompute the chain.
        """
        lines = export_lines(form, full=full)
        return map(lines, self._reads.history_blocks(portfolio, cursor=cursor, **filters))

    def decision(self, seq: int, portfolio: str = "main") -> Decision:
        """Return one decision by its seq in the portfolio's chain. Raise `NotFound`."""
        return self._reads.decision(portfolio, seq)

    def overview(self, look: OverviewQuery | None = None) -> Overview:
        """Return one snapshot of the ledger: all portfolios, and one of them in full."""
        return read_overview(self._reads.engine, look or OverviewQuery(), self._now_us(), self._block_extremes)

    def explain(self, reference: int | str, portfolio: str = "main") -> Explanation:
        """Explain a decision, given its seq (in `portfolio`) or the position_id of the position it created."""
        return explain(self._reads.resolve(reference, portfolio))

    def heads(self, portfolio: str | None = None) -> dict[str, tuple[int, str]]:
        """Return the chain heads: (seq, hash) by portfolio. Copies outside the database reveal a later rewrite."""
        return heads_of(self._reads.engine, portfolio)

    def verify(
        self,
        portfolio: str | None = None,
        progress: Progress | None = None,
        *,
        since: Heads | None = None,
        kept: Mapping[str, Collection[Head]] | None = None,
    ) -> VerifyReport:
        """Check the audit chain from its start and recompute every counter from the position rows.

        Reads one snapshot and the archive files. progress: called now and then with (decisions done, decisions in
        all). since: trusted heads (from `heads`) to start at; each must still be in its chain. kept: more trusted
        heads, by portfolio, which must be in it too.
        """
        return verify(self._reads.engine, portfolio, progress, since=since, kept=kept, files=self._files)

    def archive(
        self, before: datetime, folder: str | Path | None = None, portfolio: str | None = None
    ) -> ArchiveReport:
        """Move closed history older than `before` into files, and out of the live tables.

        before: an aware datetime, outside the window of `LEDGER_KEY_WINDOW_DAYS` in which keys are still answered.
        folder: for the files; the settings' `archive_dir` when None. Archived history stays readable and verifiable.
        Raises `InvalidRequest`, `Busy` while another archiver runs, `Unavailable`.
        """
        now = from_us(self._read_clock())
        settings = self.settings.ledger
        before = require_outside_key_window(before, now, settings.key_window_days)
        if portfolio is not None:
            self._reads.require(portfolio)
        target = Path(folder or settings.archive_dir or ARCHIVE_FOLDER)
        return archive(self._reads.engine, self._write_engine, before, now, target, portfolio)

    # Lifecycle.

    @property
    def observe(self) -> Observe | None:
        """Callback after every committed batch; set it before the ledger is used."""
        return self._committer.observe

    @observe.setter
    def observe(self, observe: Observe | None) -> None:
        self._committer.observe = observe

    @property
    def writes_failed(self) -> bool:
        """Whether the database failed the last write, or leaves it waiting. `probe_writes` tells how it is now."""
        return self._committer.writes_failed

    def probe_writes(self) -> None:
        """Commit a small write of no meaning; where it works, `writes_failed` ends. Raises `Unavailable`."""
        self._writer.require_own_process()
        probe_write(self._write_engine, self._probe_name)
        self._committer.forget_failure()

    @property
    def pending(self) -> int:
        """Commands accepted and not yet answered."""
        return self._writer.pending

    @property
    def restart_reasons(self) -> dict[str, str]:
        """What keeps this process from answering until it is restarted, by the part concerned; empty while it works."""
        reasons = {}
        if not self._writer.alive and not self._closed:
            reasons["writer"] = "the writer's thread has ended"
        seconds, seconds_max = self._committer.attempt_seconds, 6 * self.settings.ledger.server_timeout_seconds
        if seconds > seconds_max:
            reasons["writer"] = f"one commit has taken {seconds:.0f} s; it should end within {seconds_max} s"
        jump = self.clock_jump
        if jump is not None and jump.stood_seconds >= _JUMP_STANDS_SECONDS:
            reasons["clock"] = str(jump)
        return reasons

    @property
    def clock_jump(self) -> ClockJump | None:
        """The jump of the clock for which nothing is decided; None while the clock is right. Reads no clock."""
        return self._guard.jump

    def clock_problem(self) -> str | None:
        """Read the clock; return what is wrong with it in words, None if nothing is. Raises `Unavailable`, `Closed`."""
        try:
            self._read_clock()
        except ClockJumped as error:
            return str(error)
        return None

    def close(self) -> None:
        """Stop accepting, answer everything accepted, close the connections. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._committer.closing = True
        if not self._writer.close(self.settings.ledger.close_timeout_seconds):
            log.error("ledger.close_timeout", pending=self._writer.pending)
        # In a forked child the sockets belong to the parent: drop them without ending its sessions.
        own = self._writer.own_process
        self._write_engine.dispose(close=own)
        self._read_engine.dispose(close=own)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def _read_clock(self) -> int:
        """Return the present time in microseconds. Raises `ClockJumped`."""
        now_us = self._now_us()
        return read_clock(self._reads.engine, self._guard) if now_us is None else now_us

    def _now_us(self) -> int | None:
        return None if self._clock is None else to_us(self._clock())

    async def _off_loop(self, commands: Sequence[AnyCommand], resolve: Callable[[], T]) -> T:
        """Call `resolve`, in a thread where it has to read the database for the commands' instruments."""
        if all(self._resolver.is_cached(command) for command in commands):
            return resolve()
        return await asyncio.to_thread(resolve)

    def _dry_run(self, command: Reserve) -> Decision:
        """Decide on the present state without a lock, a hold or a record."""
        state, now_us = self._reads.dry_run_state(command, self._read_clock(), self._policy.new_portfolio_cap_e8)
        decision = only_decision(decide_batch({state.name: state}, [Group((command,))], now_us, self._policy)[0])
        return decision.as_dry_run()
