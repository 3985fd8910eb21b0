"""Migration 0012: pools stay where they are in use, and a scope of before that is named like a default cap."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from alembic.util import CommandError

from ledger_sizer import Ledger
from ledger_sizer.service.api_keys import create_key
from ledger_sizer.storage.database import downgrade, make_engine, upgrade
from tests.support.clock import FakeClock
from tests.support.ledgers import Intruder, assert_verified, opened
from tests.support.old_ledgers import rename_value

D = Decimal
BEFORE = "0011"
USES: dict[str, dict[str, Any]] = {
    "guarantee": {"scope": "bot=a", "guarantee": D(0)},
    "largest position": {"scope": "portfolio", "max_position_usd": D(9)},
    "default cap": {"scope": "bot=*", "cap": D(9)},
}


@pytest.mark.parametrize("use", USES)
def test_downgrade_when_pools_are_in_use_then_it_is_refused_and_nothing_is_lost(
    database_url: str, clock: FakeClock, use: str
) -> None:
    with opened(database_url, clock) as ledger:
        ledger.set_cap(key="pool", **USES[use])
        before = ledger.exposure()
    with pytest.raises(CommandError, match=r"1 scopes have a guarantee, a largest position or a default cap.*set_cap"):
        downgrade(database_url, BEFORE)
    with opened(database_url, clock) as ledger:
        assert ledger.exposure() == before
        assert_verified(ledger)


def test_downgrade_when_pools_were_removed_then_it_passes_and_the_way_back_too(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ledger:
        ledger.set_cap(key="1", scope="bot=a", cap=D(90), guarantee=D(50), max_position_usd=D(40))
        ledger.reserve(key="2", amount_usd=D(10), tags={"venue": "okx"})
        ledger.set_cap(key="3", scope="bot=a", guarantee=None, max_position_usd=None)
        ledger.set_cap(key="default", scope="venue=*", cap=D(70))
        ledger.set_cap(key="no default", scope="venue=*", cap=None)
        before = ledger.exposure()
    downgrade(database_url, BEFORE)
    with Intruder(database_url) as intruder:
        assert intruder.rows("SELECT cap_e8 FROM scopes WHERE scope = 'bot=a'") == [(90 * 10**8,)]
    upgrade(database_url)
    with opened(database_url, clock) as ledger:
        assert ledger.exposure() == before
        ledger.set_cap(key="4", scope="bot=b", guarantee=D(50))
        assert ledger.reserve(key="5", amount_usd=D(100), tags={"bot": "a"}).budget == 90
        assert_verified(ledger)


def test_downgrade_when_a_key_is_bound_to_tags_then_it_is_refused_until_it_is_revoked(database_url: str) -> None:
    upgrade(database_url)
    engine = make_engine(database_url)
    create_key(engine, "bot", "trade")
    engine.dispose()
    with Intruder(database_url) as intruder:
        intruder.run("UPDATE api_keys SET tags = :tags", tags='{"bot":"a"}')
        with pytest.raises(CommandError, match=r"1 API keys are bound to tags.*revoke them"):
            downgrade(database_url, BEFORE)
        intruder.run("UPDATE api_keys SET revoked_us = created_us")
    downgrade(database_url, BEFORE)


def _live_as_before(ledger: Ledger) -> None:
    """Cap the venue `any`, which is going to be named `*`, and trade there and beside it."""
    ledger.set_cap(key="cap", scope="venue=any", cap=D(100))
    ledger.reserve(key="there", amount_usd=D(40), tags={"venue": "any"}, ttl_seconds=600)
    ledger.reserve(key="beside", amount_usd=D(400), tags={"venue": "bybit"}, ttl_seconds=600)
    ledger.adopt(key="both", quantity=D(1), price=D(7), tags={"venue": ["any", "okx"]})
    ledger.reserve(key="denied", amount_usd=D(1), min_notional_usd=D(9), tags={"venue": "okx"})


def test_upgrade_when_a_scope_is_named_like_a_default_cap_then_it_is_one_and_its_positions_can_end(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ledger:
        _live_as_before(ledger)
    downgrade(database_url, BEFORE)
    rename_value(database_url, "any")
    upgrade(database_url)
    with opened(database_url, clock) as ledger:
        assert_verified(ledger)
        row = ledger.exposure().scope("venue=*")
        assert [row.cap, row.held, row.open] == [100, 40, 7]
        full = ledger.reserve(key="1", amount_usd=D(1), tags={"venue": "bybit"})
        assert (full.reason, full.binding) == ("cap_exceeded", "venue=bybit")
        assert ledger.reserve(key="2", amount_usd=D(400), tags={"venue": "gate"}).budget == 100
        assert ledger.confirm(key="3", position_id="main-2", quantity=D(1), price=D(50), rest="hold").outcome
        assert ledger.retag(key="4", position_id="main-2", tags={"venue": "gate2"}).granted
        assert ledger.release(key="5", position_id="main-4").outcome == "applied"
        row = ledger.exposure().scope("venue=*")
        assert [row.cap, row.held, row.open] == [100, 0, 0]
        assert_verified(ledger)
        ledger.set_cap(key="6", scope="venue=*", cap=None)
        assert ledger.reserve(key="7", amount_usd=D(1), tags={"venue": "bybit"}).granted
        ledger.set_cap(key="8", scope="venue=*", cap=D(900))
        assert ledger.reserve(key="9", amount_usd=D(900), tags={"venue": "bybit"}).budget == 499
        assert_verified(ledger)
