"""What explains a drift: asked of the paper venues through the real ccxt client, told in a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Leg
from ledger_sizer.client import LedgerClient
from ledger_sizer.exchanges.accounts import ExchangeAccount
from ledger_sizer.model.account_activity import AccountEvent, Activity
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.paper.control import PaperControl
from ledger_sizer.paper.server import PaperServer
from ledger_sizer.reconcile import worker_process
from ledger_sizer.reconcile.explanation import explain_drift
from tests.support.accounts import PERP, Desk
from tests.support.clock import FakeClock
from tests.support.command_line import CommandLine, own_logging
from tests.support.paper_clients import VENUES, account_settings, unthrottled
from tests.support.services import LOW_PRIORITY_SECONDS, serving

pytestmark = [pytest.mark.one_engine, pytest.mark.timeout(2 * LOW_PRIORITY_SECONDS)]

D = Decimal
SECOND = 1_000_000
AT = 1_800_000_000 * SECOND
WHEN = "01-15 08:00 UTC"


class RealClock(FakeClock):
    """The system's time: the paper venues date what happens by it."""

    def __call__(self) -> datetime:
        return datetime.now(UTC)

    def advance(self, _seconds: float) -> datetime:  # type: ignore[override]
        return self()


@pytest.fixture(scope="module")
def paper() -> Iterator[PaperServer]:
    with PaperServer() as server:
        yield server


class Hedge:
    """A hedged 0.02 BTC at one venue, in the ledger and there, after a good run."""

    def __init__(self, url: str, paper: PaperServer, venue: str, name: str) -> None:
        self.control = PaperControl(paper.url, venue, name)
        self.control.open_account()
        self.given = account_settings(venue, paper.url, api_key=name)
        self.account = unthrottled(ExchangeAccount(self.given))
        self.desk = Desk(url, RealClock(), [self.account], confirmations=1, stale_after_seconds=None, grace_seconds=0)
        self.control.deposit("BTC", D("0.02"))
        self.control.open(PERP, "short", D("0.02"))
        self.desk.ledger.adopt(
            key="hedge", quantity=D("0.02"), price=D(50_000), tags={"venue": venue, "symbol": "BTC"},
            legs=[self.leg("BTC/USDT", "spot", "buy"), self.leg(PERP, "swap", "sell")],
        )  # fmt: skip
        assert self.desk.run().run.outcome == "good"

    def leg(self, symbol: str, kind: Any, side: Any, quantity: str = "0.02") -> Leg:
        return Leg(self.given.id, symbol, kind, side, D(quantity), D(50_000))

    def drift(self, kind: str, subject: str) -> Drift:
        (found,) = [one for one in self.desk.run().live if (one.kind, one.subject) == (kind, subject)]
        return found


@pytest.fixture(params=VENUES)
def hedge(request: pytest.FixtureRequest, database_url: str, paper: PaperServer) -> Iterator[Hedge]:
    made = Hedge(database_url, paper, request.param, f"{request.node.name}-key")
    yield made
    made.desk.close()
    made.account.close()


def test_activity_when_a_position_was_liquidated_then_the_line_says_so(hedge: Hedge) -> None:
    hedge.control.liquidate(PERP)
    found = hedge.desk.reconciler.activity(hedge.drift("missing_position", PERP).id)
    assert found.text.startswith("liquidated: bought 0.02 BTC at 50,000 in 1 fill at ")
    assert found.text.endswith("UTC, not told by any bot")
    assert (found.difference, found.unexplained) == (D("0.02"), D(0))


def test_activity_when_coins_were_sold_and_withdrawn_then_the_sum_is_the_difference(hedge: Hedge) -> None:
    client = hedge.account._client
    client.create_order("BTC/USDT", "limit", "sell", 0.005, 50_000)
    hedge.control.transfer("BTC", D("0.01"), "spot", "funding")
    found = hedge.desk.reconciler.activity(hedge.drift("quantity_differs", "BTC").id)
    assert "sold 0.005 BTC at 50,000 in 1 fill at " in found.text
    assert "transferred 0.01 BTC out (from " in found.text
    assert (found.difference, found.unexplained) == (D("-0.015"), D(0))


