"""Tests of the dashboard in a real browser: live updates, keys, forms, keyboard, screen reader, phone.

Pictures for a person to look at go to the folder that `LEDGER_TEST_SCREENSHOTS` names.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ledger_sizer.model.legs import Leg
from ledger_sizer.reconcile import drifts
from ledger_sizer.service.api_keys import create_key, revoke_key
from ledger_sizer.storage.database import make_engine
from tests.conftest import NewDatabase
from tests.support.accounts import Desk, short
from tests.support.browser import PHONE, WIDE, live, visiting
from tests.support.clock import FakeClock
from tests.support.page_checks import PROBLEMS_OF_PAGE
from tests.support.services import Running, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SIZES = {"desktop": (WIDE, "light"), "dark": (WIDE, "dark"), "phone": (PHONE, "light"), "phone-dark": (PHONE, "dark")}


@pytest.fixture
def service(new_database: NewDatabase) -> Iterator[Running]:
    """A service without keys, as it looks at its ledger by default."""
    with serving(new_database("sqlite"), event_poll_ms=250) as running:
        running.ledger.set_cap(key="cap", portfolio="main", cap=Decimal(5_000))
        running.ledger.set_cap(key="cap/venue", portfolio="main", scope="venue=bybit", cap=Decimal(2_000))
        yield running


def open_position(ledger: Any, key: str, symbol: str = "BTC") -> str:
    """Open a position with two legs. Returns its id."""
    granted = ledger.reserve(key=key, tags={"venue": "bybit", "symbol": symbol, "strategy": "funding"})
    legs = [
        Leg("bybit", f"{symbol}/USDT", "spot", "buy", Decimal("0.01"), Decimal(50_000)),
        Leg("bybit", f"{symbol}/USDT:USDT", "swap", "sell", Decimal("0.01"), Decimal(50_050)),
    ]
    ledger.confirm(
        key=f"{key}/fill", position_id=granted.position_id, quantity=Decimal("0.01"), price=Decimal(50_050), legs=legs
    )
    return str(granted.position_id)


# Live.


def test_decide_when_the_desk_is_open_then_it_shows_within_a_second(browser: Browser, service: Running) -> None:
    with visiting(browser, service.url) as page:
        live(page)
        waits = []
        for number in range(5):
            decision = service.ledger.reserve(key=f"r{number}", tags={"venue": "bybit"})
            decided = time.monotonic()
            page.wait_for_selector(f'#decisions tr[data-seq="{decision.seq}"]')
            waits.append(time.monotonic() - decided)
        assert statistics.median(waits) < 1, waits
        held = page.inner_text("#sum dl div:nth-child(5) dd")
        assert held == f"{service.ledger.exposure().held:,.2f}"
        assert "cap of venue=bybit leaves nothing" in page.inner_text("#decisions tbody tr:first-child .words")


def test_hold_when_time_passes_then_it_counts_down_and_leaves(browser: Browser, new_database: NewDatabase) -> None:
    with serving(new_database("sqlite"), jobs=True) as service, visiting(browser, service.url) as page:
        service.ledger.reserve(key="a", ttl_seconds=Decimal(4))
        page.wait_for_selector("#holds td[data-left].soon")
        first = page.inner_text("#holds td[data-left]")
        page.wait_for_function(
            "before => document.querySelector('#holds td[data-left]')?.textContent !== before", arg=first
        )
        page.wait_for_selector("#holds .none")
        assert "hold ran out unconfirmed, 1,000.00 given back" in page.inner_text("#decisions .words >> nth=0")


def test_look_on_when_the_service_is_lost_then_it_says_so(browser: Browser, new_database: NewDatabase) -> None:
    with browser.new_context() as own:
        page = own.new_page()
        with serving(new_database("sqlite")) as service:
            service.ledger.reserve(key="a")
            page.goto(service.url)
            live(page)
        page.wait_for_selector('#feed[data-state="lost"]')
        assert "as of" in page.inner_text("#feed")


def test_update_when_a_link_has_the_keyboard_then_it_keeps_it(browser: Browser, service: Running) -> None:
    with visiting(browser, service.url) as page:
        service.ledger.reserve(key="first")
        live(page)
        page.wait_for_selector("#decisions tr[data-seq='3'] a")
        page.focus("#decisions tr[data-seq='3'] a")
        service.ledger.reserve(key="second")
        page.wait_for_selector("#decisions tr[data-seq='4']")
        assert page.evaluate("document.activeElement.getAttribute('href')") == "/explain/main/3"


def test_change_when_it_matters_then_a_screen_reader_is_told(browser: Browser, service: Running) -> None:
    with visiting(browser, service.url) as page:
        live(page)
        service.ledger.halt(key="h", portfolio="main", note="venue down")
        page.wait_for_function("() => document.getElementById('announcement').textContent.includes('main halted')")
        assert page.get_attribute("#announcement", "role") == "status"


# Positions, pages.


def test_open_desk_when_positions_have_legs_then_each_leg_stands_in_words(browser: Browser, service: Running) -> None:
    open_position(service.ledger, "a")
    with visiting(browser, service.url) as page:
        legs = page.inner_text("#positions .legs")
        assert "buy 0.01 BTC/USDT spot at 50,000, bybit" in " ".join(legs.split())
        assert "sell 0.01 BTC/USDT:USDT swap at 50,050, bybit" in " ".join(legs.split())


def test_open_desk_when_there_are_ten_thousand_positions_then_it_pages_them(
    browser: Browser, new_database: NewDatabase
) -> None:
    from ledger_sizer.model.commands import Adopt

    with serving(new_database("sqlite"), ledger={"batch_size_max": 2_000}) as service:
        service.ledger.set_cap(key="cap", portfolio="main", cap=Decimal(10**8))
        for start in range(0, 10_000, 2_000):
            service.ledger.submit(
                [
                    Adopt(key=f"a{n}", quantity=Decimal(1), price=Decimal(100), tags={"symbol": f"S{n % 500}"})
                    for n in range(start, start + 2_000)
                ]
            )
        with visiting(browser, service.url) as page:
            assert "10,000" in page.inner_text("#positions-title")
            assert page.locator("#positions tbody tr").count() == 25
            first = page.inner_text("#positions tbody tr:first-child th")
            page.click("#next-positions")
            page.wait_for_url("**/?*open_cursor=*")
            assert page.inner_text("#positions tbody tr:first-child th") != first
            live(page)
            service.ledger.reserve(key="new")
            page.wait_for_selector("#holds tbody tr")
            assert page.inner_text("#positions tbody tr:first-child th") != first, "an update keeps the page"
            page.click("#first-positions")
            page.wait_for_function(
                "first => document.querySelector('#positions tbody th').textContent === first", arg=first
            )


# Keys, roles, actions.


def sign_in(page: Page, token: str) -> None:
    """Sign in through the form."""
    page.fill("#key", token)
    page.press("#key", "Enter")


def test_sign_in_when_role_is_read_then_it_sees_and_cannot_act(browser: Browser, service: Running) -> None:
    engine = make_engine(str(service.parts.reads.url))
    made = create_key(engine, "eye", "read")
    with visiting(browser, service.url) as page:
        assert page.title().startswith("Sign in")
        sign_in(page, made.token)
        live(page)
        assert "eye" in page.inner_text(".who")
        assert page.locator("a[href^='/steer/']").count() == 0
        cookies = page.context.cookies()
        assert [(cookie["httpOnly"], cookie["sameSite"]) for cookie in cookies] == [(True, "Strict")]
        revoke_key(engine, made.key.key_id)
        service.ledger.reserve(key="after")
        page.wait_for_url("**/login")
    engine.dispose()


def test_halt_and_resume_when_confirmed_by_keyboard_then_the_desk_shows_it(browser: Browser, service: Running) -> None:
    with visiting(browser, service.url) as page:
        live(page)
        page.focus("#steer-portfolio")
        page.keyboard.press("Enter")
        page.wait_for_url("**/steer/main?*")
        page.fill("#note", "venue down")
        page.keyboard.press("Enter")
        page.wait_for_selector("#sum .status-halted")
        assert service.ledger.exposure().status == "halted"
        assert service.ledger.reserve(key="x").reason == "halted"
        page.wait_for_selector("#decisions .denied")
        assert "new reservations are halted in portfolio" in page.inner_text("#decisions .words >> nth=0")
        page.click("#steer-portfolio")
        page.click("button:has-text('Resume')")
        page.wait_for_selector("#sum .status-active")
        assert service.ledger.exposure().status == "active"


def test_cancel_when_asked_to_confirm_then_nothing_happens(browser: Browser, service: Running) -> None:
    seq = service.ledger.exposure().seq
    with visiting(browser, service.url) as page:
        page.click("#steer-portfolio")
        page.click("text=Cancel")
        live(page)
    assert service.ledger.exposure().seq == seq


# Reconciliation.


@pytest.fixture
def drifting(new_database: NewDatabase, clock: FakeClock) -> Iterator[Running]:
    """A ledger without positions, and an exchange that twice showed three: ETH and SOL, and XRP without a price."""
    url = new_database("sqlite")
    desk = Desk(url, clock)
    desk.ledger.set_cap(key="cap", portfolio="main", cap=Decimal(50_000))
    found = [("1", "ETH/USDT:USDT", "2000"), ("5", "SOL/USDT:USDT", "150"), ("100", "XRP/USDT:USDT", None)]
    desk.account.shows(*[short(*one) for one in found])
    desk.run(2)
    desk.close()
    with serving(url) as running:
        yield running


def test_open_desk_when_there_are_drifts_then_they_stand_there(browser: Browser, drifting: Running) -> None:
    with visiting(browser, drifting.url) as page:
        assert page.locator("#reconciliation tbody tr").count() == 3
        assert "good" in page.inner_text("#reconciliation .note")
        text = " ".join(page.inner_text("#reconciliation tbody").split())
        assert "unknown position" in text
        assert "bybit/main ETH/USDT:USDT short" in text
        assert "confirmed, froze portfolio" in text
        assert "drifts adopt" in text, "the words of `drifts list`"
        assert page.inner_text("#sum .status") == "unreconciled"
        assert not page.evaluate(PROBLEMS_OF_PAGE)
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        actions = [link.bounding_box() or {} for link in page.locator("#reconciliation td a").all()]
        assert max(box["x"] + box["width"] for box in actions) <= PHONE["width"], "a decision is off the screen"


def test_reconcile_when_a_drift_froze_nothing_then_it_shows_within_a_second(
    browser: Browser, new_database: NewDatabase, clock: FakeClock
) -> None:
    """A drift seen once makes no decision: only the stream's own event of the run can bring it to the page."""
    url = new_database("sqlite")
    desk = Desk(url, clock)
    desk.ledger.set_cap(key="cap", portfolio="main", cap=Decimal(50_000))
    desk.run(1)
    with serving(url) as service, visiting(browser, service.url) as page:
        live(page)
        waits = []
        for _ in range(3):
            seq, desk.account.positions = service.ledger.exposure().seq, None
            desk.run(1)
            ran = time.monotonic()
            assert service.ledger.exposure().seq == seq, "nothing was decided"
            page.wait_for_selector("#reconciliation td:has-text('open')")
            waits.append(time.monotonic() - ran)
            desk.account.positions = ()
            desk.run(1)
            page.wait_for_selector("#reconciliation:not(:has(td))")
    desk.close()
    assert statistics.median(waits) < 1, waits


