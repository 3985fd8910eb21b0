"""Which holdings are a hedge: by coin, the nearest first, equal sizes whole, and what is left a position of its own."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ledger_sizer.model.reconciliation import Market
from ledger_sizer.reconcile.pairing import Holding, connected, paired

D = Decimal
TOLERANCE = D("0.02")


def holding(text: str) -> Holding:
    """Read `venue/account SUBJECT coins`: above 0 bought, below 0 sold; a contract's side follows from it."""
    place, subject, coins = text.split()
    venue, account = place.split("/")
    sold = D(coins) < 0
    side = "short" if sold and ":" in subject else "long"
    return Holding(Market(venue, account, subject, side), abs(D(coins)), sold, D(2))


def text_of(one: Holding) -> str:
    return f"{one.market.venue}/{one.market.account} {one.market.subject} {'-' if one.sold else ''}{one.coins}"


PERP = "BTC/USDT:USDT"


@pytest.mark.parametrize(
    ("holdings", "positions"),
    [
        pytest.param(["a/x BTC 1", f"a/x {PERP} -1"], [["a/x BTC 1", f"a/x {PERP} -1"]], id="spot and perpetual"),
        pytest.param([f"a/x {PERP} 1", f"b/x {PERP} -1"], [[f"a/x {PERP} 1", f"b/x {PERP} -1"]], id="two venues"),
        pytest.param(["a/x BTC 1", "a/x ETH/USDT:USDT -1"], [["a/x BTC 1"], ["a/x ETH/USDT:USDT -1"]], id="two coins"),
        pytest.param(["a/x BTC 1", f"a/x {PERP} 1"], [["a/x BTC 1"], [f"a/x {PERP} 1"]], id="both bought"),
        pytest.param(
            ["a/x PEPE 5000", "a/x 1000PEPE/USDT:USDT -5000"],
            [["a/x PEPE 5000", "a/x 1000PEPE/USDT:USDT -5000"]],
            id="another name of the coin",
        ),
        pytest.param(["a/x BTC 1", f"a/x {PERP} -0.99"], [["a/x BTC 1", f"a/x {PERP} -0.99"]], id="within tolerance"),
        pytest.param(
            ["a/x BTC 1", f"a/x {PERP} -0.7"], [["a/x BTC 0.7", f"a/x {PERP} -0.7"], ["a/x BTC 0.3"]], id="a rest"
        ),
        pytest.param(
            ["a/x BTC 1", f"a/x {PERP} -0.5", "a/x BTC/USDC:USDC -0.495"],
            [["a/x BTC 0.5", f"a/x {PERP} -0.5"], ["a/x BTC 0.5", "a/x BTC/USDC:USDC -0.495"]],
            id="hedged by two",
        ),
        pytest.param(
            [f"a/x {PERP} -1", f"a/y {PERP} -1", f"b/x {PERP} -1", "b/x BTC 1", "a/y BTC 1", "c/x BTC 1"],
            [
                ["a/y BTC 1", f"a/y {PERP} -1"],
                ["b/x BTC 1", f"b/x {PERP} -1"],
                ["c/x BTC 1", f"a/x {PERP} -1"],
            ],
            id="the same account first",
        ),
        pytest.param(
            ["a/x BTC 1", f"a/y {PERP} -1", f"b/x {PERP} -1"],
            [["a/x BTC 1", f"a/y {PERP} -1"], [f"b/x {PERP} -1"]],
            id="then the same venue",
        ),
        pytest.param(
            ["a/x BTC 1", f"a/x {PERP} -3", "a/x BTC/USDC:USDC -1"],
            [["a/x BTC 1", "a/x BTC/USDC:USDC -1"], [f"a/x {PERP} -3"]],
            id="of equal places the same size",
        ),
        pytest.param(
            ["a/x BTC 1", f"a/x {PERP} 1", "a/x BTC/USDT:USDT-261225 -1"],
            [["a/x BTC 1", "a/x BTC/USDT:USDT-261225 -1"], [f"a/x {PERP} 1"]],
            id="coins are hedged before contracts",
        ),
        pytest.param([f"a/x {PERP} 1", f"a/x {PERP} -1"], [[f"a/x {PERP} 1"], [f"a/x {PERP} -1"]], id="two bets"),
        pytest.param(
            ["a/x BTC -1", f"a/x {PERP} 1"], [[f"a/x {PERP} 1", "a/x BTC -1"]], id="coins of a baseline were sold"
        ),
    ],
)
def test_pair_when_holdings_hedge_each_other_then_each_hedge_is_one_position(
    holdings: list[str], positions: list[list[str]]
) -> None:
    for given in (holdings, holdings[::-1]):
        found = paired(map(holding, given), TOLERANCE)
        assert [[*map(text_of, piece)] for piece in found] == positions
        assert sum(one.coins for piece in found for one in piece) == sum(holding(text).coins for text in given)


def test_pair_when_one_side_has_no_price_then_it_has_that_of_its_coin() -> None:
    bare = holding("a/x BTC 1")._replace(price=None)
    (piece,) = paired([bare, holding(f"a/x {PERP} -1")], TOLERANCE)
    assert [one.price for one in piece] == [D(2), D(2)]
    ((alone,),) = paired([bare], TOLERANCE)
    assert alone.price is None


def test_connect_when_positions_share_a_holding_then_they_are_decided_together() -> None:
    texts = ["a/x BTC 1", f"a/x {PERP} -0.4", "a/x BTC/USDC:USDC -0.3", f"b/x {PERP} -9", "a/x ETH 1"]
    groups = connected(paired(map(holding, texts), TOLERANCE))
    assert sorted(len(group) for group in groups) == [1, 4], "three hedges and what is left of the last, and ETH"
