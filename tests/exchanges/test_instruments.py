"""Instruments by name: rules are stored with history, and a decision contains the rules it was based on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine

from ledger_sizer import Ledger, LedgerSettings
from ledger_sizer.client import LedgerClient
from ledger_sizer.exchanges.accounts import ExchangeAccount
from ledger_sizer.exchanges.instrument_cache import list_rules, record_rules, rules_history
from ledger_sizer.exchanges.instrument_refresh import RETRY_SECONDS, ScheduledRefresh, refresh_rules
from ledger_sizer.model.commands import Reserve
from ledger_sizer.model.errors import InvalidRequest, KeyReused, Unavailable
from ledger_sizer.model.instruments import InstrumentInfo, MarketRules
from ledger_sizer.model.legs import Leg
from ledger_sizer.paper import PaperControl, PaperServer
from ledger_sizer.storage.database import make_engine
from tests.support.clock import FakeClock
from tests.support.command_line import CommandLine, own_logging
from tests.support.ledgers import TAGS, opened, position_of
from tests.support.paper_clients import PERP, SPOT, VENUES, account_at, contracts, filled, now_us, trader_at
from tests.support.services import eventually, serving

D = Decimal
BY_NAME = {"spot_instrument": "bybit:BTC/USDT", "perp_instrument": "bybit:BTC/USDT:USDT", "price": D(50_000)}


def market(symbol: str = "BTC/USDT", step: str = "0.001", *, venue: str = "bybit", **changes: Any) -> MarketRules:
    name = f"{venue}:{symbol}"
    figures = InstrumentInfo(symbol, D(step), D(100), D(step), listed_as=name)
    given = {"kind": "swap" if ":" in symbol else "spot", "active": True, "instrument": figures}
    return MarketRules(venue, symbol, **(given | changes))


BTC = [market(), market(PERP)]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url, LedgerSettings())
    yield engine
    engine.dispose()


@contextmanager
def fresh(url: str, clock: FakeClock) -> Iterator[Ledger]:
    """Open a ledger with an empty instrument cache."""
    with opened(url, clock) as ledger:
        yield ledger


# --- the cache ---------------------------------------------------------------------------------------------------


def test_record_when_rules_change_then_the_versions_meet_at_the_time_of_the_change(engine: Engine) -> None:
    assert record_rules(engine, "bybit", BTC, 1_000).added == ("bybit:BTC/USDT", "bybit:BTC/USDT:USDT")
    again = record_rules(engine, "bybit", BTC, 2_000)
    assert (again.added, again.changed, again.gone, again.same) == ((), (), (), 2)
    changes = record_rules(engine, "bybit", [market(step="0.01"), BTC[1]], 3_000)
    assert (changes.changed, changes.same) == (("bybit:BTC/USDT",), 1)
    history = rules_history(engine, "bybit:BTC/USDT")
    assert [(version.since_us, version.until_us) for version in history] == [(1_000, 3_000), (3_000, None)]
    assert [version.rules.instrument and version.rules.instrument.qty_step for version in history] == [
        D("0.001"),
        D("0.01"),
    ]
    assert [version.rules.name for version in list_rules(engine)] == ["bybit:BTC/USDT", "bybit:BTC/USDT:USDT"]


def test_record_when_the_clock_stands_still_or_runs_back_then_versions_stay_in_order(engine: Engine) -> None:
    for step, at in (("0.001", 5_000), ("0.01", 5_000), ("0.1", 4_000)):
        record_rules(engine, "bybit", [market(step=step), BTC[1]], at)
    times = [(version.since_us, version.until_us) for version in rules_history(engine, "bybit:BTC/USDT")]
    assert times == [(5_000, 5_001), (5_001, 5_002), (5_002, None)]


def test_record_when_a_market_is_delisted_and_comes_back_then_each_is_a_version(engine: Engine) -> None:
    others = [market(f"A{number}/USDT") for number in range(3)]
    record_rules(engine, "bybit", [*BTC, *others], 1_000)
    assert record_rules(engine, "bybit", [BTC[1], *others], 2_000).gone == ("bybit:BTC/USDT",)
    assert record_rules(engine, "bybit", [BTC[1], *others], 3_000).gone == (), "told once"
    assert record_rules(engine, "bybit", [*BTC, *others], 4_000).changed == ("bybit:BTC/USDT",)
    states = [version.rules.refused for version in rules_history(engine, "bybit:BTC/USDT")]
    assert states == [None, "no longer listed by the exchange", None]


@pytest.mark.parametrize("kind", ["spot", "swap", "all"])
def test_record_when_most_markets_are_missing_then_nothing_is_recorded(engine: Engine, kind: str) -> None:
    all_of = [market(f"A{number}/USDT") for number in range(3)] + [market(f"A{n}/USDT:USDT") for n in range(3)]
    record_rules(engine, "bybit", all_of, 1_000)
    left = [rules for rules in all_of if kind not in (rules.kind, "all")]
    with pytest.raises(Unavailable, match="half an answer"):
        record_rules(engine, "bybit", left, 2_000)
    assert [version.until_us for version in list_rules(engine)] == [None] * 6


def test_record_when_two_venues_list_the_same_market_then_they_are_apart(engine: Engine) -> None:
    record_rules(engine, "bybit", BTC, 1_000)
    record_rules(engine, "okx", [market(venue="okx", step="0.5")], 1_000)
    assert [version.rules.name for version in list_rules(engine, "okx")] == ["okx:BTC/USDT"]
    assert len(list_rules(engine, "bybit")) == 2


# --- reserving by name -------------------------------------------------------------------------------------------


def test_reserve_when_instruments_are_named_then_the_record_carries_their_rules(
    engine: Engine, database_url: str, clock: FakeClock
) -> None:
    record_rules(engine, "bybit", BTC, 1_000)
    record_rules(engine, "okx", [market(PERP, venue="okx")], 1_000)
    with fresh(database_url, clock) as ledger:
        decision = ledger.reserve(key="1", **(BY_NAME | {"perp_instrument": "okx:BTC/USDT:USDT"}))
        assert decision.quantity == D("0.02")
        request = json.loads(decision.request)
        assert request["spot_instrument"]["listed_as"] == "bybit:BTC/USDT"
        assert request["spot_instrument"]["qty_step"] == "0.001"
        legs = ledger.position(position_of(decision)).legs
        assert [(leg.venue, leg.symbol) for leg in legs] == [("bybit", "BTC/USDT"), ("okx", PERP)]
        assert ledger.verify().ok


def test_reserve_when_the_rules_changed_since_then_a_retry_is_the_same_request(
    engine: Engine, database_url: str, clock: FakeClock
) -> None:
    record_rules(engine, "bybit", BTC, 1_000)
    with fresh(database_url, clock) as ledger:
        first = ledger.reserve(key="1", **BY_NAME)
    record_rules(engine, "bybit", [market(step="0.007"), BTC[1]], 2_000)
    with fresh(database_url, clock) as ledger:
        retry = ledger.reserve(key="1", **BY_NAME)
        assert (retry.replayed, retry.hash, retry.quantity) == (True, first.hash, D("0.02"))
        assert ledger.reserve(key="2", **BY_NAME).quantity == D("0.014"), "a new key takes the new rules"
        with pytest.raises(KeyReused):
            ledger.reserve(key="1", **(BY_NAME | {"price": D(50_001)}))
        with pytest.raises(KeyReused):
            ledger.reserve(key="1", **(BY_NAME | {"spot_instrument": replace(BTC[0].instrument, listed_as=None)}))  # type: ignore[type-var]


def test_reserve_when_the_market_closed_since_then_a_retry_still_gets_its_answer(
    engine: Engine, database_url: str, clock: FakeClock
) -> None:
    record_rules(engine, "bybit", BTC, 1_000)
    with fresh(database_url, clock) as ledger:
        first = ledger.reserve(key="1", **BY_NAME)
    record_rules(engine, "bybit", [market(active=False), BTC[1]], 2_000)
    with fresh(database_url, clock) as ledger:
        assert ledger.reserve(key="1", **BY_NAME).hash == first.hash
        with pytest.raises(InvalidRequest, match="bybit:BTC/USDT is not open for trading"):
            ledger.reserve(key="2", **BY_NAME)


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"spot_instrument": "bybit:NOPE/USDT"}, "spot_instrument", r"load them with: .*instruments refresh bybit"),
        ({"perp_instrument": "bybit:BTC/USDT"}, "perp_instrument", "must be a contract, like bybit:BTC/USDT:USDT"),
        ({"perp_instrument": "bybit:BTC/USD:BTC"}, "perp_instrument", "cannot be used: inverse"),
        ({"spot_instrument": "BTC/USDT"}, "spot_instrument", "a name such as bybit:BTC/USDT, got 'BTC/USDT'"),
    ],
)
def test_reserve_when_a_name_cannot_be_used_then_it_says_why_and_records_nothing(
    engine: Engine, database_url: str, clock: FakeClock, changes: dict[str, str], field: str, told: str
) -> None:
    inverse = market("BTC/USD:BTC", kind="swap", instrument=None, refused="inverse contract")
    record_rules(engine, "bybit", [*BTC, inverse], 1_000)
    with fresh(database_url, clock) as ledger:
        with pytest.raises(InvalidRequest, match=told) as refused:
            ledger.reserve(key="1", **(BY_NAME | changes))
        assert refused.value.field == field
        assert ledger.portfolios() == []


async def test_reserve_when_names_stand_in_a_batch_or_a_dry_run_then_they_are_looked_up_too(
    engine: Engine, database_url: str, clock: FakeClock
) -> None:
    record_rules(engine, "bybit", BTC, 1_000)
    wrong = Reserve(key="b", **(BY_NAME | {"spot_instrument": "bybit:NOPE/USDT"}))
    right = [Reserve(key=key, **BY_NAME) for key in ("a", "c")]
    with fresh(database_url, clock) as ledger:
        results = await ledger.submit_async([right[0], wrong, right[1]])
        assert [result.granted for result in results] == [True, False, True]
        assert isinstance(results[1], InvalidRequest)
        with pytest.raises(InvalidRequest):
            ledger.submit([Reserve(key="d", **BY_NAME), wrong], atomic=True)
        assert (await ledger.reserve_async(key="e", dry_run=True, **BY_NAME)).quantity == D("0.02")
        assert isinstance(ledger.submit([wrong])[0], InvalidRequest)
        assert [decision.key for decision in ledger.history().items] == ["c", "a"]


# --- fees --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fee", ["0.001", "0.00075", "0.05"])
@pytest.mark.parametrize("balance", ["1000", "555.55", "100.2"])
def test_reserve_when_the_spot_fee_is_taken_in_base_then_what_is_left_covers_the_perpetual(
    database_url: str, clock: FakeClock, fee: str, balance: str
) -> None:
    spot = InstrumentInfo("BTC/USDT", D("0.00001"), D(100), D("0.00001"))
    perp = InstrumentInfo(PERP, D("0.001"), D(100), D("0.001"))
    with opened(database_url, clock) as ledger:
        decision = ledger.reserve(
            key="1", price=D(50_000), spot_instrument=spot, perp_instrument=perp, spot_fee_rate=D(fee),
            available_balance=D(balance), tags=TAGS,
        )  # fmt: skip
        ordered, sold = ledger.position(position_of(decision)).legs
        assert isinstance(ordered, Leg)
        assert sold.quantity == decision.quantity
        assert ordered.quantity * (1 - D(fee)) >= sold.quantity, "never short of spot"
        assert (ordered.quantity - D("0.00001")) * (1 - D(fee)) < sold.quantity, "and no step too much"
        assert ordered.quantity * 50_000 <= D(balance), "within the budget"
        assert ordered.quantity % D("0.00001") == 0
        assert (sold.quantity + D("0.001")) * 50_000 > D(balance) * (1 - D(fee)) - 1, "and no less than fits"


# --- from the exchange, through every interface -----------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[PaperServer]:
    with PaperServer(spot_fee_rate=D("0.001")) as running:
        yield running


@pytest.mark.parametrize("venue", VENUES)
def test_trade_when_the_paper_venue_fills_it_then_ledger_and_venue_agree(
    server: PaperServer, venue: str, engine: Engine, database_url: str, clock: FakeClock
) -> None:
    account = account_at(venue, server.url)
    assert isinstance(account, ExchangeAccount)
    refresh_rules(engine, account)
    trader = trader_at(venue, server.url)
    trader.load_markets()
    with fresh(database_url, clock) as ledger:
        decision = ledger.reserve(
            key="1", price=D(50_000), spot_instrument=f"{venue}:{SPOT}", perp_instrument=f"{venue}:{PERP}",
            spot_fee_rate=D("0.001"), tags={"venue": venue},
        )  # fmt: skip
        spot, perp = ledger.position(position_of(decision)).legs
        trader.create_order(SPOT, "market", "buy", contracts(trader, SPOT, spot.quantity))
        sold = filled(trader, PERP, trader.create_order(PERP, "market", "sell", contracts(trader, PERP, perp.quantity)))
        quantity = D(sold["filled"]) * D(trader.market(PERP)["contractSize"])
        ledger.confirm(key="2", position_id=position_of(decision), quantity=quantity, price=D(sold["average"]))
        seen = account.snapshot(now_us)
        assert [(p.symbol, p.side, p.quantity) for p in seen.positions or ()] == [(PERP, "short", quantity)]
        bought = next(balance.total for balance in seen.balances or () if balance.asset == "BTC")
        assert quantity <= bought < quantity + D("0.0001"), "delta-neutral after the fee"
        trader.create_order(PERP, "market", "buy", contracts(trader, PERP, quantity), None, {"reduceOnly": True})
        ledger.release(key="3", position_id=position_of(decision))
        assert account.snapshot(now_us).positions == ()
        assert ledger.exposure().open == 0
    account.close()


def test_refresh_when_the_exchange_answers_by_half_then_the_known_rules_stay(
    server: PaperServer, engine: Engine
) -> None:
    account = account_at("okx", server.url)
    assert len(refresh_rules(engine, account).added) == 14
    PaperControl(server.url, "okx").fault("hollow", "public/instruments")
    with pytest.raises(Unavailable):
        refresh_rules(engine, account)
    assert len([version for version in list_rules(engine) if version.rules.refused is None]) == 13
    account.close()


def test_serve_when_an_account_is_configured_then_rules_are_loaded_and_clients_reserve_by_name(
    server: PaperServer, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXCHANGE_BASE_URL", server.url)
    monkeypatch.setenv("EXCHANGE_API_KEY", "paper")
    monkeypatch.setenv("EXCHANGE_API_SECRET", "paper-secret")
    with serving(database_url, jobs=True) as service, LedgerClient(service.url) as client:
        engine = create_engine(database_url)
        eventually(lambda: list_rules(engine), seconds=90)
        engine.dispose()
        decision = client.reserve(key="1", **BY_NAME)
        assert decision.quantity == D("0.02")
        assert client.reserve(key="1", **BY_NAME).replayed
        answer = service.post("/v1/reservations", "2", {"spot_instrument": "bybit:BTC", "price": "1"})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        answer = service.post("/v1/reservations", "2", {"spot_instrument": {"symbol": "x"}, "price": "1"})
        assert answer.json()["field"] == "spot_instrument.min_qty"


def test_refresh_when_it_failed_then_it_is_tried_at_the_next_call_and_once_done_it_rests(
    server: PaperServer, engine: Engine
) -> None:
    now = [0.0]
    account = account_at("bybit", server.url)
    refresh = ScheduledRefresh(engine, account, 3600, clock=lambda: now[0])
    control = PaperControl(server.url, "bybit")
    control.fault("outage", times=None)
    for _ in range(2):
        with pytest.raises(Unavailable):
            refresh()
        now[0] += RETRY_SECONDS
    assert list_rules(engine) == []
    control.clear_faults()
    refresh()
    known = list_rules(engine)
    assert len(known) == 14
    control.fault("outage", times=None)
    now[0] += 3599
    refresh()  # not due: a request would fail
    now[0] += 1
    with pytest.raises(Unavailable):
        refresh()
    assert list_rules(engine) == known, "what was known stays"
    control.clear_faults()
    now[0] += RETRY_SECONDS
    refresh()
    account.close()


def test_run_instruments_when_refreshed_then_they_are_listed_shown_and_reserved(
    server: PaperServer, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXCHANGE_BASE_URL", server.url)
    with own_logging():
        cli = CommandLine(capsys, database_url)
        first = cli("instruments", "refresh", "--json")
        assert (first.code, len(first.json["venues"][0]["added"])) == (0, 14)
        assert "0 added, 0 changed, 0 gone, 14 as before" in cli("instruments", "refresh", "bybit").out
        listed = cli("instruments", "list", "--usable", "--json").json
        assert len(listed["items"] if isinstance(listed, dict) else listed) == 11
        assert "refused: inverse contract" in cli("instruments", "list").out
        shown = cli("instruments", "show", "bybit:BTC/USDT:USDT", "--json").json
        (version,) = shown["items"] if isinstance(shown, dict) else shown
        assert (version["rules"]["qty_step"], version["until"]) == ("0.001", None)
        assert cli("instruments", "show", "bybit:NOPE/USDT").code == 1
        reserved = cli("reserve", "--spot", "bybit:BTC/USDT", "--perp", "bybit:BTC/USDT:USDT", "--price", "50000")
        assert reserved.code == 0
        refused = cli("reserve", "--spot", "bybit:NOPE/USDT", "--perp", "bybit:BTC/USDT:USDT", "--price", "50000")
        assert refused.code == 2
        assert "instruments refresh bybit" in refused.err
