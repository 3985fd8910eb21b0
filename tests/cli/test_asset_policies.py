"""`reconcile`, `drifts ignore --asset`, `drifts policies` and `drifts take-back`, on a paper account."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from ledger_sizer.paper import PaperControl, PaperServer
from ledger_sizer.paper.control import DEFAULT_KEY, DEFAULT_SECRET
from tests.support.command_line import CommandLine

pytestmark = pytest.mark.one_engine

D = Decimal


def test_decide_about_an_asset_when_it_pays_fees_then_one_command_ends_it_and_another_takes_it_back(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PaperServer() as paper:
        given = {"ID": "binance", "API_KEY": DEFAULT_KEY, "API_SECRET": DEFAULT_SECRET, "BASE_URL": paper.url}
        for name, value in given.items():
            monkeypatch.setenv(f"EXCHANGE_{name}", value)
        monkeypatch.setenv("RECONCILE_ASSETS", json.dumps({"*/*/DOGE": "ignore"}))
        control = PaperControl(paper.url, "binance")
        control.deposit("ETH", D(1))
        control.deposit("LDBTC", D("0.5"))
        cli("reconcile")
        told = cli("reconcile").out
        assert "binance main: 1 assets: LDBTC 0.5" in told
        (drift,) = cli.json("drifts", "list", "--state", "live")["items"]
        assert (drift["subject"], drift["state"]) == ("ETH", "confirmed")
        assert D(drift["price"]) > 0, "by the exchange's ticker"
        done = cli.json(
            "drifts", "ignore", str(drift["id"]), "--asset", "--policy", "fees", "--reason", "pays fees"
        )  # fmt: skip
        assert done["state"] == "resolved"
        assert cli.json("reserve")["granted"] is True
        rules = cli.json("drifts", "policies")["items"]
        assert [(one["pattern"], one["policy"], one["source"]) for one in rules[:2]] == [
            ("binance/main/ETH", "fees", "decided"), ("*/*/DOGE", "ignore", "settings"),
        ]  # fmt: skip
        assert {one["source"] for one in rules[2:]} == {"default"}
        assert "binance/main/ETH" in cli("drifts", "policies").out
        assert cli("reconcile").code == 0
        assert cli.json("drifts", "list", "--state", "live")["items"] == []
        taken = cli("drifts", "take-back", "1", "--reason", "traded now")
        assert "binance/main/ETH is no longer fees" in taken.out
        again = cli("drifts", "take-back", "1", "--reason", "traded now")
        assert (again.code, "no decided policy 1" in again.err) == (1, True), again
        cli("reconcile")
        assert [one["subject"] for one in cli.json("drifts", "list", "--state", "live")["items"]] == ["ETH"]
        assert cli("verify").code == 0
