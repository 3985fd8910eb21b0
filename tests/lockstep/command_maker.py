"""Turns plans of commands into commands, by what the model knows when they are sent."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from math import floor
from typing import Any

import pytest
from hypothesis.stateful import RuleBasedStateMachine

from ledger_sizer import InvalidRequest, Reserve
from ledger_sizer.model.commands import COMMANDS
from tests.lockstep import random_commands
from tests.lockstep.comparing import legs_that_filled, same_legs
from tests.lockstep.model import Group, Model, PortfolioModel
from tests.lockstep.model_answers import Command
from tests.lockstep.model_positions import WHOLE, Holding
from tests.lockstep.random_commands import CommandPlan

LIFE: dict[str, Callable[[Holding], bool]] = {
    "confirm": lambda one: one.fillable or one.state in ("expired", "released"),
    "fill": lambda _: True,
    "release": lambda one: one.live,
    "extend": lambda one: one.pending,
    "retag": lambda one: one.live,
    "reprice": lambda one: one.state == "open",
    "rename": lambda one: one.live,
    "grow": lambda one: one.live,
}
"""Which positions a verb fits."""
LIMITS = ("cap", "guarantee", "max_position_usd", "share_of_equity")


class CommandMaker(RuleBasedStateMachine):
    """A state machine that makes commands. run: its number, in the names of its portfolios."""

    def __init__(self, run: int) -> None:
        super().__init__()
        self.run = run
        self.model: Model
        self.sent: list[Command] = []

    def _portfolio_name(self, portfolio: str) -> str:
        return f"run{self.run}-{portfolio}"

    def _group(self, wanted: list[CommandPlan], atomic: bool) -> Group:
        return Group([self._command(plan) for plan in wanted], atomic)

    def _command(self, plan: CommandPlan) -> Command:
        key = f"key-{len(self.sent)}"
        if plan.verb in ("again", "reuse") and self.sent:
            earlier = self.sent[plan.index % len(self.sent)]
            if plan.verb == "again":
                return earlier
            return Reserve(key=earlier.key, portfolio=earlier.portfolio, ttl_seconds=7)
        if plan.verb in LIFE:
            values = self._about_a_position(plan)
            if plan.verb == "grow":
                values["portfolio"] = self._portfolio_name(plan.portfolio)
        else:
            values = {**plan.values, "portfolio": self._portfolio_name(plan.portfolio)}
        values |= values.pop("limits", {})
        if plan.verb in ("reserve", "adopt") and plan.index % 4:
            # Most say what the settings require.
            missing = [name for name in self.model.figures.required if name not in values.get("tags", {})]
            values["tags"] = {**values.get("tags", {}), **dict.fromkeys(missing, "abc"[plan.index % 3])}
        values |= random_commands.BY_NAME[values.pop("market", "none")]
        verb = plan.verb if plan.verb in COMMANDS else "reserve"
        make: Any = COMMANDS[verb]
        wrong, mended = _mended(verb, values)
        if wrong:
            with pytest.raises(InvalidRequest) as refused:
                make(key=key, **values)
            assert refused.value.field in wrong, refused.value
        command: Command = make(key=key, **mended)
        self.sent.append(command)
        return command

    def _about_a_position(self, plan: CommandPlan) -> dict[str, Any]:
        """Return arguments for a position that exists and fits, or any, or (-1) the one the next decision creates."""
        name, values = self._portfolio_name(plan.portfolio), dict(plan.values)
        portfolio = self.model.portfolios.get(name)
        known = portfolio.positions if portfolio else {}
        fitting = [number for number, one in known.items() if LIFE[plan.verb](one)]
        numbers = fitting if plan.fitting and fitting else sorted(known)
        not_created = plan.index < 0 or not numbers
        number = (portfolio.next_seq if portfolio else 1) if not_created else numbers[plan.index % len(numbers)]
        values["position_id"] = f"{name}-{number}"
        if "price" in values:
            values["price"] = Decimal(values["price"])
        one = known.get(number)
        if plan.verb == "grow":
            self._ask_of_the_same(one, values, plan.index)
            values["price"] = random_commands.BY_NAME[values["market"]].get("price", Decimal(50))
        if "share" in values:
            share = values.pop("share")
            quantity = None if share is None else self._quantity(name, number, share, values.get("price"))
            if plan.verb != "fill":
                values["quantity"] = quantity
            else:
                values["filled_quantity"] = self._filled_so_far(portfolio, number, quantity, values.pop("beyond"))
        if "legs" in values and plan.verb == "confirm":
            values["legs"] = legs_that_filled(one, values["legs"], values["quantity"])
        return values

    def _ask_of_the_same(self, one: Holding | None, values: dict[str, Any], index: int) -> None:
        """Ask for more of a position in its own legs, if they are among those that reservations ask for."""
        if one is None or index % 3 == 0:
            return
        asked = [name for name, market in random_commands.BY_NAME.items() if same_legs(one, market)]
        values["market"] = asked[index % len(asked)] if asked else "none"

    @staticmethod
    def _filled_so_far(
        portfolio: PortfolioModel | None, number: int, quantity: Decimal | None, beyond: bool
    ) -> Decimal | None:
        """Return what a bot tells that knows of all fills and of one more, or of a part only."""
        if portfolio is None or quantity is None or not beyond:
            return quantity
        entries = [one for one in portfolio.positions.values() if number in (one.number, one.origin)]
        filled = sum((one.filled for one in entries), Fraction(0))
        return Decimal(floor(filled * 10**18)) / 10**18 + quantity

    def _quantity(self, name: str, number: int, share: str, price: Decimal | None) -> Decimal:
        portfolio = self.model.portfolios.get(name)
        one = portfolio.positions.get(number) if portfolio else None
        size = Fraction(1)
        if one is not None and one.quantity:
            size = one.quantity
        elif one is not None and one.held and price is not None:
            size = one.held / Fraction(price)
        return max(Decimal(int(size * Fraction(share) * 10**9)) / 10**9, Decimal("1e-9"))


def _mended(verb: str, values: dict[str, Any]) -> tuple[set[str], dict[str, Any]]:
    """Return the fields for which arguments are no command, and arguments that are one."""
    scope, wrong, mended = values.get("scope", ""), set(), dict(values)
    limits = [name for name in LIMITS if name in values]
    if scope == WHOLE and values.get("cap", 0) is None:
        wrong.add("cap")
        mended["cap"] = Decimal(2000)
    for name in limits:
        only_cap = scope.endswith("=*") and name != "cap"
        if values[name] is not None and (only_cap or (scope == WHOLE and name == "guarantee")):
            wrong.add(name)
            mended = {"cap": Decimal(700), **mended}
            del mended[name]
    if verb == "set_cap" and not limits:
        wrong |= {*LIMITS}
        mended["cap"] = None if scope != WHOLE else Decimal(2000)
    elif scope.endswith("=*") and not limits:
        wrong.add("scope")
        mended["scope"] = "venue=bybit"
    for name, value in values.get("tags", {}).items():
        if "*" in value:
            wrong.add(f"tags.{name}")
            mended["tags"] = {**mended["tags"], name: "okx"}
    return wrong, mended
