"""Starts and stops the processes of the demonstration, each by its own process id."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from ledger_sizer.demo.bots import CRASH_CODE
from ledger_sizer.model.errors import Unavailable

READY_SECONDS_MAX = 30
STOP_SECONDS_MAX = 15


class Process:
    """A Python module run in a process of its own, with its output in a log file."""

    def __init__(
        self, name: str, arguments: list[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        self._file = log.open("ab")
        # A session of its own: Ctrl-C in the terminal reaches only this process, which stops the others in order.
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=self._file,
            env={**_clean_environment(), **(environment or {})},
            cwd=log.parent,
            start_new_session=True,
            preexec_fn=_stop_with_parent,  # noqa: PLW1509 - no other thread runs when these are started
        )

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def log_text(self) -> str:
        """Return what it has written so far."""
        return self.log.read_text(errors="replace")

    def wait_for_url(self, pattern: re.Pattern[str], is_ready: Callable[[str], bool] = lambda _url: True) -> str | None:
        """Wait until the log has a URL (group 1) that is ready. None after 30 s, or when the process has exited."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline and self.exit_code is None:
            match = pattern.search(self.log_text())
            if match is not None and is_ready(match[1]):
                return match[1]
            time.sleep(0.05)
        return None

    def terminate(self) -> None:
        """Send SIGTERM, unless it has exited."""
        if self.exit_code is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, unless it has exited."""
        if self.exit_code is None:
            self._process.kill()

    def stop(self, seconds: float = STOP_SECONDS_MAX) -> bool:
        """Terminate it, and kill it after `seconds`. Return whether it exited without being killed."""
        self.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
            return False
        finally:
            self._file.close()
        return True


def _stop_with_parent() -> None:
    """Run in the new process: on Linux the kernel sends it SIGTERM when the demonstration dies."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _clean_environment() -> dict[str, str]:
    """Return the environment without settings of ledger_sizer, so that each run is the same and sees no secrets."""
    prefixes = ("SIZING_", "TRADING_", "LEDGER_", "SERVICE_", "RECONCILE_", "EXCHANGE_", "LOG_LEVEL")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


class Service(Process):
    """`ledger-sizer serve` on a ledger of its own and a free port of 127.0.0.1."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        """settings: environment variables besides those of every demonstration."""
        self.database_url = f"sqlite:///{folder / 'ledger.db'}"
        self.url = ""
        """Its address, once it is ready."""
        environment = {
            "LEDGER_DATABASE_URL": self.database_url,
            "SERVICE_HOST": "127.0.0.1",
            "SERVICE_PORT": "0",
            "SIZING_ENABLED": "true",
            "LOG_LEVEL": "WARNING",
            **settings,
        }
        super().__init__("service", ["ledger_sizer", "serve"], folder / "service.log", environment)

    def wait_until_ready(self) -> None:
        """Wait for a good `/readyz`. Raises `Unavailable` with the end of its log otherwise."""
        url = self.wait_for_url(_URL_PATTERN, _is_ready)
        if url is None:
            words = self.log_text().strip()[-1000:] or "(it said nothing)"
            raise Unavailable(f"the service did not become ready: {words}")
        self.url = url


_URL_PATTERN = re.compile(r"serves (http://\S+)")


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False, timeout=1).status_code == 200
    except httpx.TransportError:
        return False


class Fleet:
    """The bot processes by name: started together, restarted when they exit."""

    def __init__(self, url: str, names: list[str], folder: Path, seed: int) -> None:
        self._url = url
        self._folder = folder
        self._seed = seed
        self._run_numbers: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()
        """Exits by cause: `crashed` (on purpose), `killed` (by the demonstration), `failed` (a defect)."""
        self._bots = {name: self._start(name) for name in names}

    @property
    def names(self) -> list[str]:
        """Names of all bots."""
        return list(self._bots)

    def alive(self) -> dict[str, bool]:
        """Return whether each bot runs, by name."""
        return {name: bot.exit_code is None for name, bot in self._bots.items()}

    def run_number(self, name: str) -> int:
        """Return how often the bot was started."""
        return self._run_numbers[name]

    def kill(self, name: str) -> None:
        """Kill a bot with SIGKILL, whatever it is doing."""
        self._bots[name].kill()

    def restart_exited(self) -> None:
        """Restart every bot that has exited."""
        for name, bot in self._bots.items():
            code = bot.exit_code
            if code is not None:
                bot.stop()
                self.deaths[_exit_cause(code)] += 1
                self._bots[name] = self._start(name)

    def events(self) -> Counter[str]:
        """Count the events that the bots have logged."""
        found: Counter[str] = Counter()
        for name in self._bots:
            for line in (self._folder / f"{name}.log").read_text(errors="replace").splitlines():
                try:
                    found[json.loads(line)["event"]] += 1
                except (ValueError, KeyError, TypeError):
                    continue  # a line cut off when the bot was killed
        return found

    def log_tails(self) -> str:
        """Return the end of each log, for an error message."""
        return " | ".join((self._folder / f"{name}.log").read_text(errors="replace")[-300:] for name in self._bots)

    def stop(self) -> None:
        """Stop all bots."""
        for bot in self._bots.values():
            bot.terminate()
        for bot in self._bots.values():
            bot.stop()

    def _start(self, name: str) -> Process:
        self._run_numbers[name] += 1
        arguments = ["ledger_sizer.demo.bots", self._url, name, str(self._run_numbers[name]), str(self._seed)]
        return Process(name, arguments, self._folder / f"{name}.log")


def _exit_cause(code: int) -> str:
    return {CRASH_CODE: "crashed", -signal.SIGKILL: "killed"}.get(code, "failed")
