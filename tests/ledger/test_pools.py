"""Pools in a ledger: bad input, replays, what explain says, the past, and processes that do not know of each other."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from ledger_sizer import (
    Halt,
    InstrumentInfo,
    InvalidRequest,
    KeyReused,
    Ledger,
    Leg,
    LegPlan,
    Reserve,
    Retag,
    SetCap,
)
from ledger_sizer.client import LedgerClient
from ledger_sizer.model.commands import Freeze, Reconciled, Resume
from ledger_sizer.rules.batch import Group
from tests.conftest import NewDatabase
from tests.support.clock import FakeClock
from tests.support.ledgers import assert_verified, opened
from tests.support.services import serving

D = Decimal


def guarantee(ledger: Ledger, **usd: int) -> None:
    """Guarantee so much to each bot."""
    for bot, amount in usd.items():
        ledger.set_cap(key=f"pool-{bot}", scope=f"bot={bot}", guarantee=D(amount))


# --- bad input ---------------------------------------------------------------------------------------------------

CAP = D(5000)
BAD: dict[str, tuple[Any, dict[str, Any], str, str]] = {
    # command, arguments, field that the error names, what it says
    "above the cap": (SetCap, {"scope": "bot=b", "guarantee": D(4901)}, "guarantee", r"5001 USD, above its cap 5000; "),
    "cap below": (SetCap, {"cap": D(99)}, "cap", "below the sum of its guarantees, 100 USD .*lower the guarantees"),
    "two tag names": (SetCap, {"scope": "venue=okx", "guarantee": D(1)}, "guarantee", "remove those of bot first"),
    "negative": (SetCap, {"scope": "bot=b", "guarantee": D(-1)}, "guarantee", "guarantee must be 0 or above, got -1"),
    "NaN": (SetCap, {"scope": "bot=b", "guarantee": D("NaN")}, "guarantee", "a finite number, got NaN"),
    "a float": (SetCap, {"scope": "bot=b", "guarantee": 0.1}, "guarantee", "must be a Decimal, got float 0.1"),
    "negative maximum": (SetCap, {"scope": "bot=b", "max_position_usd": D(-1)}, "max_position_usd", "got -1"),
    "maximum of 0": (SetCap, {"scope": "bot=b", "max_position_usd": D(0)}, "max_position_usd", "above 0, got 0"),
    "tiny maximum": (SetCap, {"scope": "bot=b", "max_position_usd": D("1e-9")}, "max_position_usd", "0.00000001"),
    "nothing": (SetCap, {"scope": "bot=b"}, "cap", "give cap, share_of_equity, guarantee or max_position_usd"),
    "of all": (SetCap, {"guarantee": D(1)}, "guarantee", "such as scope='bot=a', not of the whole"),
    "default's": (SetCap, {"scope": "bot=*", "guarantee": D(1)}, "guarantee", r"bot=\* sets only the cap"),
    "default's maximum": (
        SetCap, {"scope": "bot=*", "cap": D(1), "max_position_usd": D(1)}, "max_position_usd", "to each scope",
    ),
    "any venue": (Reserve, {"tags": {"venue": "*"}}, "tags.venue", r"cannot be '\*'.*name the value"),
    "any of several": (Reserve, {"tags": {"venue": ["okx", "*"]}}, "tags.venue", r"cannot be '\*'"),
    "any venue of legs": (
        Reserve, {"price": D(1), "legs": [LegPlan(InstrumentInfo("ETH/USDT", D(1), D(9), D(1), venue="*"), "buy")]},
        "tags.venue", r"cannot be '\*'",
    ),
    "any bot": (Retag, {"position_id": "main-2", "tags": {"bot": "*"}}, "tags.bot", r"cannot be '\*'"),
    **{
        f"{verb.verb} of any": (verb, {"scope": "venue=*", **more}, "scope", r"venue=\* is the default cap .*name one")
        for verb, more in (
            (Halt, {}), (Resume, {}), (Freeze, {}), (Reconciled, {"fresh_until": FakeClock()()}),
        )
    },
}  # fmt: skip


def refusal(send: Callable[[], Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        send()
    return refused.value


@pytest.fixture(scope="module")
def service(module_database: NewDatabase) -> Any:
    with serving(module_database("sqlite")) as running:
        guarantee(running.ledger, a=100)
        running.ledger.reserve(key="held", amount_usd=D(10), ttl_seconds=86_400)
        yield running


@pytest.mark.parametrize("what", BAD)
def test_send_when_pools_are_badly_set_then_the_error_tells_the_cure_and_nothing_is_recorded(
    service: Any, what: str
) -> None:
    verb, arguments, field, words = BAD[what]
    ledger, key = service.ledger, what
    seq, recorded = ledger.exposure().seq, 0
    with LedgerClient(service.url) as client:
        told = [refusal(partial(getattr(face, verb.verb), key=key, **arguments)) for face in (ledger, client)]
        try:
            command = verb(key=key, **arguments)
        except InvalidRequest as error:
            told.append(error)
        else:  # only the rules see it: it fails all of an atomic group, and none of its independent neighbours
            for face in (ledger, client):
                beside = SetCap(key=f"{what}/{recorded}", scope="desk=z", cap=D(recorded))
                told.append(refusal(partial(face.submit, [beside, command], atomic=True)))
                answers = face.submit([command, beside])
                assert answers[1].outcome == "applied"
                recorded += 1
                assert isinstance(answers[0], InvalidRequest)
                told.append(answers[0])
    assert {(type(one), one.field) for one in told} == {(InvalidRequest, field)}
    for one in told:
        assert re.search(words, str(one)), one
    assert ledger.exposure().seq == seq + recorded
    assert ledger.lookup(key) is None
    assert ledger.set_cap(key=key, scope="desk=z", cap=D(0)).outcome == "applied", "the key is unused"


@pytest.mark.one_engine
def test_record_facts_when_a_leg_is_at_a_venue_that_no_tag_can_name_then_they_count_without_it(ledger: Ledger) -> None:
    ledger.set_cap(key="default", scope="venue=*", cap=D(10))
    leg = Leg("*", "ETH/USDT", "spot", "buy", D(1))
    assert ledger.adopt(key="fact", quantity=D(1), price=D(100), legs=[leg]).outcome == "applied"
    exposure = ledger.exposure()
    assert [exposure.exposure, exposure.scope("venue=*").exposure] == [100, 0]
    assert ledger.reserve(key="next", amount_usd=D(10), tags={"venue": "okx"}).granted
    assert_verified(ledger)


# --- keys that are sent again ------------------------------------------------------------------------------------


@pytest.mark.one_engine
def test_reserve_when_sent_again_after_the_guarantee_is_gone_then_the_denial_stays(ledger: Ledger) -> None:
    guarantee(ledger, a=5000)
    first = ledger.reserve(key="no", amount_usd=D(10))
    assert (first.reason, first.binding) == ("cap_exceeded", "guarantee:bot=a")
    ledger.set_cap(key="gone", scope="bot=a", guarantee=None)
    again = ledger.reserve(key="no", amount_usd=D(10))
    assert (again.replayed, again.seq, again.binding) == (True, first.seq, "guarantee:bot=a")
    assert ledger.reserve(key="new", amount_usd=D(10)).granted


@pytest.mark.one_engine
def test_set_cap_when_sent_again_then_only_the_same_settings_replay(ledger: Ledger) -> None:
    none: dict[str, Any] = {"scope": "bot=a"}
    first = ledger.set_cap(key="k", **none, guarantee=D(5))
    assert first.request == '{"command":"set_cap","guarantee":"5","scope":"bot=a"}'
    assert ledger.set_cap(key="k", **none, guarantee=D("5.0")).replayed
    for other in ({"guarantee": None}, {"cap": None, "guarantee": D(5)}, {"guarantee": D(5), "max_position_usd": None}):
        with pytest.raises(KeyReused):
            ledger.set_cap(key="k", **none, **other)
    removed = ledger.set_cap(key="r", **none, cap=None, guarantee=None)
    assert removed.request == '{"command":"set_cap","cap":null,"guarantee":null,"scope":"bot=a"}'
    with pytest.raises(KeyReused):
        ledger.set_cap(key="r", **none, guarantee=None)


@pytest.mark.one_engine
def test_set_cap_when_an_older_version_removed_the_cap_under_the_key_then_it_replays(ledger: Ledger) -> None:
    """That version wrote nothing for a cap that is removed, as this one does where nothing else is given."""
    old = ledger.set_cap(key="k", scope="venue=x", cap=None)
    assert old.request == '{"command":"set_cap","scope":"venue=x"}'
    assert ledger.set_cap(key="k", scope="venue=x", cap=None).replayed
    with pytest.raises(KeyReused):
        ledger.set_cap(key="k", scope="venue=x", cap=None, max_position_usd=None)


# --- explain, dry run, the past ----------------------------------------------------------------------------------


@pytest.mark.one_engine
def test_explain_when_pools_bind_then_it_says_what_is_kept_for_whom(ledger: Ledger) -> None:
    guarantee(ledger, a=4000, b=300)
    ledger.set_cap(key="default", scope="venue=*", cap=D(400))
    ledger.set_cap(key="most", scope="bot=c", max_position_usd=D(200))
    ledger.reserve(key="1", amount_usd=D(50), tags={"bot": "b"}, ttl_seconds=600)
    cut = ledger.reserve(key="2", amount_usd=D(900), tags={"venue": "okx", "bot": "c"}, ttl_seconds=600)
    told = ledger.explain(cut.seq or 0)
    for line in (
        "The most for one position: 200 USD, by max_position_usd:bot=c.",
        "Scope bot=c: no cap, held 0, open 0, largest position 200.",
        "Scope venue=okx: cap 400 by default, held 0, open 0, headroom 400 USD.",
        "The default venue=*: cap 400 USD.",
        "Kept for bot=a: 4000 USD (guarantee 4000, of which it uses 0).",
        "Kept for bot=b: 250 USD (guarantee 300, of which it uses 50).",
    ):
        assert line in told.text.splitlines(), told.text
    assert told.data["others"] == [
        {"scope": "bot=a", "guarantee": "4000", "exposure": "0", "kept": "4000"},
        {"scope": "bot=b", "guarantee": "300", "exposure": "50", "kept": "250"},
        {"scope": "venue=*", "cap": "400"},
    ]
    assert told.data["largest_grantable"]["binding"] == "max_position_usd:bot=c"
    ledger.reserve(key="3", amount_usd=D(450), ttl_seconds=600)
    least = ledger.reserve(key="4", amount_usd=D(90), min_notional_usd=D(60))
    # 5000 - 50 - 200 - 450 = 4300 are free, 4250 of them kept.
    words = ledger.explain(least.seq or 0)
    assert (
        "the portfolio has 4300 USD left and keeps 4250 USD for others (bot=a 4000, bot=b 250), which leaves 50 USD, "
        "less than the smallest order needs, or the request wants at least" in words.text
    )
    assert words.data["largest_grantable"]["budget"] == "50"
    assert words.data["largest_grantable"]["binding"] == "guarantee:bot=a"


@pytest.mark.one_engine
def test_explain_when_a_move_is_denied_then_it_says_which_bound_forbids_it(ledger: Ledger) -> None:
    guarantee(ledger, a=5000)
    inside = ledger.reserve(key="1", amount_usd=D(50), tags={"bot": "a"}, ttl_seconds=600).position_id or ""
    ledger.set_cap(key="most", scope="venue=x", max_position_usd=D(20))
    for key, tags, words in (
        ("out", {"bot": "x"}, "to keep free what is guaranteed to bot=a (5000 USD) once it leaves"),
        (
            "large",
            {"bot": "a", "venue": "x"},
            "venue=x allows positions of at most 20 USD, less than the position counts",
        ),
    ):
        denied = ledger.retag(key=key, position_id=inside, tags=tags)
        assert denied.reason == "cap_exceeded"
        assert words in ledger.explain(denied.seq or 0).text


@pytest.mark.parametrize("tags", [{}, {"bot": "a"}, {"bot": "x", "venue": "okx"}, {"venue": ["okx", "gate"]}])
def test_reserve_when_it_is_a_dry_run_then_it_says_what_the_reservation_gets(ledger: Ledger, tags: Any) -> None:
    guarantee(ledger, a=4000, b=300)
    ledger.set_cap(key="default", scope="venue=*", cap=D(450))
    ledger.set_cap(key="gate", scope="venue=gate", cap=D(600))
    ledger.reserve(key="1", amount_usd=D(50), tags={"bot": "b", "venue": "gate"}, ttl_seconds=600)
    asked = ledger.reserve(key="x", amount_usd=D(900), tags=tags, dry_run=True)
    got = ledger.reserve(key="x", amount_usd=D(900), tags=tags)
    assert (asked.budget, asked.binding, asked.trace) == (got.budget, got.binding, got.trace)


def test_read_exposure_as_of_when_limits_changed_since_then_it_is_as_they_were(ledger: Ledger) -> None:
    first = ledger.set_cap(key="1", scope="venue=*", cap=D(400))
    ledger.set_cap(key="2", scope="bot=a", cap=D(70), guarantee=D(50))
    then = ledger.exposure()
    ledger.set_cap(key="3", scope="bot=a", guarantee=None, max_position_usd=D(9))
    ledger.set_cap(key="4", scope="venue=*", cap=None)
    assert ledger.exposure(as_of=then.seq).scopes == then.scopes
    row = ledger.exposure(as_of=then.seq).scope("bot=a")
    assert [row.cap, row.guarantee, row.max_position_usd] == [70, 50, None]
    assert ledger.exposure(as_of=first.seq).scope("venue=*").cap == 400


# --- processes that do not know of each other --------------------------------------------------------------------


def test_reserve_when_another_process_sets_a_guarantee_then_the_very_next_grant_leaves_it(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ours, opened(database_url, clock) as theirs:

        def room(number: int) -> list[Any]:
            """Decide on cached state some times; then let the other process write, and ask at once."""
            for warm in range(4):
                assert ours.reserve(key=f"{number}/{warm}", amount_usd=D(1), ttl_seconds=600).granted
            theirs.set_cap(key=f"{number}", **changes[number])
            got = ours.reserve(key=f"{number}/next", amount_usd=D(900), tags={"venue": "okx"})
            ours.release(key=f"{number}/back", position_id=got.position_id or "")
            return [got.budget, got.binding]

        changes: list[dict[str, Any]] = [
            {"scope": "bot=a", "guarantee": D(4900)},
            {"scope": "bot=a", "guarantee": D(4800)},
            {"scope": "venue=*", "cap": D(50)},
            {"scope": "venue=*", "cap": None},
            {"scope": "venue=okx", "max_position_usd": D(40)},
            {"scope": "venue=okx", "cap": D(30)},
            {"scope": "bot=a", "guarantee": None},
        ]
        assert [room(number) for number in range(len(changes))] == [
            [96, "guarantee:bot=a"], [192, "guarantee:bot=a"], [50, "venue=okx"], [184, "guarantee:bot=a"],
            [40, "max_position_usd:venue=okx"], [30, "venue=okx"], [30, "venue=okx"],
        ]  # fmt: skip
        assert_verified(theirs)


def test_answer_when_a_draft_was_decided_without_a_guarantee_then_it_is_decided_again(
    database_url: str, clock: FakeClock
) -> None:
    """A batch that is decided while the one before is being stored knows nothing of another process's guarantee."""
    with opened(database_url, clock) as ours, opened(database_url, clock) as theirs:
        for warm in range(4):
            assert ours.reserve(key=f"{warm}", amount_usd=D(1), ttl_seconds=600).granted
        commands = [Reserve(key=f"draft-{number}", amount_usd=D(900)) for number in range(2)]
        drafts = [ours._committer.draft([Group((command,))]) for command in commands]
        assert None not in drafts, "they were to be decided on what is remembered"
        theirs.set_cap(key="pool", scope="bot=a", guarantee=D(4500))
        answers: list[Any] = [
            ours._committer.answer([Group((command,))], draft)[0]
            for command, draft in zip(commands, drafts, strict=True)
        ]
        assert [(one.budget, one.reason, one.binding) for [one] in answers] == [
            (496, None, "guarantee:bot=a"), (None, "cap_exceeded", "guarantee:bot=a"),
        ]  # fmt: skip
        assert_verified(ours)
