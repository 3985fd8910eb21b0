"""Makes histories at random, with every verb, and filters decisions by a plain scan."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

from ledger_sizer import Decision, Ledger, WrongState
from tests.support.clock import START, FakeClock

D = Decimal
SYMBOLS = [None, None, "BTC", "ETH", "é"]
STRATEGIES = [None, "funding", "basis", "a'b", 'ba"sis']
REASONS = [None, "halted", "reducing", "unreconciled", "cap_exceeded", "below_min_notional", "insufficient_balance",
           "group_denied"]  # fmt: skip
COMMANDS = [None, "reserve", "confirm", "release", "extend", "set_cap", "halt", "resume", "adopt", "freeze", "thaw",
            "reconciled", "remark", "expire"]  # fmt: skip


def trade_at_random(ledger: Ledger, clock: FakeClock, steps: int, seed: int) -> None:
    """Trade at random for a while, with every verb."""
    chance = random.Random(seed)
    for n in range(steps):
        clock.advance(chance.choice([0, 0, 1, 7]))
        tags: dict[str, Any] = {
            "symbol": chance.choice(["BTC", "ETH", "BTC", "ETH", ["BTC", "é"], ("ETH", "e\u0301", "BT")]),
            "strategy": chance.choice(["funding", "basis", "a'b", ["basis", "a'b"], ['ba"sis', "x,y]"]]),
        }
        if chance.random() < 0.2:
            del tags["strategy"]
        live = [position.position_id for position in ledger.positions("main", state="live")] if n else []
        name = chance.choice(live) if live else "main-1"
        step = chance.choice(
            ["reserve"] * 5 + ["confirm", "release", "release", "extend", "set_scope", "adopt", "reconcile"]
        )
        try:
            if step == "confirm":
                ledger.confirm(key=f"{n}", position_id=name, quantity=D(chance.randint(1, 9)), price=D(50))
            elif step == "release":
                ledger.release(key=f"{n}", position_id=name)
            elif step == "extend":
                ledger.extend(key=f"{n}", position_id=name, ttl_seconds=chance.randint(1, 30))
            elif step == "adopt":
                ledger.adopt(key=f"{n}", quantity=D(1), price=D(chance.randint(1, 50)), tags=tags)
            elif step == "reconcile":
                _reconcile(ledger, n, chance)
            elif step == "set_scope":
                _set_scope(ledger, n, chance)
            else:
                balance = D(chance.choice([0, 10, 300, 2000]))
                least = D(chance.choice([0, 0, 20]))
                ledger.reserve(key=f"{n}", tags=tags, available_balance=balance, min_notional_usd=least, ttl_seconds=20)
        except WrongState:
            continue


def _set_scope(ledger: Ledger, n: int, chance: random.Random) -> None:
    scope = chance.choice(["portfolio", "symbol=BTC", "strategy=basis"])
    if chance.random() < 0.4:
        ledger.set_cap(key=f"{n}", scope=scope, cap=D(chance.choice([0, 500, 5000])))
    elif chance.random() < 0.5:
        ledger.halt(key=f"{n}", scope=scope, mode=chance.choice(["halted", "reducing"]))
    else:
        ledger.resume(key=f"{n}", scope=scope)


def _reconcile(ledger: Ledger, n: int, chance: random.Random) -> None:
    scope = chance.choice(["portfolio", "symbol=BTC", "strategy=basis"])
    verb = chance.choice(["freeze", "thaw", "thaw", "thaw", "reconciled", "remark"])
    if verb == "remark":
        ledger.remark(key=f"{n}", about="drift-1", event="seen")
    elif verb == "reconciled":
        ledger.reconciled(
            key=f"{n}", scope=scope, fresh_until=chance.choice([None, None, START + timedelta(seconds=n)])
        )
    else:
        getattr(ledger, verb)(key=f"{n}", scope=scope)


def matches(decision: Decision, filters: dict[str, Any]) -> bool:
    """Whether a decision matches, computed from the decision alone."""
    tags = json.loads(decision.record.tags)
    tests: dict[str, Callable[[Any], bool]] = {
        **{name: lambda value, name=name: value in _values(tags.get(name, [])) for name in ("symbol", "strategy")},
        "command": lambda value: decision.command == value,
        "outcome": lambda value: decision.outcome == value,
        "reason": lambda value: decision.reason == value,
        "since": lambda value: decision.decided_at >= value,
        "until": lambda value: decision.decided_at < value,
    }
    return all(tests[name](value) for name, value in filters.items() if value is not None)


def _values(tag: Any) -> list[Any]:
    return tag if isinstance(tag, list) else [tag]


def without_legs(form: dict[str, Any]) -> dict[str, Any]:
    """Return a decision's JSON as an export has it: its legs stand in the trace."""
    return {name: value for name, value in form.items() if name != "legs"}
