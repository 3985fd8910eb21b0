"""The command line under test: the same entry the console script calls, with what it printed and how it exited."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from ledger_sizer.cli import run


@dataclass(frozen=True)
class Ran:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)

    @property
    def problem(self) -> Any:
        """The JSON problem on standard error; standard output must be empty then."""
        assert self.out == ""
        return json.loads(self.err)


class CommandLine:
    """Runs command lines in this process, against one database unless they name another."""

    def __init__(self, capsys: pytest.CaptureFixture[str], url: str | None = None) -> None:
        self._capsys = capsys
        self.url = url

    def __call__(self, *arguments: str) -> Ran:
        """Run `ledger-sizer ARGUMENTS --database-url URL`."""
        self._capsys.readouterr()
        where = [] if self.url is None else ["--database-url", self.url]
        code = run([*arguments, *where])
        return Ran(code, *self._capsys.readouterr())

    def json(self, *arguments: str) -> Any:
        """Run with `--json`, which must succeed silently; return the document."""
        ran = self(*arguments, "--json")
        assert (ran.code, ran.err) == (0, ""), ran
        return ran.json


@contextmanager
def own_logging() -> Iterator[None]:
    """Undo what a command does to the package's logger: its handler writes to a stream that ends with the test."""
    logger = logging.getLogger("ledger_sizer")
    before = (logger.handlers[:], logger.level, logger.propagate)
    try:
        yield
    finally:
        logger.handlers[:], logger.level, logger.propagate = before


SPOT = "BTC/USDT,0.0001,100,0.0001,5"
PERP = "BTC/USDT:USDT,0.001,100,0.001,5"
