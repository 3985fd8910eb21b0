"""Runs inspections in a process of its own, so that reservations do not wait while a run reads and compares.

    python -m ledger_sizer.reconcile.worker_process DESCRIPTOR

The service starts this process and talks to it through a pair of connected sockets: settings and requests go in,
responses come out. Secrets pass through them and nowhere else. The process reads the exchange and the database, writes
nothing, and has low priority. It exits when the service's end of the pair closes, however the service ended.
"""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ledger_sizer.config import AppSettings, ExchangeSettings
from ledger_sizer.exchanges.accounts import open_accounts
from ledger_sizer.exchanges.requirements import require_usable
from ledger_sizer.model.account_activity import Activity
from ledger_sizer.model.errors import Closed, LedgerError, Unavailable
from ledger_sizer.model.exchange_account import ExchangeAccountSettings
from ledger_sizer.model.instruments import MarketRules
from ledger_sizer.reconcile.inspection import Inspection, InspectionFailed, InspectionRequest, LocalInspector
from ledger_sizer.storage.database import make_engine
from ledger_sizer.telemetry import configure_logging, get_logger

log = get_logger(__name__)

OpenAccounts = Callable[[ExchangeSettings], Sequence[Any]]

_NICENESS = 19
_INSTRUMENTS_SECONDS_MAX = 300.0
_ACTIVITY_SECONDS_MAX = 60.0
_EXIT_SECONDS_MAX = 2.0
_THREADS = 8


class WorkerInspector:
    """Inspector that works in a process of its own. It starts with the first request, and again after a failure.

    url: of the ledger's database. open_accounts: picklable function that opens the accounts in that process.
    Raises `InvalidRequest` for an account that cannot be read with its settings.
    """

    def __init__(self, url: str, settings: AppSettings, open_accounts: OpenAccounts = open_accounts) -> None:
        accounts = settings.exchange.every()
        for account in accounts:
            require_usable(account)
        self.accounts = tuple(WorkerAccount(self, account) for account in accounts)
        self._startup = (open_accounts, url, settings)
        self._lock = threading.Lock()
        self._process: _WorkerProcess | None = None
        self._closed = False

    def inspect(self, request: InspectionRequest, seconds_max: float) -> Inspection:
        """See `Inspector`. A process that does not respond in time is killed."""
        inspection: Inspection = self.call("inspect", request, seconds_max=seconds_max)
        return inspection

    def call(self, name: str, *arguments: object, seconds_max: float, kill_late: bool = True) -> Any:
        """Send a request and wait for its result. kill_late: whether the process ends when it does not respond in time.

        Raises `InspectionFailed`, `Closed`, or the `LedgerError` that the process raised.
        """
        process = self._running_process()
        try:
            return process.send(name, arguments).result(seconds_max)
        except TimeoutError:
            late = InspectionFailed(f"the process that looks at the exchange did not answer within {seconds_max:.0f} s")
            if kill_late:
                process.kill(late)
            raise late from None

    @property
    def process_id(self) -> int | None:
        """The id of the process; None if none runs."""
        process = self._process
        return None if process is None or process.ended else process.process_id

    def close(self) -> None:
        """Kill the process; calls that wait for it raise `Closed`. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            process = self._process
        if process is not None:
            process.kill(Closed("the reconciliation is closed"))

    def _running_process(self) -> "_WorkerProcess":
        with self._lock:
            if self._closed:
                raise Closed("the reconciliation is closed")
            if self._process is None or self._process.ended:
                self._process = _WorkerProcess(self._startup)
                log.info("reconcile.process_started", pid=self._process.process_id)
            return self._process


class WorkerAccount:
    """An account that the worker process reads: its identity, and its venue's market rules."""

    def __init__(self, inspector: WorkerInspector, settings: ExchangeAccountSettings) -> None:
        self._inspector = inspector
        self.venue = settings.id
        self.account = settings.account
        self.portfolio = settings.portfolio

    def instruments(self) -> list[MarketRules]:
        """See `ExchangeAccount.instruments`."""
        try:
            rules: list[MarketRules] = self._inspector.call(
                "instruments", self.venue, self.account, seconds_max=_INSTRUMENTS_SECONDS_MAX
            )
        except InspectionFailed as error:
            raise Unavailable(f"the market rules of {self.venue} were not loaded: {error}") from None
        return rules

    def activity(self, since_us: int, now_us: int, subject: str) -> Activity:
        """See `ExchangeAccount.activity`."""
        try:
            found: Activity = self._inspector.call(
                "activity", self.venue, self.account, since_us, now_us, subject,
                seconds_max=_ACTIVITY_SECONDS_MAX, kill_late=False,  # a run may be under way there
            )  # fmt: skip
        except InspectionFailed as error:
            return Activity(since_us, (), (f"nothing was read: {error}",))
        return found


