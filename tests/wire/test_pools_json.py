"""Pools and default caps as JSON, and the answers of services that do not know them."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from ledger_sizer import Ledger
from ledger_sizer.wire import overviews, responses


def test_read_exposure_when_an_older_service_wrote_it_then_what_it_does_not_know_is_not_set(new_database: Any) -> None:
    later = ("max_position_usd", "shared", "pools", "defaults", "cap_from", "guarantee", "kept", "pools_left_out")
    with Ledger.open(new_database("sqlite")) as ledger:
        ledger.set_cap(key="1", cap=Decimal(9))
        old, overview = ledger.exposure(), ledger.overview()
        ledger.set_cap(key="2", scope="bot=a", guarantee=Decimal(5), max_position_usd=Decimal(3))
        ledger.set_cap(key="3", scope="venue=*", cap=Decimal(4))
        ledger.reserve(key="4", tags={"venue": "x"}, amount_usd=Decimal(1))
        new = ledger.exposure()
        assert responses.exposure_from_json(responses.exposure_to_json(new)) == new
        shown = ledger.overview()
        assert overviews.overview_from_json(overviews.overview_to_json(shown)) == shown
    form = responses.exposure_to_json(old)
    form["scopes"] = [{name: row[name] for name in row if name not in later} for row in form["scopes"]]
    assert responses.exposure_from_json({name: form[name] for name in form if name not in later}) == old
    shape = overviews.overview_to_json(overview)
    detail = {name: value for name, value in shape["detail"].items() if name not in later}
    assert overview.detail is not None
    found = overviews.overview_from_json({**shape, "detail": detail})
    assert found == replace(overview, detail=replace(overview.detail, shared=None))
