"""Runs bots as separate processes: starts them together, releases them together, and stops each by its process id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent.parent
Line = dict[str, Any]


class Bot:
    """One process that runs a program of `tests.support.programs` with these parameters."""

    def __init__(self, program: str, url: str, params: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.programs", program, url, json.dumps(params)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def read(self) -> Line | None:
        """Return the next complete line of its output, or None at the end. Ignores a line that a kill cut off."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
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
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def wait_stopped(self) -> None:
        """Wait until the process has stopped itself with SIGSTOP."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"the bot ended with {status} where it should have stopped"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process and no other."""
        self._process.send_signal(number)

    def end(self) -> int:
        """Wait for the process to end, and return the exit code."""
        return self._process.wait(60)

    def discard(self) -> None:
        """Kill the process if it still runs, and close its pipes."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


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
