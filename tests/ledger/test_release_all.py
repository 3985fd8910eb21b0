"""What a dead bot held is freed in one call; what is open stays open, and what may be live stays held."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from ledger_sizer import InvalidRequest, KeyReused, Ledger, NotFound, Release, Reserve, Unavailable
from ledger_sizer.client import AsyncLedgerClient, LedgerClient
from ledger_sizer.model.commands import AnyCommand
from ledger_sizer.model.decisions import Result
from tests.support.clock import FakeClock
from tests.support.interfaces import FAST_RETRIES
from tests.support.ledgers import assert_verified, dynamic_settings, figures, position_of
from tests.support.processes import Fleet
from tests.support.services import served

D = Decimal
BOT_A = {"bot": "a"}


def hold(ledger: Ledger, key: str, tags: dict[str, Any], usd: int = 100, **request: Any) -> str:
    """Hold this much under these tags, and return the position's name."""
    return position_of(ledger.reserve(key=key, tags=tags, amount_usd=D(usd), **request))


def states(ledger: Ledger) -> dict[str, str]:
    return {position.position_id: position.state for position in ledger.positions(limit=1000)}


def test_release_all_when_a_bot_died_then_its_holds_are_freed_and_nothing_is_closed(
    ledger: Ledger, clock: FakeClock
) -> None:
    held = hold(ledger, "1", BOT_A)
    opened = hold(ledger, "2", {**BOT_A, "venue": "okx"})
    ledger.confirm(key="2/fill", position_id=opened, quantity=D(1), price=D(60))
    part = hold(ledger, "3", BOT_A)
    ledger.confirm(key="3/fill", position_id=part, quantity=D(1), price=D(30), rest="hold")
    of_another = hold(ledger, "4", {"bot": "b"})
    unknown = hold(ledger, "5", BOT_A, until_known=True)
    hold(ledger, "6", BOT_A, portfolio="other")
    assert figures(ledger) == (370, 90)
    freed = ledger.release_all("main", tags=BOT_A, key="died")
    assert [(one.key, one.command, one.outcome, one.position_id) for one in freed] == [
        (f"died/{name}", "release", "applied", name) for name in (held, part)
    ]
    assert states(ledger) == {
        held: "released", opened: "open", part: "open", of_another: "held", unknown: "held", "other-1": "held"
    }  # fmt: skip
    assert figures(ledger) == (200, 90)
    assert ledger.release_all("main", tags=BOT_A, key="died") == [], "asked again it does no harm"
    freed = ledger.release_all("main", tags=BOT_A, unknown=True, key="died")
    assert [one.position_id for one in freed] == [unknown]
    assert figures(ledger) == (100, 90)
    clock.advance(10_000)
    assert_verified(ledger)


def test_release_all_when_a_tag_has_several_values_then_a_position_with_one_of_them_or_all_is_found(
    ledger: Ledger,
) -> None:
    both = hold(ledger, "1", {"venue": ["okx", "bybit"], "bot": "a"})
    one = hold(ledger, "2", {"venue": "okx", "bot": "a"})
    alike = hold(ledger, "3", {"venue": "okx2", "bot": 'a","venue":"bybit'})
    freed = ledger.release_all(tags={"venue": ["bybit", "okx"]}, key="x")
    assert [decision.position_id for decision in freed] == [both]
    freed = ledger.release_all(tags={"venue": "okx"}, key="y")
    assert [decision.position_id for decision in freed] == [one]
    assert states(ledger)[alike] == "held"


def test_release_all_when_the_tags_are_empty_then_the_whole_portfolio_is_meant(ledger: Ledger) -> None:
    for number in range(3):
        hold(ledger, f"{number}", {"bot": f"{number}"})
    hold(ledger, "none", {})
    assert len(ledger.release_all(tags={}, key="x", reference="ticket 7")) == 4
    assert figures(ledger) == (0, 0)
    assert {position.reference for position in ledger.positions()} == {"ticket 7"}


@pytest.mark.parametrize(
    ("field", "arguments", "words"),
    [
        ("tags", {"tags": None}, "tags is missing: name those of the bot, such as .* or give {} for every hold"),
        ("tags", {"tags": "bot=a"}, "tags must be a mapping"),
        ("tags", {"tags": {"Bot": "a"}}, "tag name must be"),
        ("tags.bot", {"tags": {"bot": D(1)}}, "tags.bot must be text"),
        ("held_only", {"held_only": False}, "close an open position with release"),
        ("held_only", {"held_only": 1}, "held_only must be True or False, got 1"),
        ("unknown", {"unknown": "yes"}, "unknown must be True or False, got 'yes'"),
        ("key", {"key": ""}, "key must have 1 to 200 characters"),
        ("key", {"key": "ledger:mine"}, "is the ledger's own"),
        ("portfolio", {"portfolio": "*"}, "portfolio must be"),
        ("reference", {"reference": "x" * 501}, "reference must have 1 to 500"),
    ],
)
async def test_release_all_when_an_argument_is_wrong_then_it_is_named_and_nothing_is_freed(
    ledger: Ledger, field: str, arguments: dict[str, Any], words: str
) -> None:
    hold(ledger, "1", BOT_A)
    given: dict[str, Any] = {"key": "x", "tags": BOT_A, **arguments}
    with pytest.raises(InvalidRequest, match=words) as refused:
        ledger.release_all(**given)
    assert refused.value.field == field
    with pytest.raises(InvalidRequest, match=words):
        await ledger.release_all_async(**given)
    assert len(ledger.history()) == 1


