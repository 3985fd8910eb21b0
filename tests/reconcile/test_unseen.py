"""What an account was not asked for, or could not be read of it, is in every run's record and on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import ccxt
import pytest

from ledger_sizer import Leg
from ledger_sizer.cli.reconciliation import _show_run
from ledger_sizer.exchanges.snapshot import Snapshot, UnreadRow
from tests.support.accounts import PERP, NewDesk, WrittenAccount, adopt, long, short
from tests.support.canned_exchanges import CannedAccount, contract_market
from tests.support.ledgers import BTC_PRICE, TAGS

D = Decimal

MARKETS = [contract_market("BTC/USDT:USDT", "BTCUSDT")]
OPTION = {"symbol": "BTC-271231-90000-C", "side": "LONG", "quantity": "2", "entryPrice": "100", "markPrice": "100",
          "positionCost": "200", "unrealizedPNL": "0", "markValue": "200", "strikePrice": "90000", "optionSide": "CALL",
          "expiryDate": 1830240000000, "quoteAsset": "USDT", "time": 1}  # fmt: skip


def account(**answers: object) -> CannedAccount:
    given = {
        "option": [], "inverse": [], **answers,
    }  # fmt: skip
    return CannedAccount(
        "binance",
        {
            "eapi/v1/position": given["option"], "dapi/v1/positionRisk": given["inverse"], "positionRisk": [],
            "leverageBracket": [], "api/v3/account": {"balances": [{"asset": "USDT", "free": "9", "locked": "0"}]},
            "fapi/v3/account": {"assets": []},
        },
        MARKETS,
        wallets=("spot",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "outcome", "told", "shown"),
    [
        ({"option": ccxt.PermissionDenied("no")}, "good", {"not_asked": ["option"]}, "not asked for"),
        ({"inverse": ccxt.OnMaintenance("soon")}, "partial", {"failed": ["inverse"]}, "inverse positions unknown"),
        ({"option": [OPTION]}, "good", {"unread": 1}, "BTC/USDT:USDT-271231-90000-C: an option"),
        ({}, "good", {}, ""),
    ],
    ids=["refused", "failed", "unread", "all seen"],
)
def test_run_when_something_was_not_seen_then_its_record_and_the_command_line_say_so(
    new_desk: NewDesk, capsys: pytest.CaptureFixture[str], answers: dict[str, object], outcome: str,
    told: dict[str, object], shown: str,
) -> None:  # fmt: skip
    run = new_desk([account(**answers)]).run().run
    assert run.outcome == outcome
    (entry,) = run.fetched
    assert {name: entry[name] for name in ("not_asked", "failed")} == {
        name: told.get(name, []) for name in ("not_asked", "failed")
    }
    assert len(entry["unread"]) == told.get("unread", 0)
    _show_run(run)
    assert shown in capsys.readouterr().out


INVERSE = "BTC/USD:BTC"


class UnseenAccount(WrittenAccount):
    """An account that shows its positions, but for what a test says was not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.unseen: dict[str, tuple[object, ...]] = {}

    def snapshot(self, now_us: Callable[[], int]) -> Snapshot:
        return replace(super().snapshot(now_us), **self.unseen)


@pytest.mark.parametrize(
    "unseen",
    [{"not_asked": ("inverse",)}, {"failed": ("inverse",)}, {"unread": (UnreadRow(INVERSE, "no side"),)}],
    ids=["not asked for", "failed", "unread"],
)
def test_run_when_a_market_was_not_seen_then_it_is_not_taken_for_flat_and_its_drift_stays(
    new_desk: NewDesk, unseen: dict[str, tuple[object, ...]]
) -> None:
    account = UnseenAccount()
    desk = new_desk([account], confirmations=1)
    desk.ledger.set_cap(key="cap", cap=D(100_000))
    adopt(desk, "a")
    hedge, coin_margined = short("0.02"), long("0.5", INVERSE)
    account.shows(hedge, coin_margined, BTC="0.02")
    (before,) = [one for one in desk.run().live if one.subject == INVERSE]
    account.shows(hedge, BTC="0.02")
    account.unseen = unseen
    report = desk.run(3)
    (drift,) = [one for one in report.live if one.subject == INVERSE and one.kind == before.kind]
    assert (drift.id, drift.state, drift.excess) == (before.id, "confirmed", D("0.5"))
    assert report.run.outcome == ("partial" if "failed" in unseen else "good")
    failed = [one.detail for one in report.live if one.kind == "fetch_failed"]
    assert failed == (["inverse positions not fetched"] if "failed" in unseen else [])
    assert not [one for one in report.live if one.subject == PERP], "what was seen is judged, and agrees"
    account.unseen = {}
    assert not [one for one in desk.run().live if one.subject == INVERSE], "seen again, it is flat"


def test_run_when_a_leg_is_in_a_market_that_was_not_seen_then_its_hedge_is_not_judged(new_desk: NewDesk) -> None:
    account = UnseenAccount()
    desk = new_desk([account], confirmations=1)
    desk.ledger.set_cap(key="cap", cap=D(100_000))
    legs = [
        Leg("bybit", "BTC/USDT", "spot", "buy", D("0.02"), BTC_PRICE),
        Leg("bybit", "BTC/USDC:USDC", "swap", "sell", D("0.02"), BTC_PRICE),
    ]
    desk.ledger.adopt(key="a", quantity=D("0.02"), price=BTC_PRICE, tags=TAGS, legs=legs)
    account.shows(BTC="0.02")
    account.unseen = {"failed": ("usdc",)}
    assert [one.kind for one in desk.run().live] == ["fetch_failed"]
    account.unseen = {}
    assert {one.kind for one in desk.run().live} == {"missing_position", "legs_unequal"}
