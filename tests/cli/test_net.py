"""The net of coins and `drifts rename` on the command line."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ledger_sizer import Ledger, Leg
from tests.support.command_line import CommandLine

D = Decimal


@pytest.mark.one_engine
def test_rename_on_the_command_line_when_no_run_has_looked_then_it_is_forced_or_refused(cli: CommandLine) -> None:
    with Ledger.open(cli.url) as ledger:
        legs = [Leg("bybit", "OLD/USDT:USDT", "swap", "sell", D(2400), D("0.5"))]
        ledger.adopt(key="a", quantity=D(2400), price=D("0.5"), tags={"symbol": "OLD"}, legs=legs)
        asked = ("drifts", "rename", "OLD", "NEW", "--ratio", "1/24", "--reason", "split")
        refused = cli(*asked)
        assert refused.code == 1
        assert "no run has looked" in refused.err
        assert cli("drifts", "rename", "OLD", "NEW", "--ratio", "1/0", "--reason", "split").code != 0
        done = cli.json(*asked, "--force")
        assert (done["positions"], done["differences"]) == (["main-1"], ["no run has looked at the accounts"])
        assert ledger.position("main-1").quantity == 100
        shown = cli("net")
        assert "NEW" in shown.out
        assert "no reconciliation has looked" in shown.out
        assert cli.json("net")["assets"][0]["naked_usd"] == "1200"
