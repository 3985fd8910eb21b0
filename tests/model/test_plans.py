"""Planned legs: every field is checked, in Python and in JSON, and the message says the leg, the value and the cure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import InstrumentInfo, InvalidRequest, Ledger, LegPlan, Reserve
from ledger_sizer.client import LedgerClient
from tests.support.clock import FakeClock
from tests.support.ledgers import BTC_PERP, opened
from tests.support.services import serving

D = Decimal
GOOD: dict[str, Any] = {"instrument": "bybit:BTC/USDT:USDT", "side": "buy"}
PLAN = LegPlan(**GOOD)
BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    *[({"side": side}, "side") for side in ("", "long", "BUY", None, True, 1, ["buy"])],
    *[({"price": price}, "price") for price in (0, D(0), D(-1), 0.5, "1", True, D("NaN"), D("sNaN"), D("Infinity"),
                                                 D("-Infinity"), 10**30, D("1E+30"), D("1E-37"), [], b"1")],
    *[({"fee_rate": rate}, "fee_rate") for rate in (D("-0.001"), D("0.1"), 1, 0.001, "0.001", D("NaN"), True)],
    *[({"asset": asset}, "asset") for asset in ("", "a\x00", "x" * 129, 5, b"BTC")],
    *[({"account": account}, "account") for account in ("", "a\nb", "x" * 129, 5)],
    *[({"instrument": one}, "instrument") for one in ("", "BTC", "bybit:", ":BTC/USDT", "bybit:a b", "bybit:a\x00",
                                                       None, 5, {}, [], b"bybit:BTC/USDT", "x" * 33 + ":BTC/USDT",
                                                       "bybit:" + "x" * 65, "BYBIT:BTC/USDT")],
]  # fmt: skip


@pytest.mark.parametrize(("changed", "field"), BAD_FIELDS)
def test_make_plan_when_a_field_is_bad_then_it_is_named(changed: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field) as refused:
        LegPlan(**{**GOOD, **changed})
    assert refused.value.field == field
    assert len(str(refused.value)) < 400


def one_by_one() -> Iterator[LegPlan]:
    yield PLAN


BAD_LISTS: dict[str, tuple[Callable[[], Any], str]] = {
    "none in it": (list, "1 to 16 legs, got 0"),
    "too many": (lambda: [PLAN] * 17, "1 to 16 legs, got 17"),
    "very many": (lambda: [PLAN] * 10**6, "1 to 16 legs, got 1000000"),
    "a plan alone": (lambda: PLAN, "must be a list of LegPlan"),
    "a name alone": (lambda: "bybit:BTC/USDT:USDT", "must be a list of LegPlan"),
    "a set": (lambda: {PLAN}, "must be a list of LegPlan"),
    "a mapping": (lambda: {"buy": PLAN}, "must be a list of LegPlan"),
    "a generator": (one_by_one, "must be a list of LegPlan"),
    "an iterator": (lambda: iter([PLAN]), "must be a list of LegPlan"),
    "a map": (lambda: map(str, "ab"), "must be a list of LegPlan"),
    "numbers": (lambda: range(2), "got 0 in it"),
    "bytes": (lambda: b"legs", "must be a list of LegPlan"),
    "objects of JSON": (lambda: [{"instrument": "bybit:BTC/USDT", "side": "buy"}], "must be a list of LegPlan"),
    "a pair of texts": (lambda: [("bybit:BTC/USDT", "buy")], "must be a list of LegPlan"),
    "one that is long": (lambda: [["x" * 10_000]], "must be a list of LegPlan"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_reserve_when_legs_are_no_list_of_plans_then_nothing_is_recorded(
    database_url: str, clock: FakeClock, name: str
) -> None:
    make, words = BAD_LISTS[name]
    with opened(database_url, clock) as ledger:
        for dry_run in (True, False):
            with pytest.raises(InvalidRequest, match=words) as refused:
                ledger.reserve(key="k", price=D(1), legs=make(), dry_run=dry_run)
            assert (refused.value.field or "").split(".")[0] == "legs"
            assert len(str(refused.value)) < 400
        assert ledger.reserve(key="k").seq == 1


FORM = {"symbol": "BTC/USDT:USDT", "min_qty": "0.001", "max_qty": "50", "qty_step": "0.001"}
BAD_JSON: list[tuple[Any, str]] = [
    ([], "legs"), ("legs", "legs"), ([5], "legs.0"), ([{"side": "buy"}], "legs.0.instrument"),
    ([{"instrument": FORM}], "legs.0.side"), ([{"instrument": FORM, "side": "long"}], "legs.0.side"),
    ([{"instrument": FORM, "side": "buy"}] * 17, "legs"),
    *[([{"instrument": FORM, "side": "buy"}, {"instrument": FORM, "side": "buy", name: value}], f"legs.1.{name}")
      for name, value in (("price", "0"), ("price", "-1"), ("price", 5), ("price", 0.5), ("price", "NaN"),
                          ("price", "1" * 31), ("price", "1e5"), ("fee_rate", "0.1"), ("fee_rate", "-0.1"),
                          ("asset", ""), ("account", "\x00"), ("instrument", "BTC"), ("colour", "red"))],
    *[([{"instrument": {**FORM, name: value}, "side": "buy"}], f"legs.0.instrument.{name}")
      for name, value in (("qty_step", "0"), ("max_qty", "-1"), ("multiplier", "0"), ("contract_size", "NaN"),
                          ("kind", "option"), ("max_notional", "0"), ("buys_by_cost", "yes"), ("base", "E TH"))],
    ([{"instrument": {**FORM, "base": "ETH"}, "side": "buy"}], "legs.0.instrument.base"),
    ([{"instrument": {**FORM, "max_qty": "0.0001"}, "side": "buy"}], "legs.0.instrument.max_qty"),
]  # fmt: skip


def test_reserve_when_legs_are_bad_in_json_then_the_leg_and_field_are_named_in_call_and_batch(
    database_url: str,
) -> None:
    with serving(database_url) as service, LedgerClient(service.url) as client:
        http = client._http  # type: ignore[attr-defined]
        for legs, field in BAD_JSON:
            body = {"price": "50000", "legs": legs}
            answer = http.post("/v1/reservations", json=body, headers={"Idempotency-Key": "k"})
            assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (
                422,
                "invalid_request",
                field,
            )
            item = {"command": "reserve", "key": "k", **body}
            answer = http.post("/v1/batch", json={"commands": [item]}).json()
            told = answer["results"][0]["problem"] if "results" in answer else answer
            assert told["code"] == "invalid_request", (legs, answer)
            assert told["field"].endswith(field), (legs, told)
        assert client.reserve(key="k", price=D(50000), legs=[LegPlan(BTC_PERP, "sell")]).seq == 1


def test_reserve_when_client_and_ledger_are_asked_then_legs_come_back_alike(
    database_url: str, clock: FakeClock
) -> None:
    legs = [
        LegPlan(InstrumentInfo("BTC/USDT", D("0.0001"), D(9), D("0.0001"), venue="gate", buys_by_cost=True), "buy",
                fee_rate=D("0.001"), account="sub"),
        LegPlan(InstrumentInfo("BTC/USDT:USDT", D(1), D(900), D(1), contract_size=D("0.001"), venue="okx"), "sell",
                D(50100)),
    ]  # fmt: skip
    asked: dict[str, Any] = {"price": D(50000), "legs": legs, "tags": {"strategy": "a"}}
    with serving(database_url) as service, LedgerClient(service.url) as client:
        decision = client.reserve(key="k", **asked)
        assert [(leg.venue, leg.account, leg.order_amount, leg.order_cost) for leg in decision.legs] == [
            ("gate", "sub", D("0.0191"), 955), ("okx", None, 19, None),
        ]  # fmt: skip
        assert client.reserve(key="k", **asked).legs == decision.legs
        (batched,) = client.submit([Reserve(key="k", **asked)])
        assert getattr(batched, "legs", None) == decision.legs
        with Ledger.open(database_url) as ledger:
            assert ledger.explain(decision.seq).decision.legs == decision.legs
            assert ledger.reserve(key="dry", dry_run=True, **asked).legs == decision.legs
        more = client.reserve(key="more", position_id=decision.position_id, price=D(50000), amount_usd=D(45))
        assert (more.granted, more.reason, more.binding) == (False, "below_min_qty", "amount_usd")
        endless = client.reserve(key="endless", amount_usd=D(5), until_known=True)
        assert (endless.until_known, endless.expires_at) == (True, None)