def test_release_all_when_there_is_no_such_portfolio_then_it_is_not_found(ledger: Ledger) -> None:
    """An empty answer would say that the bot held nothing."""
    with pytest.raises(NotFound, match="no portfolio 'mian'"):
        ledger.release_all("mian", tags={}, key="x")


@pytest.mark.parametrize("length", [100, 190, 200])
def test_release_all_when_the_key_is_long_then_each_decision_has_a_key_of_its_own(ledger: Ledger, length: int) -> None:
    portfolio = "p" * 64
    names = [hold(ledger, f"{n}", BOT_A, portfolio=portfolio) for n in range(3)]
    freed = ledger.release_all(portfolio, tags=BOT_A, key="k" * length)
    assert [one.position_id for one in freed] == names
    assert len({one.key for one in freed}) == 3
    assert all(len(one.key) <= 200 for one in freed)


def test_release_all_when_its_key_was_used_for_something_else_then_it_says_so(ledger: Ledger) -> None:
    name = hold(ledger, "1", BOT_A)
    ledger.extend(key=f"x/{name}", position_id=name)
    with pytest.raises(KeyReused, match=f"key 'x/{name}' was used before"):
        ledger.release_all(tags=BOT_A, key="x")


def test_release_all_when_a_hold_ends_between_the_look_and_the_release_then_the_others_are_freed(
    database_url: str, clock: FakeClock
) -> None:
    class Racing(Ledger):
        """A ledger in which another process confirms a position just before the first group."""

        raced = False

        def submit(self, commands: Any, *, atomic: bool = False) -> list[Result]:
            first = commands[0]
            if not self.raced and isinstance(first, Release):
                self.raced = True
                self.confirm(key="race", position_id=first.position_id, quantity=D(1), price=D(10))
            return super().submit(commands, atomic=atomic)

    with Racing.open(database_url, clock=clock) as ledger:
        names = [hold(ledger, f"{n}", BOT_A) for n in range(3)]
        assert [one.position_id for one in ledger.release_all(tags=BOT_A, key="x")] == names[1:]
        assert list(states(ledger).values()) == ["open", "released", "released"]


def test_release_all_when_a_hold_is_overdue_then_it_expires_and_the_others_are_freed(
    ledger: Ledger, clock: FakeClock
) -> None:
    hold(ledger, "1", BOT_A, ttl_seconds=10)
    later = hold(ledger, "2", BOT_A, ttl_seconds=100)
    clock.advance(10)
    assert [one.position_id for one in ledger.release_all(tags=BOT_A, key="x")] == [later]
    assert list(states(ledger).values()) == ["expired", "released"]


class Dying(Ledger):
    """A ledger whose database goes away after the first group of releases."""

    groups = 0

    def submit(self, commands: Any, *, atomic: bool = False) -> list[Result]:
        if isinstance(commands[0], Release):
            self.groups += 1
            if self.groups == 2:
                raise Unavailable("away")
        return super().submit(commands, atomic=atomic)


def many(ledger: Ledger, count: int) -> None:
    """Hold `count` times as bot a, and now and then as another."""
    commands: list[AnyCommand] = [_reserve(n) for n in range(count)]
    for start in range(0, count, 1000):
        ledger.submit(commands[start : start + 1000])


def _reserve(number: int) -> AnyCommand:
    tags = {"bot": "b" if number % 5 == 4 else "a"}
    return Reserve(key=f"{number}", tags=tags, amount_usd=D("0.5"), ttl_seconds=3600 + number % 7)


def test_release_all_when_it_breaks_off_in_the_middle_then_the_same_key_frees_the_rest(
    database_url: str, clock: FakeClock
) -> None:
    with Dying.open(database_url, clock=clock) as ledger:
        many(ledger, 3000)
        with pytest.raises(Unavailable):
            ledger.release_all(tags=BOT_A, key="x")
        assert figures(ledger) == (700 + 300, 0)
        assert len(ledger.release_all(tags=BOT_A, key="x")) == 1400
        assert figures(ledger) == (300, 0)
        assert len({one.key for one in ledger.history(limit=1000, command="release")}) == 1000
        assert_verified(ledger)


@pytest.mark.slow
@pytest.mark.parametrize(("engine_kind", "face"), [("sqlite", "ledger"), ("postgresql", "client")])
def test_release_all_when_there_are_ten_thousand_holds_then_all_of_the_bots_are_freed(
    engine_kind: str, database_url: str, clock: FakeClock, face: str
) -> None:
    settings = dynamic_settings(max_portfolio_exposure=D(100_000))
    with served(database_url, clock=clock, settings=settings) as service:
        many(service.ledger, 10_000)
        with LedgerClient(service.url) as client:
            asked: Any = service.ledger if face == "ledger" else client
            freed = asked.release_all(tags=BOT_A, key="x")
        assert len({one.position_id for one in freed}) == 8000
        assert figures(service.ledger) == (1000, 0)