def test_activity_when_a_bot_told_a_part_then_only_the_rest_explains(hedge: Hedge) -> None:
    client = hedge.account._client
    contracts = D("0.01") / D(client.market(PERP)["contractSize"])
    client.create_order(PERP, "market", "sell", float(contracts))
    hedge.desk.ledger.adopt(
        key="more", quantity=D("0.01"), price=D(50_000), tags={"venue": hedge.given.id, "symbol": "BTC"},
        legs=[hedge.leg(PERP, "swap", "sell", "0.01")],
    )  # fmt: skip
    hedge.control.open(PERP, "short", D("0.003"))
    found = hedge.desk.reconciler.activity(hedge.drift("quantity_differs", PERP).id)
    assert found.told == D("-0.01")
    assert found.text.startswith("sold 0.003 BTC at 50,000 in 1 fill at ")
    assert (found.difference, found.unexplained) == (D("-0.003"), D(0))


def test_activity_when_the_key_may_not_read_it_then_that_is_the_answer(hedge: Hedge) -> None:
    paths = {"bybit": "execution", "binance": "Trades", "okx": "fills"}
    hedge.control.close(PERP, D("0.01"))
    drift = hedge.drift("quantity_differs", PERP)
    hedge.control.fault("forbidden", paths[hedge.given.id], times=None)
    found = hedge.desk.reconciler.activity(drift.id)
    assert found.text.startswith("nothing that the exchange tells of explains it since ")
    assert "fills: not permitted for this key" in found.text
    assert found.unexplained == D("0.01")
    hedge.control.clear_faults()


