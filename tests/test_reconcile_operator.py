"""Deciding about drifts: only what the run saw is acted on, only where it was seen, and once."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from ledger_sizer import Leg
from tests.accounts import PERP, Desk, WrittenAccount
from tests.clocks import FakeClock
from tests.desk import TAGS, assert_verified

D = Decimal


@pytest.fixture
def desk(database_url: str, clock: FakeClock) -> Iterator[Desk]:
    """An empty ledger and an account; one sighting confirms."""
    desk = Desk(database_url, clock, confirmations=1)
    desk.ledger.set_cap(key="cap", cap=D(500000))
    yield desk
    desk.close()


def perp_leg(quantity: str, side: str = "sell", venue: str = "bybit") -> Leg:
    return Leg(venue, PERP, "swap", side, D(quantity), D(50000))  # type: ignore[arg-type]


def adopted(desk: Desk, key: str, *legs: Leg, quantity: str = "1", **tags: str) -> str:
    """A position that the ledger has from now on."""
    made = desk.ledger.adopt(key=key, quantity=D(quantity), price=D(50000), tags=tags or TAGS, legs=legs)
    return str(made.position_id)


def own(desk: Desk) -> list[str]:
    """The open positions of the ledger's own."""
    return [one.position_id for one in desk.ledger.positions("main", state="open") if "external" not in one.tags]


# --- where ---------------------------------------------------------------------------------------


def test_adopt_when_a_venue_has_two_accounts_then_a_position_of_neither_for_sure_is_left_alone(
    database_url: str, clock: FakeClock
) -> None:
    """The newer position has no account tag: it may be the other account's, and the run counted it at none."""
    desk = Desk(database_url, clock, [WrittenAccount("bybit", "one"), WrittenAccount("bybit", "two")], confirmations=1)
    tagged = adopted(desk, "a", perp_leg("1"), venue="bybit", account="one")
    untagged = adopted(desk, "b", perp_leg("1"), venue="bybit")
    report = desk.run()
    assert report.run.found["unplaced"] == 1
    (missing,) = [one for one in report.live if one.kind == "missing_position"]
    assert (missing.account, missing.ledger_quantity) == ("one", 1)
    desk.reconciler.operator.adopt(missing.id, actor="ann", reason="closed by hand")
    assert own(desk) == [untagged]
    assert desk.ledger.position(tagged).state == "closed"
    assert desk.run().findings == ()
    assert_verified(desk.ledger)
    desk.close()
