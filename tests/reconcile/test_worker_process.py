"""Inspection in a worker process: same results; if it fails, nothing counts as flat, and no process is left behind.

The accounts below are opened in that process, so a file tells each of them how to fail.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr

from ledger_sizer import AppSettings, Closed, InvalidRequest, ReconcileSettings
from ledger_sizer.config import ExchangeSettings
from ledger_sizer.exchanges.snapshot import Snapshot
from ledger_sizer.model.errors import Unavailable
from ledger_sizer.paper.control import DEFAULT_KEY, DEFAULT_SECRET, PaperControl
from ledger_sizer.paper.server import PaperServer
from ledger_sizer.reconcile import worker_process
from ledger_sizer.reconcile.inspection import InspectionFailed, InspectionRequest, LocalInspector
from ledger_sizer.reconcile.run import Reconciler
from ledger_sizer.reconcile.worker_process import WorkerInspector
from tests.support.accounts import Desk, WrittenAccount, long, short
from tests.support.clock import FakeClock
from tests.support.ledgers import TAGS, figures
from tests.support.services import LOW_PRIORITY_SECONDS, eventually

pytestmark = [pytest.mark.one_engine, pytest.mark.timeout(4 * LOW_PRIORITY_SECONDS)]

D = Decimal
ASKED = InspectionRequest("main", "demand", 7)
HUSH = "hush-hush"


class TroubledAccount(WrittenAccount):
    """Shows 2 ETH that the ledger lacks, or fails as a file in its folder says."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.shows(short("0.02"), long("2", "ETH/USDT:USDT", "2000"), BTC="0.02")

    def snapshot(self, now_us: Callable[[], int]) -> Snapshot:
        (self._folder / "pid").write_text(str(os.getpid()))
        trouble = (self._folder / "trouble").read_text() if (self._folder / "trouble").exists() else ""
        if trouble == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "hang":
            time.sleep(600)
        if trouble == "defect":
            raise ZeroDivisionError("of an account")
        return super().snapshot(now_us)


def open_troubled(folder: Path, _settings: ExchangeSettings) -> Sequence[Any]:
    return [TroubledAccount(folder)]


def open_nothing(_settings: ExchangeSettings) -> Sequence[Any]:
    raise RuntimeError("accounts cannot be opened")


def settings_with(**reconcile: Any) -> AppSettings:
    return AppSettings(
        reconcile=ReconcileSettings(confirmations=1, stale_after_seconds=None, grace_seconds=0, **reconcile),
        exchange=ExchangeSettings(api_key=SecretStr(HUSH), api_secret=SecretStr(HUSH)),
        log_level="ERROR",
    )


@pytest.fixture
def apart(database_url: str, tmp_path: Path, desk: Desk) -> Iterator[WorkerInspector]:
    look = WorkerInspector(database_url, settings_with(), partial(open_troubled, tmp_path))
    yield look
    look.close()


@pytest.fixture
def desk(database_url: str, clock: FakeClock) -> Iterator[Desk]:
    """A ledger with a hedged position of 0.02 BTC, and nothing of 2 ETH."""
    desk = Desk(database_url, clock, confirmations=1, stale_after_seconds=None)
    desk.ledger.adopt(
        key="a", quantity=D("0.02"), price=D(50000), tags=TAGS,
        legs=[leg("BTC/USDT", "spot", "buy"), leg("BTC/USDT:USDT", "swap", "sell")],
    )  # fmt: skip
    yield desk
    desk.close()


def leg(symbol: str, kind: Any, side: Any) -> Any:
    from ledger_sizer import Leg

    return Leg("bybit", symbol, kind, side, D("0.02"), D(50000))


@pytest.fixture
def reconciler(desk: Desk, apart: WorkerInspector) -> Reconciler:
    return Reconciler(desk.ledger, desk.engine, apart, settings_with())


def test_look_when_done_in_another_process_then_it_sees_what_is_seen_here(
    desk: Desk, apart: WorkerInspector, tmp_path: Path
) -> None:
    there = apart.inspect(ASKED, LOW_PRIORITY_SECONDS)
    here = LocalInspector(desk.engine, [TroubledAccount(tmp_path)], settings_with()).inspect(ASKED)
    assert there.comparison == here.comparison
    assert [finding.kind for finding in there.comparison.findings] == ["unknown_position"]
    assert there.run.found == here.run.found
    assert (there.run.outcome, there.run.epoch, there.external) == ("good", 7, here.external)
    assert apart.process_id not in (None, os.getpid())


def test_look_when_it_is_done_apart_then_at_low_priority_and_with_no_secret_in_sight(apart: WorkerInspector) -> None:
    apart.inspect(ASKED, LOW_PRIORITY_SECONDS)
    process = psutil.Process(apart.process_id)
    assert process.nice() == 19
    group = Path(f"/proc/{process.pid}/autogroup")
    assert not group.exists() or group.read_text().endswith("nice 19\n"), "a session of its own, of the lowest priority"
    assert HUSH not in " ".join(process.cmdline())
    assert HUSH not in str(process.environ())


