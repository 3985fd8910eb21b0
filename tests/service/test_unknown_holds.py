"""Holds whose order's fate is not known for long are told of: once, also across restarts, and again later."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection

from ledger_sizer import Ledger, ReconcileSettings, Reserve
from ledger_sizer.model.times import to_us
from ledger_sizer.service.unknown_holds import AGAIN_SECONDS, UnknownHolds
from ledger_sizer.storage.database import make_engine
from tests.support.clock import FakeClock
from tests.support.ledgers import TAGS, Intruder, assert_verified
from tests.support.services import eventually, serving, settings_for
from tests.support.webhooks import Receiver

D = Decimal
URL = SecretStr("http://127.0.0.1:9/hook")


class Watched:
    """A ledger on a test's clock, and the job. `again` begins anew, as another process would."""

    def __init__(self, url: str, clock: FakeClock, *, webhook: SecretStr | None = URL, **ledger: Any) -> None:
        self.clock = clock
        sections = {"reconcile": ReconcileSettings(webhook_url=webhook)}
        self.settings = settings_for(url, ledger=ledger, sections=sections)
        self.ledger = Ledger.open(url, settings=self.settings, clock=clock)
        self.engine = make_engine(url)
        self.intruder = Intruder(url)
        self.again()

    def again(self) -> None:
        self.look = UnknownHolds(self.ledger, self.engine, now_us=self._now_us)

    def _now_us(self, _connection: Connection) -> int:
        return to_us(self.clock.now())

    def told(self) -> list[str]:
        """Return the positions that remarks in the chain name, oldest first."""
        remarks = self.ledger.history(command="remark", ascending=True, limit=1000)
        assert {remark.actor for remark in remarks} <= {"ledger"}
        return [json.loads(remark.request)["about"] for remark in remarks]

    def posted(self) -> list[Any]:
        """Return the bodies in the webhook's outbox."""
        return [json.loads(body) for (body,) in self.intruder.rows("SELECT body FROM alerts ORDER BY id")]

    def close(self) -> None:
        self.intruder.close()
        self.engine.dispose()
        self.ledger.close()


@pytest.fixture
def watched(database_url: str, clock: FakeClock) -> Iterator[Watched]:
    watched = Watched(database_url, clock)
    yield watched
    watched.close()


def test_look_when_an_orders_fate_is_not_known_for_long_then_it_is_told_once(
    watched: Watched, clock: FakeClock
) -> None:
    ledger = watched.ledger
    ledger.reserve(key="1", tags=TAGS, until_known=True)
    ledger.reserve(key="2", ttl_seconds=100_000)
    since = clock.now()
    clock.advance(899)
    assert (watched.look(), watched.told()) == (None, [])
    ledger.reserve(key="3", until_known=True)
    clock.advance(1)
    assert (watched.look(), watched.told()) == ("told", ["main-1"])
    assert watched.posted() == [
        {
            "event": "unknown_holds", "portfolio": "main", "count": 1,
            "holds": [
                {"position_id": "main-1", "held": "1000", "since": since.isoformat().replace("+00:00", "Z")}
            ],
        }
    ]  # fmt: skip
    watched.again()
    assert watched.look() is None, "another process does not tell it again"
    clock.advance(899)
    assert (watched.look(), watched.told()) == ("told", ["main-1", "main-3"])
    assert [one["holds"][0]["position_id"] for one in watched.posted()] == ["main-1", "main-3"]
    assert_verified(ledger)


def test_look_when_nothing_is_decided_for_hours_then_it_is_told_again(watched: Watched, clock: FakeClock) -> None:
    watched.ledger.reserve(key="1", until_known=True)
    clock.advance(900)
    for seconds, times in ((0, 1), (AGAIN_SECONDS - 1, 1), (1, 2), (AGAIN_SECONDS * 5, 3), (10, 3)):
        clock.advance(seconds)
        watched.again()
        watched.look()
        assert len(watched.told()) == times, seconds


def test_look_when_something_was_decided_about_it_then_its_time_begins_anew(watched: Watched, clock: FakeClock) -> None:
    ledger = watched.ledger
    ledger.reserve(key="1", until_known=True)
    clock.advance(900)
    watched.look()
    ledger.fill(key="2", position_id="main-1", filled_quantity=D(1), price=D(10))
    clock.advance(899)
    assert watched.look() is None
    clock.advance(1)
    assert watched.look() == "told", "the rest of its order is unknown still"
    ledger.release(key="3", position_id="main-1", held_only=True)
    clock.advance(100_000)
    assert watched.look() is None


