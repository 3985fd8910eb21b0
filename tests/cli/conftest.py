"""Fixtures of the command line: each test runs in a folder of its own, where no `.env` and no ledger.db stand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine, own_logging


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with own_logging():
        yield


@pytest.fixture
def cli(database_url: str, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line on a new database, on each engine."""
    return CommandLine(capsys, database_url)
