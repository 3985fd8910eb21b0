"""One effect per key: every verb, granted or denied, answers a repeated request with its first decision."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Decision, InstrumentInfo, InvalidRequest, KeyReused, Ledger, Leg, LegPlan, Reserve, Resume
from ledger_sizer.model.commands import COMMANDS, AnyCommand
from ledger_sizer.verbs.methods import AsyncVerbs, AwaitableVerbs, Verbs
from tests.support.clock import START, FakeClock
from tests.support.ledgers import BTC_PERP, BTC_SPOT, TAGS, assert_verified, opened

D = Decimal
Call = Callable[[Ledger, bool], Decision]

# Each is called on a ledger with main-1 and main-2 held and main-3 open (10 at 100 USD). The flag changes the body.
CALLS: dict[str, Call] = {
    "reserve": lambda ledger, other: ledger.reserve(key="k", tags=TAGS, available_balance=D(11 if other else 10)),
    "reserve denied": lambda ledger, other: ledger.reserve(key="k", min_notional_usd=D(9001 if other else 9000)),
    "reserve sized": lambda ledger, other: ledger.reserve(
        key="k", price=D(50000), spot_instrument=BTC_SPOT, perp_instrument=BTC_PERP, ttl_seconds=9 if other else 8
    ),
    "reserve legs": lambda ledger, other: ledger.reserve(
        key="k", price=D(50000), legs=[LegPlan(BTC_PERP, "sell" if other else "buy")]
    ),
    "reserve amount": lambda ledger, other: ledger.reserve(key="k", amount_usd=D(70), until_known=not other),
    "reserve more": lambda ledger, other: ledger.reserve(
        key="k", position_id="main-3", amount_usd=D(80), max_position_usd=D(999) if other else None
    ),
    "confirm": lambda ledger, other: ledger.confirm(
        key="k", position_id="main-1", quantity=D(2), price=D(100), spot_price=D(99) if other else None
    ),
    "confirm legs": lambda ledger, other: ledger.confirm(
        key="k", position_id="main-1", quantity=D(2), price=D(100),
        legs=[Leg("okx" if other else "bybit", "BTC", "spot", "buy", D(2))],
    ),
    "confirm part": lambda ledger, other: ledger.confirm(
        key="k", position_id="main-1", quantity=D(2), price=D(100), rest="free" if other else "hold"
    ),
    "fill": lambda ledger, other: ledger.fill(
        key="k", position_id="main-1", filled_quantity=D(3 if other else 2), price=D(100)
    ),
    "fill known": lambda ledger, other: ledger.fill(
        key="k", position_id="main-3", filled_quantity=D(9 if other else 10), price=D(100)
    ),
    "release": lambda ledger, other: ledger.release(key="k", position_id="main-2" if other else "main-1"),
    "release part": lambda ledger, other: ledger.release(
        key="k", position_id="main-3", quantity=D(4 if other else 3)
    ),
    "release open": lambda ledger, other: ledger.release(
        key="k", position_id="main-3", quantity=D(10) if other else None
    ),
    "extend": lambda ledger, other: ledger.extend(key="k", position_id="main-1", ttl_seconds=901 if other else 900),
    "extend until known": lambda ledger, other: ledger.extend(
        key="k", position_id="main-1", until_known=None if other else True
    ),
    "retag": lambda ledger, other: ledger.retag(
        key="k", position_id="main-3", tags={"strategy": ["x", "y"] if other else "x"}
    ),
    "reprice": lambda ledger, other: ledger.reprice(key="k", position_id="main-3", price=D(99 if other else 101)),
    "rename": lambda ledger, other: ledger.rename(
        key="k", position_id="main-3", asset="S" if other else "T", coin="BTC"
    ),
    "set_cap": lambda ledger, other: ledger.set_cap(key="k", cap=D(2 if other else 1)),
    "set_cap removed": lambda ledger, other: ledger.set_cap(
        key="k", scope="venue=bybit", cap=D(1) if other else None
    ),
    "halt": lambda ledger, other: ledger.halt(key="k", mode="reducing" if other else "halted"),
    "resume": lambda ledger, other: ledger.resume(key="k", note="again" if other else None),
    "freeze": lambda ledger, other: ledger.freeze(key="k", note="again" if other else None),
    "thaw": lambda ledger, other: ledger.thaw(key="k", note="again" if other else None),
    "reconciled": lambda ledger, other: ledger.reconciled(key="k", fresh_until=None if other else START),
    "account_seen": lambda ledger, other: ledger.account_seen(
        key="k", scope="account=bybit/main", free=None if other else D(5)
    ),
    "equity_seen": lambda ledger, other: ledger.equity_seen(key="k", scope="bot=e", equity=D(9 if other else 8)),
    "remark": lambda ledger, other: ledger.remark(key="k", about="drift-1", event="seen" if other else "gone"),
    "adopt": lambda ledger, other: ledger.adopt(key="k", quantity=D(1), price=D(6 if other else 5), tags=TAGS),
}  # fmt: skip


class Recorder(Verbs):
    """Stand-in for a ledger that records the commands of a call."""

    def __init__(self) -> None:
        self.commands: list[AnyCommand] = []

    def run(self, command: AnyCommand) -> Any:
        self.commands.append(command)


@pytest.fixture
def ledger(ledger: Ledger) -> Ledger:
    """Flat sizing, cap 5000; main-1 and main-2 are held, main-3 is open."""
    for n in (1, 2, 3):
        ledger.reserve(key=f"{n}", tags=TAGS, ttl_seconds=600)
    ledger.confirm(key="4", position_id="main-3", quantity=D(10), price=D(100))
    ledger.set_cap(key="5", scope="bot=e", share_of_equity=D("0.5"))
    return ledger


def snapshot(ledger: Ledger) -> tuple[Any, ...]:
    """Return everything that must not change when a key is used again."""
    return ledger.exposure(), tuple(ledger.positions("main")), tuple(ledger.history("main"))


def test_list_methods_when_a_verb_is_declared_then_every_face_has_it_and_its_key_is_tested() -> None:
    def methods(of: type[Any]) -> set[str]:
        return {name for name in vars(of) if not name.startswith("_")}

    assert methods(Verbs) == methods(AwaitableVerbs) == {*COMMANDS} == {name.split()[0] for name in CALLS}
    assert methods(AsyncVerbs) == {f"{verb}_async" for verb in COMMANDS}


@pytest.mark.parametrize("name", CALLS)
def test_repeat_when_key_and_body_are_the_same_then_the_first_decision_is_given_again(
    ledger: Ledger, database_url: str, clock: FakeClock, name: str
) -> None:
    call = CALLS[name]
    first = call(ledger, False)
    assert not first.replayed
    after = snapshot(ledger)
    clock.advance(5)
    again = call(ledger, False)
    assert (again.replayed, again.record) == (True, first.record)
    assert snapshot(ledger) == after
    with opened(database_url, clock) as reopened:
        later = call(reopened, False)
        assert (later.replayed, later.record) == (True, first.record)
        assert snapshot(reopened) == after
    assert_verified(ledger)


@pytest.mark.parametrize("name", CALLS)
def test_repeat_when_the_body_differs_then_it_is_an_error_and_has_no_effect(
    ledger: Ledger, database_url: str, clock: FakeClock, name: str
) -> None:
    call = CALLS[name]
    first = call(ledger, False)
    after = snapshot(ledger)
    with pytest.raises(KeyReused, match=f"key 'k' was used before for another request .seq {first.seq}") as refused:
        call(ledger, True)
    assert (refused.value.code, refused.value.field) == ("idempotency_key_reused", "key")
    assert isinstance(refused.value, InvalidRequest)
    with opened(database_url, clock) as reopened, pytest.raises(KeyReused):
        call(reopened, True)
    assert snapshot(ledger) == after


@pytest.mark.parametrize("name", CALLS)
def test_repeat_when_another_verb_uses_the_key_then_it_is_an_error(ledger: Ledger, name: str) -> None:
    CALLS[name](ledger, False)
    other: Any = Reserve(key="k", ttl_seconds=77)
    with pytest.raises(KeyReused):
        ledger.run(other)
    with pytest.raises(KeyReused):
        ledger.run(Resume(key="k", note="not the same request"))


@pytest.mark.parametrize("name", CALLS)
def test_repeat_when_both_stand_in_one_submit_then_the_second_is_the_replay(ledger: Ledger, name: str) -> None:
    recorder = Recorder()
    CALLS[name](recorder, False)  # type: ignore[arg-type]
    first, second = ledger.submit(recorder.commands * 2)
    assert isinstance(first, Decision)
    assert isinstance(second, Decision)
    assert (first.replayed, second.replayed) == (False, True)
    assert first.record == second.record
    assert_verified(ledger)


def test_repeat_when_a_denial_would_be_granted_by_now_then_it_stays_a_denial(ledger: Ledger) -> None:
    ledger.set_cap(key="cap", cap=D(1))
    no = ledger.reserve(key="k")
    assert no.reason == "cap_exceeded"
    ledger.set_cap(key="cap/2", cap=D(9000))
    again = ledger.reserve(key="k")
    assert (again.outcome, again.reason, again.replayed) == ("denied", "cap_exceeded", True)
    assert ledger.reserve(key="new").granted


def test_repeat_when_a_denied_extend_would_be_granted_by_now_then_it_stays_a_denial(ledger: Ledger) -> None:
    ledger.halt(key="halt")
    assert ledger.extend(key="k", position_id="main-1", ttl_seconds=900).reason == "halted"
    ledger.resume(key="resume")
    again = ledger.extend(key="k", position_id="main-1", ttl_seconds=900)
    assert (again.reason, again.replayed) == ("halted", True)


def test_repeat_when_the_hold_is_long_over_then_the_grant_is_told_as_it_was(ledger: Ledger, clock: FakeClock) -> None:
    first = ledger.reserve(key="k", ttl_seconds=1)
    clock.advance(3600)
    ledger.sweep()
    again = ledger.reserve(key="k", ttl_seconds=1)
    assert (again.granted, again.replayed, again.expires_at) == (True, True, first.expires_at)
    assert ledger.position("main-6").state == "expired"


def test_repeat_when_the_same_is_written_another_way_then_it_is_the_same_request(ledger: Ledger) -> None:
    spot = InstrumentInfo("S", D(0), D(10), D("0.10"))
    ledger.reserve(
        key="k", tags={"b": "2", "a": "1"}, signal_score=D("0.5"), price=D(50000), available_balance=D("1E+3"),
        spot_instrument=spot, perp_instrument=spot, min_notional_usd=D("1.50"), ttl_seconds=30,
    )  # fmt: skip
    again = ledger.reserve(
        key="k", tags={"a": "1", "b": "2"}, signal_score=D("0.500"), price=50000, available_balance=1000,  # type: ignore[arg-type]
        spot_instrument=InstrumentInfo("S", D("0.0"), D("1E+1"), D("0.1")), perp_instrument=spot,
        min_notional_usd=D("1.5"), ttl_seconds=D("30.000"),
    )  # fmt: skip
    assert again.replayed
    assert ledger.reserve(key="t", ttl_seconds=0.5).replayed is False
    assert ledger.reserve(key="t", ttl_seconds=D("0.5")).replayed is True


def test_repeat_when_another_portfolio_uses_the_key_then_it_is_another_key(ledger: Ledger) -> None:
    assert ledger.reserve(key="k", portfolio="main").replayed is False
    assert ledger.reserve(key="k", portfolio="other", ttl_seconds=1).replayed is False
    assert ledger.reserve(key="k", portfolio="main").replayed is True


async def test_repeat_when_awaited_then_it_is_the_same_decision(ledger: Ledger) -> None:
    first = await ledger.reserve_async(key="k", tags=TAGS)
    again = await ledger.reserve_async(key="k", tags=TAGS)
    assert (again.replayed, again.record) == (True, first.record)
    with pytest.raises(KeyReused):
        await ledger.reserve_async(key="k")


@pytest.mark.parametrize("key", ["", "x" * 201, "tab\there", "nul\x00", "line\nbreak", "\ud800", 7, None, b"k"])
def test_use_key_when_it_is_not_plain_text_then_it_is_refused(ledger: Ledger, key: Any) -> None:
    with pytest.raises(InvalidRequest, match="key") as refused:
        ledger.reserve(key=key)
    assert refused.value.field == "key"


@pytest.mark.parametrize(
    "key", ["x" * 200, "ключ-π-鍵-🔑" * 15, "'; DROP TABLE decisions; --", '%s %(x)s {} \\ "q"', " "]
)
def test_use_key_when_it_is_any_printable_text_then_it_works_like_any_other(ledger: Ledger, key: str) -> None:
    first = ledger.reserve(key=key, tags={"note": key[:128]})
    assert (first.key, first.replayed) == (key, False)
    assert ledger.reserve(key=key, tags={"note": key[:128]}).replayed
    assert [decision.key for decision in ledger.history("main", limit=1)] == [key]
    assert_verified(ledger)