@pytest.mark.parametrize("hedge", ["bybit"], indirect=True)
def test_activity_when_it_is_asked_over_http_and_on_the_command_line_then_the_answer_is_the_same(
    hedge: Hedge, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = CommandLine(capsys, database_url)
    hedge.control.close(PERP, D("0.01"))
    drift = hedge.drift("quantity_differs", PERP)
    direct = hedge.desk.reconciler.activity(drift.id)
    for name in ("id", "api_key", "api_secret", "base_url"):
        value = getattr(hedge.given, name)
        text = value.get_secret_value() if hasattr(value, "get_secret_value") else value
        monkeypatch.setenv(f"EXCHANGE_{name.upper()}", text)
    monkeypatch.setattr(worker_process, "_ACTIVITY_SECONDS_MAX", LOW_PRIORITY_SECONDS)
    timeout = LOW_PRIORITY_SECONDS
    with serving(database_url) as service, LedgerClient(service.url, timeout_seconds=timeout) as client:
        asked = client.drift_activity(drift.id)
    assert (asked.text, asked.events) == (direct.text, direct.events)
    with own_logging():
        ran, shown = (cli("drifts", "show", str(drift.id), "--activity", *more) for more in (["--json"], []))
    assert ran.code == 0, ran
    form = json.loads(ran.out)["activity"]
    assert (form["text"], form["difference"], form["unexplained"]) == (direct.text, "0.01", "0")
    assert [event["quantity"] for event in form["events"]] == ["0.01"]
    assert "bought 0.01 BTC at 50,000 in 1 fill" in shown.out


@pytest.mark.parametrize("hedge", ["bybit"], indirect=True)
def test_activity_when_a_drift_is_of_no_market_then_it_is_refused_in_words(hedge: Hedge) -> None:
    hedge.control.fault("hollow", times=None)
    (drift,) = hedge.desk.run().live
    hedge.control.clear_faults()
    with pytest.raises(InvalidRequest, match=r"drift-1 \(fetch_failed\) is about no market of one account"):
        hedge.desk.reconciler.activity(drift.id)


# --- the words, without an exchange ----------------------------------------------------------------


def drift_of(ledger: str, venue: str, subject: str = PERP, side: str = "long") -> Drift:
    return Drift(
        7, "main", "bybit", "main", subject, side, "quantity_differs", "open", "freeze", 1, D(ledger), D(venue), D(0),
        None, "", None, 0, None, None, 1, 1, AT, AT, None, None, None,
    )  # fmt: skip


def fill(quantity: str, side: str = "buy", order: str = "1", price: str = "50000", at: int = 0) -> AccountEvent:
    return AccountEvent("fill", AT + at * SECOND, PERP, side, D(quantity), D(price), order, order)  # type: ignore[arg-type]


def moved(kind: str, side: str, quantity: str, detail: str = "") -> AccountEvent:
    return AccountEvent(kind, AT, "BTC", side, D(quantity), id=kind, detail=detail)  # type: ignore[arg-type]


def coin_fill(quantity: str, fee: str) -> AccountEvent:
    return AccountEvent("fill", AT, "BTC/USDT", "buy", D(quantity), D(50_000), "1", "1", D(fee), "BTC")


CASES: dict[str, tuple[Drift, list[AccountEvent], list[Decimal], str, str | None]] = {
    "several fills of several orders, at their average": (
        drift_of("0", "0.03"), [fill("0.01"), fill("0.01", order="2", price="50500", at=90), fill("0.01")], [],
        "bought 0.03 BTC at 50,166.667 in 3 fills between 01-15 08:00 UTC and 01-15 08:01 UTC, not told by any bot",
        "0",
    ),
    "a short that grew": (
        drift_of("0.02", "0.03", side="short"), [fill("0.01", "sell")], [],
        f"sold 0.01 BTC at 50,000 in 1 fill at {WHEN}, not told by any bot", "0",
    ),
    "one order of several, told as two": (
        drift_of("0.02", "0.05"), [fill("0.01", order="a"), fill("0.01", order="b"), fill("0.03", order="c")],
        [D("0.02")], f"bought 0.03 BTC at 50,000 in 1 fill at {WHEN}, not told by any bot", "0",
    ),
    "a fee that was paid in the coin": (
        drift_of("0", "0.00999", "BTC"), [coin_fill("0.01", "0.00001")], [],
        f"bought 0.01 BTC at 50,000 in 1 fill at {WHEN}, not told by any bot", "0",
    ),
    "a withdrawal beside a transfer that came back": (
        drift_of("1", "0.5", "BTC"),
        [moved("withdrawal", "out", "0.5"), moved("transfer", "out", "2", "from spot to funding")], [],
        f"withdrew 0.5 BTC at {WHEN}", "0",
    ),
    "a part": (
        drift_of("0", "0.05"), [fill("0.02")], [],
        f"bought 0.02 BTC at 50,000 in 1 fill at {WHEN}, not told by any bot; "
        "0.03 BTC of the difference stay unexplained", "0.03",
    ),
    "a fill that a bot told and that never happened": (
        drift_of("0.02", "0"), [], [D("0.02")],
        "the ledger was told that 0.02 BTC were bought, which the exchange does not show", "0",
    ),
    "what happened after the drift was measured": (
        drift_of("0", "0.02"), [fill("0.02"), fill("0.02", order="2", at=60)], [],
        f"bought 0.02 BTC at 50,000 in 1 fill at {WHEN}, not told by any bot", "0",
    ),
    "nothing": (
        drift_of("0", "0.02"), [], [],
        f"nothing that the exchange tells of explains it since {WHEN} (fills: not permitted)", "0.02",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_explain_drift_when_these_happened_then_the_line_is(name: str) -> None:
    drift, events, moves, text, unexplained = CASES[name]
    later = 30 if "after" in name else 3600
    problems = ("fills: not permitted",) if not events and not moves else ()
    found = explain_drift(drift, Activity(AT, tuple(events), problems), moves, AT + later * SECOND)
    assert found.text == text
    assert found.unexplained == (None if unexplained is None else D(unexplained))


def test_explain_drift_when_it_is_about_free_money_then_what_moved_is_listed() -> None:
    events = (
        AccountEvent("withdrawal", AT, "USDT", "out", D(500)),
        AccountEvent("funding", AT, "USDT", "out", D("1.5")),
        AccountEvent("funding", AT, "USDT", "in", D("0.25")),
    )
    found = explain_drift(drift_of("100", "50", "quote", ""), Activity(AT, events), [], AT)
    assert found.text == f"withdrew 500 USDT at {WHEN}; paid 1.25 USDT funding in 2 payments"
    assert found.unexplained is None
