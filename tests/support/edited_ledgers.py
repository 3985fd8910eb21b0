"""Ledgers whose rows somebody edits behind their back, with every guard of the database removed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Table

from ledger_sizer import InstrumentInfo, Ledger, Leg, VerifyReport
from ledger_sizer.model.decisions import GENESIS_HASH, canonical_text, chain_hash
from ledger_sizer.storage.write_store import DECISION_COLUMNS, record_from_row
from ledger_sizer.verify.schema import SCHEMA
from tests.support.clock import START, FakeClock
from tests.support.ledgers import TAGS, Intruder, dynamic_settings, position_of, reserve_btc
from tests.support.lives import live_through_fills

D = Decimal


def record_every_verb(ledger: Ledger, clock: FakeClock) -> None:
    """Record every verb, every position state and several denials, in two portfolios."""
    ledger.set_cap(key="1", scope="venue=bybit", cap=D(4000))
    ledger.set_cap(key="2", scope="venue=idle", cap=D(100), reference="ticket 17")
    names = [
        position_of(reserve_btc(ledger, f"r{n}", signal_score=D(f"0.{n}"), ttl_seconds=10 if n == 4 else 600))
        for n in range(5)
    ]
    ledger.confirm(key="c0", position_id=names[0], quantity=D("0.006"), price=D("50010.5"), spot_price=D(50000))
    ledger.release(key="x0", position_id=names[0], quantity=D("0.002"))
    ledger.confirm(key="c1", position_id=names[1], quantity=D("0.007"), price=D(50020))
    ledger.release(key="x1", position_id=names[1])
    ledger.release(key="x2", position_id=names[2])
    ledger.extend(key="e3", position_id=names[3], ttl_seconds=900)
    clock.advance(10)
    ledger.confirm(key="late", position_id=names[4], quantity=D("0.01"), price=D(50000))
    ledger.reserve(key="plain", ttl_seconds=900, reference="order 4711")
    ledger.reserve(key="no1", tags=TAGS, available_balance=D(0))
    reserve_btc(ledger, "no2", perp_instrument=InstrumentInfo("X", D(1), D(5), D(1)))
    ledger.halt(key="h1", note="feed is stale")
    ledger.reserve(key="no3", tags=TAGS)
    ledger.resume(key="h2")
    ledger.halt(key="h3", scope="symbol=ETH", mode="reducing")
    ledger.freeze(key="f", scope="symbol=ETH", note="drift-1")
    ledger.reconciled(key="u", scope="symbol=ETH", fresh_until=START + timedelta(hours=1))
    ledger.remark(key="m", about="drift-1", event="close_requested")
    ledger.adopt(
        key="a",
        quantity=D(2),
        price=D(30),
        tags={"symbol": ["WETH", "ETH"]},
        legs=[Leg("okx", "E", "swap", "sell", D(2))],
    )
    ledger.reserve(key="1", portfolio="other", tags=TAGS)
    ledger.reserve(key="2", portfolio="other")


class Scene:
    """A ledger with decisions of every kind, and an intruder who may write to its database. Tests undo their edits.

    guarded: the database's guards are still up; take them down before the first edit.
    """

    def __init__(self, url: str, *, guarded: bool = False) -> None:
        self.clock = FakeClock()
        self.ledger = Ledger.open(url, settings=dynamic_settings(), clock=self.clock)
        record_every_verb(self.ledger, self.clock)
        live_through_fills(self.ledger, self.clock)
        self.ledger.set_cap(key="pool", scope="venue=pool", guarantee=D(50), max_position_usd=D(40))
        self.ledger.set_cap(key="default", scope="symbol=*", cap=D(4500))
        self.ledger.set_cap(key="share", scope="strategy=share", share_of_equity=D("0.5"))
        self.ledger.equity_seen(key="equity", scope="strategy=share", equity=D(800))
        self.ledger.account_seen(key="account", scope="account=wallet/main", free=D(900), margin_fraction=D("0.5"))
        self.ledger.reserve(key="of an account", amount_usd=D(10), tags={"venue": "wallet"}, ttl_seconds=900)
        self.ledger.reserve(key="beside a pool", amount_usd=D(10), tags={"symbol": "BTC", "venue": "okx"})
        self.intruder = Intruder(url)
        if not guarded:
            self.intruder.take_guards_down()

    @contextmanager
    def edited(self, table: Table, key: dict[str, Any], column: str, value: Any) -> Iterator[VerifyReport]:
        """Edit one value of one row, yield what verify reports, and undo the edit."""
        (before,) = self.intruder.rows(f"SELECT {column} FROM {table.name} WHERE {where(key)}", **key)[0]
        assert before != value
        moved = {name: value if name == column else old for name, old in key.items()}
        assert self.intruder.run(f"UPDATE {table.name} SET {column} = :new_ WHERE {where(key)}", new_=value, **key) == 1
        try:
            yield self.verify()
        finally:
            self.intruder.run(f"UPDATE {table.name} SET {column} = :new_ WHERE {where(moved)}", new_=before, **moved)

    def verify(self, **arguments: Any) -> VerifyReport:
        """Verify the ledger, but for its schema, whose guards are down."""
        return without_schema(self.ledger.verify(**arguments))

    def close(self) -> None:
        self.intruder.close()
        self.ledger.close()


def without_schema(report: VerifyReport) -> VerifyReport:
    """Leave out findings about the schema: after an attacker who removed the guards before the edit."""
    return replace(report, findings=tuple(found for found in report.findings if found.portfolio != SCHEMA))


def where(key: dict[str, Any]) -> str:
    """Return the condition that finds the row with this key."""
    return " AND ".join(f"{name} = :{name}" for name in key)


def last_seq(scene: Scene) -> int:
    return scene.ledger.exposure().seq


def decision_rows(scene: Scene, since: int = 1) -> list[Any]:
    return scene.intruder.rows(
        f"SELECT {', '.join(DECISION_COLUMNS)} FROM decisions WHERE portfolio_id = 1 AND seq >= :seq ORDER BY seq",
        seq=since,
    )


def rewrite_chain(scene: Scene, since: int) -> str:
    """Recompute the hash of every decision from `since` on, as an attacker who knows the format would."""
    before = decision_rows(scene, since - 1)
    previous = before[0][-1] if since > 1 else GENESIS_HASH
    for row in decision_rows(scene, since):
        previous = chain_hash(previous, canonical_text(record_from_row("main", row)))
        scene.intruder.run(
            "UPDATE decisions SET hash = :hash WHERE portfolio_id = 1 AND seq = :seq", hash=previous, seq=row[1]
        )
    return previous
