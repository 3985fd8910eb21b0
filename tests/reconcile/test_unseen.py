"""What an account was not asked for, or could not be read of it, is in every run's record and on the command line."""

from __future__ import annotations

import ccxt
import pytest

from ledger_sizer.cli.reconciliation import _show_run
from tests.support.accounts import NewDesk
from tests.support.canned_exchanges import CannedAccount, contract_market

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
