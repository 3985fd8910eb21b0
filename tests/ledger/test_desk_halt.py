"""The desk's halt: after its answer no grant commits, in no portfolio, by no process, until the desk is resumed."""

from __future__ import annotations

import asyncio
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from sqlalchemy import text

from ledger_sizer import Halt, InvalidRequest, Ledger, Reserve, Resume, SetCap
from tests.conftest import NewDatabase
from tests.support.ledgers import Intruder
from tests.support.processes import Fleet
from tests.support.programs import settings_of
from tests.support.services import eventually

ONE = Decimal(1)
HALTS = 6
HALT_SECONDS_MAX = 5.0
"""Longest wait for the answer to a halt under load, on a busy machine. It is some 20 ms on an idle one."""


def opened(url: str) -> Ledger:
    return Ledger.open(url, settings=settings_of(1_000_000))


def grants(ledger: Ledger) -> int:
    """Count the committed grants of all portfolios."""
    with ledger._read_engine.connect() as connection:
        query = text("SELECT count(*) FROM decisions WHERE outcome = 'granted'")
        return int(connection.execute(query).scalar_one())


@pytest.mark.slow
def test_halt_when_processes_trade_then_no_grant_commits_after_its_answer(database_url: str) -> None:
    given = [{"name": f"bot-{number}", "lanes": 6, "settings": {"cap_usd": 1_000_000}} for number in range(2)]
    halted: list[tuple[int, int]] = []
    with Fleet("trade_until_told", database_url, given) as fleet, opened(database_url) as ledger:
        fleet.release()
        for number in range(HALTS):
            before = grants(ledger)
            eventually(lambda before=before: grants(ledger) > before)  # the bots trade
            sent = time.monotonic()
            assert ledger.halt(key=f"halt-{number}", portfolio="*").outcome == "applied"
            answered_ns = time.monotonic_ns()
            committed = grants(ledger)
            assert time.monotonic() - sent < HALT_SECONDS_MAX
            time.sleep(0.3)
            assert grants(ledger) == committed, "a grant committed after the answer to the halt"
            halted.append((answered_ns, time.monotonic_ns()))
            ledger.resume(key=f"resume-{number}", portfolio="*")
        for bot in fleet.bots:
            bot.go()
        granted = [times for bot in fleet.bots for line in bot.lines() for times in line["grants_ns"]]
        assert len(granted) > HALTS
        assert [one for one in granted for begin, end in halted if begin <= one[0] and one[1] < end] == []
        assert ledger.verify().ok


def test_reserve_when_the_desk_is_halted_then_it_is_denied_everywhere_until_the_desk_is_resumed(
    database_url: str,
) -> None:
    with opened(database_url) as ours, opened(database_url) as theirs:
        for number in range(5):  # from now on decided on cached state
            assert ours.reserve(key=f"warm-{number}", available_balance=ONE).granted
        held = ours.reserve(key="held", available_balance=ONE).position_id
        assert held is not None
        theirs.halt(key="stop", portfolio="*", note="all stop")
        answers = [
            ours.reserve(key="a", available_balance=ONE),
            ours.reserve(key="b", portfolio="new", available_balance=ONE),
            ours.reserve(key="c", available_balance=ONE, dry_run=True),
            ours.extend(key="d", position_id=held, ttl_seconds=600),
            *ours.submit([Reserve(key="e", portfolio="newer", available_balance=ONE)], atomic=True),
        ]
        assert [(one.reason, one.binding) for one in answers] == [("halted", "desk")] * 5
        ours.resume(key="resume-main")
        assert ours.reserve(key="f", available_balance=ONE).binding == "desk", "resuming a portfolio is not enough"
        assert ours.confirm(key="fill", position_id=held, quantity=ONE, price=ONE).outcome == "applied"
        assert ours.release(key="exit", position_id=held).outcome == "applied"
        theirs.resume(key="go", portfolio="*")
        assert ours.reserve(key="g", available_balance=ONE).granted
        assert ours.reserve(key="h", portfolio="new", available_balance=ONE).granted
        assert ours.verify().ok


def test_reserve_when_the_desk_is_reducing_then_only_holds_that_are_on_may_be_extended(database_url: str) -> None:
    with opened(database_url) as ledger:
        held = ledger.reserve(key="held", available_balance=ONE).position_id
        assert held is not None
        ledger.halt(key="stop", portfolio="*", mode="reducing")
        denied = ledger.reserve(key="a", available_balance=ONE)
        assert (denied.reason, denied.binding) == ("reducing", "desk")
        assert ledger.extend(key="longer", position_id=held, ttl_seconds=600).granted


