"""The page about the first day: its desk stands at the paper venue, and every command of the page is run, in order."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from ledger_sizer import AppSettings, Ledger
from ledger_sizer.paper.control import DEFAULT_SECRET, PaperControl
from ledger_sizer.paper.server import PaperServer
from tests.support.command_line import CommandLine, CommandResult, own_logging
from tests.support.services import START_SECONDS_MAX

D = Decimal
ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "first-day.md").read_text(encoding="utf-8")
COINS = ("ADA", "APT", "ARB", "ATOM", "AVAX", "DOGE", "DOT", "FIL", "LINK", "LTC", "NEAR", "OP", "SUI", "TON", "UNI")
SERVE = "ledger-sizer serve"
KEY = "first-day"


@pytest.fixture(scope="module")
def server() -> Iterator[PaperServer]:
    """The paper venue with the desk that the page speaks of."""
    with PaperServer() as running:
        control = PaperControl(running.url, "binance", KEY)
        control.open_account(balances={"USDT": D(105_000)})
        control.list_market("BNB/USDT", "BNBUSDT", D(600), D("0.001"))
        for coin in COINS:
            control.list_market(f"{coin}/USDT", f"{coin}USDT", D(2), D(1))
            control.list_market(f"{coin}/USDT:USDT", f"{coin}USDT", D(2), D(1))
            control.deposit(coin, D(110 if coin == "SUI" else 100))
            control.open(f"{coin}/USDT:USDT", "short", D(100))
        for asset, units in {"BNB": "3", "BTC": "0.01", "XRP": "40", "XYZ": "17"}.items():
            control.deposit(asset, D(units))
        control.lend("USDT", D(5000))
        control.lend("BTC", D("0.01"))
        yield running


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: PaperServer
) -> Iterator[CommandLine]:
    """The command line in a folder of its own, and what the page does not say: where the paper venue is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXCHANGE_BASE_URL", server.url)
    monkeypatch.setenv("SERVICE_PORT", "0")
    with own_logging():
        yield CommandLine(capsys)


def _steps() -> Iterator[tuple[str, str]]:
    """Yield the language and the text of each block of the page."""
    for found in re.finditer(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL):
        yield found[1], found[2]


def _serve_until_it_is_scheduled(folder: Path) -> None:
    """Start the service as the page says, wait until it lets the portfolio be trusted, and stop it.

    Its first run is of a process at low priority, which on a busy machine takes minutes.
    """
    command = [sys.executable, "-m", *SERVE.replace("-", "_").split()]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as service:
        try:
            deadline = time.monotonic() + START_SECONDS_MAX
            while not _is_trusted() and time.monotonic() < deadline:
                assert service.poll() is None, "the service ended by itself"
                time.sleep(0.2)
        finally:
            service.send_signal(signal.SIGTERM)
    assert _is_trusted()


def _is_trusted() -> bool:
    settings = AppSettings()
    with Ledger.open(settings.ledger.database_url, settings=settings) as ledger:
        return len(ledger.history(command="reconciled")) > 0


def _exposure(cli: CommandLine) -> dict[str, str]:
    return {row["scope"]: row["exposure"] for row in cli.json("exposure")["scopes"]}


def _imported(cli: CommandLine, _: CommandResult) -> None:
    assert len(cli.json("positions", "--state", "open")["items"]) == 16
    found = _exposure(cli)
    assert (found["portfolio"], found["strategy=carry"]) == ("3020", "3020")


def _agrees(cli: CommandLine, ran: CommandResult) -> None:
    assert "no differences" in ran.out
    assert cli.json("drifts", "list", "--state", "live")["items"] == []


def _shown(cli: CommandLine, ran: CommandResult) -> None:
    assert "16 positions of main: a dry run" in ran.out
    assert re.search(r"^sum +3020\.00 USD$", ran.out, flags=re.MULTILINE)
    for asset in ("BNB", "XRP", "LDUSDT", "LDBTC", "XYZ", "USDT"):
        assert re.search(rf"^{asset} ", ran.out, flags=re.MULTILINE), f"{asset} is not told"
    assert cli.json("positions")["items"] == []


def _30_lines(_: CommandLine, ran: CommandResult) -> None:
    assert len(re.findall(r"unknown_position +\S* *binance", ran.out)) == 30, ran.out
    assert "good" in ran.out.splitlines()[0]


CHECKS: dict[str, Callable[[CommandLine, CommandResult], None]] = {
    "reconcile --dry-run": _30_lines,
    "positions import --from-exchange --tag strategy=carry": _shown,
    "positions import --from-exchange --tag strategy=carry --reason 'from before the ledger' --apply": _imported,
    "reconcile": _agrees,
}


@pytest.mark.slow
def test_first_day_when_every_command_is_run_in_order_then_the_desk_is_as_the_page_says(
    cli: CommandLine, tmp_path: Path
) -> None:
    checked = []
    for language, text in _steps():
        if language == "sh":  # lines of .env; the key and its secret are the reader's own
            settings = text.replace("API_KEY=...", f"API_KEY={KEY}").replace("SECRET=...", f"SECRET={DEFAULT_SECRET}")
            with (tmp_path / ".env").open("a", encoding="utf-8") as file:
                file.write(settings)
        elif language == "csv":
            (tmp_path / "positions.csv").write_text(text, encoding="utf-8")
        for line in text.splitlines() if language == "console" else ():
            assert line.startswith("$ ledger-sizer "), line
            command = line.removeprefix("$ ")
            if command == SERVE:
                _serve_until_it_is_scheduled(tmp_path)
                continue
            ran = cli(*shlex.split(command)[1:])
            assert ran.code == 0, (command, ran)
            check = CHECKS.get(command.removeprefix("ledger-sizer "))
            if check is not None:
                check(cli, ran)
                checked.append(command)
    assert len(checked) == len(CHECKS)
    assert len(cli.json("positions", "--state", "open")["items"]) == 17
    assert cli("verify").code == 0


def test_first_day_when_it_names_commands_in_its_text_then_they_exist() -> None:
    from ledger_sizer.cli.app import root_command

    named = set(re.findall(r"`ledger-sizer ([a-z]+)", PAGE)) | set(re.findall(r"^\$ ledger-sizer ([a-z]+)", PAGE, re.M))
    tree = root_command()
    assert named <= set(tree.commands), named  # type: ignore[attr-defined]
