"""Looking in a process of its own, so that reservations do not wait while a run reads and compares.

    python -m ledger_sizer.reconcile.worker_process DESCRIPTOR

The service starts this process by itself and talks to it through a pair of sockets: settings and questions go down,
answers come up. Secrets pass there and nowhere else. The process reads the exchange and the database and writes
nothing; its priority is low. It ends when the service's end of the pair closes, however the service ended.
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

from ledger_sizer.config import AppSettings, ExchangeAccountSettings, ExchangeSettings
from ledger_sizer.exchanges.accounts import open_accounts
from ledger_sizer.exchanges.client import require_known
from ledger_sizer.model.errors import Closed, LedgerError, Unavailable
from ledger_sizer.model.instruments import MarketRules
from ledger_sizer.reconcile.inspection import Inspection, InspectionFailed, InspectionRequest, LocalInspector
from ledger_sizer.storage.database import make_engine
from ledger_sizer.telemetry import configure_logging, get_logger

log = get_logger(__name__)

OpenAccounts = Callable[[ExchangeSettings], Sequence[Any]]

_NICENESS = 19
_INSTRUMENTS_SECONDS_MAX = 300.0
_LEAVE_SECONDS_MAX = 2.0
_THREADS = 8


class WorkerInspector:
    """Looks in a process of its own (see `look.Look`), which starts with the first question and after a failure anew.

    url: of the ledger's database. open_accounts: how that process opens the accounts, by a function it can import.
    Raises `InvalidRequest` for an exchange that ccxt does not know.
    """

    def __init__(self, url: str, settings: AppSettings, open_accounts: OpenAccounts = open_accounts) -> None:
        known = settings.exchange.every()
        for account in known:
            require_known(account.id)
        self.accounts = tuple(WorkerAccount(self, account) for account in known)
        self._first = (open_accounts, url, settings)
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._closed = False

    def look(self, asked: InspectionRequest, seconds_max: float) -> Inspection:
        """See `Look`. A process that does not answer in time is ended."""
        seen: Inspection = self.ask("look", asked, seconds_max=seconds_max)
        return seen

    def ask(self, name: str, *arguments: object, seconds_max: float) -> Any:
        """The answer to one question. Raises `InspectionFailed`, `Closed` and the `LedgerError` the process met."""
        child = self._running()
        try:
            return child.ask(name, arguments).result(seconds_max)
        except TimeoutError:
            late = InspectionFailed(f"the process that looks at the exchange did not answer within {seconds_max:.0f} s")
            child.end(late)
            raise late from None

    @property
    def process_id(self) -> int | None:
        """Of the process, where one runs."""
        child = self._child
        return None if child is None or child.ended else child.process_id

    def close(self) -> None:
        """End the process; whoever waits for it gets `Closed`. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            child = self._child
        if child is not None:
            child.end(Closed("the reconciliation is closed"))

    def _running(self) -> "_Child":
        with self._lock:
            if self._closed:
                raise Closed("the reconciliation is closed")
            if self._child is None or self._child.ended:
                self._child = _Child(self._first)
                log.info("reconcile.process_started", pid=self._child.process_id)
            return self._child


class WorkerAccount:
    """The name of an account that the other process reads, and the market rules it brings."""

    def __init__(self, apart: WorkerInspector, settings: ExchangeAccountSettings) -> None:
        self._apart = apart
        self.venue = settings.id
        self.account = settings.account
        self.portfolio = settings.portfolio

    def instruments(self) -> list[MarketRules]:
        """See `ExchangeAccount.instruments`."""
        try:
            rules: list[MarketRules] = self._apart.ask(
                "instruments", self.venue, self.account, seconds_max=_INSTRUMENTS_SECONDS_MAX
            )
        except InspectionFailed as error:
            raise Unavailable(f"the market rules of {self.venue} were not loaded: {error}") from None
        return rules


class _Child:
    """The process, from the side of its parent. Any thread may ask; one thread takes the answers in."""

    def __init__(self, first: object) -> None:
        self._channel, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C in a terminal is the service's; it ends this process itself
            )
        self.process_id = self._process.pid
        self._sending, self._lock = threading.Lock(), threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[Any]] = {}
        self._why: Exception | None = None
        self._send(first)
        self._reader = threading.Thread(target=self._read, name="reconcile-answers", daemon=True)
        self._reader.start()

    @property
    def ended(self) -> bool:
        """Whether it answers no more."""
        return self._why is not None

    def ask(self, name: str, arguments: tuple[object, ...]) -> "Future[Any]":
        """Ask without waiting."""
        future: Future[Any] = Future()
        number = next(self._numbers)
        with self._lock:
            if self._why is not None:
                raise self._why
            self._waiting[number] = future
        self._send((number, name, arguments))
        return future

    def end(self, why: Exception) -> None:
        """End the process, by its own id, and tell those who wait why. It only reads, so nothing is left half done."""
        with self._lock:
            self._why = self._why or why
        self._process.kill()
        self._reader.join()

    def _send(self, message: object) -> None:
        try:
            with self._sending:
                self._channel.send(message)
        except OSError:
            log.debug("reconcile.process_gone", pid=self.process_id)  # the reader tells everybody who waits

    def _read(self) -> None:
        try:
            while True:
                number, answer = self._channel.recv()
                with self._lock:
                    future = self._waiting.pop(number)
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        except (EOFError, OSError):
            self._bury()

    def _bury(self) -> None:
        try:
            code = self._process.wait(_LEAVE_SECONDS_MAX)
        except subprocess.TimeoutExpired:  # it closed its end, so it is of no more use
            self._process.kill()
            code = self._process.wait()
        self._channel.close()
        with self._lock:
            self._why = self._why or InspectionFailed(f"the process that looks at the exchange ended ({_ending(code)})")
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(self._why)


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}; its log says why"


# --- the process itself ----------------------------------------------------------------------------


def main(descriptor: int) -> None:
    """Answer questions until the service's end of the pair closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to a whole group at a stop; the service ends this process
    _step_back()
    channel = Connection(descriptor)
    accounts_of, url, settings = channel.recv()
    configure_logging(settings.log_level)
    accounts = accounts_of(settings.exchange)
    engine = make_engine(url, settings.ledger, read_only=True)
    answers = _Answers(channel, LocalInspector(engine, accounts, settings), accounts)
    pool = ThreadPoolExecutor(_THREADS)
    while True:
        try:
            question = channel.recv()
        except (EOFError, OSError):
            os._exit(0)  # nobody is left to hear an answer: an exchange that is slow must not keep this process
        pool.submit(answers.give, *question)


def _step_back() -> None:
    """Take the lowest priority."""
    os.nice(_NICENESS)
    # Linux may share out the processors by session first, and this process leads one: its own priority counts inside.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(f"{_NICENESS}\n")


class _Answers:
    def __init__(self, channel: Connection, here: LocalInspector, accounts: Sequence[Any]) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._here = here
        self._accounts = {(account.venue, account.account): account for account in reversed(accounts)}

    def give(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        answer: object
        try:
            answer = self._answer(name, arguments)
        except LedgerError as error:
            answer = error
        except Exception as error:  # a defect must end in a run that says so, not in silence
            log.exception("reconcile.look_broke", question=name)
            answer = InspectionFailed(f"the process that looks at the exchange met a defect: {error!r}; see the log")
        with self._lock:
            self._channel.send((number, answer))

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> object:
        if name == "look":
            (asked,) = arguments
            return self._here.look(asked)
        venue, account = arguments
        return self._accounts[venue, account].instruments()


if __name__ == "__main__":
    main(int(sys.argv[1]))
