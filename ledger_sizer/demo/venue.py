"""The exchange of the demonstration: a paper venue, the bot that trades there, and somebody who meddles with it.

Left out where ccxt is not installed.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

from ledger_sizer.client import LedgerClient
from ledger_sizer.demo.bots import PORTFOLIO
from ledger_sizer.demo.processes import READY_SECONDS_MAX, Process
from ledger_sizer.demo.trader import NAME, VENUE
from ledger_sizer.errors import LedgerError, Unavailable
from ledger_sizer.paper import PaperControl
from ledger_sizer.paper.control import DEFAULT_KEY, DEFAULT_SECRET

CONFIRMATIONS = 2
FIND_SECONDS_MAX = 45.0
_REST_SECONDS = 1.5
_AT = re.compile(r" at (http://\S+)")


@dataclass(frozen=True, slots=True)
class Meddling:
    """Something that somebody does at the exchange behind the ledger's back. kind, subject: of the drift it makes."""

    what: str
    kind: str
    subject: str
    do: Callable[[PaperControl], None]
    undo: Callable[[PaperControl], None]


MEDDLING = (
    Meddling(
        "0.1 ETH bought by hand", "unknown_position", "ETH/USDT:USDT",
        lambda venue: venue.open("ETH/USDT:USDT", "long", Decimal("0.1")),
        lambda venue: venue.close("ETH/USDT:USDT"),
    ),
    Meddling(
        "the exchange answers without its rows", "fetch_failed", "account",
        lambda venue: venue.fault("hollow", "position", times=None),
        lambda venue: venue.clear_faults(),
    ),
    Meddling(
        "20 SOL sent to the account", "unknown_position", "SOL",
        lambda venue: venue.deposit("SOL", Decimal(20)),
        lambda venue: venue.deposit("SOL", Decimal(-20)),
    ),
    Meddling(
        "200 XRP sold short by hand", "unknown_position", "XRP/USDT:USDT",
        lambda venue: venue.open("XRP/USDT:USDT", "short", Decimal(200)),
        lambda venue: venue.close("XRP/USDT:USDT"),
    ),
)  # fmt: skip


@dataclass(slots=True)
class Injected:
    """One meddling and what the reconciliation made of it. drift: its number, once confirmed; cleared: once over."""

    what: str
    kind: str
    drift: int | None = None
    cleared: bool = False


class Meddler:
    """Does one thing after the other, each undone as soon as it was found. Call `tick` now and then."""

    def __init__(self, client: LedgerClient, venue_url: str) -> None:
        self.injected: list[Injected] = []
        self._client = client
        self._venue = PaperControl(venue_url, VENUE)
        self._next = cycle(MEDDLING)
        self._now: Meddling | None = None
        self._rests_until = 0.0

    @property
    def doing(self) -> str:
        """What is under way, in words."""
        if self._now is None:
            return "quiet"
        return f"{self._now.what}: {'confirmed' if self.injected[-1].drift else 'not found yet'}"

    def tick(self, *, more: bool = True) -> bool:
        """Do what there is to do now; True while something is under way. more: whether to begin anything new."""
        if self._now is None:
            if more and time.monotonic() >= self._rests_until and (self.injected or self._agreed()):
                self._now = next(self._next)
                self.injected.append(Injected(self._now.what, self._now.kind))
                self._now.do(self._venue)
        elif self.injected[-1].drift is None:
            self._look_for(self._now)
        elif not any(drift.id == self.injected[-1].drift for drift in self._client.drifts(PORTFOLIO, state="live")):
            self.injected[-1].cleared = True
            self._now, self._rests_until = None, time.monotonic() + _REST_SECONDS
        return self._now is not None

    def _agreed(self) -> bool:
        """Whether a trade stood on both sides: before that, there is nothing to meddle with."""
        return any(run.found.get("agrees") for run in self._client.reconciliations(PORTFOLIO, limit=20))

    def _look_for(self, now: Meddling) -> None:
        for drift in self._client.drifts(PORTFOLIO, state="confirmed", kind=now.kind):
            if drift.subject == now.subject:
                self.injected[-1].drift = drift.id
                now.undo(self._venue)

    def finish(self) -> None:
        """See what is under way to its end, and one thing at least, within `FIND_SECONDS_MAX`."""
        deadline = time.monotonic() + FIND_SECONDS_MAX
        while (self.tick(more=not self.injected) or not self.injected) and time.monotonic() < deadline:
            time.sleep(0.1)


class Venue(Process):
    """`python -m ledger_sizer.paper` on a free port of the loopback."""

    def __init__(self, folder: Path) -> None:
        super().__init__("venue", ["ledger_sizer.paper", "--port", "0"], folder / "venue.log")

    def wait_until_ready(self) -> str:
        """Its URL, once it says so. Raises `Unavailable`."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline and self.exit_code is None:
            said = _AT.search(self.log.read_text(errors="replace"))
            if said is not None:
                return said[1]
            time.sleep(0.05)
        raise Unavailable(f"the paper venue did not start: {self.log.read_text(errors='replace').strip()[-500:]}")


def settings_at(venue_url: str) -> dict[str, str]:
    """Settings of a service that reconciles with the paper venue every second."""
    return {
        "EXCHANGE_ID": VENUE,
        "EXCHANGE_BASE_URL": venue_url,
        "EXCHANGE_API_KEY": DEFAULT_KEY,
        "EXCHANGE_API_SECRET": DEFAULT_SECRET,
        "EXCHANGE_PORTFOLIO": PORTFOLIO,
        "RECONCILE_ENABLED": "true",
        "RECONCILE_INTERVAL_SECONDS": "1",
        "RECONCILE_GRACE_SECONDS": "1",
        "RECONCILE_CONFIRMATIONS": str(CONFIRMATIONS),
        "RECONCILE_FREEZE_SCOPE": "venue",
    }


@contextmanager
def venue_in(folder: Path) -> Iterator[str | None]:
    """The URL of a paper venue that runs for the length of the block; None without ccxt."""
    if find_spec("ccxt") is None:
        yield None
        return
    venue = Venue(folder)
    try:
        yield venue.wait_until_ready()
    finally:
        venue.end()


@contextmanager
def trading(client: LedgerClient, venue_url: str | None, folder: Path, seed: int) -> Iterator[Meddler | None]:
    """The trader and the meddler at that venue; at the end both have cleared up."""
    if venue_url is None:
        yield None
        return
    arguments = ["ledger_sizer.demo.trader", client.base_url, venue_url, str(seed)]
    trader = Process(NAME, arguments, folder / f"{NAME}.log")
    meddler = Meddler(client, venue_url)
    with ExitStack() as at_the_end:
        at_the_end.callback(trader.end)
        yield meddler
        try:
            meddler.finish()
        except LedgerError as error:
            raise Unavailable(f"the service stopped answering: {error}") from None