def test_submit_when_a_group_halts_the_desk_and_changes_portfolios_then_it_waits_for_no_other_writer(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The group holds the desk and a portfolio that others write: in another order each would wait for the other."""
    with opened(database_url) as ours, opened(database_url) as theirs, ThreadPoolExecutor(5) as threads:
        ours.set_cap(key="begin", cap=Decimal(1000))  # two that begin one portfolio may wait for each other
        stop = False

        def trade(lane: int) -> int:
            number = 0
            while not stop:
                number += 1
                theirs.reserve(key=f"{lane}-{number}", available_balance=ONE, ttl_seconds=1)
            return number

        lanes = [threads.submit(trade, lane) for lane in range(4)]
        for number in range(20):
            group = [
                Halt(key=f"halt-{number}", portfolio="*"),
                SetCap(key=f"cap-{number}", cap=Decimal(1000 + number)),
                Resume(key=f"go-{number}", portfolio="*"),
            ]
            assert [one.outcome for one in ours.submit(group, atomic=True)] == ["applied"] * 3
        stop = True
        assert all(lane.result() for lane in lanes)
        assert "deadlock" not in caplog.text
        assert ours.verify().ok


async def test_halt_when_many_commands_wait_then_those_before_and_after_it_share_their_commits(
    database_url: str,
) -> None:
    """A commit for each of them would make the halt wait, and them."""
    with opened(database_url) as ledger:
        sizes: list[int] = []
        ledger.observe = lambda records, _: sizes.append(len(records))
        asked = [ledger.reserve_async(key=f"{number}", available_balance=ONE) for number in range(40)]
        asked.insert(20, ledger.halt_async(key="stop", portfolio="*"))
        answers = await asyncio.gather(*asked)
        assert [one.outcome for one in answers] == ["granted"] * 20 + ["applied"] + ["denied"] * 20
        assert sum(sizes) == 41
        assert len(sizes) <= 8, sizes


@pytest.mark.parametrize("table", ["scopes", "portfolios"])
def test_reserve_when_the_desks_row_is_gone_then_nothing_is_granted(database_url: str, table: str) -> None:
    """Whoever deletes the row must not thereby lift a halt."""
    with opened(database_url) as ledger:
        for number in range(5):
            assert ledger.reserve(key=f"warm-{number}", available_balance=ONE).granted
        with Intruder(database_url) as intruder:
            intruder.take_guards_down()
            intruder.run("DELETE FROM scopes WHERE portfolio_id = 0")
            if table == "portfolios":
                intruder.run("DELETE FROM portfolios WHERE id = 0")
        for key in ("a", "b"):
            denied = ledger.reserve(key=key, available_balance=ONE)
            assert (denied.reason, denied.binding) == ("halted", "desk")
        assert ledger.reserve(key="c", available_balance=ONE, dry_run=True).binding == "desk"
        assert ledger.desk_status() == "halted"
        assert any(finding.portfolio == "*" for finding in ledger.verify().findings)


def test_reserve_when_it_names_the_desk_then_it_is_refused(database_url: str) -> None:
    with opened(database_url) as ledger:
        with pytest.raises(InvalidRequest, match="portfolio must be"):
            ledger.reserve(key="a", portfolio="*", available_balance=ONE)
        with pytest.raises(InvalidRequest, match="has no scopes"):
            ledger.halt(key="b", portfolio="*", scope="venue=bybit")
        assert list(ledger.history("*")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "warm_up"),
    [("before", 0), ("between", 0), ("before", 3)],
    ids=["with the lock", "between write and commit", "without a lock"],
)
def test_halt_when_a_process_froze_while_it_granted_then_its_late_decision_is_no_grant(
    new_database: NewDatabase, where: str, warm_up: int
) -> None:
    """It decided before the halt. Where it holds a lock, the halt waits at most as long as the server lets it."""
    url = new_database("postgresql")
    settings = {"cap_usd": 1_000_000, "busy_timeout_seconds": 1}
    with (
        Fleet("pause", url, [{"where": where, "warm_up": warm_up, "settings": settings}]) as fleet,
        Ledger.open(url, settings=settings_of(**settings)) as ledger,
    ):
        fleet.release()
        (bot,) = fleet.bots
        assert bot.read() == {"unlocked": bool(warm_up)}
        bot.wait_stopped()
        assert ledger.halt(key="stop", portfolio="*").outcome == "applied"
        committed = grants(ledger)
        bot.signal(signal.SIGCONT)
        bot.go()
        late = bot.read()
        assert late is not None
        assert bot.end() == 0
        assert (late["outcome"], late["reason"]) == ("denied", "halted")
        assert grants(ledger) == committed
        assert ledger.verify().ok
