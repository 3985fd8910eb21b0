"""Every listing takes the same limits and cursors, and its pages have the same ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ledger_sizer import InvalidRequest, Ledger, Page
from ledger_sizer.model.overview import OverviewQuery
from ledger_sizer.reconcile.listings import list_drifts, list_runs
from ledger_sizer.storage.database import make_engine
from ledger_sizer.views.paging import cursor_numbers, page_of
from tests.conftest import NewDatabase

LISTINGS: dict[str, Callable[..., Any]] = {
    "positions": lambda ledger, _, **given: ledger.positions(**given),
    "decisions": lambda ledger, _, **given: ledger.history(**given),
    "drifts": lambda _, engine, **given: list_drifts(engine, **given),
    "runs": lambda _, engine, **given: list_runs(engine, **given),
}
WRONG: list[dict[str, Any]] = [
    *({"limit": value} for value in (0, 1001, -1, True, "5", 1.0, None)),
    *({"cursor": value} for value in ("", "x", "-1", "1:2:3", "٣", "1" * 19, 5)),
]


@pytest.mark.parametrize("name", LISTINGS)
def test_list_when_limit_or_cursor_is_wrong_then_the_error_names_it(new_database: NewDatabase, name: str) -> None:
    url = new_database("sqlite")
    with Ledger.open(url) as ledger:
        ledger.reserve(key="1")
        for given in WRONG:
            with pytest.raises(InvalidRequest) as caught:
                LISTINGS[name](ledger, make_engine(url, read_only=True), **given)
            assert [caught.value.field] == list(given), given


def test_overview_when_a_cursor_is_wrong_then_the_error_names_it(new_database: NewDatabase) -> None:
    with Ledger.open(new_database("sqlite")) as ledger:
        ledger.reserve(key="1")
        for field in ("held_cursor", "open_cursor", "decisions_cursor"):
            with pytest.raises(InvalidRequest) as caught:
                ledger.overview(OverviewQuery(**{field: "x"}))  # type: ignore[arg-type]
            assert caught.value.field == field


def test_page_when_rows_are_one_more_than_the_limit_then_the_cursor_is_of_its_last_row() -> None:
    assert page_of([1, 2, 3], 2, str, lambda row: row * 10) == Page(("1", "2"), "20")
    assert page_of([1, 2], 2, str, lambda row: row * 10) == Page(("1", "2"), None)
    assert page_of([], 2, str, lambda row: row * 10) == Page((), None)
    assert cursor_numbers("7:18", 2) == (7, 18)
