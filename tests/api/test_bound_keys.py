"""API keys that are bound to tags, over HTTP: one portfolio, two bots, and neither touches the other's money."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Decision, KeyReused, Release, Reserve, SetCap
from ledger_sizer.client import AsyncLedgerClient, Forbidden, LedgerClient
from ledger_sizer.service.api_keys import NewKey, create_key
from ledger_sizer.storage.database import make_engine
from tests.conftest import NewDatabase
from tests.support.ledgers import assert_verified, position_of
from tests.support.services import Running, serving
from tests.support.visitors import close_browsers, halt, keyed_service

D = Decimal
KEYS: dict[str, dict[str, Any]] = {
    "a": {"role": "trade", "tags": {"bot": "a"}, "client": "bot-a"},
    "a2": {"role": "trade", "tags": {"bot": "a"}, "client": "bot-a"},
    "a-moved": {"role": "trade", "tags": {"bot": ["a", "c"]}, "client": "bot-a"},
    "b": {"role": "trade", "tags": {"bot": "b"}},
    "boss-of-a": {"role": "admin", "tags": {"bot": "a"}},
    "boss": {"role": "admin"},
}


class Desk:
    """A service with these API keys. `client(name)` is a client with one of them."""

    def __init__(self, service: Running, keys: dict[str, NewKey]) -> None:
        self.service, self.keys = service, keys
        self._clients: list[LedgerClient] = []

    def client(self, name: str) -> LedgerClient:
        self._clients.append(LedgerClient(self.service.url, self.keys[name].token))
        return self._clients[-1]

    def problem(self, name: str, method: str, path: str, body: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.keys[name].token}"}
        answer = self.service.command(method, path, "never", body, headers=headers)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.status_code == answer.json()["status"]
        found: dict[str, Any] = answer.json()
        return found

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture(scope="module")
def desk(module_database: NewDatabase) -> Iterator[Desk]:
    url = module_database("sqlite")
    engine = make_engine(url)
    keys = {name: create_key(engine, name, **given) for name, given in KEYS.items()}
    engine.dispose()
    with serving(url, key_cache_seconds=300) as service:
        made = Desk(service, keys)
        made.client("a").reserve(key="first", amount_usd=D(1))
        yield made
        unused = [service.ledger.lookup(key) for key in ("never", "never/2")]
        assert unused == [None, None], "what was refused left its key unused"
        assert_verified(service.ledger)
        made.close()


def forbidden(call: Callable[[], object], field: str, *words: str) -> None:
    with pytest.raises(Forbidden) as error:
        call()
    assert (error.value.field, error.value.code) == (field, "forbidden")
    assert [word for word in words if word not in str(error.value)] == []


def test_reserve_when_the_key_is_bound_then_its_tags_are_filled_in_and_a_retry_is_a_replay(desk: Desk) -> None:
    a = desk.client("a")
    granted = a.reserve(key="one", amount_usd=D(10))
    assert dict(a.position(position_of(granted)).tags) == {"bot": "a"}
    assert a.reserve(key="one", amount_usd=D(10)).replayed
    assert desk.client("a2").reserve(key="one", amount_usd=D(10)).replayed, "a new API key of the client, bound alike"
    with pytest.raises(KeyReused):  # bound to other tags it sends another request
        desk.client("a-moved").reserve(key="one", amount_usd=D(10))
    actor = "bound to bot=a"
    forbidden(lambda: a.reserve(key="never", tags={"bot": "b"}), "tags.bot", "'b'", actor, "leave bot out")
    forbidden(lambda: a.reserve(key="never", tags={"bot": "b"}, dry_run=True), "tags.bot")
    forbidden(lambda: a.adopt(key="never", tags={"bot": "b"}, quantity=D(1), price=D(1)), "tags.bot")

    async def ask() -> Any:
        async with AsyncLedgerClient(desk.service.url, desk.keys["a"].token) as client:
            assert (await client.reserve(key="two", amount_usd=D(10))).granted
            await client.reserve(key="never", tags={"bot": "b"})

    forbidden(lambda: asyncio.run(ask()), "tags.bot", actor)
    problem = desk.problem("a", "POST", "/v1/reservations", {"tags": {"bot": ["a", "b"]}})
    assert (problem["status"], problem["code"], problem["field"]) == (403, "forbidden", "tags.bot")


def test_send_batch_when_the_key_is_bound_then_each_item_has_its_own_answer_and_a_group_fails_whole(desk: Desk) -> None:
    a, b = desk.client("a"), desk.client("b")
    theirs = position_of(b.reserve(key="b/1", amount_usd=D(10)))
    items = [
        Reserve(key="b1", amount_usd=D(1)), Reserve(key="never", tags={"bot": "b"}),
        Release(key="never", position_id=theirs), Reserve(key="b2", amount_usd=D(1)),
    ]  # fmt: skip
    answers = a.submit(items)
    assert [type(one) for one in answers] == [Decision, Forbidden, Forbidden, Decision]
    forbidden(lambda: a.submit([Reserve(key="never/2"), items[2]], atomic=True), "position_id", theirs)
    forbidden(lambda: a.submit([Reserve(key="never/2"), items[1]], atomic=True), "tags.bot")


def test_touch_positions_when_they_are_another_bots_then_403_and_nothing_changes(desk: Desk) -> None:
    a, b = desk.client("a"), desk.client("b")
    theirs = position_of(b.reserve(key="b/2", amount_usd=D(10)))
    seq = a.exposure("main").seq
    fill: dict[str, Any] = {"quantity": D(1), "price": D(10)}
    for call in (
        lambda: a.confirm(key="never", position_id=theirs, **fill),
        lambda: a.fill(key="never", position_id=theirs, filled_quantity=D(1), price=D(10)),
        lambda: a.release(key="never", position_id=theirs),
        lambda: a.extend(key="never", position_id=theirs, until_known=True),
        lambda: a.reserve(key="never", position_id=theirs),
    ):
        forbidden(call, "position_id", theirs, "bot=b", "bound to bot=a")
    assert a.exposure("main").seq == seq, "reads are not bound"
    assert b.confirm(key="b/2/fill", position_id=theirs, **fill).outcome == "applied"


def test_release_all_when_the_key_is_bound_then_it_frees_its_own_holds_only(desk: Desk) -> None:
    b = desk.client("b")
    others = len(b.positions("main", state="held", tags={"bot": "a"}).items)
    b.reserve(key="b/3", amount_usd=D(10))
    forbidden(lambda: b.release_all(key="never", tags={"bot": "a"}), "tags.bot", "'a'", "bound to bot=b")
    assert b.release_all(key="sweep", tags={})
    assert b.positions("main", state="held", tags={"bot": "b"}).items == ()
    assert len(b.positions("main", state="held", tags={"bot": "a"}).items) == others


def test_settle_when_the_key_is_bound_then_its_tags_are_filled_in_and_others_are_forbidden(desk: Desk) -> None:
    a, b = desk.client("a"), desk.client("b")
    theirs = position_of(a.adopt(key="a/settle", quantity=D(1), price=D(10)))
    made = b.settle({}, {"ETH": (D(1), D(10))})
    (adopted,) = [one for one in made if one.command == "adopt"]
    assert dict(b.position(adopted.position_id).tags) == {"bot": "b", "symbol": "ETH"}
    forbidden(lambda: b.settle({"bot": "a"}, {}), "tags.bot", "'a'", "bound to bot=b")
    assert adopted.position_id in [one.position_id for one in b.settle({}, {})]
    assert a.position(theirs).state == "open"


def test_administer_when_the_key_is_bound_then_only_the_scopes_of_its_tags(desk: Desk) -> None:
    boss = desk.client("boss-of-a")
    assert boss.halt(key="halt-a", scope="bot=a").binding == "bot=a"
    assert boss.resume(key="resume-a", scope="bot=a").binding == "bot=a"
    for scope in ("portfolio", "bot=a", "bot=b", "venue=*"):
        forbidden(lambda: boss.run(SetCap(key="never", scope=scope, cap=D(1))), "scope", "set_cap", "bot=a")  # noqa: B023
    forbidden(lambda: boss.halt(key="never"), "scope", "'portfolio'")
    forbidden(lambda: boss.halt(key="never", portfolio="*"), "portfolio", "desk")
    own = position_of(boss.reserve(key="own", amount_usd=D(1)))
    assert boss.retag(key="t", position_id=own, tags={"strategy": "s"}).granted
    assert dict(boss.position(own).tags) == {"bot": "a", "strategy": "s"}
    forbidden(lambda: boss.retag(key="never", position_id=own, tags={"bot": "b"}), "tags.bot")
    problem = desk.problem("boss-of-a", "POST", "/v1/drifts/1/ignore", {"reason": "known"})
    assert (problem["status"], problem["code"]) == (403, "forbidden")
    assert "bound to bot=a" in problem["detail"]
    assert desk.client("boss").halt(key="h", scope="bot=b").outcome == "applied"


def test_steer_on_the_dashboard_when_the_key_is_bound_then_only_its_scopes_are_offered_and_halted(
    new_database: NewDatabase,
) -> None:
    with keyed_service(new_database("sqlite")) as keyed:
        for bot in "ab":
            keyed.service.ledger.reserve(key=bot, tags={"bot": bot})
        keyed.keys["boss-of-a"] = create_key(keyed.engine, "boss of a", "admin", tags={"bot": "a"})
        browser = keyed.signed_in("boss-of-a")
        page = browser.get("/").text
        assert "scope=bot%3Da" in page
        for other in ("scope=bot%3Db", "scope=portfolio", "/steer/*"):
            assert other not in page
        own = "/steer/main?action=halt&scope=bot%3Da"
        for scope, status in (("portfolio", 403), ("bot=b", 403), ("bot=a", 303)):
            answer = browser.submit("/steer/main", halt(f"h/{scope}", scope=scope), page=own)
            assert answer.status_code == status, answer.text
        assert [one.binding for one in keyed.service.ledger.history(command="halt")] == ["bot=a"]
    close_browsers()
