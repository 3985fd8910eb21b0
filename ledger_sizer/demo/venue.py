"""Starts the paper venue of the demonstration and the bot that trades there. Both are left out without ccxt."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from ledger_sizer.client import LedgerClient
from ledger_sizer.demo.bots import PORTFOLIO
from ledger_sizer.demo.drift_injection import CONFIRMATIONS, EXPIRED_SECONDS, DriftInjector
from ledger_sizer.demo.processes import Process
from ledger_sizer.demo.venue_bot import NAME, VENUE
from ledger_sizer.model.errors import LedgerError, Unavailable
from ledger_sizer.paper import PaperControl
from ledger_sizer.paper.control import DEFAULT_KEY, DEFAULT_SECRET

_URL_PATTERN = re.compile(r" at (http://\S+)")


class Venue(Process):
    """`python -m ledger_sizer.paper` on a free port of 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        super().__init__("venue", ["ledger_sizer.paper", "--port", "0"], folder / "venue.log")

    def wait_until_ready(self) -> str:
        """Wait for its URL and return it. Raises `Unavailable`."""
        url = self.wait_for_url(_URL_PATTERN)
        if url is None:
            raise Unavailable(f"the paper venue did not start: {self.log_text().strip()[-500:]}")
        return url


def service_settings(venue_url: str) -> dict[str, str]:
    """Return the environment of a service that reconciles with the paper venue every second."""
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
        "RECONCILE_EXPIRED_SECONDS": str(EXPIRED_SECONDS),
    }


@contextmanager
def running_venue(folder: Path) -> Iterator[str | None]:
    """Run a paper venue for the length of the block, and yield its URL; None without ccxt."""
    if find_spec("ccxt") is None:
        yield None
        return
    venue = Venue(folder)
    try:
        yield venue.wait_until_ready()
    finally:
        venue.stop()


@contextmanager
def running_venue_bot(
    client: LedgerClient, venue_url: str | None, folder: Path, seed: int
) -> Iterator[DriftInjector | None]:
    """Run the venue bot, and yield the drift injector; None without a venue. At the end both undo what they did."""
    if venue_url is None:
        yield None
        return
    arguments = ["ledger_sizer.demo.venue_bot", client.base_url, venue_url, str(seed)]
    bot = Process(NAME, arguments, folder / f"{NAME}.log")
    injector = DriftInjector(client, PaperControl(venue_url, VENUE))
    try:
        yield injector
        try:
            injector.finish()
        except LedgerError as error:
            raise Unavailable(f"the service stopped answering: {error}") from None
    finally:
        bot.stop()
    if bot.exit_code != 0:
        raise Unavailable(f"the trader failed: {bot.log_text().strip()[-500:]}")
