"""Hypothesis strategies for commands, chosen so that caps, minimums and expiries collide.

A plan describes a command without knowing the state ("confirm the third held position for 1.5 times its size"). The
state machine turns it into a command when it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

from ledger_sizer import AppSettings, DynamicSizingSettings, InstrumentInfo, LedgerSettings, Leg, TradingSettings
from tests.lockstep.model_rules import Figures
from tests.support.clock import START

SCOPES = ("portfolio", "venue=bybit", "venue=okx", "symbol=BTC", "strategy=funding")
TAGS: tuple[dict[str, Any], ...] = (
    {},
    {"venue": "bybit"},
    {"venue": "okx", "symbol": "BTC"},
    {"venue": "bybit", "symbol": "BTC", "strategy": "funding"},
    {"symbol": "ETH \N{GREEK SMALL LETTER ALPHA}'\"\\{}", "strategy": "funding"},
    {"venue": ["okx", "bybit"], "symbol": "BTC"},
    {"venue": ("bybit", "kraken"), "strategy": {"funding"}},
)


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


RESERVES = st.builds(
    lambda plan, market: CommandPlan(plan.verb, plan.portfolio, {**plan.values, **market}),
    _plan(
        "reserve",
        tags=st.sampled_from(TAGS),
        signal_score=_decimals(None, "0", "0.25", "0.9", "1", "0.333333333333"),
        available_balance=_decimals(None, None, None, "1e12", "150.5", "99.999999999", "0.000000001", "0", "-3"),
        min_notional_usd=_decimals(None, None, None, "0", "100", "299"),
        ttl_seconds=SECONDS,
    ),
    st.sampled_from(MARKETS),
)
SHORT_HOLDS = st.lists(
    _plan("reserve", tags=st.sampled_from(TAGS), ttl_seconds=st.sampled_from([9, 10])), min_size=3, max_size=8
)
CONFIRMS = _plan(
    "confirm",
    share=st.sampled_from(["0.333333", "1", "1", "1.5", "3"]),
    price=st.sampled_from(["3", "7.77", "50000", "0.0000123", "97.123456789"]),
    spot_price=_decimals(None, "7.5"),
    legs=st.sampled_from([None, None, LEGS]),
)
RELEASES = _plan(
    "release",
    share=st.sampled_from([None, None, "0.333333", "0.5", "1", "2"]),
    held_only=st.sampled_from([None, None, None, True, False]),
)
EXTENDS = _plan("extend", ttl_seconds=SECONDS)
ADOPTS = _plan(
    "adopt",
    tags=st.sampled_from(TAGS),
    quantity=st.sampled_from([Decimal(1), Decimal("0.123456789")]),
    price=st.sampled_from([Decimal(50), Decimal("333.333333333")]),
    legs=st.sampled_from([None, LEGS]),
    note=st.sampled_from([None, "found at the exchange"]),
)
CAPS = _plan("set_cap", scope=st.sampled_from(SCOPES), cap=_decimals(None, "0", "99.5", "400", "700", "5000"))
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

LIVES = st.one_of(CONFIRMS, RELEASES, EXTENDS)
ADMINISTRATION = st.one_of(CAPS, HALTS, RESUMES, ADOPTS)
RECONCILIATION = st.one_of(FREEZES, THAWS, THAWS, TRUSTS, REMARKS)
ANY = st.one_of(RESERVES, RESERVES, LIVES, LIVES, ADMINISTRATION, RECONCILIATION, AGAIN, REUSE)
GROUPS = st.tuples(st.lists(ANY, min_size=1, max_size=4), st.booleans())
LATE_GROUPS = st.tuples(st.lists(st.one_of(RESERVES, LIVES, LIVES, AGAIN), min_size=1, max_size=4), st.booleans())


@dataclass(frozen=True)
class Policy:
    """One way to configure a ledger."""

    enabled: bool
    min_fraction: str = "0.3"
    max_fraction: str = "1.0"
    position_max: str = "400"
    cap: str = "1000"
    ttl_seconds: int = 60

    def settings(self) -> AppSettings:
        """Return the policy as settings of the ledger."""
        return AppSettings(
            sizing=DynamicSizingSettings(
                enabled=self.enabled,
                min_allocation_fraction=Decimal(self.min_fraction),
                max_allocation_fraction=Decimal(self.max_fraction),
                max_portfolio_exposure=Decimal(self.cap),
            ),
            trading=TradingSettings(max_position_size_usd=Decimal(self.position_max)),
            ledger=LedgerSettings(hold_ttl_seconds=self.ttl_seconds),
        )

    def figures(self) -> Figures:
        """Return the policy as figures of the model."""
        return Figures(
            enabled=self.enabled,
            min_fraction=Fraction(self.min_fraction),
            max_fraction=Fraction(self.max_fraction),
            position_max=Fraction(self.position_max),
            cap=Fraction(self.cap),
            ttl=timedelta(seconds=self.ttl_seconds),
        )


POLICIES = (
    Policy(True),
    Policy(False),
    Policy(True, min_fraction="0", position_max="333.333333333", cap="1000.00000001"),
    Policy(False, position_max="60"),  # many small holds, which end together
)
