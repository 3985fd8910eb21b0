"""Starts the service on a real socket, in a thread of this process or as a separate process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from ledger_sizer import AppSettings, Ledger, LedgerSettings, ServiceSettings
from ledger_sizer.api import create_app
from ledger_sizer.api.server import Server, listen, make_server, url_of
from ledger_sizer.service.api_keys import KeyRing
from ledger_sizer.service.bootstrap import Components, running_components
from ledger_sizer.service.metrics import Metrics
from ledger_sizer.service.tracing import Tracing
from ledger_sizer.storage.database import make_engine

SCRIPT = Path(sys.executable).parent / "ledger-sizer"
START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 60
LOW_PRIORITY_SECONDS = 240
"""Longest wait for reconciliation's own process: where all cores are busy, its priority gives it 1.5 % of one."""


class Running:
    """A service in a thread, with its `app` and components (`parts`). `http` is a client connected to it."""

    def __init__(self, url: str, app: Any, parts: Components, server: Any) -> None:
        self.url = url
        self.app = app
        self.parts = parts
        self.server = server
        self.http = httpx.Client(base_url=url, timeout=30)

    @property
    def ledger(self) -> Any:
        """The service's ledger, in this process."""
        return self.parts.ledger

    def post(self, path: str, key: str | None, body: Any = None, **more: Any) -> httpx.Response:
        """Send a command with POST."""
        return self.command("POST", path, key, body, **more)

    def command(self, method: str, path: str, key: str | None, body: Any = None, **more: Any) -> httpx.Response:
        """Send a command. key: its idempotency key, None to send none."""
        headers = {**({} if key is None else {"Idempotency-Key": key}), **more.pop("headers", {})}
        return self.http.request(method, path, json={} if body is None else body, headers=headers, **more)


def settings_for(
    database_url: str, *, ledger: dict[str, Any] | None = None, sections: dict[str, Any] | None = None, **service: Any
) -> AppSettings:
    """Return settings of a service on a free port that polls quickly. sections: other sections of the settings."""
    values = {"port": 0, "event_poll_ms": 20, "key_cache_seconds": 0, **service}
    return AppSettings(
        ledger=LedgerSettings(database_url=database_url, **(ledger or {})),
        service=ServiceSettings(**values),
        **(sections or {}),
    )


@contextmanager
def serving(
    database_url: str, *, jobs: bool = False, tracing: Tracing | None = None, **settings: Any
) -> Iterator[Running]:
    """Run a service on this database during a `with` block."""
    chosen = settings_for(database_url, **settings)
    with running_components(chosen, with_jobs=jobs, tracing=tracing) as parts, listen(chosen.service) as listening:
        app = create_app(
            parts.ledger,
            chosen.service,
            reads_engine=parts.reads,
            keys=parts.keys,
            metrics=parts.metrics,
            reconciler=parts.reconciler,
            tracing=parts.tracing,
        )
        with _server_thread(app, chosen.service, listening) as server:
            service = Running(url_of(listening), app, parts, server)
            try:
                yield service
            finally:
                service.http.close()


@dataclass(frozen=True)
class MinimalService:
    """A running service without jobs and reconciliation. `ledger` is its ledger, in this process."""

    url: str
    ledger: Ledger

    @property
    def port(self) -> int:
        """Port on 127.0.0.1."""
        return int(self.url.rpartition(":")[2])


@contextmanager
def served(
    database_url: str, *, clock: Callable[[], datetime] | None = None, settings: AppSettings | None = None
) -> Iterator[MinimalService]:
    """Run a service whose ledger uses the test's clock (None: system time), without jobs and reconciliation."""
    settings = settings or AppSettings()
    settings = settings.model_copy(update={"service": ServiceSettings(port=0)})
    with Ledger.open(database_url, settings=settings, clock=clock) as ledger:
        reads = make_engine(database_url, settings.ledger, read_only=True)
        keys = KeyRing(reads, 0)
        keys.refresh()
        metrics = Metrics()
        metrics.watch(ledger, reads)
        app = create_app(ledger, settings.service, reads_engine=reads, keys=keys, metrics=metrics)
        with listen(settings.service) as listening, _server_thread(app, settings.service, listening):
            yield MinimalService(url_of(listening), ledger)
        reads.dispose()


@contextmanager
def _server_thread(app: Any, settings: ServiceSettings, listening: socket.socket) -> Iterator[Server]:
    listening.listen(128)
    server = make_server(app, settings)
    thread = threading.Thread(target=server.run, args=([listening],), name="service", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(STOP_SECONDS_MAX)
        assert not thread.is_alive(), "the server did not stop"


class Process:
    """`ledger-sizer serve` as a separate process. It records every denial, so that each answer is found by its key."""

    def __init__(self, database_url: str, folder: Path, **environment: str) -> None:
        names = ("SIZING_", "TRADING_", "LEDGER_", "SERVICE_", "RECONCILE_", "EXCHANGE_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(names)}
        self._log = (folder / f"serve-{time.monotonic_ns()}.log").open("w+b")
        self.child = subprocess.Popen(
            [SCRIPT, "serve", "--port", "0", "--database-url", database_url],
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=folder,
            env={**clean, "LOG_LEVEL": "WARNING", "LEDGER_DENIAL_REPEAT_SECONDS": "0", **environment},
        )
        self.url = ""

    def ready(self) -> Process:
        """Wait until the service prints its address, and set `url`."""
        assert self.child.stdout is not None
        watchdog = threading.Timer(START_SECONDS_MAX, self.child.kill)
        watchdog.start()
        try:
            line = self.child.stdout.readline().decode()
        finally:
            watchdog.cancel()
        assert line.startswith("ledger-sizer serves http://"), f"{line!r}; its log: {self.log()}"
        self.url = line.split()[-1]
        return self

    def log(self) -> str:
        """Return what the process wrote to standard error."""
        self._log.flush()
        return Path(self._log.name).read_text(errors="replace")

    def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit code."""
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(60)

    def close(self) -> None:
        """Kill the process if it still runs, and close its files."""
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait(30)
        if self.child.stdout is not None:
            self.child.stdout.close()
        self._log.close()


def eventually(what: Any, seconds: float = 20) -> Any:
    """Call `what` until its result is true, and return that. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found
