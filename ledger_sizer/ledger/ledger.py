"""The public `Ledger`: embedded in a bot, behind the command line, behind HTTP.

    with Ledger.open("sqlite:///ledger.db") as ledger:
        decision = ledger.reserve(key="cycle-17/BTC", portfolio="main", signal_score=Decimal("0.9"))

Writes go through one writer with group commit. Reads have their own connections and never wait for it.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import Engine

from ledger_sizer.config import AppSettings
from ledger_sizer.exchanges.instrument_names import InstrumentResolver
from ledger_sizer.history.archive_files import archive_files_from
from ledger_sizer.history.archiver import ARCHIVE_FOLDER, ArchiveReport, archive, require_outside_key_window
from ledger_sizer.ledger.async_reads import AsyncReads
from ledger_sizer.ledger.committer import Committer, Draft, Observe
from ledger_sizer.ledger.groups import all_answers, group_of, group_of_one, only_decision, prepared
from ledger_sizer.ledger.inline_writer import InlineWriter
from ledger_sizer.ledger.release_all import ReleaseAllMethods
from ledger_sizer.ledger.settle import SettleMethods
from ledger_sizer.ledger.sweep import sweep_in_slices
from ledger_sizer.ledger.writer import Writer
from ledger_sizer.model.caller import DEFAULT_CLIENT, Caller, caller_var, embedded_caller
from ledger_sizer.model.choices import OnUnknown
from ledger_sizer.model.commands import AnyCommand, Reserve
from ledger_sizer.model.decisions import Decision, Result
from ledger_sizer.model.errors import Closed, Unavailable
from ledger_sizer.model.times import from_us, to_us
from ledger_sizer.rules.batch import Group, decide_batch
from ledger_sizer.rules.guards import with_bound_tags
from ledger_sizer.rules.policy import Policy
from ledger_sizer.storage.clock import ClockGuard, ClockJump, ClockJumped, read_clock, warn_if_behind
from ledger_sizer.storage.database import is_sqlite, make_engine, prepare_sqlite, require_head
from ledger_sizer.storage.leases import probe_write
from ledger_sizer.storage.write_store import WriteStore
from ledger_sizer.telemetry import get_logger
from ledger_sizer.verbs.hold import AsyncHold, HoldMethod, hold_async
from ledger_sizer.verbs.methods import AsyncVerbs, Verbs
from ledger_sizer.verbs.submission import commands_of
from ledger_sizer.views.dry_run import dry_run_state
from ledger_sizer.views.exposure_series import BlockExtremes
from ledger_sizer.views.net import NetView
from ledger_sizer.views.queries import Queries

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


def _memory_store(guard: ClockGuard) -> tuple[WriteStore, Engine, Engine]:
    from ledger_sizer.storage.memory import MemoryStore

    store = MemoryStore(guard)
    return (store, *store.engines)


class Ledger(ReleaseAllMethods, SettleMethods, AsyncReads, Verbs, AsyncVerbs, HoldMethod):
    """One open ledger. Safe to share between threads and event loops; not across a fork.

    Every verb returns a recorded `Decision` after its commit, or raises a `LedgerError`. The same `key` with the same
    request returns the same decision again (`replayed`), also a denial, also after a restart. Every verb and every read
    has an awaitable form: `reserve_async`, `exposure_async`.
    """

    def __init__(
        self, url: str | None, settings: AppSettings, clock: Clock | None, *, guard: ClockGuard | None = None
    ) -> None:
        """Use `Ledger.open` or, for None as url, `Ledger.in_memory`. guard: tests set both clocks that it compares."""
        self.created = False
        """Whether `open` created the SQLite file."""
        self.settings = settings
        self.opened_by = embedded_caller(settings.ledger.client or DEFAULT_CLIENT)
        """The caller where no request is being served (see `caller`)."""
        self._clock = clock
        self._guard = guard or ClockGuard(settings.ledger.clock_jump_seconds)
        self._policy = Policy.of(settings)
        self._block_extremes = BlockExtremes()
        self._store: WriteStore
        if url is None:
            self._store, self._write_engine, self._read_engine = _memory_store(self._guard)
        else:
            self._write_engine = make_engine(url, settings.ledger)
            self._read_engine = make_engine(url, settings.ledger, read_only=True)
            self._store = _open_store(self._write_engine, settings, self._guard)
        declared = self._policy.declared
        self._net_view = NetView(self._read_engine, settings.trading.delta_drift_tolerance, declared=declared)
        self._files = archive_files_from(settings)
        new_cap_e8 = None if declared else self._policy.new_portfolio_cap_e8
        self._queries = Queries(self._read_engine, self._files, new_cap_e8)
        self._resolver = InstrumentResolver(self._read_engine)
        self._committer = Committer(
            self._store,
            self._policy,
            self._now_us,
            retries_max=settings.ledger.retries_max,
            retry_seconds_max=2 * settings.ledger.server_timeout_seconds,
            denial_repeat_seconds=settings.ledger.denial_repeat_seconds,
        )
        self._writer: Writer[Draft] | InlineWriter
        if url is None:
            self._writer = InlineWriter(self._committer, on_stop=self._store.close)
        else:
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
    def open(
        cls,
        url: str | None = None,
        *,
        client: str | None = None,
        settings: AppSettings | None = None,
        clock: Clock | None = None,
    ) -> Self:
        """Open a ledger.

        url: `sqlite:///FILE` or `postgresql://user@host/name`; the settings' `database_url` when None. A SQLite file
        is migrated as needed, and created as `LEDGER_CREATE` says: by default where no ledger was before. An outdated
        PostgreSQL schema is refused with the command to run.
        client: name of the program, such as `bot-a`: its idempotency keys are its own, and decisions name it; the
        settings' `client` when None.
        settings: read from the environment when None. clock: returns an aware UTC datetime; None takes this machine's
        clock for SQLite, and for PostgreSQL the server's clock, which all hosts share.
        Raises `InvalidRequest`, `NotFound` (`LedgerMissing`: the SQLite file is gone), `SchemaOutdated`, `Unavailable`.
        """
        settings = settings or AppSettings()
        opened_by = None if client is None else embedded_caller(client)
        url = settings.ledger.database_url if url is None else url
        engine = make_engine(url, settings.ledger, read_only=True)
        try:
            own = settings.ledger
            created = is_sqlite(engine.url) and prepare_sqlite(engine, own.create, settings=own)
            require_head(engine)
        finally:
            engine.dispose()
        ledger = cls(url, settings, clock)
        ledger.created = created
        ledger.opened_by = opened_by or ledger.opened_by
        if clock is None:
            with suppress(Unavailable):  # the first command says so
                warn_if_behind(ledger._queries.newest_us(), ledger._read_clock())
        return ledger

    @classmethod
    def in_memory(
        cls, *, clock: Clock | None = None, settings: AppSettings | None = None, client: str | None = None
    ) -> Self:
        """Open an empty ledger in this process's memory, for backtests. Same rules, same decisions, same hashes.

        It ends with `close` or with the process; a forked process cannot use it. Threads may share it. Nothing is
        archived. The arguments are those of `open`. Raises `InvalidRequest`.
        """
        opened_by = None if client is None else embedded_caller(client)
        ledger = cls(None, settings or AppSettings(), clock)
        ledger.created = True
        ledger.opened_by = opened_by or ledger.opened_by
        return ledger

    def run(self, command: AnyCommand) -> Decision:
        """Run one command object. The verbs build their command and call this."""
        caller = self.caller
        command = self._prepared(command, caller)
        if type(command) is Reserve and command.dry_run:
            return self._dry_run(command)
        return only_decision(self._writer.answer(group_of_one(command, caller)))

    async def run_async(self, command: AnyCommand) -> Decision:
        """Async `run`. Cancelling the caller does not undo the command; a retry with its key returns the outcome."""
        command = await self._off_loop((command,), lambda: self._prepared(command))
        if type(command) is Reserve and command.dry_run:
            return await asyncio.to_thread(self._dry_run, command)
        return only_decision(await self._writer.submit_async(group_of_one(command, self.caller)))

    def submit(self, commands: Iterable[AnyCommand], *, atomic: bool = False) -> list[Result]:
        """Run the commands of any iterable at once. Return their answers, in the same order and number.

        Independent (the default): each answer is the command's `Decision` or `LedgerError` (an error's `granted` is
        False). atomic: all take effect or none, of at most 1,000; if one is denied all are, and an error is raised with
        nothing recorded. A key that was answered before keeps its answer: a grant may stand beside the denials.
        """
        fit, wrong = prepared(commands_of(commands, atomic=atomic), self._prepared, atomic=atomic)
        group = group_of(fit, self.caller, atomic=atomic)
        return all_answers(self._writer.answer(group) if group.commands else [], wrong, atomic=atomic)

    async def submit_async(self, commands: Iterable[AnyCommand], *, atomic: bool = False) -> list[Result]:
        """Async `submit`."""
        asked = commands_of(commands, atomic=atomic)
        fit, wrong = await self._off_loop(asked, lambda: prepared(asked, self._prepared, atomic=atomic))
        group = group_of(fit, self.caller, atomic=atomic)
        return all_answers(await self._writer.submit_async(group) if group.commands else [], wrong, atomic=atomic)

    def hold_async(self, *, on_unknown: OnUnknown = "keep", **request: Any) -> AbstractAsyncContextManager[AsyncHold]:
        """`hold`, for `async with`."""
        return hold_async(self, self.position_async, on_unknown, request)

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
    def caller(self) -> Caller:
        """Who uses the ledger now: the caller of the request that is being served, else who opened it."""
        return caller_var.get() or self.opened_by

    @property
    def _reads(self) -> Queries:
        if self._closed:
            raise Closed("the ledger is closed; open it again")
        self._writer.require_own_process()  # two processes must not read from the parent's connections
        return self._queries

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
    def denials_repeated(self) -> int:
        """Commands that got a denial which was recorded before (see `rules.repeats`), since the ledger was opened."""
        return self._committer.denials_repeated

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

    def _prepared(self, command: AnyCommand, caller: Caller | None = None) -> AnyCommand:
        """Return the command as it is decided: rules in place of names, tags that the caller is bound to filled in."""
        return with_bound_tags(self._resolver.resolve(command), caller or self.caller)

    async def _off_loop(self, commands: Sequence[AnyCommand], resolve: Callable[[], T]) -> T:
        """Call `resolve`, in a thread where it has to read the database for the commands' instruments."""
        if all(self._resolver.is_cached(command) for command in commands):
            return resolve()
        return await asyncio.to_thread(resolve)

    def _dry_run(self, command: Reserve) -> Decision:
        """Decide on the present state without a lock, a hold or a record."""
        now_us = self._read_clock()
        state = dry_run_state(self._reads.engine, command, now_us, self._policy.new_portfolio_cap_e8)
        decision = only_decision(
            decide_batch({state.name: state}, [group_of_one(command, self.caller)], now_us, self._policy)[0]
        )
        return decision.as_dry_run()
