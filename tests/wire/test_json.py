"""The JSON formats: `..._from_json` restores what `..._to_json` wrote, and ambiguous JSON is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic_core import to_json

from ledger_sizer import (
    AccountSeen,
    Adopt,
    Confirm,
    Denied,
    EquitySeen,
    Extend,
    Freeze,
    Halt,
    InstrumentInfo,
    InternalError,
    InvalidRequest,
    Ledger,
    LedgerError,
    Leg,
    LegPlan,
    Reconciled,
    Release,
    Remark,
    Reserve,
    Resume,
    SetCap,
    Thaw,
)
from ledger_sizer.model import errors as error_module
from ledger_sizer.model.commands import STEP_BACK, VERBS, AnyCommand
from ledger_sizer.model.decisions import DECISION_FIELDS, Decision, canonical_text, chain_hash
from ledger_sizer.model.denials import DENIAL_REASONS
from ledger_sizer.model.legs import leg_from_json, leg_to_json
from ledger_sizer.model.reconciliation import Run
from ledger_sizer.wire import codec, overviews, reconciliation, responses
from ledger_sizer.wire.batch import read_batch
from ledger_sizer.wire.http_calls import batch_form, http_call_of
from ledger_sizer.wire.problems import PROBLEMS, error_of, problem_of
from ledger_sizer.wire.requests import BODIES, validated
from ledger_sizer.wire.strict_json import DEPTH_MAX, read_json, read_object
from tests.support.clock import FakeClock
from tests.support.histories import trade_at_random
from tests.support.ledgers import DRIFT

SPOT = InstrumentInfo("BTC/USDT", Decimal("0.0001"), Decimal(100), Decimal("0.0001"), Decimal(5))
PERP = InstrumentInfo("BTC/USDT:USDT", Decimal("0.001"), Decimal(100), Decimal("0.001"), contract_size=Decimal("0.01"))
LISTED = InstrumentInfo("UBTC/USDC", Decimal(1), Decimal(9), Decimal(1), multiplier=Decimal(7), buys_by_cost=True)
LEG = Leg("bybit", "BTC/USDT:USDT", "swap", "sell", Decimal("0.02"), Decimal("50000.5"))
COMMANDS: list[AnyCommand] = [
    Reserve(
        key="full", portfolio="p.1", tags={"venue": "bybit", "symbol": "BTC"}, signal_score=Decimal("0.90"),
        price=Decimal(50000), available_balance=Decimal("-1.5"), spot_instrument=SPOT, perp_instrument=PERP,
        min_notional_usd=Decimal("0.00000001"), ttl_seconds=30,
    ),
    Reserve(key="bare"),
    Reserve(
        key="legs", amount_usd=Decimal("70.5"), max_position_usd=Decimal(60), position_id="main-2", until_known=True,
        tags={"venue": ["okx", "bybit"]}, legs=[
            LegPlan("okx:BTC/USDT:USDT", "buy", Decimal("50000.10"), account="sub"),
            LegPlan(SPOT, "sell", Decimal(50000)), LegPlan(LISTED, "buy", Decimal(1), Decimal("0.001"), "BTC"),
        ],
    ),
    Reserve(key="one leg", price=Decimal(9), legs=(LegPlan(PERP, "sell"),), reference="a \" b"),
    Reserve(key="tiny ttl", ttl_seconds=Decimal("0.25")),
    Confirm(key="c", position_id="main-2", quantity=Decimal("0.018"), price=Decimal(50100)),
    Confirm(
        key="c2", position_id="a-b-3", quantity=Decimal(1), price=Decimal(2), spot_price=Decimal("1.9"),
        legs=[LEG, replace(LEG, side="buy", account="sub")], rest="hold", reference="order 7",
    ),
    Release(key="r", position_id="main-2"),
    Release(key="r2", position_id="main-2", quantity=Decimal("0.5")),
    Extend(key="e", position_id="main-2", ttl_seconds=3600),
    Extend(key="e2", position_id="main-2"),
    SetCap(key="s", cap=Decimal("500.00000001")),
    SetCap(key="s2", portfolio="x", cap=None, scope="venue=bybit"),
    SetCap(key="s3", scope="bot=a", guarantee=Decimal("1.50"), max_position_usd=None),
    SetCap(key="s4", scope="bot=a", cap=None, guarantee=None, max_position_usd=Decimal(7)),
    Halt(key="h", scope="symbol=BTC", mode="reducing", note="venue maintenance: 10%"),
    Resume(key="u", note="über"),
    Freeze(key="f", scope="venue=bybit", note="drift-7"),
    Thaw(key="t"),
    AccountSeen(key="as", scope="account=okx/main", fresh_until=None, free=Decimal("1.50"), settled=Decimal(-2)),
    AccountSeen(key="as2", scope="account=okx/main", free=None, margin_fraction=Decimal("0.1"), note="run 7"),
    SetCap(key="s5", scope="bot=a", share_of_equity=Decimal("0.80")),
    SetCap(key="s6", scope="bot=a", cap=Decimal(3), share_of_equity=None),
    EquitySeen(key="eq", scope="venue=okx", equity=Decimal("1000.25")),
    Reconciled(key="i", fresh_until=datetime(2026, 1, 1, 12, 0, 0, 250, tzinfo=UTC), note="run 7"),
    Reconciled(key="i2", portfolio="x", scope="venue=okx", fresh_until=None),
    Remark(key="m", about="drift-7", event="close_requested", note="ops: by hand"),
    Adopt(key="a", quantity=Decimal("0.1"), price=Decimal(7), tags={"venue": "okx"}, legs=[LEG], note="found"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.verb}-{command.key}")
def test_send_command_when_read_back_then_it_is_equal_and_so_is_its_recorded_text(command: AnyCommand) -> None:
    call = http_call_of(command)
    body = BODIES[command.verb]
    in_path = {name: getattr(command, name) for name in ("position_id", "portfolio") if f"{{{name}}}" in command.path}
    read = validated(body, read_object(json.dumps(call.body).encode())).to_command(call.key, **in_path)
    assert read == command
    assert read.request_text() == command.request_text()
    assert call.path == command.path.format(**in_path)


def test_send_dry_run_when_read_back_then_it_is_still_one() -> None:
    call = http_call_of(Reserve(key="k", dry_run=True))
    assert call.body["dry_run"] is True
    assert validated(BODIES["reserve"], call.body).to_command("k") == Reserve(key="k", dry_run=True)


def test_send_batch_when_read_back_then_every_command_is_equal() -> None:
    body = json.dumps(batch_form(COMMANDS, atomic=True)).encode()
    batch = read_batch(read_object(body))
    assert batch.items == COMMANDS
    assert batch.atomic


def test_read_batch_when_one_command_is_malformed_then_only_that_one_is_wrong() -> None:
    form = batch_form([Reserve(key="a"), Reserve(key="b")])
    form["commands"] += [
        {"command": "reserve", "key": "c", "signal_score": 0.5},
        {"command": "reserve", "key": "d", "surprise": 1},
        {"command": "reserve", "key": "e", "dry_run": True},
        {"command": "nothing", "key": "f"},
        17,
    ]
    items = read_batch(form).items
    assert items[:2] == [Reserve(key="a"), Reserve(key="b")]
    fields = [item.field for item in items[2:] if isinstance(item, InvalidRequest)]
    assert fields == [
        "commands.2.signal_score", "commands.3.surprise", "commands.4.dry_run", "commands.5.command",
        "commands.6.command",
    ]  # fmt: skip


def _decisions(ledger: Ledger) -> list[Decision]:
    reserve = ledger.reserve(
        key="1", tags={"venue": "bybit"}, signal_score=Decimal("0.9"), price=Decimal(50000), spot_instrument=SPOT,
        perp_instrument=PERP,
    )  # fmt: skip
    position = reserve.position_id
    assert position is not None
    made = [
        reserve,
        ledger.reserve(key="1", tags={"venue": "bybit"}, signal_score=Decimal("0.9"), price=Decimal(50000),
                       spot_instrument=SPOT, perp_instrument=PERP),
        ledger.confirm(key="2", position_id=position, quantity=Decimal("0.011"), price=Decimal("50000.12345678")),
        ledger.set_cap(key="3", cap=Decimal("0.5")),
        ledger.reserve(key="4"),
        ledger.reserve(key="5", dry_run=True),
        ledger.adopt(key="6", quantity=Decimal(1), price=Decimal("3.3"), legs=[LEG]),
        ledger.release(key="7", position_id=position, quantity=Decimal("0.005")),
    ]  # fmt: skip
    assert made[1].replayed
    return made


def test_write_decision_when_read_back_then_every_public_figure_is_equal(new_database: Any) -> None:
    with Ledger.open(new_database("sqlite")) as ledger:
        for decision in _decisions(ledger):
            full = json.loads(json.dumps(responses.decision_to_json(decision, full=True)))
            assert responses.decision_from_json(full) == decision
            short = responses.decision_from_json(responses.decision_to_json(decision))
            assert [getattr(short, name) for name in DECISION_FIELDS] == [
                getattr(decision, name) for name in DECISION_FIELDS
            ]
        for position in ledger.positions():
            assert responses.position_from_json(responses.position_to_json(position)) == position
        page = ledger.history(limit=2)
        form = codec.page_to_json(page, lambda d: responses.decision_to_json(d, full=True))
        assert codec.page_from_json(form, responses.decision_from_json) == page
        assert responses.exposure_from_json(responses.exposure_to_json(ledger.exposure())) == ledger.exposure()
    assert leg_from_json(leg_to_json(LEG)) == LEG


HOSTILE = 'ü€ 😀 "q" \\ / \\u0041 <&> \'=1+1'


def _all_verbs(ledger: Ledger, clock: FakeClock) -> list[Decision]:
    """Make decisions of every verb, with texts that need escaping wherever one can stand."""
    tags, market = {"venue": HOSTILE, "desk": "BTC"}, replace(SPOT, symbol=HOSTILE)
    leg = replace(LEG, venue=HOSTILE, symbol=HOSTILE)
    scope = f"venue={HOSTILE}"
    granted = ledger.reserve(
        key=HOSTILE, tags=tags, signal_score=Decimal("0.90"), price=Decimal("50000.10"), spot_instrument=market,
        perp_instrument=PERP, spot_fee_rate=Decimal("0.001"), ttl_seconds=Decimal("0.25"),
    )  # fmt: skip
    ledger.extend(key="longer", position_id=f"{granted.position_id}", ttl_seconds=1)
    clock.advance(1)
    ledger.confirm(key="late", position_id=f"{granted.position_id}", quantity=Decimal(1), price=Decimal(2), legs=[leg])
    ledger.adopt(key="a", quantity=Decimal("1.10"), price=Decimal("1E-8"), tags=tags, legs=[leg], note=HOSTILE)
    planned = [LegPlan(replace(PERP, venue=HOSTILE, max_qty=Decimal(99999)), "buy", account=HOSTILE)]
    planned.append(LegPlan(LISTED, "sell", asset="BTC"))
    grown = ledger.reserve(key="legs", price=Decimal(5), amount_usd=Decimal(300), legs=planned, reference=HOSTILE)
    for key in ("fill", "more"):
        name = f"{grown.position_id}"
        ledger.fill(key=key, position_id=name, filled_quantity=grown.quantity or Decimal(0), price=Decimal(5))
        ledger.reserve(key=f"grow {key}", position_id=name, price=Decimal(5), amount_usd=Decimal(300), legs=planned)
        ledger.retag(key=f"retag {key}", position_id=name, tags={"desk": [HOSTILE, key]}, note=HOSTILE)
        ledger.reprice(key=f"price {key}", position_id=name, price=Decimal(7), note=HOSTILE)
    old = ledger.adopt(key="old", quantity=Decimal(1), price=Decimal(2), tags={"symbol": "FTM", "desk": HOSTILE})
    ledger.rename(key="rename", position_id=f"{old.position_id}", asset="S", ratio=Decimal(3), note=HOSTILE)
    for number, command in enumerate((SetCap, Halt, Freeze, Reconciled, Reserve, Thaw, Resume, Reserve)):
        more = {SetCap: {"cap": Decimal("123456789.12345678")}, Reconciled: {"fresh_until": None}}.get(command, {})
        where = {"tags": tags} if command is Reserve else {"scope": scope, "note": HOSTILE}
        ledger.run(command(key=f"own {number}", **where, **more))
    ledger.account_seen(key="seen", scope="account=okx/main", free=Decimal(9))
    ledger.set_cap(key="share", scope="bot=e", share_of_equity=Decimal("0.5"))
    ledger.equity_seen(key="equity", scope="bot=e", equity=Decimal(800))
    ledger.remark(key="m", about=HOSTILE, event=HOSTILE, note=HOSTILE)
    trade_at_random(ledger, clock, 120, seed=3)
    return list(ledger.history(limit=1000))


def test_write_decision_when_texts_become_objects_then_the_same_canonical_texts_come_back(new_database: Any) -> None:
    clock = FakeClock()
    with Ledger.open(new_database("sqlite"), clock=clock) as ledger:
        decisions = _all_verbs(ledger, clock)
    assert {decision.command for decision in decisions} == {*VERBS} - {STEP_BACK}
    for decision in decisions:
        form = responses.decision_to_json(decision, full=True)
        assert {type(form[name]) for name in ("tags", "request", "trace")} == {dict}
        for body in (to_json(form), json.dumps(form).encode(), json.dumps(form, indent=2, ensure_ascii=False).encode()):
            assert responses.decision_from_json(read_json(body)) == decision, "character by character"
        record = decision.record
        as_texts = {**form, "tags": record.tags, "request": record.request, "trace": record.trace}
        assert responses.decision_from_json(read_json(to_json(as_texts))) == decision


@pytest.mark.parametrize("damaged", ["", "{", "[1]", "7", '{"a": 1', "no JSON", "[" * 100_000])
def test_write_decision_when_a_recorded_text_is_damaged_then_it_comes_as_it_is_and_the_rest_is_read(
    new_database: Any, damaged: str
) -> None:
    with Ledger.open(new_database("sqlite")) as ledger:
        record = ledger.reserve(key="1").record._replace(trace=damaged)
    form = read_json(to_json(responses.decision_to_json(record.decision(), full=True)))
    assert form["trace"] == damaged
    assert responses.decision_from_json(form).record == record


@pytest.mark.parametrize("wrong", [None, 7, 0.5, True, [], [["tags"]]])
@pytest.mark.parametrize("name", ["tags", "request", "trace"])
def test_read_decision_when_an_object_is_something_else_then_it_is_an_error(
    new_database: Any, name: str, wrong: Any
) -> None:
    with Ledger.open(new_database("sqlite")) as ledger:
        form = responses.decision_to_json(ledger.reserve(key="1"), full=True)
    with pytest.raises(InternalError, match="no decision of a ledger-sizer service"):
        responses.decision_from_json({**form, name: wrong})


def test_read_history_when_decisions_came_in_full_then_the_chain_can_be_checked_without_the_database(
    new_database: Any,
) -> None:
    with Ledger.open(new_database("sqlite")) as ledger:
        _decisions(ledger)
        forms = [responses.decision_to_json(d, full=True) for d in ledger.history(ascending=True)]
    previous = "0" * 64
    for form in forms:
        record = responses.decision_from_json(form).record
        assert record.hash == chain_hash(previous, canonical_text(record))
        previous = record.hash


@pytest.mark.parametrize("form", [{}, {"seq": 1}, None, {"portfolio": "main", "seq": "x"}])
def test_read_answer_when_no_service_wrote_it_then_it_is_an_error_and_no_grant(form: Any) -> None:
    for read in (
        responses.decision_from_json, responses.position_from_json, responses.exposure_from_json,
        overviews.overview_from_json, reconciliation.drift_from_json, reconciliation.run_from_json,
    ):  # fmt: skip
        with pytest.raises(LedgerError) as caught:
            read(form)
        assert not caught.value.granted


@pytest.mark.parametrize(
    ("name", "value"), [("excess", "much"), ("excess", None), ("opened_at", "2026-01-01T00:00:00"), ("opened_at", 5),
                        ("updated_at", None), ("position_id", "17"), ("price", [])],
)  # fmt: skip
def test_read_drift_when_a_figure_is_malformed_then_it_is_an_internal_error(name: str, value: Any) -> None:
    form = {**reconciliation.drift_to_json(DRIFT), name: value}
    with pytest.raises(InternalError, match="no drift of a ledger-sizer service"):
        reconciliation.drift_from_json(form)


@pytest.mark.parametrize("changes", [{}, {"position": None, "ended_us": None, "price": None, "ledger_quantity": None}])
def test_write_drift_when_read_back_then_it_is_equal(changes: dict[str, None]) -> None:
    drift = replace(DRIFT, **changes)
    form = json.loads(json.dumps(reconciliation.drift_to_json(drift)))
    assert reconciliation.drift_from_json(form) == drift
    assert form["excess"] == "0.5"
    assert form["opened_at"] == "2026-01-01T00:00:00.000001Z"
    assert form["position_id"] == (None if drift.position is None else "main-17")


@pytest.mark.parametrize("number", [0, 7])
def test_write_run_when_read_back_then_it_is_equal_and_a_dry_one_has_no_id(number: int) -> None:
    began, fetched = DRIFT.opened_us, ({"venue": "okx", "problems": []},)
    run = Run(number, "main", "demand", "partial", began, began + 1_500_000, 2, fetched, {"late_fill": 1})
    form = json.loads(json.dumps(reconciliation.run_to_json(run)))
    assert reconciliation.run_from_json(form) == run
    assert (form["id"], form["duration_seconds"]) == (number or None, "1.5")


def test_list_problems_when_errors_exist_then_each_has_its_row() -> None:
    codes = {
        kind.code
        for kind in vars(error_module).values()
        if isinstance(kind, type) and issubclass(kind, LedgerError) and kind not in (LedgerError, Denied)
    }
    assert codes | set(DENIAL_REASONS) <= set(PROBLEMS)
    for code, row in PROBLEMS.items():
        assert 400 <= row.status <= 599, code
        assert row.status != 409 or code == "wrong_state" or row.exception is Denied


@pytest.mark.parametrize("code", [code for code, row in PROBLEMS.items() if row.exception is not Denied])
def test_write_problem_when_read_back_then_it_is_the_same_exception(code: str) -> None:
    kind = PROBLEMS[code].exception
    error = kind("what is wrong")
    again = error_of(json.loads(json.dumps(problem_of(error))))
    assert type(again) is kind
    told_always = kind.told_always or "what is wrong"
    assert (str(again), again.code) == (told_always, code)
    assert again.retryable == error.retryable


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"a": 1, "a": 1}', "a"),
        (b'{"tags": {"venue": "x", "venue": "y"}}', "venue"),
        (b'{"price": NaN}', None),
        (b'{"price": -Infinity}', None),
        (b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1), None),
        (b'{"a":' * 100_000, None),
        (b"[" * 1_000_000, None),
        (b"\xff\xfe", None),
        (b'"\xed\xa0\x80"', None),
        (b'{"a": 1', None),
        (b"9" * 5000, None),
        (b"", None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_read_json_when_text_is_hostile_then_it_is_refused(body: bytes, field: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_json(body)
    assert caught.value.field == field
    assert len(str(caught.value)) < 300


def test_read_json_when_brackets_stand_in_strings_then_they_do_not_count() -> None:
    text = '{"note": "' + "[{" * 100 + '\\"[[[", "x": ' + "[" * (DEPTH_MAX - 1) + "]" * (DEPTH_MAX - 1) + "}"
    assert read_json(text.encode())["note"].startswith("[{[{")


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"signal_score": 0.9}, "signal_score"),
        ({"signal_score": "1.1"}, "signal_score"),
        ({"price": "1e5"}, "price"),
        ({"price": "-1"}, "price"),
        ({"price": " 1"}, "price"),
        ({"price": "1\n"}, "price"),
        ({"price": "٣"}, "price"),
        ({"price": "0"}, "price"),
        ({"price": "1" * 31}, "price"),
        ({"ttl_seconds": 0}, "ttl_seconds"),
        ({"ttl_seconds": 1.5}, "ttl_seconds"),
        ({"ttl_seconds": True}, "ttl_seconds"),
        ({"portfolio": "a b"}, "portfolio"),
        ({"tags": {"Venue": "x"}}, "tags"),
        ({"tags": {"venue": "a\u0000"}}, "tags.venue"),
        ({"tags": {"venue": "a\ud800"}}, "tags.venue"),
        ({"tags": []}, "tags"),
        ({"dry_run": 1}, "dry_run"),
        ({"unknown": None}, "unknown"),
        ({"spot_instrument": {"symbol": "x"}}, "spot_instrument.min_qty"),
        (
            {"spot_instrument": {"symbol": "x", "min_qty": "2", "max_qty": "1", "qty_step": "1"}},
            "spot_instrument.max_qty",
        ),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_read_reservation_when_a_field_is_wrong_then_the_error_names_it(form: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validated(BODIES["reserve"], form).to_command("k")
    assert caught.value.field == field
