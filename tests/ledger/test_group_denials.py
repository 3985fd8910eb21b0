"""What a denied atomic group records: what each member met there, and which neighbour denied it."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Decision, Denied, Halt, Ledger, Release, Reserve, SetCap
from ledger_sizer.dashboard.labels import decision_label
from ledger_sizer.rules.explain import explain
from tests.support.clock import FakeClock
from tests.support.ledgers import Intruder, assert_verified

D = Decimal
BYBIT, OKX = {"venue": "bybit"}, {"venue": "okx"}


def decided(ledger: Ledger, *commands: Any) -> list[Decision]:
    answers = ledger.submit(commands, atomic=True)
    assert all(isinstance(one, Decision) for one in answers)
    return [one for one in answers if isinstance(one, Decision)]


def counted(ledger: Ledger, decision: Decision) -> dict[str, str]:
    """Return what the explanation says was held, by scope."""
    assert decision.seq is not None
    return {row["scope"]: row["held"] for row in ledger.explain(decision.seq, decision.portfolio).data["scopes"]}


def test_explain_when_a_group_was_denied_then_each_member_shows_what_the_members_before_it_left(
    ledger: Ledger,
) -> None:
    ledger.set_cap(key="cap", cap=D(1500))
    first, second, third = decided(
        ledger, Reserve(key="a", tags=BYBIT), Reserve(key="b", tags=OKX), Reserve(key="c", tags=BYBIT)
    )
    assert [one.reason for one in (first, second, third)] == ["group_denied", "group_denied", "cap_exceeded"]
    assert [one.binding for one in (first, second, third)] == ["c", "c", "portfolio"]
    assert counted(ledger, first) == {"portfolio": "0", "venue=bybit": "0"}
    assert counted(ledger, second) == {"portfolio": "1000", "venue=okx": "0"}
    assert counted(ledger, third) == {"portfolio": "1500", "venue=bybit": "1000"}
    assert {one.exposure_before for one in (first, second, third)} == {0}, "nothing of the group took effect"
    found = ledger.explain(3)
    assert found.data["group"] == {
        "denied_by": {"portfolio": "main", "key": "c", "reason": "cap_exceeded", "binding": "portfolio"}
    }
    assert found.data["largest_grantable"]["budget"] == "500"
    assert found.text.splitlines()[:4] == [
        "main #3 reserve 'b': denied, group_denied. In words: another command of its atomic group was denied: 'c'.",
        "Denied by its neighbour 'c': cap_exceeded. In words: the cap of portfolio leaves too little.",
        "It was sent in an atomic group that was denied; the figures are those after the commands before it there.",
        "Flat size: dynamic sizing is off, so the fraction is 1.",
    ]
    assert "Scope portfolio: cap 1500, held 1000, open 0, headroom 500 USD." in found.text
    own = ledger.explain(4)
    assert own.data["group"] == {"denied_by": None}
    assert "held 1500, open 0, headroom 0 USD" in own.text
    assert "Denied by" not in own.text
    assert decision_label(second) == "another command of its atomic group was denied: 'c'"
    with pytest.raises(Denied, match=r"reserve 'a' denied: group_denied \(denied by c\)"):
        first.raise_for_denial()
    assert_verified(ledger)


def test_explain_when_the_denial_came_from_another_portfolio_or_an_earlier_call_then_it_is_named(
    ledger: Ledger,
) -> None:
    ledger.set_cap(key="cap", portfolio="b", cap=D(0))
    ledger.reserve(key="r", portfolio="b")
    denied, replayed = decided(ledger, Reserve(key="r"), Reserve(key="r", portfolio="b"))
    assert (denied.binding, replayed.replayed, replayed.seq) == ("r", True, 2)
    found = ledger.explain(1)
    assert found.data["group"]["denied_by"]["portfolio"] == "b"
    assert "Denied by its neighbour 'r' in b: cap_exceeded." in found.text
    again, behind = decided(ledger, Reserve(key="r"), Reserve(key="later"))
    assert (again.replayed, behind.reason, behind.binding) == (True, "group_denied", "r"), "by an earlier group"
    assert "In words: another command of its atomic group was denied: 'r'." in ledger.explain(2).text
    assert_verified(ledger)


def test_explain_when_the_members_are_facts_and_settings_then_they_too_show_what_they_met(ledger: Ledger) -> None:
    ledger.reserve(key="o", tags=BYBIT)
    release, cap, halt, ask, too_much = decided(
        ledger,
        Release(key="1", position_id="main-1"),
        SetCap(key="2", cap=D(700)),
        Halt(key="3", scope="venue=okx"),
        Reserve(key="4", tags=BYBIT),
        Reserve(key="5", tags=OKX),
    )
    assert [one.binding for one in (release, cap, halt, ask)] == ["5"] * 4
    assert (too_much.reason, too_much.binding) == ("halted", "venue=okx")
    assert counted(ledger, release)["portfolio"] == "1000"
    assert counted(ledger, cap) == {"portfolio": "0"}, "after the release"
    assert ledger.explain(5).data["scopes"][0]["cap"] == "700", "after the new cap"
    assert ask.seq is not None
    assert ledger.explain(ask.seq).data["largest_grantable"]["budget"] == "700"
    assert ledger.exposure().cap == 5000
    assert ledger.exposure(as_of=6).scopes == ledger.exposure().scopes
    assert_verified(ledger)


def test_explain_when_a_denial_was_recorded_by_an_earlier_version_then_it_still_explains(ledger: Ledger) -> None:
    ledger.set_cap(key="cap", cap=D(1500))
    first, *_ = decided(ledger, Reserve(key="a"), Reserve(key="b", min_notional_usd=D(600)))
    trace = json.loads(first.trace)
    del trace["group"]
    old = Decision(first.record._replace(trace=json.dumps(trace), binding=None, fraction=None, raw_budget=None))
    found = explain(old)
    assert found.text.startswith(
        "main #2 reserve 'a': denied, group_denied. In words: another command of its atomic group was denied.\n"
    )
    assert found.data["group"] is None
    assert [row["held"] for row in found.data["scopes"]] == ["0"]


def test_verify_when_a_scope_was_edited_before_a_denied_group_then_it_is_found(
    ledger: Ledger, database_url: str, clock: FakeClock
) -> None:
    ledger.set_cap(key="cap", cap=D(1500))
    with Intruder(database_url) as intruder, Ledger.open(database_url, clock=clock) as other:
        intruder.run("UPDATE scopes SET cap_e8 = 100000000 WHERE scope = 'portfolio' AND cap_e8 = 150000000000")
        decided(other, Reserve(key="a"), Reserve(key="b", min_notional_usd=D(600)))
        intruder.run("UPDATE scopes SET cap_e8 = 150000000000 WHERE scope = 'portfolio' AND cap_e8 = 100000000")
    findings = [finding.what for finding in ledger.verify().findings]
    assert len(findings) == 2, findings
    assert "decision 2 saw a scope portfolio that has cap 100000000e-8" in findings[0]