def test_look_when_a_crash_came_before_the_remark_then_the_webhook_is_told_all_the_same(
    watched: Watched, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.ledger.reserve(key="1", until_known=True)
    clock.advance(900)
    monkeypatch.setattr(watched.ledger, "submit", lambda _commands: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        watched.look()
    monkeypatch.undo()
    assert (watched.look(), len(watched.told())) == ("told", 1)
    rows = watched.intruder.rows("SELECT delivery FROM alerts")
    assert (len(rows), len(set(rows))) == (2, 1), "a receiver knows the second by its delivery header"


def test_look_when_thousands_are_old_then_one_message_a_portfolio_tells_of_a_bounded_number(
    database_url: str, clock: FakeClock
) -> None:
    watched = Watched(database_url, clock)
    for portfolio, count in (("a", 1200), ("b", 5)):
        watched.ledger.set_cap(key="cap", portfolio=portfolio, cap=D(10**7))
        watched.ledger.submit([Reserve(key=f"{n}", portfolio=portfolio, until_known=True) for n in range(count)])
    clock.advance(1000)
    assert [watched.look() for _ in range(3)] == ["told", "told", None]
    assert [(one["portfolio"], one["count"], len(one["holds"])) for one in watched.posted()] == [
        ("a", 1000, 100), ("a", 200, 100), ("b", 5, 5),
    ]  # fmt: skip
    watched.close()


@pytest.mark.parametrize(("seconds", "wanted", "look_seconds"), [(0, False, 1), (1, True, 1), (900, True, 60)])
def test_watch_when_the_setting_says_when_then_it_is_looked_for_accordingly(
    database_url: str, clock: FakeClock, seconds: int, wanted: bool, look_seconds: int
) -> None:
    watched = Watched(database_url, clock, unknown_alert_seconds=seconds)
    assert (watched.look.wanted, watched.look.look_seconds) == (wanted, look_seconds)
    watched.close()


def test_look_when_there_is_no_webhook_then_the_chain_tells_it(database_url: str, clock: FakeClock) -> None:
    watched = Watched(database_url, clock, webhook=None)
    watched.ledger.reserve(key="1", until_known=True)
    clock.advance(900)
    assert (watched.look(), watched.told(), watched.posted()) == ("told", ["main-1"], [])
    watched.close()


def test_serve_when_a_hold_gets_old_then_the_webhook_gets_it_and_metrics_show_it(database_url: str) -> None:
    receiver = Receiver([])
    sections = {"reconcile": ReconcileSettings(webhook_url=SecretStr(receiver.url))}
    with serving(database_url, jobs=True, ledger={"unknown_alert_seconds": 1}, sections=sections) as service:
        service.ledger.reserve(key="1", until_known=True)
        service.ledger.reserve(key="2", until_known=True)
        service.ledger.reserve(key="3", ttl_seconds=600)
        eventually(lambda: sum(json.loads(body)["count"] for _, body in receiver.got) == 2, seconds=40)
        metrics = service.http.get("/metrics").text
        assert 'ledger_unknown_holds{portfolio="main"} 2.0' in metrics
        (age,) = [line for line in metrics.splitlines() if line.startswith("ledger_oldest_unknown_hold_age_seconds{")]
        assert 1 <= float(age.split()[1]) < 600
        assert 'ledger_holds_ahead{portfolio="main"} 0.0' in metrics, "they do not end too late"
        found = service.http.get("/v1/positions", params={"state": "until_known", "portfolio": "main"}).json()
        assert [one["position_id"] for one in found["items"]] == ["main-1", "main-2"]
    receiver.close()


def test_read_metrics_when_no_order_is_unknown_then_nothing_is_shown_of_it(database_url: str, clock: FakeClock) -> None:
    del clock
    with serving(database_url) as service:
        service.ledger.reserve(key="1", ttl_seconds=timedelta(minutes=5).seconds)
        text = service.http.get("/metrics").text
        assert "ledger_unknown_holds{" not in text
