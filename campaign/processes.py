"""Starts, freezes and kills processes by their id, and runs the `ledger-sizer` command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

COMMAND = Path(sys.executable).parent / "ledger-sizer"
COMMAND_SECONDS_MAX = 300
GONE_SECONDS_MAX = 30

# Settings of the machine must not change the rounds, and without cached bytecode Python takes seconds to start.
_DROPPED = ("SIZING", "TRADING", "LEDGER", "SERVICE", "RECONCILE", "EXCHANGE", "PG", "PYTHONDONTWRITEBYTECODE")


class CampaignError(Exception):
    """A round could not be run as planned: a part did not start or did not stop. It says nothing about the ledger."""


def environment(**more: object) -> dict[str, str]:
    """Return the environment of a child process: this one's without settings of the ledger, and `more`.

    Every denial is recorded, so that an audit finds each answer under its own key.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
    given = {"LOG_LEVEL": "WARNING", "NO_COLOR": "1", "LEDGER_DENIAL_REPEAT_SECONDS": "0"}
    return {**kept, **given, **{name: str(value) for name, value in more.items()}}


def run_command(*arguments: str, folder: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `ledger-sizer` with these arguments in `folder` until it ends. Its status is the caller's to judge."""
    return subprocess.run(
        [str(COMMAND), *arguments],
        cwd=folder,
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS_MAX,
        check=False,
    )


def checked_command(*arguments: str, folder: Path) -> str:
    """Run `ledger-sizer` and return its output. Raises `CampaignError` if it fails."""
    done = run_command(*arguments, folder=folder)
    if done.returncode != 0:
        raise CampaignError(f"ledger-sizer {' '.join(arguments)} failed: {(done.stderr or done.stdout)[-1000:]}")
    return done.stdout


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(true: Callable[[], bool], what: str, *, seconds: float) -> None:
    """Wait until `true` returns True. Raises `CampaignError` after `seconds`: `what` did not happen."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise CampaignError(f"{what}: not within {seconds:g} s")
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Return True if the process runs or is stopped. A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def family(pid: int) -> list[int]:
    """Return the process and all processes below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *[found for child in children for found in family(int(child))]]


def send_signal(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to each of the processes that still exist."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_and_wait(pids: list[int]) -> None:
    """Send SIGKILL to these processes, and wait until all are gone."""
    send_signal(pids, signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, pids)), f"end of killed processes {pids}", seconds=GONE_SECONDS_MAX)


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """Stop these processes with SIGSTOP during a `with` block: they keep their locks and connections, silently."""
    send_signal(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        send_signal(pids, signal.SIGCONT)