def test_decide_drifts_when_confirmed_with_a_reason_then_each_is_done_and_recorded(
    browser: Browser, drifting: Running
) -> None:
    ledger = drifting.ledger
    by_subject = {drift.subject[:3]: drift for drift in drifts.live_drifts(drifting.parts.reads, "main")}
    with visiting(browser, drifting.url) as page:
        live(page)
        page.click(f"#adopt-{by_subject['ETH'].id}")
        page.fill("#note", "opened by hand")
        page.keyboard.press("Enter")
        live(page)
        assert page.locator("#reconciliation tbody tr").count() == 2
        adopted = ledger.positions("main", state="open", tags={"symbol": "ETH"})
        assert [position.open for position in adopted] == [Decimal(2000)]

        page.click(f"#close-{by_subject['SOL'].id}")
        page.fill("#note", "nobody knows it")
        page.click("main button")
        live(page)
        assert "close asked for" in page.inner_text("#reconciliation")

        page.click(f"#adopt-{by_subject['XRP'].id}")
        page.fill("#price", "0.5")
        page.fill("#note", "found the fill")
        page.click("main button")
        live(page)
        page.click(f"#ignore-{by_subject['SOL'].id}")
        page.fill("#note", "another desk's")
        page.click("main button")
        live(page)
        assert "acknowledged" in page.inner_text("#reconciliation tbody")
    said = [one.request for one in ledger.history("main", command="remark")]
    for words in ("opened by hand", "nobody knows it", "found the fill"):
        assert any(f'"note":"{words}"' in request for request in said), words
    assert [one.command for one in ledger.history("*")] == ["remark"] * 4


