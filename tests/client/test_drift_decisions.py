"""Drifts over HTTP, by both clients: filters, one in full, decisions about many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr

from ledger_sizer import ExchangeSettings, InvalidRequest, NotFound
from ledger_sizer.client import AsyncLedgerClient, LedgerClient
from ledger_sizer.client import reconciliation as calls
from tests.conftest import NewDatabase
from tests.support.accounts import Desk, WrittenAccount, adopt, long, short
from tests.support.clock import FakeClock
from tests.support.services import Running, serving

pytestmark = pytest.mark.one_engine

D = Decimal
COINS = ("ADA", "BNB", "DOT", "ETH", "SOL")


@pytest.fixture
def service(new_database: NewDatabase) -> Iterator[Running]:
    """A service whose ledger has a drift of each coin at bybit, and of BTC at okx. It asks no exchange."""
    url = new_database("sqlite")
    desk = Desk(url, FakeClock(datetime.now(UTC)), [WrittenAccount(), WrittenAccount("okx")], confirmations=1)
    desk.ledger.set_cap(key="cap", cap=D(1_000_000))
    adopt(desk, "hedge")
    shown = [long("1", f"{coin}/USDT:USDT", "100") for coin in COINS]
    desk.account.shows(short("0.02"), *shown, BTC="0.02")
    desk.accounts[1].shows(long("0.1"))
    desk.run()
    desk.close()
    exchange = ExchangeSettings(api_key=SecretStr("none"), api_secret=SecretStr("none"), base_url="http://127.0.0.1:9")
    with serving(url, sections={"exchange": exchange}) as running:
        yield running


@pytest.fixture(params=[LedgerClient, AsyncLedgerClient])
def call(service: Running, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Call a method of one of the clients."""

    def sync(name: str, *arguments: Any, **named: Any) -> Any:
        with LedgerClient(service.url) as client:
            return getattr(client, name)(*arguments, **named)

    async def awaited(name: str, *arguments: Any, **named: Any) -> Any:
        async with AsyncLedgerClient(service.url) as client:
            return await getattr(client, name)(*arguments, **named)

    if request.param is LedgerClient:
        return sync
    return lambda name, *arguments, **named: asyncio.run(awaited(name, *arguments, **named))


def test_drifts_when_many_are_decided_then_each_has_its_outcome_and_a_repetition_changes_nothing(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_PART", 2)
    (at_okx,) = call("drifts", venue="okx", symbol="BTC", state="live", kind="unknown_position")
    assert (at_okx.account, at_okx.usd) == ("main", D(5000))
    planned = call("adopt_drifts", venue="bybit", kind="unknown_position", reason="ours", dry_run=True)
    assert ({one.outcome for one in planned.items}, planned.usd) == ({"planned"}, D(500))
    done = call("adopt_drifts", venue="bybit", kind="unknown_position", reason="ours")
    assert [(one.outcome, one.drift.state) for one in done.items] == [("done", "resolved")] * len(COINS)
    ids = [one.drift_id for one in done.items]
    again = call("adopt_drifts", [*ids, 99], reason="ours")
    assert [one.outcome for one in again.items] == ["repeated"] * len(COINS) + ["refused"]
    assert (again.refused, again.items[-1].error, again.items[-1].drift) == (1, "not_found", None)
    assert call("close_drifts", reason="not ours", venue="okx").items[0].drift.requested == "close"
    assert [one.outcome for one in call("ignore_drifts", [at_okx.id], reason="known").items] == ["done"]
    assert call("ignore_drifts", portfolio="main", reason="known", venue="okx", kind="unknown_position").items == ()


def test_drift_when_it_is_asked_for_then_it_is_told_in_full(call: Callable[..., Any]) -> None:
    (listed,) = call("drifts", venue="okx", kind="unknown_position")
    report = call("drift", listed.id)
    assert (report.drift, report.meaning) == (listed, "The exchange shows what the ledger does not have.")
    assert report.difference == "0.1 more at the exchange, 5,000.00 USD at 50000"
    assert [(one.event, one.actor) for one in report.events] == [
        ("counted", "reconcile"), ("freeze", "reconcile"), ("confirmed", "reconcile"),
    ]  # fmt: skip
    assert [one.opened_by for one in report.positions] == ["reconcile"], "the position that counts it"
    assert report.steps[1].command == f"ledger-sizer drifts adopt {listed.id} --reason 'TEXT'"
    with pytest.raises(NotFound):
        call("drift", 99)


def test_post_when_it_is_not_clear_which_drifts_are_meant_then_nothing_is_decided(service: Running) -> None:
    wrong: list[dict[str, Any]] = [
        {}, {"ids": [1], "all": True}, {"ids": [1], "kind": "late_fill"}, {"ids": [0]}, {"ids": []},
        {"all": True, "kind": "x"}, {"all": True, "limit": 5},
    ]  # fmt: skip
    for given in wrong:
        answer = service.http.post("/v1/drifts/adopt", json={"reason": "r", **given})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
    assert service.http.options("/v1/drifts/adopt").headers["Allow"] == "POST", "no GET, as of one drift"
    assert service.http.get("/v1/drifts/adopt").status_code == 405
    assert service.http.get("/v1/drifts/x").status_code == 422
    live = service.http.get("/v1/drifts", params={"state": "live", "kind": "unknown_position"}).json()["items"]
    assert len(live) == len(COINS) + 1


def test_decide_when_ids_and_filters_are_mixed_then_the_client_refuses(call: Callable[..., Any]) -> None:
    for ids, filters in (([1], {"kind": "late_fill"}), ([0], {}), ([], {})):
        with pytest.raises(InvalidRequest):
            call("adopt_drifts", ids, reason="r", **filters)


def test_adopt_when_two_drifts_are_a_hedge_then_one_call_makes_one_position_with_tags(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_PART", 1)
    url = new_database("sqlite")
    desk = Desk(url, FakeClock(datetime.now(UTC)), [WrittenAccount(), WrittenAccount("okx")], confirmations=1)
    desk.ledger.set_cap(key="cap", cap=D(1_000_000))
    for account, side in zip(desk.accounts, (long, short), strict=True):
        account.shows(*(side("1", f"{coin}/USDT:USDT", "100") for coin in COINS))
    desk.run()
    desk.close()
    exchange = ExchangeSettings(api_key=SecretStr("none"), api_secret=SecretStr("none"), base_url="http://127.0.0.1:9")
    with serving(url, sections={"exchange": exchange}) as running, LedgerClient(running.url) as client:
        one = client.drifts(venue="bybit", symbol="ADA").items[0]
        with pytest.raises(InvalidRequest, match=r"tags\.symbol is BTC"):
            client.adopt_drift(one.id, reason="ours", tags={"symbol": "BTC"})
        assert client.adopt_drift(one.id, reason="ours", tags={"strategy": "carry"}).state == "resolved"
        (hedge,) = client.positions("main", tags={"strategy": "carry"}).items
        assert (len(hedge.legs), hedge.tags["venue"]) == (2, ("bybit", "okx"))
        done = client.adopt_drifts(kind="unknown_position", reason="ours", tags={"strategy": "carry"})
        assert [one.outcome for one in done.items] == ["done"] * 8, "each once, though each call decided two"
        assert client.exposure("main").open == 100 * len(COINS)
