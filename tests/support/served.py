"""The service on a real socket, in a thread of the test, its ledger under a clock of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from ledger_sizer import AppSettings, Ledger, ServiceSettings
from ledger_sizer.api import create_app
from ledger_sizer.api.server import address_of, listen, make_server
from ledger_sizer.service.api_keys import KeyRing
from ledger_sizer.service.metrics import Metrics
from ledger_sizer.storage.database import make_engine

STOP_SECONDS_MAX = 60


@dataclass(frozen=True)
class Served:
    """A running service. `ledger` is the one behind it, in this process."""

    url: str
    ledger: Ledger

    @property
    def port(self) -> int:
        """Of the loopback."""
        return int(self.url.rpartition(":")[2])


@contextmanager
def served(
    database_url: str, *, clock: Callable[[], datetime] | None = None, settings: AppSettings | None = None
) -> Iterator[Served]:
    """Serve a ledger for the length of a `with` block. clock: of the ledger, None for the real one."""
    settings = settings or AppSettings()
    settings = settings.model_copy(update={"service": ServiceSettings(port=0)})
    with Ledger.open(database_url, settings=settings, clock=clock) as ledger:
        reads = make_engine(database_url, settings.ledger, read_only=True)
        keys = KeyRing(reads, 0)
        keys.refresh()
        metrics = Metrics()
        metrics.watch(ledger, reads)
        app = create_app(ledger, settings.service, reads_engine=reads, keys=keys, metrics=metrics)
        with listen(settings.service) as listening:
            listening.listen(128)
            server = make_server(app, settings.service)
            thread = threading.Thread(target=server.run, args=([listening],), name="service", daemon=True)
            thread.start()
            try:
                yield Served(address_of(listening), ledger)
            finally:
                server.should_exit = True
                thread.join(STOP_SECONDS_MAX)
                reads.dispose()
                assert not thread.is_alive(), "the service did not stop"
