"""Runs command lines through the entry point of the console script, and captures output and exit code."""

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
class CommandResult:
    """Exit code and output of one command line."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Return the single JSON document on standard output."""
        return json.loads(self.out)

    @property
    def problem(self) -> Any:
        """Return the JSON problem on standard error. Standard output must be empty."""
        assert self.out == ""
        return json.loads(self.err)


class CommandLine:
    """Runs command lines in this process, with `--database-url` if `url` is given."""

    def __init__(self, capsys: pytest.CaptureFixture[str], url: str | None = None) -> None:
        self._capsys = capsys
        self.url = url

    def __call__(self, *arguments: str) -> CommandResult:
        """Run `ledger-sizer ARGUMENTS --database-url URL`."""
        self._capsys.readouterr()
        database_option = [] if self.url is None else ["--database-url", self.url]
        code = run([*arguments, *database_option])
        return CommandResult(code, *self._capsys.readouterr())

    def json(self, *arguments: str) -> Any:
        """Run with `--json`, and return the document. The command must succeed with empty standard error."""
        result = self(*arguments, "--json")
        assert (result.code, result.err) == (0, ""), result
        return result.json


@contextmanager
def own_logging() -> Iterator[None]:
    """Restore the package's logger at the end: a command adds a handler whose stream is closed after the test."""
    logger = logging.getLogger("ledger_sizer")
    before = (logger.handlers[:], logger.level, logger.propagate)
    try:
        yield
    finally:
        logger.handlers[:], logger.level, logger.propagate = before


SPOT = "BTC/USDT,0.0001,100,0.0001,5"
PERP = "BTC/USDT:USDT,0.001,100,0.001,5"
