"""Tests of the output: tables, progress, colours and questions on a terminal, plain text elsewhere."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest

from ledger_sizer import Adopt, Confirm, Halt, Ledger, Reserve, SetCap
from ledger_sizer.cli import run
from ledger_sizer.storage.database import SCHEMA_HEAD
from tests.support.accounts import make_drift
from tests.support.command_line import own_logging

SCRIPT = str(Path(sys.executable).parent / "ledger-sizer")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
Screen = Callable[..., tuple[int, str]]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A ledger with something of everything; one tag looks like markup, one is not ASCII."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with Ledger.open(url) as ledger:
        ledger.submit(
            [
                SetCap(key="cap", cap=Decimal(5000)),
                Reserve(key="a", tags={"venue": "bybit", "symbol": "[bold]BTC"}),
                Confirm(key="b", position_id="main-2", quantity=Decimal("0.018"), price=Decimal("50100.5")),
                Adopt(key="c", tags={"symbol": "Ξ"}, quantity=Decimal("1.25"), price=Decimal("3600.33")),
                Reserve(key="d"),
                Halt(key="e", scope="venue=bybit"),
            ]
        )
    return url


@pytest.fixture
def terminal(url: str, tmp_path: Path) -> Screen:
    """Run the command line as a process on a terminal of 80 columns; answers the exit code and what was displayed."""

    def show(*arguments: str, typed: str = "") -> tuple[int, str]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
        inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
        command = [SCRIPT, *arguments, "--database-url", url]
        variables = {**inherited, "TERM": "xterm-256color"}
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=variables)
        os.close(theirs)
        os.write(ours, typed.encode())
        shown = _read_until_closed(ours)
        return process.wait(timeout=60), shown

    return show


@pytest.fixture
def screen(url: str, monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Run the command line in this process on a terminal that says it has so many columns."""

    def show(*arguments: str, columns: int = 200, **environment: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        with ThreadPoolExecutor(1) as reader, monkeypatch.context() as patch, own_logging():
            patch.delenv("NO_COLOR", raising=False)
            for name, value in {"TERM": "xterm-256color", "COLUMNS": str(columns), **environment}.items():
                patch.setenv(name, value)
            shown = reader.submit(_read_until_closed, ours)
            with os.fdopen(theirs, "w", encoding="utf-8") as stream:
                patch.setattr("sys.stdout", stream)
                patch.setattr("sys.stderr", stream)
                code = run([*arguments, "--database-url", url])
            return code, shown.result(timeout=60)

    return show


def _read_until_closed(terminal: int) -> str:
    shown = b""
    try:
        while chunk := os.read(terminal, 65536):
            shown += chunk
    except OSError:
        pass  # a terminal raises this once its other side is closed
    finally:
        os.close(terminal)
    return shown.decode().replace("\r\n", "\n")


def _rows(shown: str) -> list[str]:
    return [line.rstrip() for line in ESCAPE.sub("", shown).splitlines()]


def test_show_exposure_when_terminal_is_wide_then_points_stand_below_points(screen: Screen) -> None:
    code, shown = screen("exposure")
    assert code == 0
    title, whole, *scopes = _rows(shown)
    assert re.split(r"  +", title) == [
        "scope", "cap USD", "held USD", "open USD", "exposure USD", "headroom USD", "overage USD", "used", "status",
    ]  # fmt: skip
    assert re.split(r"  +", whole) == [
        "portfolio", "5,000.00", "0.00", "5,402.2215", "5,402.2215", "0.00", "402.2215", "108.1 %", "active",
    ]  # fmt: skip
    point = title.index("exposure USD") + len("exposure USD") - 5
    assert {line[point] for line in [whole, *scopes]} == {"."}
    assert scopes[-1].startswith("venue=bybit ")
    assert scopes[-1].endswith("halted")


def test_show_when_terminal_has_colours_then_states_alone_are_coloured(screen: Screen) -> None:
    _, shown = screen("history")
    assert re.search(r"\x1b\[31mdenied", shown)
    assert re.search(r"\x1b\[32mgranted", shown)
    assert not re.search(r"\x1b\[3[0-9]m(?!denied|granted)", shown)
    _, shown = screen("history", NO_COLOR="1")
    assert not re.search(r"\x1b\[3[0-9]m", shown)


@pytest.mark.parametrize("columns", [40, 80, 100, 140])
@pytest.mark.parametrize("command", ["exposure", "positions", "history", "caps"])
def test_show_table_when_terminal_is_narrow_then_lines_fit_and_hidden_columns_are_named(
    screen: Screen, command: str, columns: int
) -> None:
    code, shown = screen(command, columns=columns)
    rows = _rows(shown)
    assert code == 0
    hidden = [row for row in rows if row.startswith("not shown on ")]
    table = rows[: rows.index(hidden[0])] if hidden else rows
    assert max(map(len, table)) <= columns
    _, everything = screen(command, columns=300)
    wide = _rows(everything)
    assert len(table) == len(wide), "a row was wrapped"
    titles = re.split(r"  +", wide[0])
    missing = [title for title in titles if title not in re.split(r"  +", table[0])]
    assert hidden == ([f"not shown on {columns} columns: {', '.join(missing)}"] if missing else [])


def test_list_drifts_when_terminal_has_100_columns_then_each_drift_fits_on_two_lines(screen: Screen, url: str) -> None:
    make_drift(url)
    code, shown = screen("drifts", "list", "--symbol", "ETH", columns=100)
    rows = _rows(shown)
    assert code == 0
    assert max(map(len, rows)) <= 100
    assert [re.split(r"  +", row.strip()) for row in rows] == [
        ["market", "ledger", "USD"],
        ["drift", "account", "exchange", "since", "freezes", "next"],
        ["1 unknown_position", "ETH/USDT:USDT long", "0", "4,000.00", "-", "drifts adopt 1"],
        ["open", "bybit/main", "2", rows[3].split()[-2] + " " + rows[3].split()[-1]],
    ]


def test_show_when_tag_looks_like_markup_then_it_is_shown_as_it_is(screen: Screen) -> None:
    assert "symbol=[bold]BTC venue=bybit" in ESCAPE.sub("", screen("positions")[1])


def test_show_decision_when_granted_then_the_headline_stands_out(screen: Screen) -> None:
    code, shown = screen("reserve", "--dry-run", "--key", "k")
    assert code == 3
    assert shown.startswith("\x1b[1;31mreserve denied: cap_exceeded (dry run: nothing is held or recorded)\x1b[0m\n")
    code, shown = screen("adopt", "--quantity", "1", "--price", "1234567.5", "--key", "k")
    assert code == 0
    assert "5,402.2215 -> 1,239,969.7215 USD" in shown
    assert "overage: portfolio is 1,234,969.7215 USD above its cap of 5,000.00 USD" in shown


def test_show_table_when_process_has_a_terminal_then_its_real_width_counts(terminal: Screen) -> None:
    code, shown = terminal("exposure")
    assert code == 0
    assert _rows(shown)[-1] == "not shown on 80 columns: held USD, open USD, used"


def test_verify_when_on_a_terminal_then_progress_is_shown_and_cleared(terminal: Screen) -> None:
    code, shown = terminal("verify")
    assert code == 0
    assert "6/6" in ESCAPE.sub("", shown)
    assert "\x1b[2K" in shown.rpartition("6/6")[2], "the bar was left on the screen"
    head = re.search(r"[0-9a-f]{64}", ESCAPE.sub("", shown).rpartition("last hash")[2].replace("\n", ""))
    assert head, "the hash must be whole on 80 columns"


@pytest.mark.parametrize(
    ("typed", "code", "current"), [("n\n", 1, SCHEMA_HEAD), ("\n", 1, SCHEMA_HEAD), ("y\n", 0, None)]
)
def test_downgrade_when_on_a_terminal_then_it_asks_first(
    terminal: Screen, typed: str, code: int, current: str | None
) -> None:
    ended, shown = terminal("db", "downgrade", "base", typed=typed)
    assert ended == code
    assert "to base and lose what it cannot hold? [y/N]" in shown
    assert ("error: aborted, nothing was changed" in shown) is (code == 1)
    _, shown = terminal("db", "current", "--json")
    assert json.loads(shown)["current"] == current


def test_downgrade_when_yes_is_given_then_it_does_not_ask(terminal: Screen) -> None:
    code, shown = terminal("db", "downgrade", "base", "--yes")
    assert code == 0
    assert "[y/N]" not in shown


def _piped(url: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [SCRIPT, *arguments, "--database-url", url]
    variables = {**os.environ, "TERM": "xterm-256color", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)


@pytest.mark.parametrize("command", ["exposure", "positions", "history", "caps", "explain 2", "verify"])
def test_print_when_not_a_terminal_then_it_is_plain_text_of_full_width(url: str, command: str) -> None:
    ran = _piped(url, *command.split(), COLUMNS="20")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "\x1b" not in ran.stdout
    assert "not shown" not in ran.stdout
    assert not re.search(r"[0-9],[0-9]", ran.stdout), "figures for a program have no thousands separators"


def test_print_when_encoding_is_narrow_then_json_is_whole_and_text_survives(url: str) -> None:
    ran = _piped(url, "positions", "--json", PYTHONIOENCODING="ascii")
    assert [position["tags"]["symbol"] for position in json.loads(ran.stdout)["items"]] == ["[bold]BTC", "Ξ"]
    ran = _piped(url, "positions", PYTHONIOENCODING="ascii")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "symbol=\\u039e" in ran.stdout


def test_print_when_reader_goes_away_then_it_fails_in_silence(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with Ledger.open(url) as ledger:
        ledger.submit([Reserve(key=f"r/{number}", tags={"symbol": "BTC"}) for number in range(300)])
    command = [str(SCRIPT), "history", "--all", "--json", "--database-url", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == "{"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
