"""Attacks on accounts: what a decision says that they promised, and what a reservation saw of them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ledger_sizer import Ledger
from tests.support.edited_ledgers import without_schema
from tests.support.ledgers import Intruder
from tests.verify.test_pools import found_at, rewrite_last

D = Decimal
PROMISED = '{"promised":{"account=okx/main":15000000000},'


def test_verify_when_what_an_account_promised_was_changed_with_its_row_and_the_chain_then_it_is_found(
    database_url: str,
) -> None:
    with Ledger.open(database_url) as ledger, Intruder(database_url) as intruder:
        ledger.set_cap(key="cap", cap=D(5000))
        ledger.account_seen(key="seen", scope="account=okx/main", free=D(900))
        ledger.reserve(key="first", amount_usd=D(100), tags={"venue": "okx"}, ttl_seconds=600)
        last = ledger.reserve(key="last", amount_usd=D(50), tags={"venue": "okx"}, ttl_seconds=600)
        assert last.trace.startswith(PROMISED)
        intruder.take_guards_down()
        assert without_schema(ledger.verify()).ok
        for said, stored in (("5000000000", 5_000_000_000), ("15000000001", 15_000_000_001)):
            rewrite_last(intruder, last, last.trace.replace("15000000000", said, 1))
            intruder.run("UPDATE scopes SET promised_e8 = :e8 WHERE scope = 'account=okx/main'", e8=stored)
            assert found_at(ledger.verify()) == {last.seq}, said
        rewrite_last(intruder, last, "{" + last.trace.removeprefix(PROMISED))
        intruder.run("UPDATE scopes SET promised_e8 = 10000000000 WHERE scope = 'account=okx/main'")
        assert found_at(ledger.verify()) == {last.seq}, "a promise was left out"
        rewrite_last(intruder, last, last.trace)
        intruder.run("UPDATE scopes SET promised_e8 = 15000000000 WHERE scope = 'account=okx/main'")
        assert without_schema(ledger.verify()).ok


@pytest.mark.one_engine
def test_verify_when_what_a_reservation_saw_of_its_account_was_changed_then_it_is_found(database_url: str) -> None:
    with Ledger.open(database_url) as ledger, Intruder(database_url) as intruder:
        ledger.set_cap(key="cap", cap=D(5000))
        ledger.account_seen(key="seen", scope="account=okx/main", free=D(900), margin_fraction=D("0.5"))
        last = ledger.reserve(key="last", amount_usd=D(50), tags={"venue": "okx"}, ttl_seconds=600)
        intruder.take_guards_down()
        for old, new in (("90000000000", "990000000000"), ('"margin_e8":50000000', '"margin_e8":5000000')):
            rewrite_last(intruder, last, last.trace.replace(old, new, 1))
            assert found_at(ledger.verify()) == {last.seq}, new
