"""Separate processes for tests: started together, released together, ended by their own ids."""

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
    """One process that runs a program of `tests.support.programs`."""

    def __init__(self, program: str, url: str, given: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.programs", program, url, json.dumps(given)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def read(self) -> Line | None:
        """The next whole line it wrote; None at its end. A line that a kill cut off was never said."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith("\n") else None

    def lines(self) -> Iterator[Line]:
        """All it still writes."""
        while (line := self.read()) is not None:
            yield line

    def wait_ready(self) -> None:
        """Wait until it has opened its ledger."""
        line = self.read()
        assert line == {"ready": True}, f"the bot did not start: {line}"

    def go(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def wait_stopped(self) -> None:
        """Wait until it has stopped itself, as a frozen machine would."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"the bot ended with {status} where it should have stopped"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process and no other."""
        self._process.send_signal(number)

    def end(self) -> int:
        """Wait for its end; returns the exit code."""
        return self._process.wait(60)

    def discard(self) -> None:
        """Kill it if it still runs, and give its pipes back."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


class Fleet:
    """Several bots of one program. None of them outlives the `with` block."""

    def __init__(self, program: str, url: str, given: Sequence[dict[str, Any]]) -> None:
        self.bots = [Bot(program, url, one) for one in given]

    def run(self) -> list[Line]:
        """Release all at once, and return every line of all of them when all have ended well."""
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
