"""Pages of very many scopes and holds: nothing is missed or repeated, and a page does not read all of them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import event

from ledger_sizer import InvalidRequest, Ledger, Reserve
from tests.support.ledgers import dynamic_settings

D = Decimal

pytestmark = pytest.mark.settings(dynamic_settings())


def _many_scopes(ledger: Ledger) -> None:
    for number in range(7):
        ledger.reserve(
            key=f"{number}", tags={"venue": "bybit", "symbol": f"C{number}"}, available_balance=D(number + 1)
        )
    ledger.set_cap(key="cap", scope="symbol=C3", cap=D(900))


@pytest.mark.parametrize("as_of", [None, 8])
@pytest.mark.parametrize("limit", [1, 3, 8, 10_000])
def test_read_exposure_page_when_followed_then_it_is_the_whole_exposure(
    ledger: Ledger, limit: int, as_of: int | None
) -> None:
    _many_scopes(ledger)
    every, scopes, cursor, pages = ledger.exposure(as_of=as_of), [], None, 0
    while True:
        page = ledger.exposure_page(as_of=as_of, cursor=cursor, limit=limit)
        whole, *rows = page.exposure.scopes
        assert (whole, page.exposure.whole, page.exposure.seq) == (every.whole, every.whole, 8)
        assert len(rows) <= limit
        scopes, pages, cursor = [*scopes, *rows], pages + 1, page.cursor
        if cursor is None:
            break
    assert [every.whole, *scopes] == list(every.scopes)
    assert pages == {1: 8, 3: 3}.get(limit, 1)


@pytest.mark.parametrize("as_of", [None, 8])
def test_read_exposure_page_when_of_one_dimension_then_only_its_scopes_are_there(
    ledger: Ledger, as_of: int | None
) -> None:
    _many_scopes(ledger)
    ledger.reserve(key="like", tags={"symbols": "C1"})
    found = ledger.exposure_page(as_of=as_of, dimension="symbol", limit=4)
    assert [row.scope for row in found.exposure.scopes] == ["portfolio", *[f"symbol=C{n}" for n in range(4)]]
    assert found.cursor == "symbol=C3"
    rest = ledger.exposure_page(as_of=as_of, dimension="symbol", cursor=found.cursor)
    assert [row.scope for row in rest.exposure.scopes[1:]] == [f"symbol=C{n}" for n in range(4, 7)]
    assert rest.cursor is None
    assert len(ledger.exposure_page(as_of=as_of, dimension="nobody").exposure.scopes) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("limit", 0), ("limit", 10_001), ("limit", True), ("dimension", "Venue"), ("dimension", "portfolio"),
     ("dimension", "venue="), ("cursor", "nothing"), ("cursor", 7)],
)  # fmt: skip
def test_read_exposure_page_when_an_argument_cannot_be_one_then_it_is_named(
    ledger: Ledger, field: str, value: Any
) -> None:
    ledger.reserve(key="1")
    with pytest.raises(InvalidRequest) as refused:
        ledger.exposure_page(**{field: value})
    assert refused.value.field == field


@pytest.mark.parametrize("dense", [1, 3, 8, 5000])
@pytest.mark.parametrize("limit", [1, 2, 3, 100])
@pytest.mark.parametrize("state", ["held", "live"])
def test_page_positions_when_holds_are_dense_or_rare_then_all_are_listed_in_order(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, dense: int, limit: int, state: str
) -> None:
    """Holds among the next few positions are found in order; where they are rare, all are sorted."""
    monkeypatch.setattr("ledger_sizer.views.position_listing._DENSE_POSITIONS", dense)
    ended = {2, 3, 4, 5, 9}
    for number in range(1, 13):
        ledger.reserve(key=f"{number}", available_balance=D(1), ttl_seconds=900 - number)
    for number in ended:
        ledger.release(key=f"r{number}", position_id=f"main-{number}")
    ledger.reserve(key="other", portfolio="other")
    found: list[int] = []
    cursor = None
    while cursor is not None or not found:
        page = ledger.positions("main", state=state, limit=limit, cursor=cursor)
        found, cursor = [*found, *(position.number for position in page)], page.cursor
    assert found == sorted(set(range(1, 13)) - ended)


@pytest.mark.parametrize("state", ["held", "live"])
def test_page_positions_when_very_many_are_held_then_the_page_does_not_sort_them_all(
    ledger: Ledger, state: str
) -> None:
    ledger.submit([Reserve(key=f"{n}", available_balance=D("0.01"), ttl_seconds=900) for n in range(300)])
    statements: list[str] = []
    engine = ledger._queries.engine
    event.listen(engine, "before_cursor_execute", lambda _c, _k, statement, *_more: statements.append(statement))
    cursor = None
    for _ in range(2):
        page = ledger.positions("main", state=state, limit=100, cursor=cursor)
        cursor = page.cursor
    assert len(page) == 100
    assert not any("state = 'held' AND state IN" in " ".join(statement.split()) for statement in statements)