# --- over HTTP ---------------------------------------------------------------------------------------------------


@pytest.fixture
def service(database_url: str, clock: FakeClock) -> Iterator[Any]:
    with served(database_url, clock=clock) as running:
        yield running


@pytest.mark.parametrize("key", ["died", "ü-died", " died "])
async def test_release_all_when_asked_by_a_client_then_it_answers_as_the_ledger(service: Any, key: str) -> None:
    ledger = service.ledger
    with LedgerClient(service.url, patience=FAST_RETRIES) as client:
        names = [hold(ledger, f"{n}", BOT_A, until_known=n == 2) for n in range(3)]
        freed = client.release_all("main", tags=BOT_A, key=key, reference="ticket 7")
        assert [(one.key, one.position_id) for one in freed] == [(f"{key}/{name}", name) for name in names[:2]]
        assert freed == [ledger.decision(seq) for seq in (4, 5)], "in full"
        assert client.release_all("main", tags=BOT_A, key=key) == []
        with pytest.raises(InvalidRequest, match="tags is missing") as refused:
            client.release_all(tags=None, key=key)  # type: ignore[arg-type]
        assert refused.value.field == "tags"
        with pytest.raises(NotFound):
            client.release_all("nobody", tags={}, key=key)
    async with AsyncLedgerClient(service.url, patience=FAST_RETRIES) as awaiting:
        freed = await awaiting.release_all(tags=BOT_A, unknown=True, key=key)
        assert [one.position_id for one in freed] == names[2:]
        assert await awaiting.release_all_async(tags=BOT_A, key=key) == []


def test_release_all_when_the_body_is_wrong_then_the_field_is_named(service: Any) -> None:
    hold(service.ledger, "1", BOT_A)
    path = f"{service.url}/v1/portfolios/main/release_all"

    def asked(body: Any, **headers: str) -> tuple[int, str | None]:
        response = httpx.post(path, json=body, headers={"Idempotency-Key": "x"} | headers)
        return response.status_code, response.json().get("field")

    assert asked({}) == (422, "tags")
    assert asked({"tags": None}) == (422, "tags")
    assert asked({"tags": {"bot": 1}}) == (422, "tags.bot")
    assert asked({"tags": {}, "held_only": False}) == (422, "held_only")
    assert asked({"tags": {}, "unknown": "true"}) == (422, "unknown")
    assert asked({"tags": {}, "all": True}) == (422, "all")
    assert asked({"tags": {}, "cursor": "1"}) == (422, "cursor")
    assert asked({"tags": {}, "key": "y"}) == (422, "key"), "the key stands in the header already"
    assert httpx.post(path, json={"tags": {}}).json()["field"] == "Idempotency-Key"
    assert len(service.ledger.history()) == 1
    answer = httpx.post(path, json={"tags": {}, "key": "y"}).json()
    assert (answer["items"][0]["key"], answer["items"][0]["outcome"], answer["cursor"]) == ("y/main-1", "applied", None)


# --- a bot that died ---------------------------------------------------------------------------------------------


def test_release_all_when_the_bot_was_killed_then_what_it_held_is_freed_and_what_it_filled_stays_open(
    database_url: str,
) -> None:
    params = {"tags": BOT_A, "settings": {"cap_usd": 5000}}
    with Fleet("hold_five", database_url, [params]) as fleet:
        fleet.release()
        (bot,) = fleet.bots
        said = [bot.read() for _ in range(7)]
        bot.signal(signal.SIGKILL)
        assert bot.end() == -signal.SIGKILL
    assert {line and line["outcome"] for line in said} == {"granted", "applied"}
    with Ledger.open(database_url, settings=dynamic_settings()) as ledger:
        hold(ledger, "other", {"bot": "b"})
        assert figures(ledger) == (300 + 100, 20)
        assert len(ledger.release_all(tags=BOT_A, key="bot-a-died")) == 3
        assert sorted(states(ledger).values()) == ["held", "open", "open", "released", "released", "released"]
        assert figures(ledger) == (100, 20)
        assert_verified(ledger)


def test_release_all_when_it_is_killed_in_the_middle_then_the_same_key_frees_the_rest(database_url: str) -> None:
    settings = dynamic_settings()
    with Ledger.open(database_url, settings=settings) as ledger:
        many(ledger, 2000)
    with Fleet("die_releasing", database_url, [{"key": "x", "tags": BOT_A}]) as fleet:
        fleet.release()
        (bot,) = fleet.bots
        assert [line["freed"] for line in bot.lines()] == [1000]
        assert bot.end() == -signal.SIGKILL
    with Ledger.open(database_url, settings=settings) as ledger:
        assert len(ledger.release_all(tags=BOT_A, key="x")) == 600
        assert figures(ledger) == (200, 0)
        assert_verified(ledger)
