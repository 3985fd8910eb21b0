"""An atomic group has one answer in every face, whatever of it was answered before (see `test_conformance`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from typing import Any

import httpx
import pytest

from ledger_sizer import (
    AppSettings,
    Confirm,
    Decision,
    DynamicSizingSettings,
    InvalidRequest,
    LedgerError,
    Release,
    Reserve,
    SetCap,
    TradingSettings,
)
from ledger_sizer.model.caller import LOCAL
from ledger_sizer.model.commands import AnyCommand
from ledger_sizer.wire.http_calls import batch_form
from tests.conftest import EngineKind, NewDatabase
from tests.support.clock import FakeClock
from tests.support.interfaces import INTERFACES, Interface, opened
from tests.support.ledgers import assert_verified
from tests.support.services import served

pytestmark = pytest.mark.one_engine

D = Decimal
SETTINGS = AppSettings(
    sizing=DynamicSizingSettings(max_portfolio_exposure=D(100)), trading=TradingSettings(max_position_size_usd=D(100))
)


def ask(key: str, usd: int, **more: Any) -> Reserve:
    return Reserve(key=key, available_balance=D(usd), **more)


PAIR = [ask("a", 40), ask("b", 40)]
GROUPS: dict[str, tuple[Sequence[Sequence[AnyCommand]], Sequence[AnyCommand], list[str]]] = {
    "all granted before": ([PAIR], PAIR, ["granted*", "granted*"]),
    "granted before, a third is denied": (
        [PAIR], [*PAIR, ask("c", 40, min_notional_usd=D(40))], ["granted*", "granted*", "cap_exceeded"]
    ),
    "granted before, the denial comes first": (
        [PAIR], [ask("c", 40, min_notional_usd=D(40)), *PAIR], ["cap_exceeded", "granted*", "granted*"]
    ),
    "granted and applied before beside a denial and a fact": (
        [PAIR, [Release(key="r", position_id="main-1")]],
        [*PAIR, Release(key="r", position_id="main-1"), Release(key="s", position_id="main-2"), ask("c", 0)],
        ["granted*", "granted*", "applied*", "group_denied", "insufficient_balance"],
    ),
    "denied before": ([[ask("a", 0)]], [ask("a", 0), ask("b", 40)], ["insufficient_balance*", "group_denied"]),
    "granted before and released since": (
        [[ask("a", 40)], [Release(key="r", position_id="main-1")]], PAIR, ["granted*", "granted"]
    ),
    "the same key twice": ([], [ask("a", 40), ask("a", 40)], ["granted", "granted*"]),
    "the same key twice beside a denial": (
        [], [ask("a", 40), ask("a", 40), ask("c", 0)], ["group_denied", "group_denied*", "insufficient_balance"]
    ),
    "a release that makes room": (
        [[ask("o", 60)]], [Release(key="r", position_id="main-1"), ask("n", 100)], ["applied", "granted"]
    ),
    "a fact and a cap beside a denial": (
        [[ask("o", 60)]],
        [Confirm(key="f", position_id="main-1", quantity=D(60), price=D(1)), SetCap(key="up", cap=D(500)), ask("n", 0)],
        ["group_denied", "group_denied", "insufficient_balance"],
    ),
    "two portfolios, one key": ([], [ask("a", 10), ask("a", 10, portfolio="b")], ["granted", "granted"]),
    "two portfolios, the second denied": (
        [[SetCap(key="c", portfolio="b", cap=D(0))]],
        [ask("a", 10), ask("a", 10, portfolio="b")],
        ["group_denied", "cap_exceeded"],
    ),
    "two portfolios, granted in one before, denied in the other": (
        [[SetCap(key="c", portfolio="b", cap=D(0))], [ask("a", 10)]],
        [ask("a", 10), ask("a", 10, portfolio="b"), ask("z", 10)],
        ["granted*", "cap_exceeded", "group_denied"],
    ),
    "a wrong member": ([PAIR], [*PAIR, Release(key="r", position_id="main-9")], ["not_found"]),
    "a key of another request": ([PAIR], [ask("a", 41), ask("c", 0)], ["idempotency_key_reused"]),
    "a thousand": (
        [],
        [*(ask(f"k{n}", 1) for n in range(100)), *(SetCap(key=f"c{n}", cap=D(100)) for n in range(900))],
        ["granted"] * 100 + ["applied"] * 900,
    ),
}  # fmt: skip


def word(answer: Any) -> str:
    assert isinstance(answer, Decision)
    return (answer.reason or answer.outcome) + ("*" if answer.replayed else "")


@pytest.fixture(params=INTERFACES)
async def ledger(request: pytest.FixtureRequest, database_url: str, clock: FakeClock) -> AsyncIterator[Interface]:
    async with opened(request.param, database_url, clock, SETTINGS) as interface:
        yield interface


async def prepare(ledger: Interface, before: Sequence[Sequence[AnyCommand]]) -> None:
    for group in before:
        await ledger.submit(group, atomic=True)


@pytest.mark.parametrize("case", GROUPS)
async def test_submit_atomic_when_parts_of_it_were_answered_before_then_every_face_answers_the_same(
    ledger: Interface, case: str
) -> None:
    before, group, expected = GROUPS[case]
    await prepare(ledger, before)
    if expected[0] in ("not_found", "idempotency_key_reused"):
        with pytest.raises(LedgerError) as raised:
            await ledger.submit(group, atomic=True)
        assert raised.value.code == expected[0]
    else:
        answers = await ledger.submit(group, atomic=True)
        assert [word(one) for one in answers] == expected
        again = await ledger.submit(group, atomic=True)
        assert [one.record for one in again] == [one.record for one in answers]
        assert all(one.replayed for one in again)
        for one in answers[:9]:
            assert ledger.behind.decision(one.seq, one.portfolio).record == one.record
    assert_verified(ledger.behind)


@pytest.mark.parametrize("size", [1001, 1500])
async def test_submit_atomic_when_there_are_too_many_then_every_face_refuses_in_the_same_words(
    ledger: Interface, size: int
) -> None:
    with pytest.raises(InvalidRequest, match=f"^an atomic group has at most 1000 commands, got {size}") as raised:
        await ledger.submit((ask(f"k{n}", 1) for n in range(size)), atomic=True)
    assert raised.value.field == "commands"
    assert ledger.behind.portfolios() == []
    assert len(await ledger.submit([ask(f"k{n}", 1) for n in range(size)])) == size, "independent ones are no group"


async def test_submit_atomic_when_it_has_a_dry_run_then_every_face_refuses_it(ledger: Interface) -> None:
    with pytest.raises(InvalidRequest, match="ask a dry run with reserve"):
        await ledger.submit([ask("a", 10), ask("b", 10, dry_run=True)], atomic=True)
    assert ledger.behind.portfolios() == []


async def test_explain_when_a_group_was_denied_then_every_face_names_the_neighbour(ledger: Interface) -> None:
    await ledger.submit([*PAIR, ask("c", 40, min_notional_usd=D(40))], atomic=True)
    found = await ledger.explain(2)
    assert (str(found), found.data) == (str(ledger.behind.explain(2)), ledger.behind.explain(2).data)
    assert found.data["group"]["denied_by"]["key"] == "c"
    assert [row["held"] for row in found.data["scopes"]] == ["40"]


@pytest.mark.parametrize("case", GROUPS)
def test_post_batch_when_parts_of_a_group_were_answered_before_then_the_body_says_what_the_ledger_says(
    new_database: NewDatabase, engine_kind: EngineKind, case: str
) -> None:
    before, group, expected = GROUPS[case]
    with served(new_database(engine_kind), clock=FakeClock(), settings=SETTINGS) as service:
        service.ledger.opened_by = LOCAL  # as whoever asks the service here
        for commands in before:
            service.ledger.submit(commands, atomic=True)
        reply = httpx.post(f"{service.url}/v1/batch", json={**batch_form(group), "atomic": True})
        body = reply.json()
        refused = [one for one in expected if not one.startswith(("granted", "applied"))]
        if expected[0] in ("not_found", "idempotency_key_reused"):
            assert (body["code"], "results" in body) == (expected[0], False)
            return
        assert reply.status_code == (409 if refused else 200)
        told = [one.get("decision") or one["problem"]["decision"] for one in body["results"]]
        said = [(one["reason"] or one["outcome"]) + ("*" if one["replayed"] else "") for one in told]
        assert said == expected
        if refused:
            cause = next((one for one in refused if not one.startswith("group_denied")), refused[0])
            assert body["code"] == cause.rstrip("*")
