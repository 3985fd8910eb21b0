"""Values of every kind of argument, good and bad: derived checks try them on each argument of that kind."""

from __future__ import annotations

from collections import OrderedDict, deque
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from ledger_sizer import InstrumentInfo, Leg, LegPlan
from tests.support.interfaces import Name

D = Decimal
LEG = Leg("bybit", "BTC", "spot", "buy", D(1))

SPOT = InstrumentInfo("BTC/USDT", D("0.001"), D(100), D("0.001"), venue="bybit")
CONTRACT = InstrumentInfo("BTC/USDT:USDT", D("0.001"), D(100), D("0.001"), venue="okx")
LEG_PLAN = LegPlan(CONTRACT, "buy", D(50_000))

_NOT_A_NUMBER = [0.5, True, "1", D("NaN"), D("sNaN"), D("Infinity"), D("1E+999999"), D("1E-40"), [], b"1"]

BAD_OF_KIND: dict[str, list[Any]] = {
    "positive": [*_NOT_A_NUMBER, D(0), D(-1), 0, -5],
    "not_negative": [*_NOT_A_NUMBER, D(-1), -5],
    "decimal": _NOT_A_NUMBER,
    "score": [*_NOT_A_NUMBER, D("1.1"), D("-0.1"), 2],
    "fee_rate": [D("-0.001"), D("0.1"), D("NaN"), 0.001],
    "seconds": [0, -1, 2_592_001, D(0), D("2592000.000001"), D("NaN"), D("sNaN"), D("Infinity"), float("nan"),
                float("inf"), -0.5, True, "30", D("1E+999999"), 10**400],
    "tags": ["venue=bybit", 5, ["venue"], {"Venue": "x"}, {"": "x"}, {"1a": "x"}, {"portfolio": "x"}, {"a-b": "x"},
             {"x" * 33: "x"}, {7: "x"}, {f"t{n}": "x" for n in range(17)}, {"venue": []}, {"venue": ()},
             {"venue": set()}, {"venue": ["a"] * 17}, {"venue": {f"value-of-{n}" for n in range(17)}},
             {"venue": [["a"]]}, {"venue": [("a",)]}, {"venue": [{"a": "b"}]}, {"venue": ["a", 5]},
             {"venue": ("a", None)}, {"venue": {"a": "b"}}, {"venue": b"a"}, {"venue": [b"a"]}, {"venue": iter("ab")},
             {"venue": range(2)}, {f"t{n}": "x" * 128 for n in range(16)}],
    "instrument": ["BTC", {}, 5],
    "flag": ["no", "yes", 1, 0],
    "legs": ["legs", [None], [{"venue": "bybit"}], [], [LEG] * 17, LEG],
    "leg_plans": ["legs", [None], [{"side": "buy"}], [], [LEG_PLAN] * 17, LEG_PLAN, [LEG]],
    "scope": ["", "x", "=x", "x=", "X=y", 5, "portfolio=x", "x=" + "y" * 160],
    "account_scope": ["portfolio", "venue=bybit", "account=bybit", "account=/main", "account=bybit/", "bybit/main", 5],
    "choice": ["", "active", True, 5],
    "note": ["", "a\x00", "x" * 501, 5],
    "label": ["", "a\x1f", "x" * 129, 5],
    "moment": ["2026-01-01T00:00:00Z", 5, datetime(2026, 1, 1)],  # noqa: DTZ001 - without a zone
    "key": ["", " \t", "x" * 201, 5, "ledger:mine"],
    "details": [{}, [], "a=b", 5, {"A": "x"}, {"": "x"}, {"a b": "x"}, {"x" * 65: "x"}, {7: "x"},
                {f"n{number}": "x" for number in range(65)}],
    "portfolio_or_desk": ["", "-a", "**", "* ", "a*", "x" * 65, 7],
    "portfolio": ["*", "", "-a", ".a", "a b", "a/b", "a\n", "x" * 65, "ü", 7],
    "position": ["", "main", "main-", "main-x", "-1", 5, "a b-1", "main-01", "main-00", "main-" + "1" * 19],
}  # fmt: skip
"""By the kind's name. All of them are refused, and the argument is named."""