class _WorkerProcess:
    """The worker process as its parent sees it. Any thread may send; one thread receives the responses."""

    def __init__(self, startup: object) -> None:
        self._channel, child_end = Pipe()
        with child_end:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(child_end.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[child_end.fileno()],
                start_new_session=True,  # Ctrl-C in a terminal must reach only the service, which ends this process
            )
        self.process_id = self._process.pid
        self._send_lock, self._lock = threading.Lock(), threading.Lock()
        self._numbers = itertools.count()
        self._pending: dict[int, Future[Any]] = {}
        self._end_error: Exception | None = None
        self._write(startup)
        self._reader = threading.Thread(target=self._read, name="reconcile-answers", daemon=True)
        self._reader.start()

    @property
    def ended(self) -> bool:
        """Whether it no longer responds."""
        return self._end_error is not None

    def send(self, name: str, arguments: tuple[object, ...]) -> "Future[Any]":
        """Send a request and return the future of its result."""
        future: Future[Any] = Future()
        number = next(self._numbers)
        with self._lock:
            if self._end_error is not None:
                raise self._end_error
            self._pending[number] = future
        self._write((number, name, arguments))
        return future

    def kill(self, error: Exception) -> None:
        """Kill the process; pending requests fail with `error`. It only reads, so nothing is left half done."""
        with self._lock:
            self._end_error = self._end_error or error
        self._process.kill()
        self._reader.join()

    def _write(self, message: object) -> None:
        try:
            with self._send_lock:
                self._channel.send(message)
        except OSError:
            log.debug("reconcile.process_gone", pid=self.process_id)  # the reader thread fails the pending requests

    def _read(self) -> None:
        try:
            while True:
                number, response = self._channel.recv()
                with self._lock:
                    future = self._pending.pop(number)
                if isinstance(response, Exception):
                    future.set_exception(response)
                else:
                    future.set_result(response)
        except (EOFError, OSError):
            self._reap()

    def _reap(self) -> None:
        """Wait for the process to exit, and fail the pending requests."""
        try:
            code = self._process.wait(_EXIT_SECONDS_MAX)
        except subprocess.TimeoutExpired:  # it closed its end of the pair, so it can do nothing any more
            self._process.kill()
            code = self._process.wait()
        self._channel.close()
        with self._lock:
            self._end_error = self._end_error or InspectionFailed(
                f"the process that looks at the exchange ended ({_exit_text(code)})"
            )
            pending, self._pending = self._pending, {}
        for future in pending.values():
            future.set_exception(self._end_error)


def _exit_text(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}; its log says why"


# --- the process itself ----------------------------------------------------------------------------


def main(descriptor: int) -> None:
    """Handle requests until the service's end of the pair closes."""
    # At a stop the whole process group may get these signals, but the service ends this process.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _lower_priority()
    channel = Connection(descriptor)
    open_all, url, settings = channel.recv()
    configure_logging(settings.log_level)
    accounts = open_all(settings.exchange)
    engine = make_engine(url, settings.ledger, read_only=True)
    handler = _RequestHandler(channel, LocalInspector(engine, accounts, settings), accounts)
    pool = ThreadPoolExecutor(_THREADS)
    while True:
        try:
            request = channel.recv()
        except (EOFError, OSError):
            os._exit(0)  # the service is gone; exit at once, even if a thread waits for a slow exchange
        pool.submit(handler.handle, *request)


def _lower_priority() -> None:
    """Take the lowest CPU priority."""
    os.nice(_NICENESS)
    # Linux may schedule by session first, and then niceness counts only inside a session. This process leads its own.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(f"{_NICENESS}\n")


class _RequestHandler:
    """Handles requests in the worker process, each in a thread."""

    def __init__(self, channel: Connection, inspector: LocalInspector, accounts: Sequence[Any]) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._inspector = inspector
        self._accounts = {(account.venue, account.account): account for account in reversed(accounts)}

    def handle(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        response: object
        try:
            response = self._result(name, arguments)
        except LedgerError as error:
            response = error
        except Exception as error:  # a defect must end in a failed run that names it, not in silence
            log.exception("reconcile.look_broke", question=name)
            response = InspectionFailed(f"the process that looks at the exchange met a defect: {error!r}; see the log")
        with self._lock:
            self._channel.send((number, response))

    def _result(self, name: str, arguments: tuple[Any, ...]) -> object:
        if name == "inspect":
            (request,) = arguments
            return self._inspector.inspect(request)
        venue, account, *rest = arguments
        if name == "activity":
            return self._accounts[venue, account].activity(*rest)
        return self._accounts[venue, account].instruments()


if __name__ == "__main__":
    main(int(sys.argv[1]))