# Themes and accessibility.


def test_switch_theme_when_asked_then_it_is_kept(browser: Browser, service: Running) -> None:
    with visiting(browser, service.url, color_scheme="light") as page:
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.click("#theme")
        page.click("#theme")
        assert page.inner_text("#theme") == "Theme: dark"
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark != light
        page.reload()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


@pytest.mark.parametrize("look", SIZES)
@pytest.mark.parametrize("path", ["/", "/steer/main?action=halt", "/explain/main/3", "/login", "/?portfolio=nobody"])
def test_open_page_when_checked_for_access_then_nothing_is_found(
    browser: Browser, service: Running, look: str, path: str
) -> None:
    open_position(service.ledger, "a")
    service.ledger.reserve(key="b", tags={"venue": "okx"})
    service.ledger.halt(key="h", portfolio="main", scope="venue=okx")
    service.ledger.reserve(key="c", tags={"venue": "okx"})
    if path == "/login":
        engine = make_engine(str(service.parts.reads.url))
        create_key(engine, "eye", "read")
        engine.dispose()
    size, scheme = SIZES[look]
    with browser.new_context(viewport=size, color_scheme=scheme) as own:  # type: ignore[arg-type]
        page = own.new_page()
        page.goto(service.url + path)
        if path == "/":
            live(page)
            page.wait_for_timeout(400)  # the dot's colour has faded in
        found = page.evaluate(PROBLEMS_OF_PAGE)
        assert not found, found
        if path == "/" and (folder := os.environ.get("LEDGER_TEST_SCREENSHOTS")):
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"{look}.png", full_page=True)


def test_use_keyboard_when_tabbing_then_skip_link_comes_first_and_focus_is_seen(
    browser: Browser, service: Running
) -> None:
    with visiting(browser, service.url) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        for _ in range(12):
            page.keyboard.press("Tab")
            seen = page.evaluate(
                "(() => { const style = getComputedStyle(document.activeElement);"
                " return [document.activeElement.outerHTML.slice(0, 80), style.outlineStyle, style.outlineWidth]; })()"
            )
            assert seen[1:] == ["solid", "2px"], seen


def test_open_desk_when_scripts_are_off_then_it_is_whole(browser: Browser, service: Running) -> None:
    open_position(service.ledger, "a")
    with visiting(browser, service.url, java_script_enabled=False) as page:
        assert "500.50" in page.inner_text("#positions tbody")
        page.click("#steer-portfolio")
        page.click("button:has-text('Halt')")
        assert "halted" in page.inner_text("#sum .status")
