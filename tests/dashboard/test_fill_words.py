"""Tests of the words of the dashboard and of `top` about legs, fills and holds that never end by time."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from decimal import Decimal

import pytest
from rich.console import Console

from ledger_sizer import Decision, Ledger, Leg
from ledger_sizer.dashboard import formatting
from ledger_sizer.dashboard.labels import decision_label
from ledger_sizer.dashboard.overview_screen import render_overview
from ledger_sizer.dashboard.pages import Visitor, dashboard_page, explanation_page
from ledger_sizer.model.legs import LegFills
from ledger_sizer.model.overview import Overview, OverviewQuery
from tests.conftest import NewDatabase
from tests.support.clock import FakeClock
from tests.support.databases import ENGINE_KINDS
from tests.support.ledgers import dynamic_settings
from tests.support.lives import live_through_fills

D = Decimal
NONE = formatting.NONE
VISITOR = Visitor("ana", "admin", signed_in=False, form_token="")


@pytest.fixture(scope="module", params=ENGINE_KINDS)
def lived(request: pytest.FixtureRequest, module_database: NewDatabase) -> Iterator[tuple[Ledger, dict[str, Decision]]]:
    clock = FakeClock()
    with Ledger.open(module_database(request.param), settings=dynamic_settings(), clock=clock) as ledger:
        live_through_fills(ledger, clock)
        ledger.reserve(key="hostile", amount_usd=D(1), reference="<script>alert(1)</script>" + "x" * 400)
        yield ledger, {one.key: one for one in ledger.history("main", limit=1000)}


LABELS = {
    "grant": "930.00 held for 93,000,000, sized by its score",
    "part": "filled 20,000,000, counts 202.00, 73,000,000 to fill",
    "fill": "filled 10,000,000, 30,000,000 in all, counts 107.00, 63,000,000 to fill",
    "known": "filled as known already, nothing changed",
    "unknown": "held until the fate of its order is known",
    "more": "40.00 more held for 4,000,000, as much as it asked for, until known",
    "most": "21.00 more held for 2,100,000, the most for one position, until known",
    "no more": "what max_position_size_usd leaves buys less than the smallest quantity that every leg accepts",
    "price": "main-1 counts 0.000012 a coin, 51.00 more: month end",
    "tags": "main-1, no more in strategy=funding, now in desk=x, desk=y, strategy=basis",
    "no room": "the cap of desk=z leaves 10 USD, less than the position counts",
    "rest": "691.00 given back",
    "close part": "closed 7,000,000, 84.00 given back",
    "after all": "filled 1,000,000, counts 10.10",
    "plain amount": "200.00 held, its own most for one position",
    "gave back": "200.00 given back",
    "late released": "filled 3, counts 99.90, after its hold had been released",
    "overdue part": "filled 0.005, counts 250.00, 0.015 to fill",
    "ledger:expire:19:22": "the rest of its hold ran out, 750.00 given back",
    "ledger:expire:21": "hold ran out unconfirmed, 100.00 given back",
    "late expired": "filled 10,000,000, counts 102.00, after its hold had expired",
    "elsewhere": "filled 0.003, counts 150.03, now in venue=deribit",
    "smaller": "325.00 held, sized by its score, until known",
    "too little": "the cap of strategy=tiny leaves 30 USD, less than the smallest order needs",
    "cut": "88.49 held for 72,000, the most of one order",
    "repriced part": "filled 3, counts 21.00, the rest stays held",
    "repriced now": "main-34 counts 6 a coin, 11.00 less",
}


@pytest.mark.parametrize("key", LABELS)
def test_tell_decision_when_it_is_about_fills_then_the_words_say_what_happened(
    lived: tuple[Ledger, dict[str, Decision]], key: str
) -> None:
    assert decision_label(lived[1][key]) == LABELS[key]


def _table(html: str, name: str) -> dict[str, str]:
    """Return the text of each row of a table of the page, by the row's key."""
    part = html[html.index(f'id="{name}"') :]
    rows = re.findall(r'<tr data-key="([^"]+)">(.*?)</tr>', part[: part.index("</section>")], re.DOTALL)
    return {key: " ".join(re.sub(r"<[^>]+>", " ", row).split()) for key, row in rows}


