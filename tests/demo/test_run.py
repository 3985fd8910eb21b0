"""Tests a short demonstration: real processes that die, a summary from the chain, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest

from ledger_sizer import Ledger, Reserve
from ledger_sizer.demo.bots import BOTS, PORTFOLIO
from ledger_sizer.demo.drift_injection import InjectionResult
from ledger_sizer.demo.run import Plan, Snapshot
from ledger_sizer.demo.screen import line, render_snapshot
from ledger_sizer.demo.summary import ReconciliationSummary, Summary, summarize
from tests.support.clock import START, FakeClock
from tests.support.interfaces import SETTINGS
from tests.support.services import eventually

pytestmark = pytest.mark.settings(SETTINGS)

SCRIPT = Path(sys.executable).parent / "ledger-sizer"
SECONDS = "0.5"
"""Too short to show anything, so that the demonstration has to extend its run."""
PROCESSES = len(BOTS) + 4
"""The bots, the service and its reconciliation process, the paper venue and the bot that trades there."""


def _of_this_demo(folder: Path) -> list[psutil.Process]:
    """Return the processes whose working directory is under `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in process.cwd():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def _environment(temporary: Path) -> dict[str, str]:
    # Settings of the shell must not reach the demonstration.
    spoilt = {"LEDGER_DATABASE_URL": "sqlite:////nowhere/ledger.db", "SERVICE_PORT": "1"}
    return {**os.environ, **spoilt, "TMPDIR": str(temporary)}


@pytest.fixture(scope="module")
def ran(temporary: Path) -> subprocess.CompletedProcess[str]:
    """One run, shared by several tests."""
    command = [SCRIPT, "demo", "--seconds", SECONDS, "--json"]
    environment = _environment(temporary)
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)


def test_run_demo_when_its_time_is_over_then_every_promise_was_kept(
    ran: subprocess.CompletedProcess[str], temporary: Path
) -> None:
    assert ran.returncode == 0, ran
    document = json.loads(ran.stdout)
    assert document["ok"]
    assert document["breaches"] == []
    assert document["verify"]["ok"]
    assert document["stopped_gracefully"]
    assert Decimal(document["highest_exposure_granted"]) <= Decimal(document["cap"])
    assert list(temporary.iterdir()) == [], "no folder is left"
    assert _of_this_demo(temporary) == [], "no process is left"


def test_run_demo_when_bots_misbehave_then_the_ledger_shows_it(ran: subprocess.CompletedProcess[str]) -> None:
    document = json.loads(ran.stdout)
    outcomes: dict[tuple[str, str], int] = {}
    for row in document["decisions"]:
        pair = (row["command"], row["outcome"])
        outcomes[pair] = outcomes.get(pair, 0) + row["count"]
    assert {("reserve", "granted"), ("reserve", "denied"), ("confirm", "applied"), ("release", "applied")} <= set(
        outcomes
    )
    assert document["expiries"] > 0, "a bot that dies or fills late lets its hold expire"
    assert document["bots"]["events"]["replayed"] > 0
    assert document["bots"]["events"]["ready"] > len(BOTS), "the dead were replaced"
    assert set(document["bots"]["deaths"]) <= {"crashed", "killed"}
    assert document["bots"]["deaths"]["killed"] > 0
    assert document["verify"]["decisions"] == sum(outcomes.values()) + 1, "with the desk's: the service started"


def test_run_demo_when_somebody_meddles_at_the_venue_then_it_was_found_and_cleared(
    ran: subprocess.CompletedProcess[str],
) -> None:
    found = json.loads(ran.stdout)["reconciliation"]
    assert found["ok"]
    assert found["runs"]["good"] > 0
    assert found["agreed"] > 0, "what was reserved, ordered and confirmed is equal on both sides"
    assert found["injected"]
    for one in found["injected"]:
        assert (one["found"], one["cleared"]) == (True, True), one


def test_run_demo_when_json_is_asked_then_there_is_one_document_and_nothing_else(
    ran: subprocess.CompletedProcess[str],
) -> None:
    assert ran.stderr == ""
    assert ran.stdout.startswith("{")


@pytest.mark.extended
def test_stop_demo_when_interrupted_then_it_ends_in_order_with_its_summary(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [SCRIPT, "demo", "--forever"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**_environment(tmp_path), "PYTHONUNBUFFERED": "1"}, start_new_session=True,
    )  # fmt: skip
    try:
        assert demo.stdout is not None
        seen = ""
        while "bots alive" not in seen:
            text = demo.stdout.readline()
            assert text, f"it ended before it began: {seen}"
            seen += text
        eventually(lambda: len(_of_this_demo(tmp_path)) == PROCESSES, seconds=60)
        demo.send_signal(signal.SIGINT)
        out, err = demo.communicate(timeout=60)
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait()
    assert (demo.returncode, err) == (0, "")
    assert f"of {Plan().cap:,.2f} USD" in seen, "without a terminal, progress is plain lines"
    assert "\x1b" not in seen + out
    assert "the ledger verifies" in out
    assert _of_this_demo(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_stop_demo_when_it_is_killed_then_its_processes_end_too(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [SCRIPT, "demo", "--forever"], stdout=subprocess.DEVNULL, env=_environment(tmp_path), start_new_session=True
    )
    try:
        eventually(lambda: len(_of_this_demo(tmp_path)) == PROCESSES, seconds=60)
    finally:
        demo.kill()
        demo.wait()
    eventually(lambda: _of_this_demo(tmp_path) == [], seconds=60)


@pytest.mark.parametrize(
    "arguments", [["--seconds", "0"], ["--seconds", "soon"], ["--seconds", "1e9"], ["--seed", "x"]]
)
def test_run_demo_when_an_argument_is_wrong_then_nothing_starts(arguments: list[str], tmp_path: Path) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [SCRIPT, "demo", *arguments],
        capture_output=True,
        text=True,
        env=_environment(tmp_path),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert arguments[0].strip("-") in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - started < 60


# --- the summary ---


@pytest.fixture
def ledger(ledger: Ledger) -> Ledger:
    ledger.set_cap(key="cap", portfolio=PORTFOLIO, cap=Decimal(2_500))
    return ledger


def _summary(ledger: Ledger, *, graceful: bool = True, failed: int = 0, **events: int) -> Summary:
    told = {name.replace("_", " "): number for name, number in events.items()}
    return summarize(ledger, Decimal(2_500), {"crashed": 3, "failed": failed}, told, graceful=graceful)


def test_sum_up_when_facts_stand_above_the_cap_then_it_is_no_breach(ledger: Ledger, clock: FakeClock) -> None:
    ledger.submit([Reserve(key=f"k{number}", portfolio=PORTFOLIO) for number in range(4)])
    clock.advance(61)
    ledger.submit([Reserve(key=f"l{number}", portfolio=PORTFOLIO) for number in range(3)])
    ledger.confirm(key="late", position_id=f"{PORTFOLIO}-2", quantity=Decimal(1), price=Decimal(700))
    summary = _summary(ledger)
    assert (summary.ok, summary.breaches) == (True, ())
    assert (summary.highest_granted, summary.highest) == (Decimal(2_500), Decimal(3_200))
    assert summary.expiries == 3
    assert summary.outcomes["reserve", "granted", None] == 6
    assert summary.outcomes["reserve", "denied", "cap_exceeded"] == 1


def test_sum_up_when_a_grant_breached_a_cap_then_it_is_not_ok(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.reserve(key="a", portfolio=PORTFOLIO)
    page = ledger.history(PORTFOLIO, ascending=True)
    record = page[1].record
    forged = record._replace(budget_e8=(record.budget_e8 or 0) * 3)
    monkeypatch.setattr(ledger, "history", lambda *_, **__: type(page)((page[0], forged.decision()), None))
    summary = _summary(ledger)
    assert not summary.ok
    assert summary.breaches == ("demo #2 left portfolio 500 USD above its cap",)


def test_sum_up_when_something_else_went_wrong_then_it_is_not_ok(ledger: Ledger) -> None:
    assert _summary(ledger).ok
    assert not _summary(ledger, not_replayed=1).ok
    assert not _summary(ledger, graceful=False).ok
    assert not _summary(ledger, failed=1).ok


def test_sum_up_when_something_done_at_the_venue_was_not_found_then_it_is_not_ok(ledger: Ledger) -> None:
    def summary(agreed: int, *injected: InjectionResult) -> Summary:
        found = ReconciliationSummary({"good": 3}, agreed, injected, others=0)
        return summarize(ledger, Decimal(2_500), {}, {}, graceful=True, reconciliation=found)

    cleared = InjectionResult("a coin", "unknown_position", "SOL", drift=1, cleared=True)
    assert summary(4, cleared).ok
    assert not summary(0, cleared).ok, "nothing was ever compared"
    assert not summary(4, cleared, InjectionResult("another", "unknown_position", "SOL")).ok
    assert not summary(4, InjectionResult("a coin", "unknown_position", "SOL", drift=1)).ok


def test_show_snapshot_when_it_is_drawn_then_it_names_what_matters(ledger: Ledger, clock: FakeClock) -> None:
    from rich.console import Console

    ledger.reserve(key="a", portfolio=PORTFOLIO, tags={"strategy": "greedy"}, signal_score=Decimal(1))
    ledger.halt(key="halt", portfolio=PORTFOLIO)
    ledger.reserve(key="b", portfolio=PORTFOLIO, tags={"strategy": "late"})
    facts: dict[str, Any] = {
        "alive": {name: name != "crashing" for name in BOTS},
        "run_numbers": {name: 1 + (name == "greedy") for name in BOTS},
        "deaths": {"crashed": 2},
    }
    clock.advance(20)
    snapshot = Snapshot(3.0, 57.0, "http://127.0.0.1:1", replays=4, overview=ledger.overview(), **facts)
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(render_snapshot(snapshot, console.width, height=50))
    console.file.close()
    shown = console.export_text()
    for words in (
        "1,000.00",
        "2,500.00",
        "halted",
        "40 s",
        "greedy x2",
        "ledger-sizer demo",
        "2 crashed; 4 answers replayed",
        "57 s left",
    ):
        assert words in shown, words
    assert line(replace(snapshot, reconciliation="quiet")).endswith("; at the venue: quiet")
    told = "exposure 1,000.00 of 2,500.00 USD (held 1,000.00, open 0.00), 1 holds, 7 of 8 bots alive, 4 decisions"
    assert line(snapshot) == f"  3.0 s  {told}"
    assert clock() > START
