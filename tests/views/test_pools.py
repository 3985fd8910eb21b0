"""Reads of pools: guarantees, what is kept and lent out, default caps, largest positions, on pages and as of then."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ledger_sizer import DefaultCap, Denied, Exposure, Ledger, Pool, ScopeExposure
from ledger_sizer.model.overview import OverviewQuery
from tests.support.ledgers import dynamic_settings

D = Decimal

pytestmark = pytest.mark.settings(dynamic_settings())


@pytest.fixture
def pooled(ledger: Ledger) -> Ledger:
    """A cap of 5000, bybit 700 and every other venue 300; bot a has 1500, of which it uses 200, and b 1000."""
    ledger.set_cap(key="1", cap=D(5000), max_position_usd=D(900))
    ledger.set_cap(key="2", scope="venue=*", cap=D(300))
    ledger.set_cap(key="3", scope="venue=bybit", cap=D(700))
    ledger.set_cap(key="4", scope="bot=a", guarantee=D(1500), max_position_usd=D(400))
    ledger.set_cap(key="5", scope="bot=b", guarantee=D(1000), cap=D(2000))
    ledger.reserve(key="6", tags={"bot": "a", "venue": "okx"}, amount_usd=D(200))
    ledger.reserve(key="7", tags={"bot": "c", "venue": "bybit"}, amount_usd=D(600))
    return ledger


POOLS = (Pool("bot=a", D(1500), D(200), D(1300), D(0)), Pool("bot=b", D(1000), D(0), D(1000), D(0)))
DEFAULTS = (DefaultCap("venue=*", D(300)),)


def _figures(row: ScopeExposure) -> tuple[object, ...]:
    return (row.cap, row.cap_from, row.headroom, row.guarantee, row.kept, row.max_position_usd)


def test_read_exposure_when_there_are_pools_and_defaults_then_each_scope_has_the_cap_that_counts(
    pooled: Ledger,
) -> None:
    found = pooled.exposure()
    assert (found.pools, found.defaults, found.shared, found.max_position_usd) == (POOLS, DEFAULTS, 1900, 900)
    assert {row.scope: _figures(row) for row in found.scopes} == {
        "portfolio": (5000, None, 4200, None, 0, 900),
        "bot=a": (None, None, None, 1500, 1300, 400),
        "bot=b": (2000, None, 2000, 1000, 1000, None),
        "bot=c": (None, None, None, None, 0, None),
        "venue=*": (300, None, 300, None, 0, None),
        "venue=bybit": (700, None, 100, None, 0, None),
        "venue=okx": (300, "venue=*", 100, None, 0, None),
    }
    assert _figures(found.scope("venue=unused")) == (300, "venue=*", 300, None, 0, None)
    assert _figures(found.scope("bot=unused"))[:3] == (None, None, None)
    # A fact may take what is guaranteed: 3500 more leave 700, of which a could have nothing beside b's 1000.
    pooled.adopt(key="8", quantity=D(1), price=D(3500), tags={"bot": "c", "venue": "okx"})
    found = pooled.exposure()
    assert (found.headroom, found.shared, [pool.lent_out for pool in found.pools]) == (700, 0, [1300, 1000])
    assert found.scope("venue=okx").overage == 3400


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_read_page_of_exposure_when_scopes_are_paged_then_pools_and_defaults_are_complete(
    pooled: Ledger, limit: int
) -> None:
    every = pooled.exposure()
    for as_of in (None, every.seq):
        cursor, rows = None, [every.whole]
        while True:
            page = pooled.exposure_page(as_of=as_of, cursor=cursor, limit=limit)
            assert (page.exposure.pools, page.exposure.defaults) == (POOLS, DEFAULTS)
            assert page.exposure.scope("venue=unused").cap_from == "venue=*"
            rows, cursor = [*rows, *page.exposure.scopes[1:]], page.cursor
            if cursor is None:
                break
        assert tuple(rows) == every.scopes
    (_, default, *_), only = pooled.exposure_page(dimension="venue").exposure.scopes, "venue=*"
    assert (default.scope, default.cap) == (only, 300)


def test_read_exposure_as_of_when_settings_changed_later_then_those_of_then_count(pooled: Ledger) -> None:
    then: Exposure = pooled.exposure()
    pooled.set_cap(key="8", scope="venue=*", cap=None)
    pooled.set_cap(key="9", scope="bot=b", guarantee=None)
    pooled.set_cap(key="10", scope="bot=a", guarantee=D(0), max_position_usd=None)
    assert pooled.exposure(as_of=then.seq) == then
    now = pooled.exposure()
    assert (now.defaults, now.pools, now.scope("venue=okx").cap) == (
        (),
        (Pool("bot=a", *[D(0), D(200), D(0), D(0)]),),
        None,
    )
    assert pooled.exposure(as_of=1).pools == pooled.exposure(as_of=1).defaults == ()
    assert pooled.exposure(as_of=now.seq) == now
    assert pooled.verify().ok


def test_read_overview_when_there_are_pools_then_it_shows_them_with_the_caps_that_count(pooled: Ledger) -> None:
    detail = pooled.overview(OverviewQuery()).detail
    assert detail is not None
    assert (detail.pools, detail.pools_left_out, detail.shared) == (POOLS, 0, 1900)
    # A default counts nothing itself, so it is not among the scopes shown.
    assert [row.scope for row in detail.scopes][:4] == ["portfolio", "venue=bybit", "bot=a", "bot=b"]
    every = {row.scope: row for row in pooled.exposure().scopes if row.scope != "venue=*"}
    assert {row.scope: row for row in detail.scopes} == every


@pytest.mark.one_engine
def test_deny_when_pools_or_defaults_bound_it_then_the_words_name_what_would_help(pooled: Ledger) -> None:
    pooled.set_cap(key="cap", cap=D(3400))
    pooled.set_cap(key="gate", scope="venue=gate", cap=D(400))
    full, default = "the cap of venue=bybit leaves", "the cap of venue=okx (the default of venue=*) leaves"
    kept = "the portfolio has 2600 USD left and keeps 2300 USD for others (bot=a 1300, bot=b 1000), which leaves"
    for bot, venue, binding, words in (
        ("c", "bybit", "venue=bybit", f"{full} 100 USD, less than the smallest order needs, or the request wants"),
        ("a", "okx", "venue=okx", f"{default} 100 USD, less than"),
        ("c", "gate", "guarantee:bot=a", f"{kept} 300 USD, less than"),
    ):
        tags = {"bot": bot, "venue": venue}
        denied = pooled.reserve(key=f"ask {venue}", tags=tags, amount_usd=D(350), min_notional_usd=D(320))
        assert (denied.reason, denied.binding) == ("cap_exceeded", binding)
        assert f"In words: {words}" in pooled.explain(denied.seq or 0).text
        with pytest.raises(Denied, match=r"cap_exceeded \(bound by .*\): .* leaves too little$"):
            denied.raise_for_denial()


@pytest.mark.one_engine
def test_deny_a_move_when_it_takes_what_is_guaranteed_or_is_too_large_then_the_words_tell(pooled: Ledger) -> None:
    large = pooled.retag(key="8", position_id="main-7", tags={"bot": "a"})
    assert (large.reason, large.binding) == ("cap_exceeded", "max_position_usd:bot=a")
    words = "bot=a allows positions of at most 400 USD, less than the position counts"
    assert f"In words: {words}." in pooled.explain(8).text
    pooled.set_cap(key="9", cap=D(3200))
    pooled.adopt(key="10", quantity=D(1), price=D(100), tags={"bot": "c", "venue": "gate"})
    left = pooled.retag(key="11", position_id="main-6", tags={"bot": "c"})
    assert (left.reason, left.binding) == ("cap_exceeded", "guarantee:bot=a")
    words = "others use too much to keep free what is guaranteed to bot=a (1500 USD) once it leaves"
    assert f"In words: {words}." in pooled.explain(11).text
    after = pooled.explain(9).data["after"]
    assert (after["scope"], after["cap"], after["max_position_usd"]) == ("portfolio", "3200", "900")
