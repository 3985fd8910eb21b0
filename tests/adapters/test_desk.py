"""`Desk`: what it grants, what it remembers, and what it does after a crash."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import InvalidRequest, Ledger
from ledger_sizer.adapters.desk import Desk
from ledger_sizer.client import AsyncLedgerClient, LedgerClient
from tests.support.clock import FakeClock
from tests.support.ledgers import assert_verified
from tests.support.services import served

pytestmark = pytest.mark.one_engine

D = Decimal
BTC = "BTC/USDT"


class Seconds:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture(params=["embedded", "http"])
def new_desk(request: pytest.FixtureRequest, ledger: Ledger, seconds: Seconds) -> Iterator[Callable[..., Desk]]:
    """Make desks for one ledger: embedded, or over HTTP. The ledger's cap is 300 USD."""
    ledger.set_cap(key="cap", cap=D(300))
    opened: list[Desk] = []
    target: list[Any] = [ledger]

    def make(**options: Any) -> Desk:
        one = Desk(target[0], **{"tags": {"bot": "a"}, "clock": seconds, "patience_seconds": 20.0, **options})
        opened.append(one)
        return one

    if request.param == "embedded":
        yield make
    else:
        with served(str(ledger._write_engine.url), clock=ledger._clock) as service:
            target[0] = service.url
            yield make
            for one in opened:
                one.close()
    for one in opened:
        one.close()


@pytest.fixture
def desk(new_desk: Callable[..., Desk]) -> Desk:
    return new_desk()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[Any, ...]]]:
    """Return what the desk logged: the event, and what it is about."""
    caplog.set_level(logging.INFO, logger="ledger_sizer.desk")

    def lines() -> list[tuple[Any, ...]]:
        names = ("event", "symbol", "reason", "binding")
        found = [record.msg for record in caplog.records if record.name == "ledger_sizer.desk"]
        return [tuple(line[name] for name in names if name in line) for line in found if isinstance(line, dict)]

    return lines


def held(ledger: Ledger) -> list[Any]:
    return list(ledger.positions("main", state="held"))


def decisions(ledger: Ledger) -> int:
    return ledger.exposure().seq


def test_ask_when_there_is_room_then_it_is_held_under_the_tags_and_the_symbol(desk: Desk, ledger: Ledger) -> None:
    assert desk.ask(BTC, 100) == 100
    (position,) = held(ledger)
    assert dict(position.tags) == {"bot": "a", "symbol": BTC}
    assert position.held == 100
    assert desk.ask("ETH/USDT", 250, at_least=10) == 200, "what the cap leaves"
    assert desk.ask("SOL/USDT", 50) == 0
    assert_verified(ledger)


@pytest.mark.parametrize("usd", [0.1 + 0.2, "0.30000000000000004", D("0.30000000000000004")])
def test_ask_when_usd_is_a_float_or_a_text_then_no_cent_is_added(desk: Desk, usd: Any) -> None:
    assert desk.ask(BTC, usd) == D("0.3")


def test_ask_again_when_nothing_filled_then_the_same_hold_answers_and_lives_longer(
    desk: Desk, ledger: Ledger, clock: FakeClock, seconds: Seconds
) -> None:
    assert desk.ask(BTC, 100) == 100
    before, recorded = held(ledger), decisions(ledger)
    assert [desk.ask(BTC, usd) for usd in (100, 40, 150)] == [100, 40, 100]
    assert (held(ledger), decisions(ledger)) == (before, recorded), "a hold that is young needs no record"
    clock.advance(40)
    seconds.now += 40
    assert desk.ask(BTC, 100) == 100
    clock.advance(40)
    (position,) = held(ledger)
    ledger.sweep()
    assert held(ledger) == [position], "its order has a minute again"
    assert position.position_id == before[0].position_id


