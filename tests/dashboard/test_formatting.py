"""How the dashboard shows figures."""

from __future__ import annotations

from decimal import Decimal

from ledger_sizer.dashboard import formatting
from tests.dashboard.test_parts import _scope


def test_show_figures_when_they_have_many_digits_then_headroom_is_never_more_than_there_is() -> None:
    assert formatting.money(Decimal("1234567.125")) == "1,234,567.12"
    assert formatting.money_floor(Decimal("0.009")) == "0.00"
    assert formatting.percent(_scope(3, "0", "2")) == "66.7%"
    assert formatting.percent(_scope(100000, "0", "99999.999")) == "100.0%"
    assert [formatting.exact(Decimal(one)) for one in ("50100.50", "-0.015")] == ["50,100.5", "-0.015"]
    nothing = {formatting.money(None), formatting.exact(None), formatting.percent(_scope(None, "0", "1"))}
    assert nothing == {formatting.NONE}