MORE_BAD_OF_KIND: dict[str, list[Any]] = {
    "positive": [10**30, 10**400, D("1E+30"), D("1E-37"), None, (), {}],
    "not_negative": [10**30, D("1E+30"), D("-1E-36")],
    "decimal": [10**30, D("-Infinity"), D("1E+30")],
    "score": [10**30, D("1.000000000000000001")],
    "fee_rate": [1, "0.001", True],
    "seconds": [1e300, [], {}],
    "tags": [{"venue": ""}, {"venue": "a\x1fb"}, {"venue": "x" * 129}, {"venue": 5}, {"venue": None}, {"external": "x"},
             {"venue": [""]}, {"venue": ["a", "b\x1fc"]}, {"venue": ["a", "x" * 129]}, {"venue": ["a", "\ud800"]},
             {"external": ["x", "y"]}, {"venue": [True]}, {"venue": [0.5, D(1)]}, {"portfolio": ["a", "b"]},
             {7: ["a"]}, {"venue": [["a"] * 10_000] * 16}],
    "instrument": ["", "bybit:", ":", "a\x00:b", "bybit:NO/SUCH"],
    "asset": ["", " ", "U SD", "U\u3000SD", "a\x1fb", "x" * 65, "BTC", "\ud800"],
    "switch": [0, 1.0, "yes", "true", [], {}],
    "flag": [0.0, D(1), []],
    "legs": [5, {}, [LEG, None], "bybit,BTC,spot,buy,1"],
    "leg_plans": [5, {}, [LEG_PLAN, None], "bybit:BTC/USDT:USDT,buy", [LEG_PLAN, LEG_PLAN],
                  [LegPlan("bybit:NO/SUCH:SUCH", "buy")], [LegPlan(SPOT, "sell", fee_rate=D("0.001"))],
                  [LegPlan(SPOT, "buy", D(1)), LegPlan(InstrumentInfo("ETH/USDT", D(1), D(9), D(1)), "sell", D(1))],
                  [LegPlan(InstrumentInfo("X", D(1), D(9), D(1)), "buy", D(1))], [LegPlan(SPOT, "buy")]],
    "scope": ["venue=a\x00", "venue=\n", "venue", "x=" + "y" * 129, None],
    "account_scope": ["account=a/b\x00", "account=*", "account=" + "y" * 65 + "/main", None],
    "choice": ["HALTED", "halted ", None],
    "note": ["\ud800", "a\nb", b"x", []],
    "label": ["a\nb", None, b"x"],
    "moment": [True, [], "now"],
    "key": ["a\x00b", "a\nb", "\ud800", b"k"],
    "portfolio": ["a\x00", "../x", b"main", True],
    "details": [{"a": ""}, {"a": 5}, {"a": "x" * 301}, {"a": "b\n"}, {"a": None}, {"a": ["b"]},
                {"a": "\ud800"}, {"a\n": "b"}, {"1a": "b"}, b"a", True],
    "portfolio_or_desk": ["a\x00", "../x", b"main", True, "a/b"],
    "position": ["main-+1", "main-1 ", "main- 1", "main-1\n", "é-1", "main-\u0661", True, b"main-1"],
}  # fmt: skip
"""Hostile values beside `BAD_OF_KIND`. Some fit some arguments of the kind: what counts is that all agree."""

GOOD_OF_KIND: dict[str, list[Any]] = {
    "positive": [D("1.5"), 2, D("1E+2"), D("0.000000000000000000000000000000000001"), D("1.50"), D("9" * 30)],
    "asset": ["USDT", "币安人生", "1000PEPE"],
    "switch": [True, False],
    "not_negative": [D("1.5"), 0, D(0), D("-0"), D("1E+3"), 7, D("0.00000000000000000001")],
    "decimal": [D("-5"), D(0), 10_000, D("1E-36"), D("0.0000000012345")],
    "score": [D(0), D(1), D("0.25"), D("1.00"), 1, D("0E+5")],
    "fee_rate": [D("0.001"), 0, D("0.0999999")],
    "seconds": [30, 30.5, D("59.9999999"), D("1E+1"), 2_592_000, 0.0000001, D("30.0")],
    "details": [{"a": "b"}, {"a.b_1": "x=y z☃", "z": "1"}, {f"n{number}": "x" * 300 for number in range(64)}],
    "tags": [{}, {"venue": "bybit"}, {"venue": "a=b&c d☃", "x_1": " blanks "}, OrderedDict(b="1", a="2"),
             MappingProxyType({"symbol": "BTC"}), {Name.VENUE: Name.BYBIT}, {"venue": "-x"}, {"venue": "--json"},
             {"venue": ["bybit", "okx"]}, {"venue": ("okx", "bybit", "okx")}, {"venue": {"okx", "bybit"}},
             {"venue": frozenset({"okx"})}, {"venue": ["bybit"]}, {"venue": [Name.BYBIT, "bybit"]},
             {"venue": ["é", "e\u0301", "☃", 'a"b', "a\\", "a,b", "[c]", "a=b"], "symbol": ["BTC", "-x", "--json"]},
             {f"t{n}": [f"v{value}" for value in range(16)] for n in range(16)}],
    "instrument": [InstrumentInfo("BTC/USDT", D("0.001"), D(100), D("0.001"))],
    "flag": [True, False],
    "legs": [[LEG], (LEG,), deque([LEG]), [LEG] * 16, [Leg("okx", "B,C ☃", "swap", "sell", D("0.5"), D(100))]],
    "leg_plans": [[LEG_PLAN], (LEG_PLAN,), deque([LEG_PLAN]), [LegPlan(SPOT, "buy", D(50_000), D("0.001")), LEG_PLAN],
                  [LegPlan(CONTRACT, "sell", D(49_000), account="a ☃", asset="BTC"), LegPlan(SPOT, "sell", D(50_000))]],
    "scope": ["portfolio", "venue=bybit", "venue=a b☃", "venue==", Name.SCOPE],
    "account_scope": ["account=bybit/main", "account=binance/a b☃/1"],
    "choice": ["halted", "reducing", Name.HALTED],
    "note": ["ok", "ключ ☃", "x" * 500, " blanks ", "-dash", "--json", '"quoted\\"'],
    "label": ["drift-17", "ключ", "x" * 128, "-dash"],
    "moment": [datetime(2030, 1, 31, 12, tzinfo=UTC), datetime(2030, 1, 31, 12, 0, 0, 1, timezone(timedelta(hours=5))),
               datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC), None,
               datetime(1, 1, 1, tzinfo=UTC), datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))],
    "key": ["ключ/☃/ö", "  blanks around  ", "~!@#$%^&*()/+=?", '"quoted\\"', "x" * 200, "-dash", "--json", Name.BTC],
}  # fmt: skip
"""Values that fit, or whose fit depends on the rest of the request: what counts is that all agree."""
