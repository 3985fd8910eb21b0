"""A ledger on the real clock of its engine, which a test can make jump; below the ledger nothing is replaced.

SQLite takes this machine's clock: the test sets what the guard reads. PostgreSQL takes the server's: a function of the
test's own database stands before `pg_catalog.clock_timestamp` on its search path.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import make_url

from ledger_sizer import AppSettings, Ledger
from ledger_sizer.storage.clock import ClockGuard
from tests.support.ledgers import Intruder

_SERVER_CLOCK = """
CREATE TABLE public.test_clock (us BIGINT NOT NULL);
INSERT INTO public.test_clock VALUES (0);
CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
    $$ SELECT pg_catalog.clock_timestamp() + (SELECT us FROM public.test_clock) * interval '1 microsecond' $$;
"""


class WrongClock:
    """The clock of one database, and the monotonic clock that ledgers compare it with."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._passed_us = self._ahead_us = 0
        self._server: Intruder | None = None
        if not url.startswith("sqlite"):
            self._server = Intruder(url)
            self._server.run(_SERVER_CLOCK)
            self._server.run(f'ALTER DATABASE "{make_url(url).database}" SET search_path = public, pg_catalog')

    def open(self, **ledger: Any) -> Ledger:
        """Open a ledger on this clock."""
        return Ledger(self.url, AppSettings(**ledger), None, guard=self.guard())

    def guard(self) -> ClockGuard:
        """Return a guard that reads the test's clocks."""
        return ClockGuard(60, wall_ns=self._wall_ns, monotonic_ns=self._monotonic_ns)

    def apply_to(self, guard: ClockGuard) -> None:
        """Make a guard read the test's clocks from now on."""
        guard.wall_ns, guard.monotonic_ns = self._wall_ns, self._monotonic_ns

    def jump(self, seconds: float) -> None:
        """Set how far the wall clock is ahead of the right time."""
        self._ahead_us = round(seconds * 1_000_000)
        self._set_server()

    def wait(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self._passed_us += round(seconds * 1_000_000)
        self._set_server()

    def close(self) -> None:
        """Close the connection to the server."""
        if self._server is not None:
            self._server.close()

    def _wall_ns(self) -> int:
        return time.time_ns() + (self._ahead_us + self._passed_us) * 1000

    def _monotonic_ns(self) -> int:
        return time.monotonic_ns() + self._passed_us * 1000

    def _set_server(self) -> None:
        if self._server is not None:
            self._server.run("UPDATE public.test_clock SET us = :us", us=self._ahead_us + self._passed_us)
