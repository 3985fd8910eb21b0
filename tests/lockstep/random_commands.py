"""Hypothesis strategies for commands, chosen so that caps, minimums and expiries collide.

A plan describes a command without knowing the state ("confirm the third held position for 1.5 times its size"). The
state machine turns it into a command when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeVar

from hypothesis import strategies as st

from ledger_sizer import (
    InstrumentInfo,
    Leg,
    LegPlan,
)
from tests.lockstep.model_positions import Tags
from tests.support.clock import START

SCOPES = ("portfolio", "venue=bybit", "venue=okx", "symbol=BTC", "strategy=funding", "bot=a", "bot=b", "venue=*")
"""Of a default, only a cap can be set: other commands about it are refused."""
GivenTags = dict[str, Any]
V = TypeVar("V")
TAGS: tuple[GivenTags, ...] = (
    {},
    {"venue": "bybit"},
    {"venue": "okx", "symbol": "BTC"},
    {"venue": ["okx", "bybit"], "symbol": "BTC"},
    {"venue": ("bybit", "kraken"), "strategy": {"funding"}},
    {"venue": "bybit", "symbol": "BTC", "strategy": ["funding", "basis", "grid"]},
    {"bot": "a"},
    {"bot": "b", "venue": "okx"},
    {"bot": ["b", "a"], "strategy": "grid"},
    {"bot": "c", "venue": ["bybit", "*"]},
    {"symbol": "ETH \N{GREEK SMALL LETTER ALPHA}'\"\\{}", "strategy": "funding"},
)
MARKET_TAGS: tuple[GivenTags, ...] = (
    {},
    {"symbol": "BTC/USDT"},
    {"strategy": ["funding", "grid"]},
    {"venue": ["bybit", "gate", "okx"], "strategy": "funding"},
    {"bot": "a"},
    {"bot": "b", "strategy": "grid"},
    {"bot": ["a", "c"]},
)
"""Tags that contradict no legs."""
POOL_TAGS: tuple[GivenTags, ...] = ({}, {"bot": "a"}, {"bot": "b"}, {"bot": "c"}, {"bot": ["b", "c"]}, {"venue": "okx"})


def _chosen(values: Sequence[V]) -> st.SearchStrategy[V]:
    """Choose one of many values. Unlike `sampled_from`, it does not print them all where it is printed itself."""
    return st.integers(0, len(values) - 1).map(values.__getitem__)


def _market(price: str, spot: tuple[str, ...], perp: tuple[str, ...]) -> dict[str, Any]:
    """price; then min_qty, max_qty, qty_step, min_notional and (perp) contract_size of each leg."""
    names = ("min_qty", "max_qty", "qty_step", "min_notional", "contract_size")
    legs = [dict(zip(names, map(Decimal, leg), strict=False)) for leg in (spot, perp)]
    return {
        "price": Decimal(price),
        "spot_instrument": InstrumentInfo("BTC/USDT", **legs[0]),
        "perp_instrument": InstrumentInfo("BTC/USDT:USDT", **legs[1]),
    }


MARKETS: tuple[dict[str, Any], ...] = (
    {},
    {"price": Decimal(3)},
    _market("50000", ("0.00001", "9000", "0.00001", "5"), ("0.001", "100", "0.001", "5")),
    _market("7.77", ("0.3", "100", "0.3", "0"), ("0.2", "1000", "0.2", "10")),  # a common step of 0.6
    _market("97.5", ("0.1", "3.2", "0.1", "1"), ("1", "1000", "1", "1", "0.01")),  # max_qty binds
    _market("0.0000123", ("1", "1e12", "1", "150"), ("1", "1e9", "1", "150", "1000")),  # min_notional often binds
    _market("60123.45", ("0.01", "10", "0.01", "0"), ("0.01", "10", "0.01", "0")),  # min_qty denies most
)


def _plan_of(venue: str, symbol: str, side: str, rules: tuple[str, ...], **more: Any) -> LegPlan:
    """rules: min_qty, max_qty, qty_step, min_notional, contract_size, multiplier, max_notional."""
    names = ("min_qty", "max_qty", "qty_step", "min_notional", "contract_size", "multiplier", "max_notional")
    figures: dict[str, Any] = dict(zip(names, map(Decimal, rules), strict=False))
    more = {name: Decimal(value) if name in ("price", "fee_rate") else value for name, value in more.items()}
    return LegPlan(InstrumentInfo(symbol, venue=venue, **figures), side, **more)  # type: ignore[arg-type]


_SPOT_RULES = ("0.0001", "9000", "0.0001", "5")
_CONTRACTS = ("1", "9000", "1", "5", "0.01")
_ODD = ("0.3", "100", "0.3", "0")
_BYBIT = _plan_of("bybit", "BTC/USDT:USDT", "buy", _CONTRACTS)
_CASH = _plan_of("bybit", "BTC/USDT", "buy", _SPOT_RULES, fee_rate="0.001")
LEG_PLANS: dict[str, dict[str, Any]] = {
    "one contract": {"legs": [_BYBIT], "price": Decimal(97)},
    "one contract, own price": {"legs": [_plan_of("bybit", "BTC/USDT:USDT", "buy", _CONTRACTS, price="33.3333")]},
    "two venues, two prices": {
        "legs": [_BYBIT, _plan_of("okx", "BTC/USDT:USDT", "sell", ("0.3", "1e6", "0.3", "0", "0.01"), price="101.7")],
        "price": Decimal(100),
    },
    "two venues": {
        "legs": [_BYBIT, _plan_of("okx", "BTC/USDT:USDT", "sell", ("0.3", "1e6", "0.3", "0", "0.01"))],
        "price": Decimal("7.77"),
    },
    "spot and contract, two prices": {
        "legs": [_CASH, _plan_of("bybit", "BTC/USDT:USDT", "sell", _CONTRACTS, price="50.5")],
        "price": Decimal(50),
    },
    "spot and contract": {
        "legs": [_CASH, _plan_of("bybit", "BTC/USDT:USDT", "sell", _CONTRACTS)],
        "price": Decimal("13.1313"),
    },
    "four legs": {
        "legs": [
            _plan_of("okx", "BTC/USDT", "buy", _ODD, fee_rate="0.0333", account="one"),
            _plan_of("okx", "BTC/USDC", "buy", _ODD, account="two"),
            _plan_of("gate", "BTC/USDT:USDT", "sell", ("2", "1e4", "2", "0", "0.1", "1", "150")),
            _plan_of("bybit", "1000BTC/USDT:USDT", "sell", ("0.0001", "1", "0.0001", "0", "1", "1000")),
        ],
        "price": Decimal("3.3"),
    },
    "two bought": {
        "legs": [
            _plan_of("bybit", "BTC/USDT", "buy", ("0.01", "10", "0.01", "0")),
            _plan_of("okx", "BTC/USDT", "buy", ("0.01", "1.5", "0.01", "0")),
        ],
        "price": Decimal(60),
    },
}
"""Markets that contradict no `MARKET_TAGS`, by name."""

LEGS = [
    Leg("okx", "BTC-USDT", "spot", "buy", Decimal("0.5"), Decimal(100)),
    Leg("okx", "X", "swap", "sell", Decimal(2)),
]


def _decimals(*values: str | None) -> st.SearchStrategy[Decimal | None]:
    return st.sampled_from([None if value is None else Decimal(value) for value in values])


SECONDS = st.sampled_from([None, 1, 10, Decimal("5.5"), 30.25, 3600])
ADVANCES = st.sampled_from(
    [
        "0.000001",
        "0.5",
        "1",
        "4.5",
        "10",
        "59.999999",
        "60",
        "61",
        "4000",
        "-0.5",
        "-20",
        "-60",
        "-60.000001",
        "-5000",
        "200000",
    ]  # a clock may be set back, too, or jump far ahead
)


@dataclass(frozen=True)
class CommandPlan:
    """Plan of a command. index: of the position or earlier command it is about; -1: a position not created yet.

    fitting: choose among the positions that the verb fits, rather than any.
    """

    verb: str
    portfolio: str
    values: dict[str, Any]
    index: int = 0
    fitting: bool = True


_PORTFOLIOS = st.sampled_from("aaab")
_INDEX = st.integers(-1, 6)
_FITTING = st.sampled_from([True, True, True, True, False])


def _plan(verb: str, **values: st.SearchStrategy[Any]) -> st.SearchStrategy[CommandPlan]:
    return st.builds(CommandPlan, st.just(verb), _PORTFOLIOS, st.fixed_dictionaries(values), _INDEX, _FITTING)


REFERENCES = st.sampled_from([None, None, "order-7 \N{GREEK SMALL LETTER ALPHA}"])
REST = st.sampled_from([None, "free", "hold", "hold"])
_ASKS = _plan(
    "reserve",
    ask=_chosen(
        [
            {},
            {"signal_score": Decimal("0.25")},
            {"signal_score": Decimal(0)},
            {"signal_score": Decimal("0.333333333333"), "max_position_usd": Decimal("123.456789")},
            {"signal_score": Decimal(1), "max_position_usd": Decimal(9999)},
            {"amount_usd": Decimal("88.000000001")},
            {"amount_usd": Decimal(25)},
            {"amount_usd": Decimal(5000), "max_position_usd": Decimal(200)},
        ]
    ),
    available_balance=_decimals(None, None, None, "1e12", "150.5", "99.999999999", "0.000000001", "0", "-3"),
    min_notional_usd=_decimals(None, None, None, "0", "100", "299"),
    life=st.sampled_from(
        [
            {},
            {},
            {"ttl_seconds": 1},
            {"ttl_seconds": 10},
            {"ttl_seconds": 30.25},
            {"ttl_seconds": 3600},
            {"until_known": True},
            {"until_known": False},
        ]
    ),
    reference=REFERENCES,
)


def _reserve_plan(plan: CommandPlan, market: str, tags: GivenTags) -> CommandPlan:
    values = {**plan.values, "tags": tags, "market": market}
    values |= values.pop("ask") | values.pop("life")
    return CommandPlan(plan.verb, plan.portfolio, values, plan.index, plan.fitting)


PAIRS = {f"pair {number}": market for number, market in enumerate(MARKETS[2:])}
BY_NAME: dict[str, dict[str, Any]] = {"none": MARKETS[0], "price": MARKETS[1], **PAIRS, **LEG_PLANS}
"""What a reservation may ask for, by name: a failure prints plans, and rules would be too long for it."""
_WITH_LEGS = st.sampled_from([*PAIRS, *LEG_PLANS, *LEG_PLANS])
RESERVES = st.one_of(
    st.builds(_reserve_plan, _ASKS, st.sampled_from(["none", "price"]), _chosen(TAGS)),
    st.builds(_reserve_plan, _ASKS, _WITH_LEGS, _chosen(MARKET_TAGS)),
)
GROWTHS = st.builds(
    lambda plan, market: CommandPlan(
        "grow", plan.portfolio, _reserve_plan(plan, market, {}).values, plan.index, plan.fitting
    ),
    _ASKS,
    st.one_of(st.just("none"), _WITH_LEGS),
)
SHORT_HOLDS = st.lists(
    _plan("reserve", tags=_chosen(TAGS), ttl_seconds=st.sampled_from([9, 10])), min_size=3, max_size=8
)
SHARES = ["0.333333", "0.1", "0.5", "1", "1", "1.5", "3"]
CONFIRMS = _plan(
    "confirm",
    share=st.sampled_from(SHARES),
    price=st.sampled_from(["3", "7.77", "100", "50000", "0.0000123", "97.123456789"]),
    spot_price=_decimals(None, None, "7.5"),
    legs=st.sampled_from([None, None, None, "elsewhere", "first", "last", "all"]),
    rest=REST,
    reference=REFERENCES,
)
FILLS = _plan(
    "fill",
    share=st.sampled_from(SHARES),
    beyond=st.sampled_from([True, True, True, False]),
    price=st.sampled_from(["3", "7.77", "100", "0.0000123", "97.123456789"]),
    rest=st.sampled_from(["hold", "hold", "free"]),
    reference=REFERENCES,
)
RETAGS = _plan(
    "retag",
    tags=_chosen([*TAGS, *MARKET_TAGS, *POOL_TAGS, *POOL_TAGS]),
    note=st.sampled_from([None, "moved"]),
    reference=REFERENCES,
)
REPRICES = _plan("reprice", price=st.sampled_from(["3", "7.77", "0.0000123", "250.000000001"]))
RENAMES = _plan(
    "rename",
    asset=st.sampled_from(["S", "BTC", "UBTC"]),
    ratio=st.sampled_from([Decimal(1), Decimal(24_000), Decimal("0.4333333333333")]),
    coin=st.sampled_from([None, None, "BTC"]),
)
RELEASES = _plan(
    "release",
    share=st.sampled_from([None, None, "0.333333", "0.5", "1", "2"]),
    held_only=st.sampled_from([None, None, None, True, False]),
)
EXTENDS = st.one_of(_plan("extend", ttl_seconds=SECONDS), _plan("extend", until_known=st.just(True)))
ADOPTS = _plan(
    "adopt",
    tags=_chosen(TAGS),
    quantity=st.sampled_from([Decimal(1), Decimal("0.123456789")]),
    price=st.sampled_from([Decimal(50), Decimal("333.333333333")]),
    legs=st.sampled_from([None, LEGS]),
    note=st.sampled_from([None, "found at the exchange"]),
)
_CAPS = _decimals(None, "0", "99.5", "400", "700", "5000")
_SURE = _decimals(None, "0", "150", "150.000000019", "300", "420", "2000")
_LARGEST = _decimals(None, "0.00000001", "77.7777777777", "130", "390", "9000")
CAPS = st.one_of(
    _plan("set_cap", scope=st.sampled_from([*SCOPES, "strategy=*"]), cap=_CAPS),
    _plan(
        "set_cap",
        scope=st.sampled_from(["bot=a", "bot=b", "bot=c", "bot=a", "bot=b", "venue=okx", "portfolio", "venue=*"]),
        limits=st.one_of(
            st.fixed_dictionaries({"guarantee": _SURE}, optional={"cap": _CAPS}),
            st.fixed_dictionaries({"max_position_usd": _LARGEST}, optional={"cap": _CAPS}),
            st.fixed_dictionaries({"guarantee": _SURE, "max_position_usd": _LARGEST}),
            st.just({}),
        ),
    ),
)
SHARES = _plan(
    "set_cap",
    scope=st.sampled_from(["portfolio", "venue=okx", "bot=a"]),
    limits=st.one_of(
        st.fixed_dictionaries({"share_of_equity": _decimals("0.8", "0.333333333333", "2")}),
        st.just({"share_of_equity": None, "cap": Decimal(700)}),
    ),
)
EQUITIES = _plan(
    "equity_seen", scope=st.sampled_from(["portfolio", "portfolio", "venue=okx", "bot=a"]),
    equity=_decimals("0", "333.333333339", "900", "6000"),
)  # fmt: skip
_MOMENTS = st.sampled_from([None, START + timedelta(seconds=30), START + timedelta(hours=2)])
ACCOUNTS = _plan(
    "account_seen",
    scope=st.sampled_from(["account=bybit/main", "account=okx/main"] * 4 + ["account=okx/second"]),
    limits=st.one_of(
        st.fixed_dictionaries({
            "free": _decimals(None, "0", "77.777777777", "400", "400", "2000"),
            "settled": _decimals(None, "-30", "50.000000019", "400"),
        }, optional={"margin_fraction": _decimals("1", "0.1", "0.333333333"), "fresh_until": _MOMENTS}),
        st.just({"gone": True}),
    ),
)  # fmt: skip
HALTS = _plan("halt", scope=st.sampled_from(SCOPES), mode=st.sampled_from(["halted", "reducing"]))
RESUMES = _plan("resume", scope=st.sampled_from(SCOPES), note=st.sampled_from([None, "checked"]))
FREEZES = _plan("freeze", scope=st.sampled_from(SCOPES), note=st.sampled_from([None, "drift-1"]))
THAWS = _plan("thaw", scope=st.sampled_from(SCOPES))
TRUSTS = _plan(
    "reconciled",
    scope=st.sampled_from(SCOPES),
    fresh_until=st.sampled_from([None, START + timedelta(seconds=30), START + timedelta(hours=2)]),
)
REMARKS = _plan("remark", about=st.just("drift-1"), event=st.sampled_from(["close_requested", "confirmed"]))
AGAIN = _plan("again")
REUSE = _plan("reuse")

LIVES = st.one_of(
    CONFIRMS, CONFIRMS, FILLS, FILLS, RELEASES, RELEASES, EXTENDS, RETAGS, REPRICES, RENAMES, GROWTHS, GROWTHS
)
POOL_MOVES = st.one_of(CAPS, RETAGS, RETAGS, GROWTHS)
ADMINISTRATION = st.one_of(CAPS, SHARES, HALTS, RESUMES, ADOPTS)
RECONCILIATION = st.one_of(FREEZES, THAWS, THAWS, TRUSTS, REMARKS, ACCOUNTS, ACCOUNTS, EQUITIES)
ANY = st.one_of(RESERVES, RESERVES, LIVES, LIVES, ADMINISTRATION, RECONCILIATION, AGAIN, REUSE)
BOUND: tuple[Tags, ...] = (
    (("bot", "a"),),
    (("bot", "a"), ("bot", "c")),
    (("bot", "b"), ("strategy", "grid")),
    (("venue", "okx"),),
)
"""What an API key may be bound to."""
GROUPS = st.tuples(st.lists(ANY, min_size=1, max_size=4), st.booleans())
_UNDER_A_KEY = st.one_of(RESERVES, RESERVES, LIVES, LIVES, ADMINISTRATION, REMARKS, AGAIN)
BOUND_GROUPS = st.tuples(st.lists(_UNDER_A_KEY, min_size=1, max_size=3), st.booleans())
LATE_GROUPS = st.tuples(st.lists(st.one_of(RESERVES, LIVES, LIVES, AGAIN), min_size=1, max_size=4), st.booleans())
