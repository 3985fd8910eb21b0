"""How a history may begin: the settings of its ledger, and the pools, caps and holds that it finds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from ledger_sizer import AppSettings, DynamicSizingSettings, LedgerSettings, TradingSettings
from tests.lockstep.model_answers import Figures
from tests.lockstep.random_commands import CommandPlan, GivenTags


@dataclass(frozen=True)
class Policy:
    """One way to configure a ledger."""

    enabled: bool
    min_fraction: str = "0.3"
    max_fraction: str = "1.0"
    position_max: str = "400"
    cap: str = "1000"
    ttl_seconds: int = 60
    required_tags: tuple[str, ...] = ()
    portfolios: Literal["create", "declared"] = "create"

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
            ledger=LedgerSettings(
                hold_ttl_seconds=self.ttl_seconds, required_tags=self.required_tags, portfolios=self.portfolios
            ),
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
            required=self.required_tags,
            declared=self.portfolios == "declared",
        )


POLICIES = (
    Policy(True),
    Policy(False),
    Policy(True, min_fraction="0", position_max="333.333333333", cap="1000.00000001"),
    Policy(True, required_tags=("bot",), portfolios="declared"),
    Policy(False, position_max="60"),  # many small holds, which end together
)


def _pools(portfolio: str, limits: dict[str, dict[str, str]]) -> list[CommandPlan]:
    return [
        CommandPlan("set_cap", portfolio, {"scope": scope, **{name: Decimal(value) for name, value in given.items()}})
        for scope, given in limits.items()
    ]


def _unknown(portfolio: str, market: str, amount_usd: str, tags: GivenTags) -> CommandPlan:
    """Return a hold that does not end by time, so that much can happen to it."""
    values = {"market": market, "amount_usd": Decimal(amount_usd), "tags": tags, "until_known": True}
    return CommandPlan("reserve", portfolio, values)


POOLS: dict[str, list[CommandPlan]] = {
    "none": [],
    "declared": _pools("a", {"portfolio": {"cap": "900"}, "bot=a": {"guarantee": "500"}}),
    "pools with a largest position": [
        *_pools("a", {"bot=a": {"guarantee": "300", "max_position_usd": "120.5"}, "bot=b": {"guarantee": "420"}}),
        _unknown("a", "one contract", "60", {"bot": "a"}),
        _unknown("a", "none", "77", {"bot": ["a", "b"], "strategy": "grid"}),
        _unknown("a", "none", "99", {"bot": "c"}),
        *_pools("a", {"bot=c": {"guarantee": "40"}}),
    ],
    "pools of the whole cap": [
        *_pools("a", {"bot=a": {"guarantee": "500", "cap": "600"}, "bot=b": {"guarantee": "500"}}),
        *_pools("a", {"venue=*": {"cap": "700"}}),
        _unknown("a", "two venues", "200", {"bot": "b"}),
    ],
    "a full portfolio": [
        _unknown("a", "none", "150", {"bot": "b"}),
        *_pools("a", {"bot=a": {"guarantee": "50"}, "portfolio": {"cap": "60"}}),
    ],
    "default caps": [
        *_pools("a", {"venue=*": {"cap": "350"}, "venue=okx": {"cap": "140"}, "bot=*": {"cap": "90"}}),
        _unknown("a", "none", "59", {"venue": "okx", "bot": "a"}),
        _unknown("a", "two venues, two prices", "160", {"bot": "c"}),
    ],
    "largest positions": [
        *_pools("a", {"portfolio": {"max_position_usd": "260"}, "bot=b": {"max_position_usd": "49.999999999"}}),
        _unknown("a", "none", "150", {"bot": "a"}),
        _unknown("a", "two bought", "30", {"bot": "b"}),
    ],
    "pools in two portfolios": [
        *_pools("a", {"venue=*": {"cap": "800"}, "bot=b": {"guarantee": "650.5"}, "bot=c": {"guarantee": "0"}}),
        *_pools("b", {"bot=a": {"guarantee": "900"}}),
        _unknown("a", "price", "300", {"bot": "b", "venue": "okx"}),
        _unknown("b", "price", "90", {"venue": "okx"}),
    ],
}
"""How a history's portfolios may begin, by name: a failure prints the name."""
