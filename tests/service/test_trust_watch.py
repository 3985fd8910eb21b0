"""The end of trust is told before it comes and when it is there, and its return: each once, though none reconciles."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection

from ledger_sizer import ReconcileSettings
from ledger_sizer.model.commands import Reconciled
from ledger_sizer.model.times import to_us
from ledger_sizer.service.trust_watch import TrustWatch
from tests.support.accounts import Desk, WrittenAccount
from tests.support.clock import FakeClock
from tests.support.ledgers import Intruder, assert_verified
from tests.support.services import eventually, serving
from tests.support.webhooks import Receiver

URL = SecretStr("http://127.0.0.1:9/hook")
Looks = Callable[[], "str | None"]


class Watched:
    """A desk that reconciled once, and replicas that look at its trust in turns."""

    def __init__(
        self, url: str, clock: FakeClock, portfolios: tuple[str, ...] = ("main",), accounts: Sequence[Any] = (),
        **reconcile: Any,
    ) -> None:  # fmt: skip
        accounts = accounts or [WrittenAccount(portfolio=name) for name in portfolios]
        self.desk = Desk(url, clock, accounts, **{"webhook_url": URL, **reconcile})
        self.clock = clock
        self.intruder = Intruder(url)
        for name in portfolios:
            self.desk.ledger.set_cap(key="cap", portfolio=name, cap=Decimal(1000))
        self.run()

    def run(self) -> None:
        self.desk.reconciler.run()

    def replica(self) -> TrustWatch:
        return TrustWatch(self.desk.ledger, self.desk.engine, now_us=self._now_us)

    def _now_us(self, _connection: Connection) -> int:
        return to_us(self.clock.now())

    def posted(self) -> list[Any]:
        """Return the bodies in the webhook's outbox."""
        return [json.loads(body) for (body,) in self.intruder.rows("SELECT body FROM alerts ORDER BY id")]

    def posted_of(self, what: str) -> list[Any]:
        """Return those whose event begins so."""
        return [one for one in self.posted() if one["event"].startswith(what)]

    def remarks(self, portfolio: str = "main") -> list[tuple[str, str]]:
        """Return what the chain tells of trust: event and scope, oldest first."""
        said = [
            json.loads(one.request)
            for one in self.desk.ledger.history(portfolio, command="remark", actor="ledger", ascending=True)
        ]
        return [(one["event"], one["about"]) for one in said]

    def close(self) -> None:
        self.intruder.close()
        self.desk.close()


@pytest.fixture
def watched(database_url: str, clock: FakeClock) -> Iterator[Watched]:
    watched = Watched(database_url, clock)
    yield watched
    assert_verified(watched.desk.ledger)
    watched.close()


