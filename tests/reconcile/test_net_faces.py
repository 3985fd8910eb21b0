"""The net of coins and the decision about a renamed one: over HTTP, on the dashboard, in metrics."""

from __future__ import annotations

from decimal import Decimal

import pytest
from pydantic import SecretStr

from ledger_sizer import InvalidRequest, Leg, WrongState
from ledger_sizer.client import LedgerClient
from ledger_sizer.config import ExchangeSettings, ReconcileSettings
from ledger_sizer.paper.control import DEFAULT_KEY, DEFAULT_SECRET, PaperControl
from ledger_sizer.paper.server import PaperServer
from tests.support.services import serving

D = Decimal


@pytest.mark.one_engine
def test_serve_when_a_coin_has_another_name_then_every_face_shows_its_net_and_one_call_renames_it(
    database_url: str,
) -> None:
    with PaperServer() as paper:
        exchange = ExchangeSettings(
            api_key=SecretStr(DEFAULT_KEY), api_secret=SecretStr(DEFAULT_SECRET), base_url=paper.url
        )
        reconcile = ReconcileSettings(enabled=True, interval_seconds=3600, confirmations=1, grace_seconds=0)
        sections = {"exchange": exchange, "reconcile": reconcile}
        with serving(database_url, sections=sections) as service, LedgerClient(service.url) as client:
            old = [Leg("bybit", "OLD/USDT:USDT", "swap", "buy", D(2), D(100))]
            name = client.adopt(key="a", quantity=D(2), price=D(100), tags={"symbol": "OLD"}, legs=old).position_id
            assert (client.net().run_at, client.net() == service.ledger.net()) == (None, True)
            PaperControl(paper.url, "bybit").open("ETH/USDT:USDT", "long", D(20))
            client.reconcile()
            assert {one.kind for one in client.drifts(state="live")} == {"missing_position", "unknown_position"}
            with pytest.raises(WrongState, match="20 more than the ledger, where 2 are to be expected"):
                client.rename_coin("OLD", "ETH", reason="swapped 1:1")
            with pytest.raises(InvalidRequest) as refused:
                client.rename_coin("OLD", "ETH", reason="", ratio=D(10))
            assert refused.value.field == "reason"
            done = client.rename_coin("OLD", "ETH", reason="swapped 1:10", ratio=D(10))
            assert (done.positions, len(done.released)) == ((name,), 1)
            client.reconcile()
            assert client.drifts(state="live").items == ()
            net = client.net()
            (eth,) = net.assets
            assert (eth.asset, eth.net, eth.shown, eth.net_usd, eth.hedged) == ("ETH", 20, 20, 200, False)
            assert net == service.ledger.net()
            assert client.net("*").assets == net.assets
            page = service.http.get("/", headers={"Accept": "text/html"}).text
            assert 'id="net-title">Net of each coin' in page
            metrics = service.http.get("/metrics").text
            assert 'ledger_net_usd{asset="ETH",portfolio="main"} 200.0' in metrics
            assert f'ledger_naked_usd{{asset="ETH",portfolio="main"}} {float(eth.naked_usd)}' in metrics
            assert "ledger_net_left_out 0.0" in metrics
            assert service.http.get("/v1/portfolios/nobody/net").status_code == 404
