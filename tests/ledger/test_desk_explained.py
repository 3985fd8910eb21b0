"""What `explain` says of a denial by the desk's halt."""

from __future__ import annotations

import pytest

from ledger_sizer import Ledger


@pytest.mark.parametrize("mode", ["halted", "reducing"])
def test_explain_when_the_desk_denied_then_it_says_so_and_that_nothing_was_grantable(ledger: Ledger, mode: str) -> None:
    ledger.halt(key="h", portfolio="*", mode=mode)  # type: ignore[arg-type]
    denied = ledger.reserve(key="k")
    assert (denied.reason, denied.binding) == (mode, "desk")
    told = ledger.explain(denied.seq or 0)
    assert f"The desk is {mode}, and so is every portfolio." in told.text
    assert "the desk" in told.text.splitlines()[0]
    assert told.data["largest_grantable"] == {"budget": "0", "quantity": None, "binding": "desk"}


def test_explain_when_the_desk_is_active_then_it_does_not_speak_of_it(ledger: Ledger) -> None:
    ledger.halt(key="h", portfolio="*")
    ledger.resume(key="r", portfolio="*")
    granted = ledger.reserve(key="k")
    assert "desk" not in ledger.explain(granted.seq or 0).text
