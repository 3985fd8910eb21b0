"""The processes of the demonstration. Each is started here, and ended here by its own id."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import httpx

from ledger_sizer.demo.bots import CRASH_CODE
from ledger_sizer.model.errors import Unavailable

READY_SECONDS_MAX = 30
STOP_SECONDS_MAX = 15


class Process:
    """One process of ours, its output in a file."""

    def __init__(
        self, name: str, arguments: list[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        self._file = log.open("ab")
        # A session of its own: Ctrl-C in the terminal reaches us alone, and we end the others in order.
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=self._file,
            env={**_own_environment(), **(environment or {})},
            cwd=log.parent,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - no thread of ours runs when these are started
        )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """SIGTERM."""
        if self.exit_code is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: no last words."""
        if self.exit_code is None:
            self._process.kill()

    def end(self, seconds: float = STOP_SECONDS_MAX) -> bool:
        """Stop it, by force if it must be; True when it went by itself."""
        self.ask_to_stop()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
            return False
        finally:
            self._file.close()
        return True


def _end_with_parent() -> None:
    """Runs in a new process: when the demonstration is killed, the kernel ends what it started (on Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _own_environment() -> dict[str, str]:
    """The environment without anybody's settings: the demonstration is the same everywhere and sees no secrets."""
    prefixes = ("SIZING_", "TRADING_", "LEDGER_", "SERVICE_", "RECONCILE_", "EXCHANGE_", "LOG_LEVEL")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


class Service(Process):
    """`ledger-sizer serve` on a ledger of its own and a free port of the loopback."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        """settings: besides those of every demonstration."""
        self.database_url = f"sqlite:///{folder / 'ledger.db'}"
        self.url = ""
        """Where it answers, once it is ready."""
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
        """Return when it answers. Raises `Unavailable` with its last words when it does not."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline and self.exit_code is None:
            said = _SERVES.search(self.log.read_text(errors="replace"))
            if said is not None and _answers(said[1]):
                self.url = said[1]
                return
            time.sleep(0.05)
        words = self.log.read_text(errors="replace").strip()[-1000:] or "(it said nothing)"
        raise Unavailable(f"the service did not become ready: {words}")


_SERVES = re.compile(r"serves (http://\S+)")


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False, timeout=1).status_code == 200
    except httpx.TransportError:
        return False


class Fleet:
    """The bots: started together, replaced when they die, told apart by name."""

    def __init__(self, url: str, names: list[str], folder: Path, seed: int) -> None:
        self._url = url
        self._folder = folder
        self._seed = seed
        self._lives: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()
        """How bots died: `crashed` (on purpose), `killed` (by us), `failed` (they should not have)."""
        self._bots = {name: self._born(name) for name in names}

    @property
    def names(self) -> list[str]:
        """All bots."""
        return list(self._bots)

    def alive(self) -> dict[str, bool]:
        """Which bots live."""
        return {name: bot.exit_code is None for name, bot in self._bots.items()}

    def life(self, name: str) -> int:
        """How often the bot was born."""
        return self._lives[name]

    def kill(self, name: str) -> None:
        """End a bot with SIGKILL, in the middle of whatever it does."""
        self._bots[name].kill()

    def replace_the_dead(self) -> None:
        """Start a new life for every bot that died."""
        for name, bot in self._bots.items():
            code = bot.exit_code
            if code is not None:
                bot.end()
                self.deaths[_death(code)] += 1
                self._bots[name] = self._born(name)

    def events(self) -> Counter[str]:
        """What the bots told so far, by event."""
        found: Counter[str] = Counter()
        for name in self._bots:
            for line in (self._folder / f"{name}.log").read_text(errors="replace").splitlines():
                try:
                    found[json.loads(line)["event"]] += 1
                except (ValueError, KeyError, TypeError):
                    continue  # the last words of a bot that was killed while it wrote
        return found

    def last_words(self) -> str:
        """The end of what they wrote, for an error message."""
        return " | ".join((self._folder / f"{name}.log").read_text(errors="replace")[-300:] for name in self._bots)

    def end(self) -> None:
        """Stop all."""
        for bot in self._bots.values():
            bot.ask_to_stop()
        for bot in self._bots.values():
            bot.end()

    def _born(self, name: str) -> Process:
        self._lives[name] += 1
        arguments = ["ledger_sizer.demo.bots", self._url, name, str(self._lives[name]), str(self._seed)]
        return Process(name, arguments, self._folder / f"{name}.log")


def _death(code: int) -> str:
    return {CRASH_CODE: "crashed", -signal.SIGKILL: "killed"}.get(code, "failed")