def test_ask_again_when_the_hold_is_less_than_the_minimum_then_it_is_0(desk: Desk, told: Any) -> None:
    assert desk.ask(BTC, 100) == 100
    assert desk.ask(BTC, 200, at_least=150) == 0
    assert told() == [("desk.denied", BTC, "hold_too_small", "main-2")]


def test_ask_again_when_the_hold_has_ended_then_it_is_a_new_wish(
    desk: Desk, ledger: Ledger, clock: FakeClock, seconds: Seconds
) -> None:
    desk.ask(BTC, 100)
    first = held(ledger)
    clock.advance(61)
    seconds.now += 61
    assert desk.ask(BTC, 120) == 120
    (second,) = held(ledger)
    assert second.position_id != first[0].position_id
    desk.release(BTC)
    assert held(ledger) == []
    assert desk.ask(BTC, 80) == 80


def test_ask_again_when_the_portfolio_was_halted_then_the_hold_gives_nothing(
    desk: Desk, ledger: Ledger, told: Any
) -> None:
    assert desk.ask(BTC, 100) == 100
    ledger.halt(key="stop", portfolio="*")
    assert desk.ask(BTC, 100) == 0
    assert told() == [("desk.denied", BTC, "halted", "desk")]


def test_ask_when_each_order_has_a_name_then_each_has_a_hold_of_its_own(desk: Desk, ledger: Ledger) -> None:
    asked = [desk.ask(BTC, 80, wish=name) for name in ("grid-1", "grid-2", "grid-1")]
    assert asked == [80, 80, 80]
    assert [one.reference for one in held(ledger)] == ["grid-1", "grid-2"]
    desk.settle({}, resting=[BTC])
    assert desk.ask(BTC, 80, wish="grid-1") == 0, "its order is out"
    desk.release(BTC, wish="grid-1")
    assert [one.reference for one in held(ledger)] == ["grid-2"]
    assert desk.ask(BTC, 80, wish="grid-1") == 80


@pytest.mark.parametrize("names", [[BTC] * 8, [f"C{n}/USDT" for n in range(8)]], ids=["one market", "eight markets"])
def test_ask_when_threads_ask_at_once_then_no_dollar_is_told_twice(
    desk: Desk, ledger: Ledger, names: list[str]
) -> None:
    together = threading.Barrier(8)

    def ask(name: str) -> Decimal:
        together.wait()
        return desk.ask(name, 100)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, names))
    told_usd, kept_usd = sum(answers), ledger.exposure().held
    assert told_usd == kept_usd == (100 if len(set(names)) == 1 else 300)


def test_ask_when_a_denial_repeats_then_it_is_answered_from_memory_and_told_once(
    desk: Desk, ledger: Ledger, seconds: Seconds, told: Any
) -> None:
    desk.ask(BTC, 300)
    assert desk.ask("ETH/USDT", 100, at_least=50) == 0
    recorded = decisions(ledger)
    for _ in range(20):
        assert desk.ask("ETH/USDT", 99, at_least=50) == 0
        seconds.now += 2
    assert decisions(ledger) == recorded
    seconds.now += 21
    assert desk.ask("ETH/USDT", 100, at_least=50) == 0
    assert decisions(ledger) == recorded + 1
    assert told() == [("desk.denied", "ETH/USDT", "cap_exceeded", "portfolio")]


def test_ask_when_room_was_freed_or_the_wish_is_smaller_then_memory_does_not_answer(
    desk: Desk, ledger: Ledger, seconds: Seconds
) -> None:
    desk.ask(BTC, 280)
    assert desk.ask("ETH/USDT", 100, at_least=50) == 0
    assert desk.ask("ETH/USDT", 20, at_least=10) == 20
    assert desk.ask("SOL/USDT", 100) == 0
    desk.release(BTC)
    assert desk.ask("SOL/USDT", 100) == 100
    assert desk.ask(BTC, 250, at_least=200) == 0
    assert desk.settle({"SOL/USDT": (D(1), D(90))}), "something changed, so the desk asks anew"
    recorded = decisions(ledger)
    assert desk.ask(BTC, 250, at_least=200) == 0
    assert decisions(ledger) == recorded + 1


