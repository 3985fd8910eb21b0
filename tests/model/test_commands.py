"""Commands: every argument of every verb is validated before it is queued, and a bad one is named."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from decimal import ROUND_UP, Context, Decimal, Inexact, localcontext
from typing import Any

import pytest

from ledger_sizer import (
    Adopt,
    Confirm,
    Extend,
    Halt,
    InstrumentInfo,
    InvalidRequest,
    Ledger,
    Leg,
    Reconciled,
    Release,
    Remark,
    Reserve,
    SetCap,
)
from ledger_sizer.model.commands import COMMANDS
from tests.support.argument_values import BAD_OF_KIND, LEG
from tests.support.clock import FakeClock
from tests.support.ledgers import BTC_PERP, BTC_SPOT, opened

D = Decimal
GOOD_OF_KIND: dict[str, Any] = {
    "positive": D(1), "not_negative": D(1), "position": "main-1", "moment": None, "label": "drift-1", "key": "k",
    "tags": {"venue": "okx"}, "account_scope": "account=bybit/main",
}  # fmt: skip
BASES: dict[type[Any], dict[str, Any]] = {
    command: {one.name: GOOD_OF_KIND[one.kind.name] for one in command.arguments if one.required}
    for command in COMMANDS.values()
}
BAD: list[tuple[type[Any], str, list[Any]]] = [
    *(
        (command, one.name, [*BAD_OF_KIND[one.kind.name], *(() if one.optional else (None,))])
        for command in COMMANDS.values()
        for one in command.arguments
    ),
    (Reserve, "tags", [{"external": "exchange"}]),
    (SetCap, "cap", [None, D("1E+20")]),
]
"""Bad values of every argument of every verb."""


@pytest.mark.parametrize(
    ("command", "field", "value"),
    [
        pytest.param(command, field, value, id=f"{command.verb}-{field}-{str(value)[:20]!a}")
        for command, field, values in BAD
        for value in values
    ],
)
def test_make_command_when_an_argument_is_bad_then_it_is_named(command: type[Any], field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        command(**(BASES[command] | {field: value}))
    assert (refused.value.field or "").partition(".")[0] == field
    assert len(str(refused.value)) < 1000


def test_list_arguments_when_a_command_has_a_field_then_it_is_declared() -> None:
    for command in COMMANDS.values():
        assert {slot.name for slot in fields(command) if slot.init} == {one.name for one in command.arguments}


def test_declare_verb_when_it_is_done_then_every_argument_has_a_help_and_its_text_is_sorted() -> None:
    for command in COMMANDS.values():
        assert all(one.declared.help for one in command.arguments)
        names = [name for name, *_ in command.texts]
        assert names == sorted(names)
        assert not {"key", "portfolio", "dry_run"} & {*names}


@pytest.mark.parametrize("tag", ["", "x" * 129, "a\x1fb", "a\nb", 5, None, "\ud800"])
def test_make_command_when_a_tags_value_is_not_plain_text_then_it_is_named(tag: Any) -> None:
    for command in (Reserve, Adopt):
        with pytest.raises(InvalidRequest, match=r"tags") as refused:
            command(**BASES[command], tags={"venue": tag})
        assert refused.value.field in ("tags.venue", "tags")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"spot_instrument": BTC_SPOT}, "perp_instrument"),
        ({"perp_instrument": BTC_PERP}, "spot_instrument"),
        ({"spot_instrument": BTC_SPOT, "perp_instrument": BTC_PERP}, "price"),
        ({"spot_instrument": BTC_SPOT, "price": D(1)}, "perp_instrument"),
    ],
)
def test_make_reserve_when_something_for_a_quantity_is_missing_then_that_is_named(
    arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"{field} is missing") as refused:
        Reserve(key="k", **arguments)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"venue": "a\x00"}, "venue"),
        ({"symbol": ""}, "symbol"),
        ({"kind": "option"}, "kind"),
        ({"side": "long"}, "side"),
        ({"quantity": D(-1)}, "quantity"),
        ({"quantity": 1.5}, "quantity"),
        ({"price": D(0)}, "price"),
        ({"price": "1"}, "price"),
    ],
)
def test_make_leg_when_an_argument_is_bad_then_it_is_named(arguments: dict[str, Any], field: str) -> None:
    good: dict[str, Any] = {
        "venue": "bybit",
        "symbol": "BTC",
        "kind": "spot",
        "side": "buy",
        "quantity": D(1),
        "price": D(1),
    }
    with pytest.raises(InvalidRequest) as refused:
        Leg(**(good | arguments))
    assert refused.value.field == field


@pytest.mark.parametrize("verb", COMMANDS)
def test_call_verb_when_an_argument_is_unknown_or_missing_then_python_says_so(
    database_url: str, clock: FakeClock, verb: str
) -> None:
    with opened(database_url, clock) as ledger:
        for arguments in ({"key": "k", "colour": "red"}, {}):
            with pytest.raises(TypeError, match=r"colour|key"):
                getattr(ledger, verb)(**arguments)
        with pytest.raises(TypeError):
            getattr(ledger, verb)("k")
        assert ledger.portfolios() == []


def test_call_verb_when_an_argument_is_bad_then_nothing_is_recorded(ledger: Ledger) -> None:
    ledger.reserve(key="1")
    for command, field, values in BAD:
        with pytest.raises(InvalidRequest):
            getattr(ledger, command.verb)(**(BASES[command] | {field: values[0]}))
    assert len(ledger.history()) == 1
    assert ledger.reserve(key="k").replayed is False


# --- the canonical form ------------------------------------------------------------------------------------------

ASKED = Reserve(
    key="k", tags={"venue": "bybit", "symbol": "BTC"}, signal_score=D("0.123456789"), price=D("50000.123456789"),
    available_balance=D("12345678901.123456789"), spot_instrument=BTC_SPOT, perp_instrument=BTC_PERP,
    min_notional_usd=D("5.0000000001"), ttl_seconds=30,
)  # fmt: skip


def texts() -> list[str]:
    """Return requests built under the thread's decimal context, and a TTL in each form it may have."""
    return [
        Reserve(
            key="k", tags={"symbol": "BTC", "venue": "bybit"}, signal_score=D("0.123456789"),
            price=D("50000.123456789"), available_balance=D("12345678901.123456789"), spot_instrument=BTC_SPOT,
            perp_instrument=BTC_PERP, min_notional_usd=D("5.0000000001"), ttl_seconds=30,
        ).request_text(),
        Confirm(key="k", position_id="main-1", quantity=D("0.0180000001"), price=D("50000.000001")).request_text(),
        SetCap(key="k", cap=D("12345678901.12345678")).request_text(),
        *(Reserve(key="k", ttl_seconds=ttl).request_text() for ttl in (12.3456, D("59.999999"), D("12.3456"))),
        Extend(key="k", position_id="main-1", ttl_seconds=D("86399.999999")).request_text(),
        repr(InstrumentInfo("X", D("0.123456789"), D(100), D("0.000001"), contract_size=D("0.0123456"))),
    ]  # fmt: skip