@pytest.mark.parametrize("restarts", [False, True])
def test_look_when_the_reconciler_is_dead_for_hours_then_each_step_is_told_once(
    watched: Watched, clock: FakeClock, restarts: bool
) -> None:
    replicas = [watched.replica(), watched.replica()]

    def look_for(seconds: int) -> None:
        for number in range(seconds // 10):
            clock.advance(10)
            looks = [watched.replica()] if restarts else replicas
            looks[number % len(looks)]()

    look_for(190)
    assert watched.posted() == []
    look_for(20)
    (ending,) = watched.posted()
    assert (ending["event"], ending["portfolios"], ending["count"]) == ("trust_ending", ["main"], 2)
    assert ending["scopes"] == [
        {"portfolio": "main", "scope": scope, "trusted_until": "2026-01-01T00:05:00Z", "seconds_left": 100}
        for scope in ("portfolio", "account=bybit/main")
    ]
    assert "with a leg" not in ending["text"], "of the only account the portfolio says it"
    assert "from 2026-01-01T00:05:00Z on, in 100 s" in ending["text"]
    assert "The last run, 1, began at 2026-01-01T00:00:00Z and was good" in ending["text"]
    assert "Do: ledger-sizer reconcile" in ending["text"]
    look_for(3 * 3600)
    _, ended = watched.posted()
    assert ended["event"] == "trust_ended"
    assert "since 2026-01-01T00:05:00Z" in ended["text"]
    watched.run()
    look_for(60)
    *_, back = watched.posted()
    assert (back["event"], back["scopes"][0]["scope"]) == ("trust_back", "portfolio")
    assert watched.remarks() == [
        (event, scope)
        for event in ("trust_ending", "trust_ended", "trust_back") for scope in ("portfolio", "account=bybit/main")
    ]  # fmt: skip
    look_for(400)
    assert [one["event"] for one in watched.posted()[3:]] == ["trust_ending", "trust_ended"], "another episode"


def test_look_when_a_run_is_good_after_the_warning_then_it_is_taken_back(watched: Watched, clock: FakeClock) -> None:
    clock.advance(250)
    assert watched.replica()() == "told"
    watched.run()
    assert watched.replica()() == "told"
    assert watched.replica()() is None
    assert [one["event"] for one in watched.posted()] == ["trust_ending", "trust_back"]


def test_look_when_runs_are_good_then_nothing_is_told(watched: Watched, clock: FakeClock) -> None:
    look = watched.replica()
    for _ in range(20):
        watched.run()
        for _ in range(6):
            clock.advance(10)
            assert look() is None
    assert (watched.posted(), watched.remarks()) == ([], [])


def test_look_when_an_account_cannot_be_read_then_the_message_says_why(watched: Watched, clock: FakeClock) -> None:
    watched.desk.account.positions = None
    for _ in range(5):
        clock.advance(60)
        watched.run()
    watched.replica()()
    (ended,) = watched.posted_of("trust")
    assert ended["event"] == "trust_ended", "without a look before, there was no warning"
    assert "was partial: bybit/main positions: no answer" in ended["text"]


@pytest.mark.parametrize("warning", [0, 20])
def test_look_when_the_setting_says_when_then_the_warning_comes_then(
    database_url: str, clock: FakeClock, warning: int
) -> None:
    watched = Watched(database_url, clock, trust_warning_seconds=warning)
    look = watched.replica()
    clock.advance(279)
    assert look() is None
    clock.advance(1)
    assert look() == ("told" if warning else None)
    clock.advance(20)
    assert look() == "told"
    assert [one["event"] for one in watched.posted()] == ["trust_ending"] * bool(warning) + ["trust_ended"]
    watched.close()


def test_look_when_trust_has_no_end_any_more_then_its_return_is_told(watched: Watched, clock: FakeClock) -> None:
    look = watched.replica()
    clock.advance(300)
    assert look() == "told"
    watched.desk.ledger.run(Reconciled(key="declared", fresh_until=None))
    clock.advance(1)
    assert (look(), look()) == ("told", None)
    assert "not enforced there any more" in watched.posted()[-1]["text"]


def test_look_when_several_portfolios_lose_trust_then_it_is_one_message(database_url: str, clock: FakeClock) -> None:
    names = tuple(f"p{number:03}" for number in range(25))
    watched = Watched(database_url, clock, names)
    clock.advance(400)
    assert watched.replica()() == "told"
    (ended,) = watched.posted()
    assert (ended["portfolios"], ended["count"]) == ([*names], 50)
    assert "and 5 more" in ended["text"]
    said = [("trust_ended", "portfolio"), ("trust_ended", "account=bybit/main")]
    assert {name: watched.remarks(name) for name in names} == dict.fromkeys(names, said)
    watched.close()


def test_look_when_one_account_of_two_loses_trust_then_it_is_named(database_url: str, clock: FakeClock) -> None:
    watched = Watched(database_url, clock, accounts=[WrittenAccount("bybit"), WrittenAccount("okx")])
    bybit, look = watched.desk.account, watched.replica()
    bybit.positions = None
    for _ in range(30):
        clock.advance(10)
        watched.run()
        look()
    ending, ended = watched.posted_of("trust")
    assert [one["scope"] for one in (*ending["scopes"], *ended["scopes"])] == ["account=bybit/main"] * 2
    assert "main: reservations with a leg at bybit/main since" in ended["text"]
    assert "was partial: bybit/main positions: no answer" in ended["text"]
    bybit.positions = ()
    watched.run()
    look()
    assert "reservations with a leg at bybit/main are possible again" in watched.posted_of("trust")[-1]["text"]
    assert [one["event"] for one in watched.posted_of("run")] == ["run_failed", "run_good_again"]
    watched.close()


def test_look_when_a_crash_comes_before_the_remark_then_the_webhook_gets_it_under_the_same_name(
    watched: Watched, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.advance(250)
    monkeypatch.setattr(watched.desk.ledger, "submit", lambda _commands: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        watched.replica()()
    monkeypatch.undo()
    clock.advance(3)
    assert watched.replica()() == "told"
    rows = watched.intruder.rows("SELECT delivery FROM alerts")
    assert (len(rows), len(set(rows))) == (2, 1), "a receiver knows the second by its delivery header"


@pytest.mark.parametrize(("reconcile", "seconds"), [({}, 15), ({"trust_warning_seconds": 8}, 2), (
    {"trust_warning_seconds": 0}, 15), ({"trust_warning_seconds": 1}, 1)])  # fmt: skip
def test_watch_when_the_warning_is_short_then_it_looks_often(
    database_url: str, clock: FakeClock, reconcile: dict[str, Any], seconds: int
) -> None:
    watched = Watched(database_url, clock, **reconcile)
    assert watched.replica().look_seconds == seconds
    watched.close()


def test_serve_when_nobody_reconciles_then_the_webhook_gets_the_end_of_trust_and_metrics_show_it(
    database_url: str,
) -> None:
    receiver = Receiver([])
    reconcile = ReconcileSettings(webhook_url=SecretStr(receiver.url), trust_warning_seconds=8)
    with serving(database_url, jobs=True, sections={"reconcile": reconcile}) as service:
        until = datetime.now(UTC) + timedelta(seconds=8)
        service.ledger.run(Reconciled(key="1", fresh_until=until))
        eventually(lambda: [json.loads(body)["event"] for _, body in receiver.got][-1:] == ["trust_ended"], seconds=60)
        told = [json.loads(body)["event"] for _, body in receiver.got]
        assert told in (["trust_ending", "trust_ended"], ["trust_ended"]), "a busy machine may look too late to warn"
        metrics = service.http.get("/metrics").text
        assert 'ledger_trust_seconds_left{account="",portfolio="main"} -' in metrics
    receiver.close()