def test_settle_when_the_hold_filled_then_it_is_open_and_the_next_ask_is_a_new_wish(desk: Desk, ledger: Ledger) -> None:
    assert desk.ask(BTC, 100) == 100
    assert desk.settle({BTC: (D("0.002"), D(49000))})
    assert (ledger.exposure().held, ledger.exposure().open) == (2, 98), "the hold is young: more of it may fill"
    assert desk.ask(BTC, 100) == 100
    assert (ledger.exposure().held, ledger.exposure().open) == (102, 98)
    assert desk.settle({}, as_of=ledger.history().items[0].decided_at)
    assert (ledger.exposure().held, ledger.exposure().open) == (0, 0)
    assert_verified(ledger)


def test_settle_when_an_order_rests_then_its_hold_is_kept_and_another_ask_is_another_order(
    desk: Desk, ledger: Ledger, clock: FakeClock, seconds: Seconds
) -> None:
    assert desk.ask(BTC, 100) == 100
    assert desk.settle({}, resting=[BTC])
    clock.advance(3600)
    seconds.now += 3600
    assert desk.ask(BTC, 60) == 60
    assert [(one.held, one.until_known) for one in held(ledger)] == [(100, True), (60, False)]


def test_release_when_a_part_filled_then_only_the_rest_is_freed(desk: Desk, ledger: Ledger) -> None:
    desk.ask(BTC, 100)
    desk.settle({BTC: (D("0.001"), D(50000))}, resting=[BTC])
    assert (ledger.exposure().held, ledger.exposure().open) == (50, 50)
    desk.release(BTC)
    assert (ledger.exposure().held, ledger.exposure().open) == (0, 50)


BAD_WISHES: list[tuple[Any, Any, Any]] = [
    (BTC, -1, 0), (BTC, 0, 0), (BTC, float("nan"), 0), (BTC, "much", 0), (BTC, None, 0), (BTC, True, 0), (BTC, 1, 2),
    (BTC, 5, -1), (BTC, 5, float("inf")), ("", 5, 0), (None, 5, 0), (["BTC"], 5, 0), ("*", 5, 0), (BTC, D("1e40"), 0),
]  # fmt: skip


def test_ask_when_an_argument_is_bad_then_it_is_0_and_the_log_names_it(
    desk: Desk, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = decisions(ledger)
    for symbol, usd, at_least in BAD_WISHES:
        caplog.clear()
        assert desk.ask(symbol, usd, at_least) == 0
        assert desk.ask(symbol, usd, at_least) == 0
        assert [record.levelname for record in caplog.records] == ["ERROR"], "told once, the second time it is no news"
    assert decisions(ledger) == recorded


BAD_BOOKS: list[tuple[Any, Any]] = [
    ({BTC: 5}, ()), ({BTC: (D(-1), D(1))}, ()), (None, ()), ([1], ()), ({}, "BTC"), ({}, 5),
    ({"main-99": (D(1), D(1))}, ()),
]  # fmt: skip


def test_settle_when_the_book_is_bad_then_it_is_false_and_the_next_calls_work(desk: Desk, told: Any) -> None:
    for book, resting in BAD_BOOKS:
        assert desk.settle(book, resting) is False
        assert desk.settle(book, resting) is False
    assert [line[0] for line in told()] == ["desk.refused"] * len(BAD_BOOKS), "each once"
    desk.release(["BTC"])  # type: ignore[arg-type]
    assert desk.ask(BTC, 100) == 100
    assert desk.settle({})


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tags": {}}, "tags"),
        ({"tags": {"symbol": "BTC"}}, "tags"),
        ({"tags": {"external": "exchange"}}, "tags"),
        ({"tags": {"Bot": "a"}}, "tags"),
        ({"portfolio": "a b"}, "portfolio"),
        ({"patience_seconds": 0}, "patience_seconds"),
        ({"patience_seconds": "1"}, "patience_seconds"),
        ({"repeat_seconds": None}, "repeat_seconds"),
        ({"ledger": None}, "ledger"),
        ({"ledger": AsyncLedgerClient()}, "ledger"),
        ({"ledger": "ledger.db"}, "database_url"),
        ({"ledger": "http://"}, "base_url"),
        ({"repeat_seconds": -1}, "repeat_seconds"),
        ({"ttl_seconds": 0}, "ttl_seconds"),
    ],
)
def test_make_when_an_argument_is_bad_then_invalid_request_names_it(
    ledger: Ledger, options: dict[str, Any], field: str
) -> None:
    before = threading.active_count()
    with pytest.raises(InvalidRequest) as error:
        Desk(**{"ledger": ledger, **options})
    assert threading.active_count() == before
    assert str(error.value.field).startswith(field)