def test_write_request_when_the_threads_decimal_context_was_changed_then_the_text_is_the_same() -> None:
    """The text decides whether a key was used for another request, so a retry from any thread must give the same."""
    before = texts()
    assert before[0] == ASKED.request_text()
    with localcontext(Context(prec=3, rounding=ROUND_UP)):
        assert texts() == before
    with localcontext(Context(prec=1, traps=[Inexact])):
        assert texts() == before


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [(30, "30"), (30.0, "30"), (D("30.0"), "30"), (0.25, "0.25"), (D("1E+1"), "10"), (1e-9, "0.000001")],
)
def test_write_request_when_a_ttl_is_given_in_any_form_then_it_is_exact_seconds(ttl: Any, seconds: str) -> None:
    assert f'"ttl_seconds":"{seconds}"' in Reserve(key="k", ttl_seconds=ttl).request_text()


@pytest.mark.parametrize(
    "changed",
    [
        {"tags": {"venue": "okx", "symbol": "BTC"}}, {"tags": {}}, {"signal_score": D("0.2")}, {"signal_score": None},
        {"price": D(1)}, {"available_balance": D(1)}, {"available_balance": None}, {"min_notional_usd": D(5)},
        {"min_notional_usd": None}, {"ttl_seconds": 31}, {"ttl_seconds": None},
        {"spot_instrument": InstrumentInfo("BTC/USDT", D("0.001"), D(50), D("0.001"), D(6))},
        {"perp_instrument": InstrumentInfo("BTC/USDT:USDT", D("0.001"), D(50), D("0.001"), D(6))},
    ],
)  # fmt: skip
def test_write_request_when_any_argument_differs_then_the_text_does(changed: dict[str, Any]) -> None:
    arguments = {slot.name: getattr(ASKED, slot.name) for slot in fields(ASKED) if slot.init}
    assert Reserve(**arguments).request_text() == ASKED.request_text()
    assert Reserve(**(arguments | changed)).request_text() != ASKED.request_text()


