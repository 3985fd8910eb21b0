"""A portfolio that the rules decide about without a database: pools, figures by hand. Amounts are USD."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from ledger_sizer import Decision, Reserve, Retag, SetCap
from ledger_sizer.model.commands import AnyCommand
from ledger_sizer.rules.batch import Group, decide_batch
from ledger_sizer.rules.policy import Policy
from ledger_sizer.rules.state import PortfolioState
from tests.support.ledgers import dynamic_settings

D = Decimal
POLICY = Policy.of(dynamic_settings())
A, B, C = ({"bot": name} for name in "abc")
OUTSIDE = {"bot": "x"}


class Desk:
    """A portfolio with a cap of 1000 USD; keys are counted."""

    def __init__(self) -> None:
        self.state = PortfolioState.begun(1, "main", 1000 * 10**8)
        self.keys = 0

    def do(self, command: AnyCommand) -> Decision:
        """Decide one command. Raises the error that it is answered with."""
        result = decide_batch({"main": self.state}, [Group((command,))], 1_000_000, POLICY)[0][0]
        if not isinstance(result, Decision):
            raise result
        return result

    def key(self) -> str:
        """Return a new key."""
        self.keys += 1
        return f"key-{self.keys}"

    def limit(self, scope: str, **limits: Any) -> Decision:
        """Set what a scope is limited to. None removes a limit."""
        usd = {name: None if value is None else D(value) for name, value in limits.items()}
        return self.do(SetCap(key=self.key(), scope=scope, **usd))

    def ask(self, usd: object, tags: Any = None, **more: Any) -> Decision:
        """Reserve this much."""
        return self.do(Reserve(key=self.key(), amount_usd=D(str(usd)), tags=tags or {}, **more))

    def take(self, usd: object, tags: Any = None) -> str:
        """Reserve this much, which must all be granted. Return the position's id."""
        got = self.ask(usd, tags)
        assert (got.granted, got.budget) == (True, D(str(usd))), got
        return got.position_id or ""

    def retag(self, position_id: str, tags: Any) -> Decision:
        """Move a position to other tags."""
        return self.do(Retag(key=self.key(), position_id=position_id, tags=tags))


def guaranteed(**usd: int) -> Desk:
    """A desk that guarantees so much to each bot."""
    desk = Desk()
    for bot, amount in usd.items():
        desk.limit(f"bot={bot}", guarantee=amount)
    return desk


def said(decision: Decision) -> tuple[Any, ...]:
    """Return how it was decided and what bound it."""
    return decision.outcome, decision.reason, decision.binding


def cut(decision: Decision) -> tuple[Any, ...]:
    """Return the budget and what bound it."""
    return decision.budget, decision.binding


def others(decision: Decision) -> list[Any]:
    """Return the scopes outside of the request's own that its trace shows."""
    return list(json.loads(decision.trace).get("others", []))
