"""Runs `ledger-sizer serve` as a process of its own, with its log in a file."""

from __future__ import annotations

import http.client
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from campaign.processes import COMMAND, CampaignError, environment, free_port, is_running

START_SECONDS_MAX = 90
STOP_SECONDS_MAX = 60
PROBE_SECONDS = 5.0


@dataclass
class Service:
    """One service process. It keeps its port when it is started again.

    more: further environment variables.
    """

    url: str
    folder: Path
    name: str = "service"
    more: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """File with everything that the process writes."""
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """Process id. Raises `CampaignError` if it was never started."""
        if self._process is None:
            raise CampaignError(f"{self.name} was not started")
        return self._process.pid

    def start(self, *, wait: bool = True) -> Service:
        """Start the process. wait: until it answers; raises `CampaignError` if it ends or does not answer."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(COMMAND), "serve", "--port", str(self.port), "--database-url", self.url],
                cwd=self.folder,
                env=environment(**self.more),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait_until_listening()
        return self

    def wait_until_listening(self) -> None:
        """Wait until `/healthz` is answered, whatever the answer is."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while self.status_of("/healthz") is None:
            if not self.is_running():
                raise CampaignError(f"{self.name} ended at its start: {self.log_end()}")
            if time.monotonic() > deadline:
                raise CampaignError(f"{self.name} does not answer after {START_SECONDS_MAX} s: {self.log_end()}")
            time.sleep(0.03)

    def status_of(self, path: str) -> int | None:
        """Return the HTTP status of a GET, None without an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PROBE_SECONDS)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def is_running(self) -> bool:
        """Return True while the process lives, frozen or not."""
        return self._process is not None and self._process.poll() is None and is_running(self._process.pid)

    def log_end(self) -> str:
        """Return the last lines of the log."""
        return self.log.read_text(errors="replace")[-1000:] if self.log.exists() else "(no log)"

    def kill(self) -> None:
        """Send SIGKILL, and wait for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_SECONDS_MAX)

    def stop(self) -> float:
        """Send SIGTERM, and return the seconds until it ended. Raises `CampaignError` if it does not end."""
        if self._process is None or self._process.poll() is not None:
            return 0.0
        begun = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise CampaignError(f"{self.name} still ran {STOP_SECONDS_MAX} s after SIGTERM") from None
        return time.monotonic() - begun
