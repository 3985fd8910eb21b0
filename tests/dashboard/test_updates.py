"""Tests in a real browser that the open dashboard changes what changed, while bots trade, and leaves the rest alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import NewDatabase
from tests.support.browser import PHONE, live, visiting
from tests.support.services import Running, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LAPTOP: Any = {"width": 1366, "height": 768}
VENUES, SYMBOLS = ("bybit", "okx", "binance"), ("BTC", "ETH", "SOL", "1000PEPE")
PRESS_MS, DECISIONS_A_SECOND = 90, 6


@pytest.fixture
def service(new_database: NewDatabase) -> Iterator[Running]:
    with serving(new_database("sqlite"), event_poll_ms=50, jobs=True) as running:
        running.ledger.set_cap(key="cap", portfolio="main", cap=Decimal(2_000_000))
        for venue in VENUES:
            running.ledger.set_cap(key=venue, portfolio="main", scope=f"venue={venue}", cap=Decimal(700_000))
        running.ledger.reserve(key="other", portfolio="alt")
        yield running


@contextmanager
def trading(service: Running) -> Iterator[None]:
    """Decide a few times a second, in several scopes, during a `with` block."""
    stop = threading.Event()

    def trade() -> None:
        number = 0
        while not stop.wait(1 / DECISIONS_A_SECOND):
            number += 1
            tags = {
                "venue": VENUES[number % 3],
                "symbol": SYMBOLS[number % 4],
                "strategy": "stat-arb-mean-reversion-v2",
            }
            service.ledger.reserve(key=f"t{number}", tags=tags, ttl_seconds=5)

    thread = threading.Thread(target=trade)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def _press(page: Page, selector: str) -> None:
    """Press the middle of an element as a person does: button down, a moment, button up."""
    box = page.locator(selector).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.wait_for_timeout(PRESS_MS)
    page.mouse.up()


def _wait_for_decisions(page: Page, number: int) -> None:
    """Wait until the page shows so many newer decisions."""
    first = int(page.get_attribute("#decisions tbody tr", "data-seq") or 0)
    page.wait_for_function(
        "seq => Number(document.querySelector('#decisions tbody tr').dataset.seq) >= seq", arg=first + number
    )


@pytest.mark.parametrize("selector", ["#steer-portfolio", "#scopes a[id='steer-venue=okx']"])
def test_press_halt_when_bots_trade_then_every_press_gets_through(
    browser: Browser, service: Running, selector: str
) -> None:
    with trading(service), visiting(browser, service.url, viewport=LAPTOP) as page:
        took = 0
        for _ in range(8):
            page.goto(f"{service.url}/?portfolio=main")
            live(page)
            page.wait_for_timeout(400)
            _press(page, selector)
            try:
                page.wait_for_url("**/steer/main?*", timeout=2_000)
                took += 1
            except Exception:  # noqa: BLE001 - counted
                continue
    assert took == 8


def test_update_when_decisions_come_then_nodes_focus_and_scroll_stay(browser: Browser, service: Running) -> None:
    with trading(service), visiting(browser, f"{service.url}/?portfolio=main", viewport=LAPTOP) as page:
        live(page)
        _wait_for_decisions(page, 5)
        scroll = "document.querySelector('#scopes .scroll').scrollLeft"
        scrolled = page.evaluate(f"({scroll} = 9999, {scroll})")
        assert scrolled > 0
        page.focus("#scopes a[id='steer-venue=okx']")
        page.evaluate(
            "window.kept = ['#steer-portfolio', '#scopes .scroll', '#scopes tr[data-key=\"venue=okx\"]', '#sum dl',"
            " '#line svg'].map((one) => document.querySelector(one))"
        )
        seq = page.get_attribute("#decisions tbody tr", "data-seq")
        _wait_for_decisions(page, 8)
        assert page.evaluate("window.kept.every((one) => one.isConnected)"), "a node was replaced"
        assert page.evaluate(scroll) == scrolled
        assert page.evaluate("document.activeElement.id") == "steer-venue=okx"
        rows = page.evaluate("[...document.querySelectorAll('#decisions tbody tr')].map((row) => row.dataset.seq)")
        assert rows == sorted(rows, key=int, reverse=True), "each decision has its row, in order"
        assert seq in rows


def test_update_when_any_section_changes_then_the_page_is_what_a_reload_shows(
    browser: Browser, service: Running
) -> None:
    with visiting(browser, f"{service.url}/?portfolio=main") as page:
        live(page)
        for number in range(12):
            ledger = service.ledger
            granted = ledger.reserve(
                key=f"k{number}", tags={"venue": VENUES[number % 3], "symbol": SYMBOLS[number % 4]}
            )
            if number % 3 == 1:
                ledger.release(key=f"r{number}", position_id=granted.position_id)
            elif number % 3 == 2:
                ledger.confirm(
                    key=f"c{number}", position_id=granted.position_id, quantity=Decimal(1), price=Decimal(100 * number)
                )
            if number == 11:
                ledger.halt(key="h", portfolio="main", scope="venue=okx")
            page.wait_for_selector(f'#decisions tr[data-seq="{ledger.exposure("main").seq}"]')
        page.wait_for_function(
            """async () => {
              const text = await (await fetch(location.href)).text();
              const fresh = new DOMParser().parseFromString(text, "text/html");
              const shown = (root) => [...root.querySelectorAll("[data-live]:not(#line)")].map((section) => {
                const copy = section.cloneNode(true);
                for (const cell of copy.querySelectorAll("[data-left], #positions td:last-child")) cell.remove();
                return copy.innerHTML.replace(/\\s+/g, " ");
              }).join("");
              return shown(fresh) === shown(document);
            }"""
        )


@pytest.mark.parametrize("size", [PHONE, LAPTOP], ids=["phone", "laptop"])
def test_open_desk_when_screen_is_narrow_then_every_halt_is_in_its_panel_and_can_be_pressed(
    browser: Browser, service: Running, size: Any
) -> None:
    for number, symbol in enumerate(SYMBOLS):
        tags = {"venue": VENUES[number % 3], "symbol": symbol, "strategy": "stat-arb-mean-reversion-v2"}
        service.ledger.reserve(key=symbol, tags=tags)
    with visiting(browser, f"{service.url}/?portfolio=main", viewport=size) as page:
        live(page)
        links = page.locator("a[href^='/steer/']").evaluate_all(
            """links => links.map((link) => {
              link.scrollIntoView({ block: "center", inline: "nearest" });
              for (const table of document.querySelectorAll(".scroll")) table.scrollLeft = 0;
              const box = link.getBoundingClientRect();
              const panel = link.closest(".panel").getBoundingClientRect();
              const hit = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
              return [link.id, box.width > 0 && box.left >= panel.left && box.right <= panel.right, hit === link];
            })"""
        )
        wanted = {
            "steer-portfolio",
            "steer-all-of-main",
            "steer-all-of-alt",
            "steer-strategy=stat-arb-mean-reversion-v2",
        }
        assert wanted <= {name for name, _, _ in links}
        assert not [link for link in links if not (link[1] and link[2])]
        page.click("#steer-all-of-alt")
        page.click("button:has-text('Halt')")
        page.wait_for_selector("#sum .status-halted")
    assert service.ledger.exposure("alt").status == "halted"
    assert service.ledger.exposure("main").status == "active"
