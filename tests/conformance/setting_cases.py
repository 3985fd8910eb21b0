"""Calls of `set_cap`: each setting of a scope given, removed or left out, alone and with the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from ledger_sizer.model.arguments import NOT_GIVEN
from tests.support.argument_values import BAD_OF_KIND, GOOD_OF_KIND

D = Decimal
_POOL: dict[str, Any] = {"scope": "bot=a", "cap": NOT_GIVEN}
_FIRST = {"key": "first", "scope": "bot=a", "guarantee": D(5), "max_position_usd": D(3), "portfolio": "{p}"}
_AFTER_A_POOL: dict[str, dict[str, Any]] = {
    "a pool": {"guarantee": D(5)},
    "all of it": {"cap": D(9), "guarantee": D("4.5"), "max_position_usd": D(2)},
    "all of it removed": {"cap": None, "guarantee": None, "max_position_usd": None},
    "a cap removed and a guarantee set": {"cap": None, "guarantee": D(5)},
    "guarantee removed": {"guarantee": None},
    "the largest removed": {"max_position_usd": None},
    "nothing": {},
    "another pool": {"scope": "bot=b", "guarantee": D(6)},
    "on another tag": {"scope": "venue=x", "guarantee": D(6)},
    "more than the cap": {"guarantee": D(100_001)},
    "more than the cap together": {"scope": "bot=b", "guarantee": D(99_996)},
    "a default": {"scope": "bot=*", "cap": D(5)},
    "a default's guarantee": {"scope": "bot=*", "guarantee": D(5)},
    "a default's largest": {"scope": "bot=*", "cap": D(5), "max_position_usd": D(5)},
    "the whole's guarantee": {"scope": "portfolio", "guarantee": D(5)},
    "the whole's cap below it": {"scope": "portfolio", "cap": D(4)},
    "the whole's largest": {"scope": "portfolio", "max_position_usd": D(4)},
}


def setting_cases() -> Iterator[tuple[str, tuple[tuple[str, Mapping[str, Any]], ...], dict[str, Any]]]:
    """Yield the name of each call, the calls before it, and its arguments."""
    for name in ("guarantee", "max_position_usd"):
        for number, value in enumerate([*GOOD_OF_KIND["not_negative"], *BAD_OF_KIND["not_negative"], None]):
            yield f"only {name}[{number}]={value!r:.60}", (), {**_POOL, name: value}
    for name, more in _AFTER_A_POOL.items():
        yield name, (("set_cap", _FIRST),), {**_POOL, **more}
