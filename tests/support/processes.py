"""Runs bots as separate processes: starts them together, releases them together, and stops each by its process id."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tests.support.fork_server import ROOT, fork_server

__all__ = ["ROOT", "Bot", "Fleet", "Line"]

END_SECONDS_MAX = 60
Line = dict[str, Any]


class Bot:
    """One process that runs a program of `tests.support.programs` with these parameters."""

    def __init__(self, program: str, url: str, params: dict[str, Any]) -> None:
        stdin, told = os.pipe()
        heard, stdout = os.pipe()
        self.pid = fork_server().fork([program, url, json.dumps(params)], (stdin, stdout, 2))
        os.close(stdin)
        os.close(stdout)
        self._stdin, self._stdout = open(told, "w"), open(heard)  # noqa: SIM115, PTH123 - `discard` closes them
        self._code: int | None = None

    def read(self) -> Line | None:
        """Return the next complete line of its output, or None at the end. Ignores a line that a kill cut off."""
        line = self._stdout.readline()
        return json.loads(line) if line.endswith("\n") else None

    def lines(self) -> Iterator[Line]:
        """Yield the remaining lines of its output."""
        while (line := self.read()) is not None:
            yield line

    def wait_ready(self) -> None:
        """Wait until the process has opened its ledger."""
        line = self.read()
        assert line == {"ready": True}, f"the bot did not start: {line}"

    def go(self) -> None:
        """Let the program begin."""
        self._stdin.write("go\n")
        self._stdin.flush()

    def wait_stopped(self) -> None:
        """Wait until the process has stopped itself with SIGSTOP."""
        status = self._wait()
        assert os.WIFSTOPPED(status), f"the bot ended with {status} where it should have stopped"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process and no other."""
        if self._code is None:  # else the id may be another process's by now
            os.kill(self.pid, number)

    def end(self) -> int:
        """Wait for the process to end, and return the exit code."""
        while self._code is None:
            status = self._wait()
            if not os.WIFSTOPPED(status):
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def _wait(self) -> int:
        """Wait until the process ends or stops, and return its status."""
        deadline = time.monotonic() + END_SECONDS_MAX
        while (status := fork_server().status(self.pid)) is None:
            assert time.monotonic() < deadline, f"the bot (process {self.pid}) neither ended nor stopped"
            time.sleep(0.005)
        return status

    def discard(self) -> None:
        """Kill the process if it still runs, and close its pipes."""
        self.signal(signal.SIGKILL)
        self.end()
        self._stdout.close()
        with suppress(BrokenPipeError):
            self._stdin.close()


class Fleet:
    """Several bots that run one program. All are killed at the end of the `with` block."""

    def __init__(self, program: str, url: str, params: Sequence[dict[str, Any]]) -> None:
        self.bots = [Bot(program, url, one) for one in params]

    def run(self) -> list[Line]:
        """Release all bots at once, wait until all end with exit code 0, and return the lines of all."""
        self.release()
        lines = [line for bot in self.bots for line in bot.lines()]
        assert [bot.end() for bot in self.bots] == [0] * len(self.bots)
        return lines

    def release(self) -> None:
        """Wait until all are ready, then let all begin."""
        for bot in self.bots:
            bot.wait_ready()
        for bot in self.bots:
            bot.go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for bot in self.bots:
            bot.discard()