LISTED = InstrumentInfo("BTC-USDT-SWAP", D(1), D(9000), D(1), contract_size=D("0.01"), listed_as="okx:BTC/USDT:USDT")
RECORDED = [
    (
        Reserve(
            key="k",
            portfolio="p",
            tags={"venue": "okx", "symbol": "BTC"},
            signal_score=D("0.90"),
            price=D(50000),
            available_balance=D("1E+4"),
            spot_instrument=BTC_SPOT,
            perp_instrument=LISTED,
            spot_fee_rate=D("0.001"),
            min_notional_usd=D(5),
            ttl_seconds=1.5,
            dry_run=True,
        ),
        '{"command":"reserve","available_balance":"10000","min_notional_usd":"5","perp_instrument":{"contract_size":'
        '"0.01","listed_as":"okx:BTC/USDT:USDT","max_qty":"9000","min_notional":"0","min_qty":"1","qty_step":"1",'
        '"symbol":"BTC-USDT-SWAP","tick_size":"0.01"},"price":"50000","signal_score":"0.9","spot_fee_rate":"0.001",'
        '"spot_instrument":{"contract_size":"1","max_qty":"100","min_notional":"10","min_qty":"0.0001","qty_step":'
        '"0.0001","symbol":"BTC/USDT","tick_size":"0.01"},"tags":{"symbol":"BTC","venue":"okx"},"ttl_seconds":"1.5"}',
    ),
    (Reserve(key="k"), '{"command":"reserve","tags":{}}'),
    (
        Confirm(key="k", position_id="main-1", quantity=D("0.5"), price=D(2), legs=[LEG]),
        '{"command":"confirm","legs":[{"kind":"spot","quantity":"1","side":"buy","symbol":"BTC","venue":"bybit"}],'
        '"position_id":"main-1","price":"2","quantity":"0.5"}',
    ),
    (
        Release(key="k", position_id="main-1", held_only=True),
        '{"command":"release","held_only":"True","position_id":"main-1"}',
    ),
    (
        Extend(key="k", position_id="main-1", ttl_seconds=30),
        '{"command":"extend","position_id":"main-1","ttl_seconds":"30"}',
    ),
    (SetCap(key="k", cap=None, scope="venue=okx"), '{"command":"set_cap","scope":"venue=okx"}'),
    (SetCap(key="k", cap=D("5.10")), '{"command":"set_cap","cap":"5.1","scope":"portfolio"}'),
    (Halt(key="k", note="ü"), '{"command":"halt","mode":"halted","note":"\\u00fc","scope":"portfolio"}'),
    (
        Reconciled(key="k", fresh_until=datetime(2026, 1, 1, tzinfo=UTC)),
        '{"command":"reconciled","fresh_until":"2026-01-01T00:00:00Z","scope":"portfolio"}',
    ),
    (Remark(key="k", about="drift-1", event="seen"), '{"command":"remark","about":"drift-1","event":"seen"}'),
]


@pytest.mark.parametrize(("command", "text"), RECORDED, ids=lambda one: getattr(one, "verb", ""))
def test_write_request_when_it_is_hashed_then_its_text_never_changes(command: Any, text: str) -> None:
    """The text is hashed and decides whether a key is used again: a changed byte would break both for old records."""
    assert command.request_text() == text
