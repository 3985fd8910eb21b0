"""The row of a scope in a trace: what is written of each setting, and that rows of every version are read back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ledger_sizer.model.scope_settings import NO_SETTINGS, ScopeSettings
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.rules.trace import read_scope, trace_text


@pytest.mark.parametrize(
    ("settings", "row"),
    [
        (NO_SETTINGS, ["venue=x", None, 3, 4, "active"]),
        (ScopeSettings(5, "halted"), ["venue=x", 5, 3, 4, "halted"]),
        (ScopeSettings(frozen=True), ["venue=x", None, 3, 4, "active", 1, None]),
        (ScopeSettings(5, fresh_until_us=9), ["venue=x", 5, 3, 4, "active", 0, 9]),
    ],
)
def test_write_scope_when_read_back_then_it_is_the_same(settings: ScopeSettings, row: list[Any]) -> None:
    scope = ScopeState("venue=x", settings, 3, 4)
    trace = json.loads(trace_text([scope], after=scope))
    assert trace == {"scopes": [row], "after": row}
    assert read_scope(row) == ("venue=x", settings, 3, 4)


def test_read_scope_when_a_later_version_wrote_no_other_setting_then_it_is_read() -> None:
    assert read_scope(["venue=x", 5, 3, 4, "active", 0, None, {}]) == ("venue=x", ScopeSettings(5), 3, 4)


@pytest.mark.parametrize(
    "row",
    [
        [],
        ["venue=x", None, 3, 4],
        ["venue=x", None, 3, 4, "active", 0],
        ["venue=x", None, 3, 4, "active", 0, None, {"unknown": 1}],
        ["venue=x", None, 3, 4, "active", 0, None, {"cap_e8": 1}],
        ["venue=x", None, 3, 4, "active", 0, None, {}, 1],
    ],
)
def test_read_scope_when_the_row_is_no_scope_then_it_is_an_error(row: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"scope|unpack"):
        read_scope(row)
