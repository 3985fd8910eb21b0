"""Bots of several pools, and an admin who moves caps and guarantees under them, at random."""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from ledger_sizer import Decision, LedgerError

BOTS = ("a", "b", "c", "x")
"""Values of the tag `bot`. The last one has no guarantee."""
VENUES = ("bybit", "okx", "gate")

Send = Callable[..., Decision | LedgerError]
"""Sends a command: the verb, its key, its arguments. Returns the answer or the error."""


def trade_in_pools(send: Send, name: str, seed: int, count: int) -> None:
    """Reserve, grow, fill, move and close positions of all pools; as many commands as `count`."""
    chance = random.Random(seed)
    live: list[str] = []
    for number in range(count):
        key, act = f"{name}-{number}", chance.choice(("ask", "ask", "ask", "fill", "more", "move", "move", "close"))
        position = chance.choice(live) if live else None
        if act == "ask" or position is None:
            tags = {"bot": _some(chance, BOTS), "venue": _some(chance, VENUES)}
            answer = send("reserve", key, amount_usd=Decimal(chance.randrange(5, 80)), tags=tags, ttl_seconds=3600)
            if isinstance(answer, Decision) and answer.granted:
                live.append(answer.position_id or "")
        elif act == "fill":
            send("confirm", key, position_id=position, quantity=Decimal(chance.randrange(1, 9)), price=Decimal(7))
        elif act == "more":
            send("reserve", key, position_id=position, amount_usd=Decimal(20), ttl_seconds=3600)
        elif act == "move":
            tags = {"bot": _some(chance, BOTS), "venue": _some(chance, VENUES)}
            send("retag", key, position_id=position, tags=tags)
        else:
            send("release", key, position_id=position)
            live.remove(position)


def _some(chance: random.Random, values: tuple[str, ...]) -> Any:
    """Return one of the values, and sometimes two."""
    return chance.sample(values, 2) if chance.random() < 0.2 else chance.choice(values)


def move_limits(send: Send, name: str, seed: int, count: int) -> None:
    """Raise, lower, set and remove caps, guarantees, default caps and largest positions; `count` commands."""
    chance = random.Random(seed)
    for number in range(count):
        scope, limit = chance.choice(
            [("portfolio", "cap")]
            + [(f"bot={bot}", "guarantee") for bot in BOTS[:3]] * 2
            + [
                ("bot=a", "cap"),
                ("bot=*", "cap"),
                ("venue=*", "cap"),
                ("venue=okx", "cap"),
                ("bot=b", "max_position_usd"),
            ]
        )
        usd: Decimal | None = Decimal(chance.randrange(100, 250))
        if scope == "portfolio":
            usd = Decimal(chance.randrange(400, 600))
        elif chance.random() < (0.1 if limit == "guarantee" else 0.5):
            usd = None
        send("set_cap", f"{name}-{number}", scope=scope, **{limit: usd})