def test_show_page_when_positions_fill_in_parts_then_held_stands_beside_open(
    lived: tuple[Ledger, dict[str, Decision]],
) -> None:
    overview = lived[0].overview(OverviewQuery("main"))
    page = dashboard_page(overview, OverviewQuery("main"), VISITOR)
    holds, positions = _table(page, "holds"), _table(page, "positions")
    assert holds["main-26"] == f"main-26 {NONE} 325.00 {NONE} until known"
    assert holds["main-31"] == "main-31 gate · ETC 40.87 5.83 until known", "open already, and 5.83 are to fill"
    assert holds["main-39"].startswith("main-39 held bybit · BTC · funding 300.00 0.006 15 min")
    assert positions["main-31"].startswith(
        "main-31 gate · ETC 49.11 40.87 7 7.015714285714285714 buy 7 of 12.839088074824629774 ETC/USDT spot at "
        "7.015714285714285714, gate"
    )
    assert positions["main-1"].startswith(
        f"main-1 t7 bybit, okx · PEPE · basis · desk=x · desk=y 286.10 {NONE} 24,000,000"
    )
    assert "sell 24,000,000 PEPE/USDT:USDT swap at 0.000010291666666666, okx, sub" in positions["main-1"]
    assert page.count("data-left=") == sum(one.expires_at is not None for one in overview.detail.held)  # type: ignore[union-attr]
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;xxx" in page


def test_show_explanation_page_when_legs_were_granted_then_it_has_the_orders(
    lived: tuple[Ledger, dict[str, Decision]],
) -> None:
    page = explanation_page(lived[0].explain(1), VISITOR)
    assert "<li>Order 2: sell PEPE/USDT:USDT (swap at okx, account sub): amount 9300 of 10000 coins each" in page


def test_watch_in_a_terminal_when_positions_fill_in_parts_then_held_stands_beside_open(
    lived: tuple[Ledger, dict[str, Decision]],
) -> None:
    text = _screen(lived[0].overview(OverviewQuery("main")))
    lines = {line.split()[0]: " ".join(line.split()) for line in text.splitlines() if line.startswith("main-")}
    assert "40.87 buy 7 of 12.839088074824629774 ETC/USDT" in lines["main-31"]
    assert re.search(rf"main-26 +{NONE} +325\.00 +until known", text)


def _screen(overview: Overview) -> str:
    console = Console(file=io.StringIO(), width=200, highlight=False, markup=False)
    console.print(render_overview(overview, source="here", width=200, height=None))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("leg", "quantity", "terms"),
    [
        (Leg("okx", "B", "swap", "sell", D(1000), D(5)), "1,000", "swap at 5, okx"),
        (Leg("okx", "B", "swap", "sell", D(1000), account="a"), "1,000", "swap, okx, a"),
        (Leg("", "B", "spot", "buy", D(8), fills=LegFills(D(8), D(80))), "0 of 8", "spot"),
        (Leg("x", "B", "future", "buy", D(2), D(5), fills=LegFills(D(6), D(30))), "2 of 8", "future at 5, x"),
    ],
)
def test_show_leg_when_it_is_planned_or_filled_then_both_numbers_are_told(leg: Leg, quantity: str, terms: str) -> None:
    assert (formatting.leg_quantity(leg), formatting.leg_terms(leg)) == (quantity, terms)


@pytest.mark.parametrize(
    ("text", "shown"), [(None, NONE), ("t7", "t7"), ("x" * 40, "x" * 40), ("x" * 41, "x" * 39 + "…")]
)
def test_shorten_text_when_it_is_long_then_it_says_that_there_is_more(text: str | None, shown: str) -> None:
    assert formatting.short(text) == shown
