"""The net of coins and the decision about a renamed one: over HTTP, on the dashboard, in metrics."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from pydantic import SecretStr

from ledger_sizer import InvalidRequest, Leg, WrongState
from ledger_sizer.client import LedgerClient
from ledger_sizer.config import ExchangeSettings
from tests.support.accounts import Desk, long
from tests.support.clock import FakeClock
from tests.support.services import serving

D = Decimal


@pytest.mark.one_engine
def test_serve_when_a_coin_has_another_name_then_every_face_shows_its_net_and_one_call_renames_it(
    database_url: str,
) -> None:
    desk = Desk(database_url, FakeClock(datetime.now(UTC)), confirmations=1)
    exchange = ExchangeSettings(api_key=SecretStr("k"), api_secret=SecretStr("s"), base_url="http://127.0.0.1:9")
    with serving(database_url, sections={"exchange": exchange}) as service, LedgerClient(service.url) as client:
        old = [Leg("bybit", "OLD/USDT:USDT", "swap", "buy", D(2), D(100))]
        name = client.adopt(key="a", quantity=D(2), price=D(100), tags={"symbol": "OLD"}, legs=old).position_id
        assert (client.net().run_at, client.net() == service.ledger.net()) == (None, True)
        desk.account.shows(long("20", "NEW/USDT:USDT", "10"))
        assert {one.kind for one in desk.run().live} == {"missing_position", "unknown_position"}
        with pytest.raises(WrongState, match="20 more than the ledger, where 2 are to be expected"):
            client.rename_coin("OLD", "NEW", reason="swapped 1:1")
        with pytest.raises(InvalidRequest) as refused:
            client.rename_coin("OLD", "NEW", reason="", ratio=D(10))
        assert refused.value.field == "reason"
        done = client.rename_coin("OLD", "NEW", reason="swapped 1:10", ratio=D(10))
        assert (done.positions, len(done.released)) == ((name,), 1)
        assert desk.run().live == ()
        net = client.net()
        (new,) = net.assets
        assert (new.asset, new.net, new.shown, new.net_usd, new.hedged, new.naked_usd) == (
            "NEW", 20, 20, 200, False, 200,
        )  # fmt: skip
        assert net == service.ledger.net()
        assert client.net("*").assets == net.assets
        page = service.http.get("/", headers={"Accept": "text/html"}).text
        assert 'id="net-title">Net of each coin' in page
        assert '<span class="bad">200.00</span> since' in page
        metrics = service.http.get("/metrics").text
        for sample in ('net_usd{asset="NEW",portfolio="main"} 200.0', 'naked_usd{asset="NEW",portfolio="main"} 200.0',
                       "net_left_out 0.0"):  # fmt: skip
            assert f"ledger_{sample}" in metrics
        assert service.http.get("/v1/portfolios/nobody/net").json()["assets"] == []
    desk.close()
