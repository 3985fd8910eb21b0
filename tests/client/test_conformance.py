"""The embedded ledger, the sync client and the async client behave the same: verbs, idempotency, errors, holds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Denied, InvalidRequest, KeyReused, Leg, NotFound, Pool, Reserve, WrongState
from ledger_sizer.model.commands import COMMANDS
from tests.support.clock import START, FakeClock
from tests.support.interfaces import ASK, FILL, INTERFACES, Interface, Name, open_position, opened

pytestmark = pytest.mark.one_engine


@pytest.fixture(params=INTERFACES)
async def ledger(request: pytest.FixtureRequest, database_url: str, clock: FakeClock) -> AsyncIterator[Interface]:
    """The same ledger behind each interface, on each database."""
    async with opened(request.param, database_url, clock) as interface:
        yield interface


# Reads.


async def test_exposure_when_there_are_more_scopes_than_a_page_has_then_all_are_read_and_an_answer_is_bounded(
    ledger: Interface, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger_sizer.client.endpoints._SCOPES_PER_CALL", 400)
    asks = [Reserve(key=f"{n}", tags={"symbol": f"C{n}"}, available_balance=Decimal(1)) for n in range(1101)]
    ledger.behind.submit(asks)
    ledger.behind.set_cap(key="pool", scope="symbol=C7", guarantee=Decimal(70))
    ledger.behind.set_cap(key="default", scope="symbol=*", cap=Decimal(5))
    page = await ledger.exposure_page()
    assert (len(page.exposure.scopes), page.cursor) == (1001, page.exposure.scopes[-1].scope)
    found = await ledger.exposure()
    assert len(found.scopes) == 1103
    assert page.exposure.pools == found.pools == (Pool("symbol=C7", *map(Decimal, (70, 1, 69, 0))),)
    assert found.scope("symbol=C8").cap_from == page.exposure.scope("symbol=none").cap_from == "symbol=*"
    assert found == ledger.behind.exposure()
    assert await ledger.exposure(as_of=1000) == ledger.behind.exposure(as_of=1000)


# Verbs.


async def test_reserve_when_there_is_room_then_the_grant_is_the_recorded_decision(ledger: Interface) -> None:
    decision = await ledger.reserve(key="cycle-17/BTC", **ASK)
    assert (decision.granted, decision.budget, decision.quantity) == (True, Decimal(900), Decimal("0.018"))
    assert decision.position_id == "main-1"
    assert decision.expires_at == START + timedelta(seconds=30.5)
    assert decision == ledger.behind.decision(1), "request, trace and hash included"


async def test_call_every_verb_when_it_fits_then_each_decision_equals_the_recorded_one(ledger: Interface) -> None:
    legs = [
        Leg("bybit", "ETH", "spot", "buy", Decimal(1), Decimal(2_000)),
        Leg("okx", "ETH", "swap", "sell", Decimal(1)),
    ]
    decisions = [
        await ledger.set_cap(key="cap", cap=Decimal("4000.5")),
        await ledger.set_cap(key="cap/venue", scope="venue=bybit", cap=Decimal(3_000)),
        await ledger.reserve(key="a", **ASK),
        await ledger.extend(key="a/extend", position_id="main-3", ttl_seconds=90),
        await ledger.confirm(key="a/fill", position_id="main-3", **FILL),
        await ledger.fill(
            key="a/filled", position_id="main-3", filled_quantity=Decimal("0.019"), price=Decimal(50_000)
        ),
        await ledger.retag(key="a/tags", position_id="main-3", tags={"strategy": ["funding", "basis"]}, note="ends"),
        await ledger.reprice(key="a/price", position_id="main-3", price=Decimal(49_000)),
        await ledger.release(key="a/part", position_id="main-3", quantity=Decimal("0.008")),
        await ledger.adopt(key="found", quantity=Decimal(1), price=Decimal(2_000), tags={"symbol": "ETH"}, legs=legs),
        await ledger.halt(key="halt", scope="venue=bybit", mode="reducing", note="maintenance at 12:00 to 13:00 ☃"),
        await ledger.resume(key="resume", scope="venue=bybit"),
        await ledger.set_cap(key="cap/none", scope="venue=bybit", cap=None),
        await ledger.set_cap(key="pool", scope="bot=a", guarantee=Decimal(500), max_position_usd=Decimal(300)),
        await ledger.set_cap(key="pool/less", scope="bot=a", cap=Decimal(900), guarantee=None),
        await ledger.release(key="a/exit", position_id="main-3"),
        await ledger.freeze(key="freeze", scope="venue=bybit", note="drift-7"),
        await ledger.thaw(key="thaw", scope="venue=bybit"),
        await ledger.reconciled(key="run", fresh_until=START + timedelta(seconds=90)),
        await ledger.account_seen(
            key="seen",
            scope="account=okx/main",
            fresh_until=START + timedelta(seconds=90),
            free=Decimal("99.5"),
            settled=Decimal(-3),
            margin_fraction=Decimal("0.2"),
        ),
        await ledger.set_cap(key="share", scope="bot=a", share_of_equity=Decimal("0.8")),
        await ledger.equity_seen(key="equity", scope="bot=a", equity=Decimal(1000)),
        await ledger.remark(key="say", about="drift-7", event="close_requested"),
        await ledger.rename(key="name", position_id="main-10", asset="ETH2", ratio=Decimal("0.5"), note="split"),
    ]
    assert decisions == list(ledger.behind.history(ascending=True))
    assert {decision.command for decision in decisions} == set(COMMANDS)
    assert ledger.behind.verify().ok


async def test_reserve_when_denied_then_the_denial_is_a_decision_and_is_final(ledger: Interface) -> None:
    await ledger.set_cap(key="cap", cap=Decimal(0))
    denied = await ledger.reserve(key="a", **ASK)
    assert (denied.granted, denied.outcome, denied.reason) == (False, "denied", "cap_exceeded")
    assert denied == ledger.behind.decision(2)
    with pytest.raises(Denied) as raised:
        denied.raise_for_denial()
    assert raised.value.decision == denied
    await ledger.set_cap(key="cap/more", cap=Decimal(5_000))
    again = await ledger.reserve(key="a", **ASK)
    assert (again.outcome, again.replayed, again.record) == ("denied", True, denied.record)


async def test_reserve_when_dry_run_then_it_answers_and_nothing_is_recorded(ledger: Interface) -> None:
    await ledger.set_cap(key="cap", cap=Decimal(500))
    decision = await ledger.reserve(key="would I?", dry_run=True, **ASK)
    assert (decision.granted, decision.budget, decision.seq, decision.hash) == (True, Decimal(500), None, None)
    assert (decision.position_id, decision.key) == (None, "would I?")
    denied = await ledger.reserve(key="would I?", dry_run=True, min_notional_usd=Decimal(600), **ASK)
    assert (denied.outcome, denied.reason, denied.seq) == ("denied", "cap_exceeded", None)
    assert ledger.behind.exposure().seq == 1


@pytest.mark.parametrize("key", ["ключ/☃/ö", "  blanks around  ", "~!@#$%^&*()/+=?", '"quoted\\"', "x" * 200])
async def test_reserve_when_key_is_any_printable_text_then_it_is_kept_as_it_is(ledger: Interface, key: str) -> None:
    decision = await ledger.reserve(key=key, **ASK)
    assert (decision.key, ledger.behind.decision(1).key) == (key, key)
    assert (await ledger.reserve(key=key, **ASK)).replayed
    dry = await ledger.reserve(key=key, dry_run=True, **ASK)
    assert (dry.key, dry.seq) == (key, None)


async def test_confirm_when_hold_expired_then_the_fill_is_a_position_of_its_own(
    ledger: Interface, clock: FakeClock
) -> None:
    granted = await ledger.reserve(key="a", **ASK)
    clock.advance(60)
    late = await ledger.confirm(key="a/fill", position_id=granted.position_id, **FILL)
    assert late.outcome == "applied"
    assert late.position_id != granted.position_id
    found = await ledger.position(late.position_id)
    assert (found.state, found.origin) == ("open", 1)


# Idempotency.


async def test_send_when_key_comes_again_then_the_first_answer_is_replayed(ledger: Interface) -> None:
    first = await ledger.reserve(key="a", **ASK)
    again = await ledger.reserve(key="a", **ASK)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.record == first.record
    assert ledger.behind.exposure().held == Decimal(900)


async def test_send_when_key_comes_with_another_request_then_key_reused_is_raised(ledger: Interface) -> None:
    await ledger.reserve(key="a", **ASK)
    with pytest.raises(KeyReused) as raised:
        await ledger.reserve(key="a", **{**ASK, "signal_score": Decimal("0.8")})
    assert (raised.value.code, raised.value.field) == ("idempotency_key_reused", "key")


# Errors.


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"signal_score": Decimal("1.1")}, "signal_score"),
        ({"signal_score": 0.5}, "signal_score"),
        ({"portfolio": "no such name!"}, "portfolio"),
        ({"tags": {"Venue": "bybit"}}, "tags"),
        ({"price": None}, "price"),
        ({"ttl_seconds": 0}, "ttl_seconds"),
    ],
)
async def test_reserve_when_argument_is_wrong_then_the_error_names_it(
    ledger: Interface, wrong: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        await ledger.reserve(key="a", **{**ASK, **wrong})
    assert raised.value.field == field


async def test_ask_when_there_is_no_such_thing_then_not_found_is_raised(ledger: Interface) -> None:
    await ledger.reserve(key="a", **ASK)
    for question in (
        ledger.position("main-99"),
        ledger.position("nobody-1"),
        ledger.decision(99),
        ledger.explain("main-99"),
        ledger.release(key="b", position_id="main-99"),
        ledger.release(key="c", position_id="nobody-1"),
    ):
        with pytest.raises(NotFound):
            await question


async def test_read_when_nobody_used_the_portfolio_yet_then_it_is_empty(ledger: Interface) -> None:
    for name in ("main", "nobody"):
        found = await ledger.exposure(name)
        assert (found.portfolio, found.seq, found.cap, found.exposure, len(found.scopes)) == (name, 0, 5000, 0, 1)
        assert (await ledger.exposure_page(name)).exposure == found
        assert not (await ledger.positions(name)).items
        assert not (await ledger.history(name)).items
        assert not (await ledger.net(name)).assets
        assert await ledger.lookup("a", name) is None
    assert await ledger.portfolios() == []


async def test_release_when_position_is_closed_then_wrong_state_is_raised_and_the_key_stays_free(
    ledger: Interface,
) -> None:
    position_id = await open_position(ledger)
    await ledger.release(key="exit", position_id=position_id)
    with pytest.raises(WrongState):
        await ledger.release(key="exit/again", position_id=position_id)
    reused = await ledger.reserve(key="exit/again", **ASK)
    assert reused.granted


async def test_read_when_filter_is_wrong_then_the_error_names_it(ledger: Interface) -> None:
    await ledger.reserve(key="a", **ASK)
    for question, field in (
        (ledger.positions(limit=0), "limit"),
        (ledger.positions(state="sleeping"), "state"),
        (ledger.history(cursor="yesterday"), "cursor"),
        (ledger.history(limit=1001), "limit"),
        (ledger.position("nonsense"), "position_id"),
        (ledger.exposure("no such name!"), "portfolio"),
        (ledger.decision("one"), "seq"),
        (ledger.decision(0), "seq"),
    ):
        with pytest.raises(InvalidRequest) as raised:
            await question
        assert raised.value.field == field


async def test_read_when_a_filter_is_an_enum_member_then_its_text_is_looked_for(ledger: Interface) -> None:
    granted = await ledger.reserve(key="a", **ASK)
    (position,) = await ledger.positions(Name.MAIN, state=Name.HELD, tags={Name.VENUE: Name.BYBIT})
    assert position.position_id == granted.position_id
    (decision,) = await ledger.history(Name.MAIN, symbol=Name.BTC)
    assert decision == granted
    assert (await ledger.exposure(Name.MAIN)).held == granted.budget


# Holds.


async def test_hold_when_confirmed_then_the_position_stays(ledger: Interface) -> None:
    async with ledger.hold(key="a", **ASK) as held:
        assert (held.raw.budget, held.raw.position_id) == (Decimal(900), "main-1")
        await held.confirm(**FILL)
    assert ledger.behind.position("main-1").state == "open"
    assert ledger.behind.decision(2).key == "a/confirm"


async def test_hold_when_the_block_fails_then_it_is_released_and_the_exception_passes(ledger: Interface) -> None:
    with pytest.raises(RuntimeError, match="no fill"):
        async with ledger.hold(key="a", **ASK):
            raise RuntimeError("no fill")
    assert ledger.behind.position("main-1").state == "released"


@pytest.mark.parametrize(("on_unknown", "state"), [({}, "held"), ({"on_unknown": "release"}, "released")])
async def test_hold_when_its_order_timed_out_then_it_is_kept_until_known_unless_told_otherwise(
    ledger: Interface, on_unknown: dict[str, str], state: str
) -> None:
    with pytest.raises(TimeoutError):
        async with ledger.hold(key="a", **ASK, **on_unknown):
            raise TimeoutError
    position = ledger.behind.position("main-1")
    assert (position.state, position.until_known) == (state, state == "held")
    with pytest.raises(InvalidRequest, match="on_unknown must be keep or release"):
        async with ledger.hold(key="b", **ASK, on_unknown="drop"):
            pytest.fail("entered")


async def test_hold_when_denied_then_denied_is_raised_and_the_block_never_runs(ledger: Interface) -> None:
    await ledger.set_cap(key="cap", cap=Decimal(5_000))
    await ledger.halt(key="halt")
    entered = False
    with pytest.raises(Denied) as raised:
        async with ledger.hold(key="a", **ASK):
            entered = True
    assert (entered, raised.value.reason) == (False, "halted")
