"""Tests in a real browser: who decided, and the desk's halt."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from ledger_sizer.model.caller import Caller, calling_as
from tests.conftest import NewDatabase
from tests.support.browser import live, visiting
from tests.support.page_checks import PROBLEMS_OF_PAGE
from tests.support.services import Running, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture
def service(new_database: NewDatabase) -> Iterator[Running]:
    """A service without keys, with one portfolio."""
    with serving(new_database("sqlite"), event_poll_ms=250) as running:
        running.ledger.set_cap(key="cap", portfolio="main", cap=Decimal(5_000))
        yield running


def test_halt_desk_when_confirmed_then_a_banner_says_who_and_why_until_it_is_resumed(
    browser: Browser, service: Running
) -> None:
    with visiting(browser, service.url) as page, visiting(browser, service.url) as other:
        live(page)
        live(other)
        assert page.is_hidden("#desk-halt")
        page.click("#halt-desk")
        assert page.inner_text("h1") == "Halt the desk: all portfolios?"
        page.fill("#note", "exchange is down")
        page.click("button.danger")
        page.wait_for_selector("#desk-halt:not([hidden])")
        other.wait_for_selector("#desk-halt:not([hidden])")
        (halted,) = service.ledger.history("*")
        for one in (page, other):
            words = one.inner_text("#desk-halt")
            assert "The desk is halted" in words
            assert f"by {halted.actor}: exchange is down" in words
        assert page.query_selector("#halt-desk") is None
        assert page.evaluate(PROBLEMS_OF_PAGE) == []
        denied = service.ledger.reserve(key="no", portfolio="new")
        assert (denied.reason, denied.binding) == ("halted", "desk")
        other.click("#resume-desk")
        other.click("button:has-text('Resume')")
        page.wait_for_selector("#halt-desk")
        assert page.is_hidden("#desk-halt")
        assert service.ledger.reserve(key="yes").granted


def test_open_desk_when_decisions_have_actors_then_the_list_and_the_decisions_page_say_who(
    browser: Browser, service: Running
) -> None:
    with calling_as(Caller("api:0a1b2c3d4e5f:ann", "bots")):
        decision = service.ledger.reserve(key="hers")
    with visiting(browser, service.url) as page:
        page.wait_for_selector(f'#decisions tr[data-seq="{decision.seq}"]')
        assert "ann" in page.inner_text(f'#decisions tr[data-seq="{decision.seq}"]').split()
        page.goto(f"{service.url}/explain/main/{decision.seq}")
        facts = page.inner_text(".facts")
        assert "api:0a1b2c3d4e5f:ann" in facts
        assert "of client bots" in facts
