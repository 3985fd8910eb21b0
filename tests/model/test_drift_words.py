"""What a drift means and what to do next: one place, every kind."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer.model.choices import DRIFT_KINDS
from ledger_sizer.model.drift_words import applies, closing_words, difference_words, hint, meaning, next_steps
from ledger_sizer.model.reconciliation import Drift

D = Decimal

DRIFT = Drift(
    id=7, portfolio="main", venue="bybit", account="main", subject="BTC/USDT:USDT", side="short",
    kind="unknown_position", state="confirmed", policy="freeze", sightings=2, ledger_quantity=D(0),
    venue_quantity=D("0.02"), excess=D("0.02"), price=D(50000), detail="BTC/USDT:USDT short: ledger 0, exchange 0.02",
    position=17, revision=1, requested=None, frozen_scope="portfolio", first_run=1, last_run=2, opened_us=1,
    updated_us=2, ended_us=None, actor=None, reason=None,
)  # fmt: skip
HOLDS = "BTC long: ledger 0, exchange 0.02; the hold main-12, the hold main-15 may have filled"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "drifts adopt 7"),
        ({"price": None}, "drifts ignore 7"),
        ({"requested": "close"}, "close it at the exchange"),
        ({"state": "acknowledged", "actor": "cli:ann", "reason": "savings"}, "ignored by cli:ann: savings"),
        ({"state": "resolved"}, ""),
        ({"kind": "missing_position", "ledger_quantity": D(1), "venue_quantity": D(0), "excess": D(0)},
         "drifts adopt 7"),
        ({"kind": "side_flipped", "ledger_quantity": D(1), "venue_quantity": D(0), "excess": D(0)},
         "adopt the other side"),
        ({"kind": "late_fill", "detail": HOLDS}, "confirm main-12"),
        ({"kind": "fetch_failed", "detail": "positions unknown: AuthenticationError: bad key"},
         "check key of bybit/main"),
        ({"kind": "fetch_failed", "detail": "positions unknown: RequestTimeout"}, "check bybit/main"),
        ({"kind": "balance_below_holds"}, "top up bybit/main"),
        ({"kind": "legs_unequal", "subject": "main-3", "excess": D(0)}, "hedge or close main-3"),
        ({"kind": "expired_hold", "subject": "main-12", "excess": D(0)}, "explain main-12"),
    ],
)  # fmt: skip
def test_hint_when_a_drift_is_listed_then_it_says_what_to_do_next(changes: dict[str, Any], words: str) -> None:
    assert hint(replace(DRIFT, **changes)) == words


@pytest.mark.parametrize("kind", DRIFT_KINDS)
def test_explain_when_a_drift_is_of_any_kind_then_its_meaning_and_a_step_are_told(kind: Any) -> None:
    drift = replace(DRIFT, kind=kind, detail=HOLDS)
    assert len(meaning(drift)) > 30
    assert next_steps(drift)
    assert hint(drift)
    assert next_steps(replace(drift, state="resolved")) == ()


def test_next_steps_when_it_can_be_decided_then_each_is_a_command_to_copy() -> None:
    commands = [step.command for step in next_steps(DRIFT)]
    assert commands == [
        "ledger-sizer drifts show 7 --activity",
        "ledger-sizer drifts adopt 7 --reason 'TEXT'",
        "ledger-sizer drifts close 7 --reason 'TEXT'",
        "ledger-sizer drifts ignore 7 --reason 'TEXT'",
        "ledger-sizer thaw -p main --scope portfolio --note 'TEXT'",
    ]
    assert "--price PRICE" in (next_steps(replace(DRIFT, price=None))[1].command or "")
    coins = replace(DRIFT, subject="BNB", side="long")
    assert "ledger-sizer drifts ignore 7 --asset --reason 'TEXT'" in [step.command for step in next_steps(coins)]
    late = replace(DRIFT, kind="late_fill", detail=HOLDS, frozen_scope=None)
    assert next_steps(late)[1].command == "ledger-sizer confirm main-12 --quantity 0.02 --price 50000"


@pytest.mark.parametrize(
    ("changes", "usd", "words"),
    [
        ({}, D(1000), "0.02 more at the exchange, 1,000.00 USD at 50000"),
        ({"ledger_quantity": D(1)}, D(49000), "0.98 less at the exchange, 49,000.00 USD at 50000"),
        ({"price": None}, None, "0.02 more at the exchange, no price known"),
        ({"venue_quantity": None}, None, ""),
        ({"kind": "balance_below_holds", "ledger_quantity": D(900), "venue_quantity": D(400), "price": None}, D(500),
         "500.00 USD are missing"),
    ],
)  # fmt: skip
def test_tell_difference_when_there_are_quantities_then_it_is_in_coins_and_usd(
    changes: dict[str, Any], usd: Decimal | None, words: str
) -> None:
    drift = replace(DRIFT, **changes)
    assert (drift.usd, difference_words(drift)) == (usd, words)


def test_applies_when_an_action_has_no_effect_then_it_is_not_offered() -> None:
    actions = ("adopt", "ignore", "close")
    offered = {state: [one for one in actions if applies(one, replace(DRIFT, state=state))]
               for state in ("confirmed", "acknowledged", "resolved")}  # fmt: skip
    assert offered == {"confirmed": [*actions], "acknowledged": ["adopt"], "resolved": []}
    assert not applies("close", replace(DRIFT, requested="close"))


def test_tell_closing_when_the_details_are_of_something_else_then_there_are_no_words() -> None:
    details = {"order_side": "sell", "quantity": "2", "symbol": "ETH", "venue": "okx", "account": "one", "usd": "4000"}
    assert closing_words(details) == "sell 2 ETH at okx/one, 4,000.00 USD"
    assert closing_words({"version": "1.8"}) == ""
