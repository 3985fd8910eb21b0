"""Tests of `ledger-sizer top`: the overview in a terminal, read from a database or from a service."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger_sizer import Ledger, Leg
from ledger_sizer.service.api_keys import create_key
from ledger_sizer.storage.database import make_engine
from ledger_sizer.wire.overviews import overview_to_json
from tests.conftest import NewDatabase
from tests.support.command_line import CommandLine
from tests.support.services import serving

SCRIPT = Path(sys.executable).parent / "ledger-sizer"


def make_trades(ledger: Ledger) -> None:
    """Make caps, a position with legs, a hold, a denial and a halt."""
    ledger.set_cap(key="cap", portfolio="main", cap=Decimal(5_000))
    ledger.set_cap(key="cap/venue", portfolio="main", scope="venue=bybit", cap=Decimal(1_500))
    ledger.reserve(key="a", tags={"venue": "bybit", "symbol": "[red]BTC"})
    legs = [Leg("bybit", "BTC/USDT", "spot", "buy", Decimal("0.01"))]
    ledger.confirm(key="b", position_id="main-3", quantity=Decimal("0.01"), price=Decimal("50100.5"), legs=legs)
    ledger.reserve(key="c", tags={"venue": "bybit"}, ttl_seconds=Decimal(600))
    ledger.reserve(key="d", tags={"venue": "bybit"})
    ledger.halt(key="e", portfolio="main", scope="venue=okx")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], new_database: NewDatabase) -> CommandLine:
    url = new_database("sqlite")
    with Ledger.open(url) as ledger:
        make_trades(ledger)
    return CommandLine(capsys, url)


def test_look_once_when_there_is_no_terminal_then_all_of_it_is_printed(cli: CommandLine) -> None:
    ran = cli("top")
    assert (ran.code, ran.err) == (0, "")
    for words in (
        "exposure 1,500.00", "cap 5,000.00", "headroom 3,500.00", "open 501.00", "held 999.00",
        "venue=bybit", "halted", "main-3", "[red]BTC", "buy 0.01 BTC/USDT", "main-5",
        "the cap of venue=bybit leaves nothing", "venue=okx halted",
    ):  # fmt: skip
        assert words in ran.out, words
    assert cli("top", "--once").out.count("\n") == ran.out.count("\n")


def test_look_when_an_orders_fate_is_not_known_then_its_hold_shows_so(cli: CommandLine) -> None:
    with Ledger.open(cli.url) as ledger:
        ledger.extend(key="lost", position_id="main-5", until_known=True)
    (line,) = [line for line in cli("top").out.splitlines() if "until known" in line]
    assert line.split()[:2] == ["main-5", "bybit"]


def test_look_when_json_is_asked_then_it_is_the_overview(cli: CommandLine) -> None:
    document = cli.json("top", "--portfolio", "main", "--hours", "1")
    with Ledger.open(cli.url) as ledger:
        expected = overview_to_json(ledger.overview())
    for part in ("scopes", "open", "decisions", "seq"):
        assert document["detail"][part] == expected["detail"][part]
    assert document["detail"]["held"]["count"] == 1


def test_look_when_the_ledger_is_empty_then_it_says_so(
    capsys: pytest.CaptureFixture[str], new_database: NewDatabase
) -> None:
    assert "no portfolio yet" in CommandLine(capsys, new_database("sqlite"))("top").out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--portfolio", "nobody"), 1, "no portfolio 'nobody'"),
        (("--hours", "0"), 2, "hours must be 1 to"),
        (("--interval", "0"), 2, "interval must be"),
        (("--url", "nonsense"), 2, "not both"),
    ],
)
def test_look_when_an_argument_is_wrong_then_it_says_which(
    cli: CommandLine, arguments: tuple[str, ...], code: int, said: str
) -> None:
    ran = cli("top", "--once", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err


def test_look_at_service_when_it_has_keys_then_the_key_comes_from_the_environment(
    capsys: pytest.CaptureFixture[str], new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    database_url = new_database("sqlite")
    engine = make_engine(database_url)
    token = create_key(engine, "eye", "read").token
    engine.dispose()
    with serving(database_url) as service:
        make_trades(service.ledger)
        cli = CommandLine(capsys)
        refused = cli("top", "--once", "--url", service.url)
        assert (refused.code, refused.out) == (1, "")
        monkeypatch.setenv("LEDGER_SIZER_API_KEY", token)
        shown = cli("top", "--once", "--url", service.url)
        assert (shown.code, shown.err) == (0, "")
        assert "the cap of venue=bybit leaves nothing" in shown.out
        local = CommandLine(capsys, database_url)("top", "--once").out
        figures = [line for line in local.splitlines() if "venue=bybit" in line]
        assert figures
        assert all(line in shown.out for line in figures), "both interfaces show the same picture"


# Live, on a terminal.


class Screen:
    """A terminal that runs `ledger-sizer top`."""

    def __init__(self, master: int, child: subprocess.Popen[bytes]) -> None:
        self._master = master
        self.child = child
        self.text = ""

    def until(self, shows: Callable[[str], bool], seconds: float = 30) -> None:
        """Read the output until `shows` accepts it."""
        end = time.monotonic() + seconds
        while not shows(self.text):
            assert time.monotonic() < end, self.text[-3000:]
            if select.select([self._master], [], [], 0.1)[0]:
                self.text += os.read(self._master, 65536).decode(errors="replace")

    def clear(self) -> None:
        """Drop the output read so far."""
        self.text = ""


@contextmanager
def on_screen(*arguments: str, rows: int = 40, columns: int = 140) -> Iterator[Screen]:
    """Run `ledger-sizer top ARGUMENTS` on a terminal of its own."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment: dict[str, Any] = {**os.environ, "TERM": "xterm-256color", "LINES": str(rows), "COLUMNS": str(columns)}
    child = subprocess.Popen(
        [SCRIPT, "top", *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    try:
        yield Screen(master, child)
    finally:
        if child.poll() is None:
            child.kill()
        child.wait(30)
        os.close(master)


def test_watch_when_something_is_decided_then_the_terminal_shows_it_and_ctrl_c_ends_it(cli: CommandLine) -> None:
    assert cli.url
    with on_screen("--database-url", cli.url, "--interval", "0.2") as screen, Ledger.open(cli.url) as ledger:
        screen.until(lambda text: "headroom" in text and "3,500.00" in text)
        ledger.set_cap(key="more", portfolio="main", cap=Decimal(7_777))
        screen.until(lambda text: "7,777.00" in text and "portfolio capped at 7,777.00" in text)
        screen.child.send_signal(signal.SIGINT)
        assert screen.child.wait(30) == 0


def test_watch_when_the_service_is_lost_then_the_last_picture_stays_and_says_so(new_database: NewDatabase) -> None:
    with serving(new_database("sqlite")) as service:
        make_trades(service.ledger)
        with on_screen("--url", service.url, "--interval", "0.2") as screen:
            screen.until(lambda text: "3,500.00" in text)
            service.server.should_exit = True
            screen.until(lambda text: "no answer" in text, 60)
            screen.clear()
            screen.until(lambda text: "no answer" in text and "3,500.00" in text, 60)
            screen.child.send_signal(signal.SIGINT)
            assert screen.child.wait(30) == 0
