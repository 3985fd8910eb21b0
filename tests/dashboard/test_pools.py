"""Tests of the picture of pools: in the overview, on the dashboard, and in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from ledger_sizer import Ledger, Pool
from ledger_sizer.dashboard.formatting import pool_bar, pools_scale
from ledger_sizer.dashboard.labels import decision_label
from ledger_sizer.dashboard.overview_screen import render_overview
from ledger_sizer.wire.overviews import overview_from_json, overview_to_json
from tests.conftest import NewDatabase
from tests.support.browser import PHONE, WIDE, live, visiting
from tests.support.clock import FakeClock
from tests.support.ledgers import lend_out, opened
from tests.support.page_checks import PROBLEMS_OF_PAGE
from tests.support.services import Running, serving
from tests.support.visitors import Browser as Visitor
from tests.support.visitors import close_browsers

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture
def service(new_database: NewDatabase) -> Iterator[Running]:
    with serving(new_database("sqlite"), event_poll_ms=50) as running:
        yield running
    close_browsers()


def pool(guaranteed: int, used: int, lent_out: int = 0) -> Pool:
    kept = max(guaranteed - used, 0)
    return Pool("bot=a", Decimal(guaranteed), Decimal(used), Decimal(kept), Decimal(lent_out))


@pytest.mark.parametrize(
    ("one", "lengths"),
    [
        (pool(100, 0), (0, 0, 20, 0)),
        (pool(100, 25, 50), (5, 0, 5, 10)),
        (pool(50, 100), (10, 10, 0, 0)),
        (pool(100, 1, 98), (1, 0, 1, 18)),
        (pool(0, 0), (0, 0, 0, 0)),
    ],
)
def test_draw_pool_when_it_is_used_kept_or_lent_out_then_each_part_is_seen(one: Pool, lengths: tuple[int, ...]) -> None:
    assert pool_bar(one, pools_scale([one]), 20) == lengths


def test_look_when_there_are_pools_then_the_overview_tells_them_and_an_old_one_without_them_can_be_read(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ledger:
        lend_out(ledger)
        overview = ledger.overview()
    detail = overview.detail
    assert detail is not None
    assert [(one.scope, one.used, one.lent_out) for one in detail.pools] == [("bot=a", 500, 400), ("bot=b", 0, 400)]
    assert (detail.shared, [(one.scope, one.cap) for one in detail.defaults]) == (0, [("venue=*", 3_000)])
    scopes = {one.scope: one for one in detail.scopes}
    assert "venue=*" not in scopes
    assert (scopes["venue=bybit"].cap, scopes["venue=bybit"].cap_from) == (3_000, "venue=*")
    form = overview_to_json(overview)
    assert overview_from_json(form) == overview
    for name in ("pools", "pools_left_out", "shared", "defaults"):
        del form["detail"][name]
    for name in ("cap_from", "guarantee", "kept", "max_position_usd"):
        del form["detail"]["scopes"][1][name]
    old = overview_from_json(form)
    assert old.detail is not None
    assert "shared by all" not in on_screen(old, 100), "an old service has no pools"


def on_screen(overview: Any, width: int, height: int | None = None) -> str:
    console = Console(width=width, height=200, highlight=False, markup=False, color_system=None)
    with console.capture() as captured:
        console.print(render_overview(overview, source="here", width=width, height=height))
    return captured.get()


SHOWN_OF_SCOPE = {
    100: {"900.00", "2,100.00", "3,000.00*", "active"},
    50: {"900.00", "2,100.00", "active"},
    42: {"900.00", "active"},
    26: {"900.00"},
}


@pytest.mark.parametrize(
    ("width", "row"),
    [
        (100, "bot=a    █████░░░░░░░░░░░xxxx  2,000.00  500.00  1,500.00  400.00"),
        (50, "bot=a  2,000.00  500.00  1,500.00  400.00"),
        (42, "bot=a  2,000.00  500.00  400.00"),
        (26, "bot=a  500.00  400.00"),
    ],
)
def test_watch_pools_when_the_terminal_is_narrow_then_columns_go_and_no_figure_is_cut(
    database_url: str, clock: FakeClock, width: int, row: str
) -> None:
    with opened(database_url, clock) as ledger:
        lend_out(ledger)
        shown = on_screen(ledger.overview(), width)
    assert row.split() in [line.split() for line in shown.splitlines()]
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    (bybit,) = [line.split() for line in shown.splitlines() if line.startswith("  venue=bybit")]
    assert {"900.00", "2,100.00", "3,000.00*", "active"} & {*bybit} == SHOWN_OF_SCOPE[width]
    words = " ".join(shown.split())
    assert "shared by all 0.00 of the headroom 2,600.00" in words
    assert "* by default: venue=* 3,000.00 largest positions: bot=a 600.00" in words


def test_watch_pools_when_there_is_room_for_few_then_those_that_lack_something_stand_first(ledger: Ledger) -> None:
    ledger.set_cap(key="cap", portfolio="main", cap=Decimal(1_000))
    ledger.adopt(key="1", quantity=Decimal(1), price=Decimal(950))
    for number, guarantee in enumerate((0, 0, 100)):
        ledger.set_cap(key=f"g{number}", portfolio="main", scope=f"bot={number}", guarantee=Decimal(guarantee))
    shown = on_screen(ledger.overview(), 100, height=6)
    assert "pools 3" in shown
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("bot=")] == ["bot=2"]


def test_open_desk_when_there_are_pools_then_their_figures_default_caps_and_denials_stand_in_words(
    service: Running,
) -> None:
    visitor = Visitor(service.url)
    service.ledger.reserve(key="first")
    assert '<section data-live id="pools" class="panel pools" hidden>' in visitor.get("/").text
    lend_out(service.ledger)
    service.ledger.reserve(key="denied", tags={"bot": "z"})
    page = " ".join(visitor.get("/").text.split())
    for words in (
        'aria-label="guaranteed 2,000.00, used 500.00, kept 1,500.00, lent out 1,400.00"',
        "Shared by all <strong>0.00</strong>",
        "<b>venue=*</b> 3,000.00",
        "<b>bot=a</b> 600.00",
        '3,000.00<span class="dim" aria-hidden="true">*</span><span class="unseen"> by default</span>',
        "for others (bot=a 1500, bot=b 1500)",
    ):
        assert words in page, words
    assert "steer-venue=*" not in page, "a default is no scope"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cap": Decimal(900), "guarantee": Decimal("0.5")}, "capped at 900.00, guaranteed 0.50"),
        ({"guarantee": None, "max_position_usd": Decimal(300)}, "has no guarantee any more, largest position 300.00"),
        ({"cap": None, "max_position_usd": None}, "has no cap any more, has no largest position any more"),
        ({"max_position_usd": None, "note": "why"}, "has no largest position any more: why"),
    ],
)
def test_tell_set_cap_when_some_settings_are_given_then_the_words_are_about_these_only(
    ledger: Ledger, given: dict[str, Any], words: str
) -> None:
    assert decision_label(ledger.set_cap(key="a", portfolio="main", scope="bot=a", **given)) == f"bot=a {words}"


def test_tell_decision_when_a_guarantee_or_a_largest_position_bound_it_then_the_words_name_the_scope(
    ledger: Ledger,
) -> None:
    ledger.set_cap(key="1", portfolio="main", cap=Decimal(1_000))
    ledger.set_cap(key="2", portfolio="main", scope="bot=b", guarantee=Decimal(700))
    ledger.set_cap(key="3", portfolio="main", scope="venue=x", max_position_usd=Decimal(100))
    small = ledger.reserve(key="4", tags={"venue": "x"})
    cut = ledger.reserve(key="5", amount_usd=Decimal(500))
    denied = ledger.reserve(key="6")
    assert [decision_label(one) for one in (small, cut)] == [
        "100.00 held, the most for one position of venue=x",
        "200.00 held, bound by what is kept for others, most for bot=b",
    ]
    assert denied.binding == "guarantee:bot=b"
    assert "for others (bot=b 700)" in decision_label(denied)


@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "light"), (PHONE, "dark")], ids=["desktop", "phone-dark"])
def test_set_guarantee_when_the_desk_is_open_then_the_picture_comes_without_a_reload_and_is_accessible(
    browser: Browser, service: Running, size: Any, scheme: str
) -> None:
    service.ledger.reserve(key="first")
    with visiting(browser, service.url, viewport=size, color_scheme=scheme) as page:
        live(page)
        page.evaluate("window.here = true")
        assert not page.is_visible("#pools")
        lend_out(service.ledger)
        page.wait_for_selector("#pools tr[data-key='bot=b']")
        page.wait_for_function("() => document.querySelector('#pools').innerText.includes('1,400.00')")
        assert page.evaluate("window.here"), "the page was loaded anew"
        bars = page.locator("#pools tr[data-key='bot=a'] svg >> visible=true")
        assert bars.count() == 1
        assert bars.bounding_box()["width"] > 60
        page.wait_for_timeout(400)  # the dot's colour has faded in
        assert not page.evaluate(PROBLEMS_OF_PAGE)


def test_open_desk_when_scripts_are_off_then_the_picture_of_the_pools_is_there(
    browser: Browser, service: Running
) -> None:
    lend_out(service.ledger)
    with visiting(browser, service.url, java_script_enabled=False) as page:
        assert "bot=b" in page.inner_text("#pools tbody")
        assert page.locator("#pools svg >> visible=true").count() == 2
