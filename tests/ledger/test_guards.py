"""Who may touch which money: declared portfolios, required tags, callers that are bound to tags.

What a guard refuses is not recorded and leaves its key unused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from ledger_sizer import (
    Adopt,
    AppSettings,
    Confirm,
    Decision,
    Extend,
    Fill,
    Forbidden,
    Freeze,
    Halt,
    InstrumentInfo,
    InvalidRequest,
    Ledger,
    LedgerError,
    LedgerSettings,
    Leg,
    LegPlan,
    NotFound,
    Reconciled,
    Release,
    Remark,
    Reprice,
    Reserve,
    Resume,
    Retag,
    SetCap,
    Thaw,
)
from ledger_sizer.model.caller import RECONCILE, Caller, calling_as
from ledger_sizer.model.tags import stored_tags, tags_of
from tests.support.clock import FakeClock
from tests.support.ledgers import assert_verified, position_of

D = Decimal
BTC_PERP = InstrumentInfo("BTC/USDT:USDT", D("0.001"), D(50), D("0.001"), D(5), venue="bybit")
FIGURES: dict[str, Any] = {"quantity": D("0.01"), "price": D(50_000)}


@contextmanager
def opened(url: str, clock: FakeClock, **guards: Any) -> Iterator[Ledger]:
    with Ledger.open(url, settings=AppSettings(ledger=LedgerSettings(**guards)), clock=clock) as ledger:
        yield ledger


def portfolio_rows(ledger: Ledger) -> list[str]:
    with ledger._read_engine.connect() as connection:
        return [name for (name,) in connection.execute(text("SELECT name FROM portfolios ORDER BY 1")) if name != "*"]


def tagged(decision: Decision) -> dict[str, Any]:
    return stored_tags(decision.record.tags).to_json()


def refused(call: Callable[[], object], kind: type[LedgerError], field: str | None, *words: str) -> None:
    with pytest.raises(kind) as error:
        call()
    assert type(error.value) is kind, error.value
    assert getattr(error.value, "field", None) == field
    assert [word for word in words if word not in str(error.value)] == []


# --- required tags -----------------------------------------------------------------------------------------------

SETTING = "LEDGER_REQUIRED_TAGS"


def test_ask_when_a_required_tag_is_missing_then_it_is_named_and_nothing_is_recorded(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock, required_tags=("strategy", "bot")) as ledger:
        half = {"strategy": "funding"}
        refused(lambda: ledger.reserve(key="k", tags=half), InvalidRequest, "tags.bot", SETTING, "bot=...")
        refused(lambda: ledger.reserve(key="k"), InvalidRequest, "tags.strategy", "strategy, bot", "and bot=...")
        refused(lambda: ledger.reserve(key="k", dry_run=True), InvalidRequest, "tags.strategy", SETTING)
        refused(lambda: ledger.adopt(key="k", tags=half, **FIGURES), InvalidRequest, "tags.bot", SETTING)
        refused(
            lambda: ledger.submit([Reserve(key="k", tags={**half, "bot": "a"}), Reserve(key="l")], atomic=True),
            InvalidRequest, "tags.strategy", SETTING,
        )  # fmt: skip
        assert portfolio_rows(ledger) == []
        good, wrong = ledger.submit([Reserve(key="k", tags={**half, "bot": "a"}), Reserve(key="l", tags=half)])
        assert isinstance(good, Decision)
        assert (good.granted, good.replayed) == (True, False), "the key was unused"
        assert isinstance(wrong, InvalidRequest)
        assert wrong.field == "tags.bot"
        assert ledger.adopt(key="a", tags={**half, "bot": ["a", "b"]}, **FIGURES).outcome == "applied"
        assert len(ledger.history()) == 2
        assert_verified(ledger)


def test_ask_when_the_legs_bring_a_required_tag_then_the_caller_need_not_give_it(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock, required_tags=("venue", "symbol")) as ledger:
        granted = ledger.reserve(key="k", price=D(50_000), legs=[LegPlan(BTC_PERP, "buy")])
        assert granted.granted
        leg = Leg("bybit", "BTC/USDT:USDT", "swap", "buy", D("0.01"), D(50_000))
        refused(lambda: ledger.adopt(key="a", legs=[leg], **FIGURES), InvalidRequest, "tags.symbol")
        assert ledger.adopt(key="a", legs=[leg], tags={"symbol": "BTC"}, **FIGURES).outcome == "applied"


def test_ask_when_tags_became_required_later_then_answers_replay_and_old_positions_go_on(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ledger:
        old = position_of(ledger.reserve(key="k", amount_usd=D(100)))
        bots = position_of(ledger.reserve(key="b", tags={"bot": "a"}, amount_usd=D(100)))
    with opened(database_url, clock, required_tags=("bot",)) as ledger:
        assert ledger.reserve(key="k", amount_usd=D(100)).replayed
        more = ledger.reserve(key="k/more", position_id=old, amount_usd=D(10))
        assert more.granted, "growth of a position needs no tags"
        ledger.confirm(key="c", position_id=old, quantity=D(1), price=D(100))
        external = {"external": "exchange"}
        assert ledger.adopt(key="x", tags=external, **FIGURES).outcome == "applied"
        with calling_as(RECONCILE):
            assert ledger.adopt(key="drift", tags={"venue": "bybit"}, **FIGURES).outcome == "applied"
        drop: Any = lambda: ledger.retag(key="t", position_id=bots, tags={"strategy": "s"})  # noqa: E731
        refused(drop, InvalidRequest, "tags.bot", SETTING, bots)
        assert ledger.lookup("t") is None
        assert ledger.retag(key="t", position_id=bots, tags={"strategy": "s", "bot": "b"}).granted
        assert ledger.retag(key="t2", position_id=old, tags={"strategy": "s"}).granted, "it has no bot to lose"
        assert_verified(ledger)


# --- declared portfolios -----------------------------------------------------------------------------------------

BEGINNERS = [
    Reserve(key="k", portfolio="mian"),
    Adopt(key="k", portfolio="mian", **FIGURES),
    Reconciled(key="k", portfolio="mian", fresh_until=None),
    SetCap(key="k", portfolio="mian", scope="venue=bybit", cap=D(10)),
]


def test_ask_when_a_portfolio_is_not_declared_then_nothing_begins_it_but_its_cap(
    database_url: str, clock: FakeClock
) -> None:
    words = ("'mian'", "LEDGER_PORTFOLIOS=declared", "caps set mian CAP")
    with opened(database_url, clock, portfolios="declared") as ledger:
        for command in BEGINNERS:
            refused(lambda: ledger.run(command), InvalidRequest, "portfolio", *words)  # noqa: B023
        refused(lambda: ledger.reserve(key="k", portfolio="mian", dry_run=True), InvalidRequest, "portfolio", *words)
        refused(lambda: ledger.halt(key="k", portfolio="mian"), NotFound, None, "'mian'")
        assert (portfolio_rows(ledger), ledger.portfolios()) == ([], [])
        assert ledger.set_cap(key="k", portfolio="mian", cap=D(500)).seq == 1, "the key was unused"
        for number, command in enumerate(BEGINNERS):
            form = {one.name: getattr(command, one.name) for one in command.arguments}
            ledger.run(type(command)(**{**form, "key": f"k{number}"}))
        assert portfolio_rows(ledger) == ["mian"]
        assert_verified(ledger)


def test_submit_when_the_group_declares_the_portfolio_then_only_what_comes_after_it_counts(
    database_url: str, clock: FakeClock
) -> None:
    before, declare = Reserve(key="1", portfolio="new"), SetCap(key="2", portfolio="new", cap=D(500))
    halt, after = Halt(key="0", portfolio="new"), Reserve(key="3", portfolio="new")
    with opened(database_url, clock, portfolios="declared") as ledger:
        refused(lambda: ledger.submit([before, declare], atomic=True), InvalidRequest, "portfolio")
        assert portfolio_rows(ledger) == []
        answers = ledger.submit([halt, before, declare, after])
        assert [type(one) for one in answers] == [NotFound, InvalidRequest, Decision, Decision]
        assert [one.budget for one in ledger.history("new", command="reserve")] == [500]
        full = [SetCap(key="2", portfolio="two", cap=D(0)), Reserve(key="3", portfolio="two"), after]
        refused(lambda: ledger.submit(full, atomic=True), InvalidRequest, "portfolio", "'two'", "'3'", "cap_exceeded")
        assert portfolio_rows(ledger) == ["new"], "a denied group begins none"
        both = [SetCap(key="2", portfolio="two", cap=D(50)), Reserve(key="3", portfolio="two")]
        assert [one.granted for one in ledger.submit(both, atomic=True)] == [False, True]
        assert_verified(ledger)


def test_ask_when_the_portfolio_was_there_before_it_had_to_be_declared_then_it_stays_as_it_is(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ledger:
        ledger.reserve(key="k")
    with opened(database_url, clock, portfolios="declared") as ledger:
        # Of many at once some are decided on a cached state, and the unknown name must not begin there either.
        async def ask() -> list[Any]:
            names = ["main", "mian"] * 20
            asked = [ledger.reserve_async(key=f"{n}", portfolio=one, amount_usd=D(1)) for n, one in enumerate(names)]
            return await asyncio.gather(*asked, return_exceptions=True)

        answers = asyncio.run(ask())
        assert {type(one) for one in answers[::2]} == {Decision}
        assert {type(one) for one in answers[1::2]} == {InvalidRequest}
        assert ledger.halt(key="h", portfolio="*").outcome == "applied", "the desk needs no cap"
        assert portfolio_rows(ledger) == ["main"]
        assert_verified(ledger)


# --- callers that are bound to tags ------------------------------------------------------------------------------

A = Caller("api:a1:bot-a", "bot-a", tags=tags_of({"bot": "a"}))
B = Caller("api:b1:bot-b", "bot-b", tags=tags_of({"bot": "b"}))
AB = Caller("api:ab:both", "both", tags=tags_of({"bot": ["a", "b"], "venue": "bybit"}))


def test_reserve_when_the_caller_is_bound_then_its_tags_are_filled_in_and_others_forbidden(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock, required_tags=("bot",)) as ledger:
        with calling_as(A):
            first = ledger.reserve(key="k", amount_usd=D(100))
            assert (tagged(first), '"bot":"a"' in first.request) == ({"bot": "a"}, True)
            assert ledger.reserve(key="k", amount_usd=D(100)).replayed
            assert ledger.reserve(key="k", amount_usd=D(100), tags={"bot": "a"}).replayed, "said or not, it is one"
            assert tagged(ledger.reserve(key="d", dry_run=True)) == {"bot": "a"}
            theirs: Any = lambda **more: ledger.reserve(key="x", tags={"bot": "b"}, **more)  # noqa: E731
            refused(theirs, Forbidden, "tags.bot", "'b'", "bound to bot=a", "leave bot out")
            refused(lambda: theirs(dry_run=True), Forbidden, "tags.bot")
            both: dict[str, Any] = {"tags": {"bot": ["a", "b"]}, **FIGURES}
            refused(lambda: ledger.adopt(key="x", **both), Forbidden, "tags.bot", "'b'")
            mixed = [Reserve(key="x", tags={"bot": "b"}), Reserve(key="y", amount_usd=D(1))]
            forbidden, granted = ledger.submit(mixed)
            assert isinstance(forbidden, Forbidden)
            assert forbidden.code == forbidden.reason == "forbidden"
            assert isinstance(granted, Decision)
            assert tagged(granted) == {"bot": "a"}
            refused(lambda: ledger.submit([Reserve(key="z"), mixed[0]], atomic=True), Forbidden, "tags.bot")
            assert [ledger.lookup(key) for key in ("x", "z")] == [None, None]
            assert tagged(ledger.adopt(key="x", **FIGURES)) == {"bot": "a"}, "the key was unused"
        with calling_as(AB):
            one = ledger.reserve(key="one", tags={"bot": "b"}, amount_usd=D(1))
            assert tagged(one) == {"bot": "b", "venue": "bybit"}
            assert tagged(ledger.reserve(key="l", amount_usd=D(1)))["bot"] == ["a", "b"]
        assert_verified(ledger)


def test_ask_when_the_callers_venue_is_not_that_of_the_legs_then_orders_are_forbidden_and_facts_are_not(
    database_url: str, clock: FakeClock
) -> None:
    leg = LegPlan(InstrumentInfo("BTC/USDT:USDT", D("0.001"), D(50), D("0.001"), D(5), venue="okx"), "buy")
    filled = Leg("okx", "BTC/USDT:USDT", "swap", "buy", D("0.01"), D(50_000))
    own = Leg("bybit", "BTC/USDT:USDT", "swap", "buy", D("0.01"), D(50_000))
    with opened(database_url, clock) as ledger, calling_as(AB):
        ask: dict[str, Any] = {"price": D(50_000), "tags": {"bot": "a"}}
        refused(lambda: ledger.reserve(key="k", legs=[leg], **ask), Forbidden, "tags.venue", "'okx'", "venue=bybit")
        granted = ledger.reserve(key="k", legs=[LegPlan(BTC_PERP, "buy")], **ask)
        assert tagged(granted) == {"bot": "a", "symbol": "BTC", "venue": "bybit"}
        position = position_of(granted)
        confirmed = ledger.confirm(key="c", position_id=position, quantity=D("0.01"), price=D(50_000), legs=[filled])
        assert tagged(confirmed)["venue"] == ["bybit", "okx"]
        adopted = ledger.adopt(key="a", tags={"bot": "a"}, legs=[filled], **FIGURES)
        assert tagged(adopted)["venue"] == ["bybit", "okx"], "it can be released by the same API key"
        at_home = ledger.adopt(key="o", tags={"bot": "a"}, legs=[own], **FIGURES)
        assert tagged(at_home)["venue"] == "bybit"
        assert ledger.release(key="r", position_id=position_of(adopted)).outcome == "applied"
        assert_verified(ledger)


def _foreign(position: str) -> list[Any]:
    return [
        Confirm(key="f", position_id=position, **FIGURES),
        Fill(key="f", position_id=position, filled_quantity=D("0.01"), price=D(50_000)),
        Extend(key="f", position_id=position),
        Extend(key="f", position_id=position, until_known=True),
        Reserve(key="f", position_id=position, amount_usd=D(1)),
        Release(key="f", position_id=position),
        Release(key="f", position_id=position, held_only=True),
        Retag(key="f", position_id=position, tags={"bot": "a"}),
        Reprice(key="f", position_id=position, price=D(50_000)),
    ]


def test_touch_a_position_when_it_lacks_the_callers_tags_then_every_verb_is_forbidden(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ledger:
        with calling_as(B):
            theirs = position_of(ledger.reserve(key="k", amount_usd=D(900)))
        nobodys = position_of(ledger.reserve(key="n", amount_usd=D(900)))
        before = ledger.exposure("main")
        with calling_as(A):
            for command in [*_foreign(theirs), *_foreign(nobodys)]:
                refused(lambda: ledger.run(command), Forbidden, "position_id", command.position_id, "bot=a")  # noqa: B023
                (answer,) = ledger.submit([command])
                assert isinstance(answer, Forbidden)
            refused(lambda: ledger.submit([Reserve(key="own"), command], atomic=True), Forbidden, "position_id")
            assert [ledger.lookup(key) for key in ("f", "own")] == [None, None]
            refused(lambda: ledger.release(key="f", position_id="main-99"), NotFound, None)
        assert ledger.exposure("main").scopes == before.scopes
        with calling_as(B):
            for number, command in enumerate(_foreign(theirs)[:4]):
                form = {one.name: getattr(command, one.name) for one in command.arguments}
                assert not isinstance(ledger.submit([type(command)(**{**form, "key": f"{number}"})])[0], Forbidden)
        assert ledger.release(key="r", position_id=theirs).outcome == "applied", "who is not bound may touch all"
        assert_verified(ledger)


def test_retag_when_the_caller_is_bound_then_the_position_stays_its_own(database_url: str, clock: FakeClock) -> None:
    with opened(database_url, clock) as ledger, calling_as(A):
        own = position_of(ledger.reserve(key="k", tags={"symbol": "BTC"}, amount_usd=D(100)))
        away: Any = lambda: ledger.retag(key="t", position_id=own, tags={"bot": "b"})  # noqa: E731
        refused(away, Forbidden, "tags.bot", "'b'", "bound to bot=a")
        assert ledger.retag(key="t", position_id=own, tags={"strategy": "s"}).granted
        assert dict(ledger.position(own).tags) == {"bot": "a", "strategy": "s", "symbol": "BTC"}
        assert ledger.retag(key="t", position_id=own, tags={"strategy": "s"}).replayed
    with opened(database_url, clock) as ledger:
        ledger.retag(key="away", position_id=own, tags={"bot": "b"})
        with calling_as(A):
            again = ledger.retag(key="t", position_id=own, tags={"strategy": "s"})
            assert again.replayed, "an answered key has its answer, though the position is another's by now"
            refused(lambda: ledger.release(key="r", position_id=own), Forbidden, "position_id")


def test_steer_when_the_caller_is_bound_then_only_its_own_scopes_and_never_the_desk(
    database_url: str, clock: FakeClock
) -> None:
    verbs: list[tuple[Any, dict[str, Any]]] = [
        (Halt, {}), (Resume, {}), (Freeze, {}), (Thaw, {}), (Reconciled, {"fresh_until": None}),
    ]  # fmt: skip
    with opened(database_url, clock) as ledger:
        ledger.reserve(key="k", tags={"bot": "a"})
        with calling_as(A):
            for kind, more in verbs:
                for scope in ("portfolio", "bot=b", "venue=bybit"):
                    refused(lambda: ledger.run(kind(key="s", scope=scope, **more)), Forbidden, "scope", "bot=a", scope)  # noqa: B023
                own = ledger.run(kind(key=f"own/{kind.verb}", scope="bot=a", **more))
                assert (own.outcome, own.binding) == ("applied", "bot=a")
            for scope in ("portfolio", "bot=a", "bot=*"):
                refused(lambda: ledger.set_cap(key="s", scope=scope, cap=D(100)), Forbidden, "scope", "bound to bot=a")  # noqa: B023
            for command in (
                Halt(key="s", portfolio="*"), Resume(key="s", portfolio="*"),
                Remark(key="s", portfolio="*", about="x", event="y"),
            ):  # fmt: skip
                refused(lambda: ledger.run(command), Forbidden, "portfolio", "desk", "bound to bot=a")  # noqa: B023
            assert ledger.remark(key="s", about="x", event="y").outcome == "applied", "the key was unused"
            assert ledger.sweep() == 0
            assert len(ledger.history("main")) == 7, "reads are not bound"
        assert ledger.desk_status() == "active"
        assert_verified(ledger)


def test_release_all_when_the_caller_is_bound_then_only_its_own_holds_end(database_url: str, clock: FakeClock) -> None:
    with opened(database_url, clock) as ledger:
        for name in ("a", "b", "c"):
            ledger.reserve(key=name, tags={"bot": name, "venue": "bybit"}, amount_usd=D(100))
        with calling_as(A):
            refused(lambda: ledger.release_all(key="x", tags={"bot": "b"}), Forbidden, "tags.bot", "'b'")
            assert [one.position_id for one in ledger.release_all(key="x", tags={})] == ["main-1"]
            assert asyncio.run(ledger.release_all_async(key="x", tags={"bot": "a"})) == []
        with calling_as(AB):
            assert [one.position_id for one in ledger.release_all(key="y", tags={})] == ["main-2"]
        assert [one.position_id for one in ledger.release_all(key="z", tags={})] == ["main-3"]
        assert_verified(ledger)