def test_make_when_no_tags_are_given_then_the_client_is_the_bot(database_url: str) -> None:
    with Ledger.open(database_url, client="bot-7") as ledger, Desk(ledger) as desk:
        assert dict(desk.tags) == {"bot": "bot-7"}
    with Desk(database_url) as embedded, Desk("http://127.0.0.1:9") as remote:
        assert (dict(embedded.tags), dict(remote.tags)) == ({"bot": "embedded"}, {"bot": "desk"})
    with LedgerClient("http://127.0.0.1:9") as client, Desk(client) as desk:
        assert dict(desk.tags) == {"bot": "desk"}


def test_make_when_patience_is_none_then_calls_run_on_the_callers_thread(ledger: Ledger, monkeypatch: Any) -> None:
    before = threading.active_count()
    with Desk(ledger, tags={"bot": "a"}, patience_seconds=None) as desk:
        assert threading.active_count() == before
        assert desk.ask(BTC, 100) == 100
        assert desk.settle({})


def test_close_when_called_twice_then_asks_are_0_and_the_given_ledger_stays_open(ledger: Ledger, told: Any) -> None:
    desk = Desk(ledger, tags={"bot": "a"})
    desk.close()
    desk.close()
    assert (desk.ask(BTC, 100), desk.settle({})) == (0, False)
    desk.release(BTC)
    assert [line[0] for line in told()] == ["desk.outage_began"]
    assert ledger.portfolios() == []


DYING_BOT = """
import sys
from ledger_sizer.adapters.desk import Desk
desk = Desk(sys.argv[1], tags={"bot": "a"}, patience_seconds=30)
print(desk.ask("BTC/USDT", 100.5), flush=True)
sys.stdin.read()
"""


def test_ask_when_the_bot_was_killed_before_its_order_then_the_same_wish_finds_its_hold(database_url: str) -> None:
    bot = subprocess.Popen(
        [sys.executable, "-c", DYING_BOT, database_url], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert bot.stdout is not None
    assert bot.stdin is not None
    try:
        assert bot.stdout.readline() == "100.5\n"
        os.kill(bot.pid, signal.SIGKILL)
        bot.wait(30)
    finally:
        bot.kill()
        bot.wait(30)
        bot.stdout.close()
        bot.stdin.close()
    with Ledger.open(database_url) as ledger, Desk(ledger, tags={"bot": "a"}, patience_seconds=30) as desk:
        assert desk.ask("BTC/USDT", 97) == 97, "it starts again, its balance is lower"
        assert [(one.position_id, one.held) for one in held(ledger)] == [("main-1", D("100.5"))]
        assert ledger.history(command="reserve").items[0].seq == 1


def test_import_when_the_desk_is_used_then_no_framework_and_no_service_is_loaded() -> None:
    heavy = "{'ccxt', 'freqtrade', 'nautilus_trader', 'fastapi', 'uvicorn', 'apscheduler'}"
    code = f"import sys, ledger_sizer.adapters.desk; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