@pytest.mark.parametrize(
    ("trouble", "says"), [("crash", "SIGKILL"), ("defect", "of an account"), ("hang", "did not answer within")]
)
def test_run_when_the_process_fails_then_all_is_unknown_nothing_is_flat_and_the_next_run_is_whole(
    desk: Desk, reconciler: Reconciler, apart: WorkerInspector, tmp_path: Path, trouble: str, says: str
) -> None:
    (good,) = reconciler.run()
    assert figures(desk.ledger, "external=exchange") == (0, D(4000))
    (tmp_path / "trouble").write_text(trouble)
    hasty = settings_with(run_seconds_max=10 if trouble == "hang" else LOW_PRIORITY_SECONDS)
    (failed,) = Reconciler(desk.ledger, desk.engine, apart, hasty).run()
    (tmp_path / "trouble").unlink()
    assert (failed.run.outcome, failed.run.found) == ("failed", {"fetch_failed": 1})
    assert says in str(failed.run.fetched[0]["problems"])
    assert {drift.kind for drift in failed.live} == {"unknown_position", "fetch_failed"}
    assert failed.resolved == ()
    assert figures(desk.ledger, "external=exchange") == (0, D(4000)), "counted on, and once"
    (again,) = reconciler.run()
    assert again.run.outcome == "good"
    assert [drift.id for drift in again.live] == [drift.id for drift in good.live]
    assert {drift.kind for drift in again.resolved} == {"fetch_failed"}
    assert desk.ledger.verify().ok


def test_look_when_the_accounts_cannot_be_opened_then_it_fails_and_does_not_wait(
    database_url: str, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "_EXIT_SECONDS_MAX", LOW_PRIORITY_SECONDS)
    look = WorkerInspector(database_url, settings_with(), open_nothing)
    begun = time.monotonic()
    with pytest.raises(InspectionFailed, match="code 1"):
        look.inspect(ASKED, 3 * LOW_PRIORITY_SECONDS)
    assert time.monotonic() - begun < 2 * LOW_PRIORITY_SECONDS
    look.close()


def test_look_when_the_database_is_away_then_it_is_unavailable_as_here(tmp_path: Path) -> None:
    look = WorkerInspector(f"sqlite:///{tmp_path}/nowhere/ledger.db", settings_with(), partial(open_troubled, tmp_path))
    with pytest.raises(Unavailable):
        look.inspect(ASKED, LOW_PRIORITY_SECONDS)
    look.close()


def test_close_when_an_exchange_hangs_then_whoever_waits_is_told_at_once_and_no_process_is_left(
    apart: WorkerInspector, tmp_path: Path
) -> None:
    (tmp_path / "trouble").write_text("hang")
    met: list[Exception] = []

    def ask() -> None:
        try:
            apart.inspect(ASKED, 500)
        except Exception as error:  # noqa: BLE001 - checked below
            met.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), seconds=LOW_PRIORITY_SECONDS)
    process_id = int((tmp_path / "pid").read_text())
    apart.close()
    thread.join(30)
    assert isinstance(met[0], Closed)
    assert not psutil.pid_exists(process_id)
    assert apart.process_id is None
    with pytest.raises(Closed):
        apart.inspect(ASKED, 1)
    apart.close()


_PARENT = """
import sys
from functools import partial
from pathlib import Path
from tests.reconcile.test_worker_process import ASKED, open_troubled, settings_with
from ledger_sizer.reconcile.worker_process import WorkerInspector
folder = Path(sys.argv[1])
(folder / "trouble").write_text("hang")
WorkerInspector(sys.argv[2], settings_with(), partial(open_troubled, folder)).inspect(ASKED, 500)
"""


def test_look_when_the_service_is_killed_then_its_process_ends_too(
    database_url: str, desk: Desk, tmp_path: Path
) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(tmp_path), database_url])
    try:
        eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), seconds=LOW_PRIORITY_SECONDS)
        process_id = int((tmp_path / "pid").read_text())
        assert psutil.Process(process_id).ppid() == parent.pid
    finally:
        parent.kill()
        parent.wait()
    eventually(lambda: not psutil.pid_exists(process_id), seconds=LOW_PRIORITY_SECONDS)


def test_open_when_ccxt_does_not_know_the_exchange_then_the_service_is_refused_at_its_start(tmp_path: Path) -> None:
    settings = AppSettings(exchange=ExchangeSettings(id="bybitt", api_key=SecretStr("x")))
    with pytest.raises(InvalidRequest, match=r"ccxt has no exchange 'bybitt'; did you mean one of .*bybit"):
        WorkerInspector(f"sqlite:///{tmp_path}/ledger.db", settings)


def test_load_rules_when_done_apart_then_they_come_from_the_exchange_and_a_failure_is_unavailable(
    database_url: str, desk: Desk
) -> None:
    with PaperServer() as paper:
        exchange = ExchangeSettings(
            api_key=SecretStr(DEFAULT_KEY), api_secret=SecretStr(DEFAULT_SECRET), base_url=paper.url, retries_max=0
        )
        look = WorkerInspector(database_url, AppSettings(exchange=exchange, log_level="ERROR"))
        (account,) = look.accounts
        assert "BTC/USDT:USDT" in {rules.symbol for rules in account.instruments()}
        PaperControl(paper.url, "bybit").fault("outage", times=None)
        with pytest.raises(Unavailable, match="bybit did not give its market rules"):
            account.instruments()
        os.kill(look.process_id or 0, signal.SIGKILL)
        with pytest.raises(Unavailable, match="bybit"):
            account.instruments()
        look.close()
