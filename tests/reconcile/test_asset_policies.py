"""Whose money a spot balance is: policies of assets, what nobody trades, coins that are lent, one list of dollars."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import InvalidRequest, Leg, ReconcileSettings, WrongState
from ledger_sizer.exchanges.snapshot import UnreadRow, VenueBalance
from ledger_sizer.model.asset_policies import DOLLARS, AssetPolicies, AssetRule
from ledger_sizer.model.reconciliation import Report
from tests.support.accounts import PERP, Desk, NewDesk, WrittenAccount, adopt, balance, long, short
from tests.support.ledgers import BTC_PRICE, TAGS, figures, reserve_btc

pytestmark = pytest.mark.one_engine

D = Decimal
LISTED_AS = "bybit/main"


@pytest.fixture
def opened(new_desk: NewDesk) -> NewDesk:
    """Opens a desk that confirms at the second sighting, with a cap."""

    def make(*accounts: WrittenAccount, **reconcile: Any) -> Desk:
        desk = new_desk(list(accounts), **{"confirmations": 2, **reconcile})
        desk.ledger.set_cap(key="cap", cap=D(100_000))
        return desk

    return make


def leftover(asset: str, units: str = "0.00041", earns: str | None = None) -> VenueBalance:
    """A coin without a market at this exchange."""
    return VenueBalance(asset, D(units), D(0), D(units), tradable=False, earns=earns)


def holds(desk: Desk, *balances: VenueBalance) -> None:
    desk.account.balances = (balance("USDT", "100000"), *balances)


def asked(desk: Desk, key: str = "asked") -> str | None:
    """Return why a reservation would be denied now; None if it would be granted."""
    return desk.ledger.reserve(key=key, tags={**TAGS, "symbol": "SOL"}, dry_run=True).reason


def listed(report: Report) -> dict[str, Any]:
    entry: dict[str, Any] = report.run.fetched[0]["listed"]
    return entry


# --- the table of policies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("binance/main/LDBTC", "ignore"),
        ("binance/main/BNB", "fees"),
        ("binance/two/BNB", "position"),
        ("okx/main/BNB", "fees"),
        ("okx/main/LDBTC", "position"),
        ("okx/main/FDUSD", "cash"),
        ("okx/main/USDE", "position"),
        ("okx/main/USDT", "cash"),
        ("kraken/main/USDT", "cash"),
        ("kraken/main/ETH", "ignore"),
    ],
)
def test_policy_when_several_patterns_fit_then_the_most_specific_holds(name: str, policy: str) -> None:
    """A dollar is named exactly by the default, so that `everything at kraken` does not take the money there."""
    found = AssetPolicies({
        "binance/*/LD*": "ignore", "*/*/BNB": "fees", "binance/two/BNB": "position", "*/*/USDE": "position",
        "kraken/*/*": "ignore",
    })  # fmt: skip
    assert found.policy(*name.split("/")) == policy
    assert found.policy(*name.split("/")) == policy


def test_policy_when_it_was_decided_then_it_wins_over_a_more_specific_setting() -> None:
    decided = AssetRule("okx/*/BNB", "cash", "decided", 1, "main", "me", "why", 1)
    found = AssetPolicies({"okx/main/BNB": "fees"}, [decided])
    assert found.rule("okx", "main", "BNB") == decided
    assert {rule.pattern: rule.source for rule in found}["okx/main/BNB"] == "settings"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"BNB": "fees"}, "venue/account/ASSET"),
        ({"binance//BNB": "fees"}, "venue/account/ASSET"),
        ({"binance/main/BNB/x": "fees"}, "venue/account/ASSET"),
        ({"binance/main/B NB": "fees"}, "venue/account/ASSET"),
        ({"*/*/BNB": "stock"}, "'position', 'cash', 'fees' or 'ignore'"),
    ],
)
def test_read_settings_when_a_pattern_or_policy_is_bad_then_it_is_refused_in_words(
    given: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECONCILE_ASSETS", json.dumps(given))
    with pytest.raises(InvalidRequest, match=said):
        ReconcileSettings()


def test_read_settings_when_a_baseline_names_no_account_then_it_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="venue/account/ASSET"):
        ReconcileSettings(baselines={"BTC": D(1)})


# --- what nobody trades ------------------------------------------------------------------------------------------


def test_reconcile_when_an_account_is_full_of_leftovers_then_nothing_freezes_and_the_run_lists_them(
    opened: NewDesk,
) -> None:
    desk = opened()
    leftovers = [leftover(f"OLD{number}") for number in range(30)]
    holds(desk, leftover("LDUSDT", "5000", "USDT"), leftover("LDBTC", "0.5", "BTC"), *leftovers)
    desk.account.prices = {"LDBTC": D(50_000)}
    report = desk.run(3)
    assert (report.live, report.run.found["listed"], listed(report)["count"]) == ((), 32, 32)
    assert next(iter(listed(report)["assets"].items())) == ("LDBTC", "0.5"), "what is worth most comes first"
    assert len(listed(report)["assets"]) == 20
    assert (asked(desk), figures(desk.ledger)) == (None, (0, 0))


def test_reconcile_when_a_coin_has_no_market_here_any_more_but_the_ledger_holds_it_then_it_is_compared(
    opened: NewDesk,
) -> None:
    desk = opened()
    leg = Leg("bybit", "FTM/USDT", "spot", "buy", D(1000), D("0.7"))
    desk.ledger.adopt(key="a", quantity=D(1000), price=D("0.7"), tags={**TAGS, "symbol": "FTM"}, legs=[leg])
    holds(desk, leftover("FTM", "1000"))
    assert desk.run(2).live == ()
    holds(desk, leftover("FTM", "1500"))
    (drift,) = desk.run(2).live
    assert (drift.kind, drift.excess, drift.state) == ("quantity_differs", 500, "confirmed")


@pytest.mark.parametrize("asset", ["FDUSD", "BUSD", "USD1"])
def test_reconcile_when_an_account_holds_any_dollar_then_it_is_money_and_free(opened: NewDesk, asset: str) -> None:
    assert asset in DOLLARS, "sizing reads the same list"
    desk = opened(confirmations=1)
    desk.account.balances = (balance("USDT", "400"), balance(asset, "600"))
    desk.ledger.reserve(key="held", tags=TAGS, ttl_seconds=5000)
    assert desk.run(2).live == ()
    desk.account.balances = (balance("USDT", "400"), balance(asset, "590"), leftover("LDUSDT", "500", "USDT"))
    (drift,) = desk.run().live
    assert (drift.kind, drift.venue_quantity) == ("balance_below_holds", 990), "what is lent is not free"


def test_reconcile_when_the_own_list_of_dollars_is_shorter_then_the_others_are_compared(opened: NewDesk) -> None:
    desk = opened(quote_assets=("USDT",))
    holds(desk, balance("USDC", "5000"))
    assert [(one.subject, one.kind) for one in desk.run().live] == [("USDC", "unknown_position")]


# --- coins under other names -------------------------------------------------------------------------------------


def test_reconcile_when_a_bots_coins_are_lent_then_they_cover_what_it_holds_and_no_more(opened: NewDesk) -> None:
    desk = opened()
    adopt(desk, "pair", "0.5")
    desk.account.positions = (short("0.5"),)
    holds(desk, balance("BTC", "0.1"), leftover("LDBTC", "0.6", "BTC"))
    report = desk.run(2)
    assert (report.live, listed(report)["assets"]) == ((), {"LDBTC": "0.6"})
    holds(desk, balance("BTC", "0.1"), leftover("LDBTC", "0.3", "BTC"))
    found = {one.kind: (one.ledger_quantity, one.venue_quantity) for one in desk.run(2).live}
    assert found["quantity_differs"] == (D("0.5"), D("0.4")), "0.1 of the bot's coins are nowhere"
    assert "legs_unequal" in found
    holds(desk, balance("BTC", "0.7"), leftover("LDBTC", "9", "BTC"))
    (drift,) = [one for one in desk.run(2).live if one.kind == "quantity_differs"]
    assert drift.excess == D("0.2"), "what is not lent counts beyond the bot's"


def test_reconcile_when_interest_on_lent_coins_runs_for_a_month_then_nothing_is_a_drift(opened: NewDesk) -> None:
    desk = opened()
    adopt(desk, "pair", "0.5")
    desk.account.positions = (short("0.5"),)
    for day in range(30):
        holds(
            desk, leftover("LDBTC", str(D("0.5") + day * D("0.0002")), "BTC"),
            leftover("LDUSDT", str(5000 + day), "USDT"),
        )  # fmt: skip
        assert desk.run(seconds=86_400).live == (), day
    assert figures(desk.ledger) == (0, D("0.5") * BTC_PRICE)


# --- stocks that fees are paid from ------------------------------------------------------------------------------


def test_reconcile_when_a_fee_stock_falls_and_rises_then_nothing_is_a_drift(opened: NewDesk) -> None:
    desk = opened(assets={"*/*/BNB": "fees"}, baselines={"bybit/main/BNB": "5"})
    for units in ("5", "4.9985", "0.01", "7"):
        holds(desk, balance("BNB", units))
        report = desk.run(2)
        assert (report.live, listed(report)["assets"]) == ((), {"BNB": units})
    holds(desk)
    assert desk.run(2).live == ()


@pytest.mark.parametrize("policy", ["fees", "ignore"])
def test_reconcile_when_the_ledger_holds_of_a_fee_stock_then_that_much_must_be_there(
    opened: NewDesk, policy: str
) -> None:
    desk = opened(assets={"*/*/BTC": policy})
    adopt(desk, "pair", "0.5")
    desk.account.positions = (short("0.5"),)
    for units in ("0.5", "3", "0.51"):
        holds(desk, balance("BTC", units))
        assert desk.run(2).live == (), units
    holds(desk, balance("BTC", "0.4"))
    found = {(one.kind, one.venue_quantity) for one in desk.run(2).live}
    assert ("quantity_differs", D("0.4")) in found
    assert asked(desk) == "unreconciled"


def test_reconcile_when_fees_are_paid_from_a_declared_baseline_then_nothing_freezes(opened: NewDesk) -> None:
    desk = opened(baselines={"bybit/main/BNB": "5"})
    for units in ("5", "4.9985", "4.5"):
        holds(desk, balance("BNB", units))
        assert desk.run(2).live == (), units
    holds(desk, balance("BNB", "6"))
    (more,) = desk.run(2).live
    assert (more.kind, more.excess) == ("unknown_position", 1)
    holds(desk, balance("BNB", "1"))
    (sold,) = desk.run(2).live
    assert sold.excess == 4, "so much is no fee"


def test_reconcile_when_bitcoin_is_cash_then_what_the_ledger_holds_of_it_is_taken_as_told(opened: NewDesk) -> None:
    desk = opened(assets={"*/*/BTC": "cash"})
    adopt(desk, "pair", "0.02")
    desk.account.positions = (short("0.02"),)
    holds(desk, balance("BTC", "1"))
    assert desk.run(2).live == ()
    desk.account.positions = (short("0.01"),)
    assert {one.kind for one in desk.run(2).live} == {"quantity_differs", "legs_unequal"}


# --- decided once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["fees", "ignore", "cash"])
def test_ignore_asset_when_its_quantity_changes_ever_after_then_nothing_is_a_drift(
    opened: NewDesk, policy: str
) -> None:
    desk = opened()
    desk.account.prices = {"BNB": D(600)}
    holds(desk, balance("BNB", "2"))
    (drift,) = desk.run(2).live
    assert (asked(desk), figures(desk.ledger)) == ("unreconciled", (0, 1200))
    done = desk.reconciler.operator.act("ignore", drift.id, reason="pays fees", asset=True, policy=policy)
    assert (done.state, done.reason, asked(desk), figures(desk.ledger)) == ("resolved", "pays fees", None, (0, 0))
    for units in ("1", "5", "0.1"):
        holds(desk, balance("BNB", units))
        assert desk.run(2).live == (), units
    (rule,) = [one for one in desk.reconciler.asset_rules() if one.source == "decided"]
    assert (rule.pattern, rule.policy, rule.reason) == ("bybit/main/BNB", policy, "pays fees")
    remarks = [
        one.record for one in desk.ledger.history("main", command="remark") if "asset_policy" in one.record.request
    ]
    assert json.loads(remarks[0].request)["details"] == {"pattern": "bybit/main/BNB", "policy": policy}
    again = desk.reconciler.operator.take_back(rule.id or 0, reason="traded now")
    assert again.pattern == rule.pattern
    assert [(one.subject, one.excess) for one in desk.run().live] == [("BNB", D("0.1"))]
    assert len(desk.ledger.history("*", command="remark").items) == 2, "the desk's chain has both decisions"


def test_ignore_asset_when_what_the_ledger_holds_is_missing_then_it_is_refused_and_nothing_is_stored(
    opened: NewDesk,
) -> None:
    desk = opened()
    adopt(desk, "pair", "0.5")
    desk.account.positions = (short("0.5"),)
    holds(desk, balance("BTC", "0.4"))
    drift = next(one for one in desk.run(2).live if one.kind == "quantity_differs")
    act = desk.reconciler.operator.act
    with pytest.raises(WrongState, match=r"of the 0\.5 BTC that the ledger holds, 0\.1 are missing"):
        act("ignore", drift.id, reason="why", asset=True)
    hedge = next(one for one in desk.run().live if one.kind == "legs_unequal")
    with pytest.raises(WrongState, match="not about an asset"):
        act("ignore", hedge.id, reason="why", asset=True)
    with pytest.raises(InvalidRequest, match="for ignore, not for adopt"):
        act("adopt", drift.id, reason="why", asset=True)
    with pytest.raises(InvalidRequest, match="say so"):
        act("ignore", drift.id, reason="why", policy="fees")
    with pytest.raises(InvalidRequest, match="policy must be one of"):
        act("ignore", drift.id, reason="why", asset=True, policy="position")
    assert {one.source for one in desk.reconciler.asset_rules()} == {"default"}


# --- prices of coins ---------------------------------------------------------------------------------------------


def test_reconcile_when_a_coin_is_bought_by_hand_then_it_counts_at_the_ticker_at_once_and_stays_there(
    opened: NewDesk,
) -> None:
    desk = opened()
    desk.account.prices = {"ETH": D(2500)}
    holds(desk, balance("ETH", "1"))
    desk.run()
    assert (figures(desk.ledger, "external=exchange"), asked(desk)) == ((0, 2500), None), "counted, not confirmed yet"
    desk.run()
    assert asked(desk) == "unreconciled"
    counted = len(desk.ledger.history("main", command="adopt").items)
    for price in (2600, 9000, 100):
        desk.account.prices = {"ETH": D(price)}
        (drift,) = desk.run().live
        assert (drift.price, figures(desk.ledger)) == (2500, (0, 2500)), "coins count at what they were found at"
    assert len(desk.ledger.history("main", command="adopt").items) == counted, "a ticker moves nothing"
    holds(desk, balance("ETH", "2"))
    desk.run()
    assert figures(desk.ledger) == (0, 200), "other coins, counted anew at today's price"


def test_reconcile_when_a_leftover_has_a_ticker_then_it_is_dust_though_nobody_ever_traded_it(opened: NewDesk) -> None:
    desk = opened()
    desk.account.prices = {"DOGE": D("0.2")}
    holds(desk, balance("DOGE", "4.9"))
    assert desk.run(2).live == ()
    holds(desk, balance("DOGE", "5"))
    assert [one.price for one in desk.run().live] == [D("0.2")]


def test_reconcile_when_no_ticker_is_there_then_a_late_spot_fill_counts_at_the_price_of_its_hold(
    opened: NewDesk,
) -> None:
    desk = opened()
    reserve_btc(desk.ledger, "late", ttl_seconds=5)
    desk.clock.advance(6)
    desk.ledger.sweep()
    holds(desk, balance("BTC", "0.02"))
    (late,) = [one for one in desk.run().live if one.kind == "late_fill"]
    assert (late.price, figures(desk.ledger, "external=exchange")) == (BTC_PRICE, (0, 1000))


# --- rows that cannot be read ------------------------------------------------------------------------------------


def test_reconcile_when_a_row_cannot_be_read_then_its_market_alone_is_unknown(opened: NewDesk) -> None:
    desk = opened()
    adopt(desk, "pair", "0.02")
    desk.account.shows(short("0.02"), BTC="0.02")
    assert desk.run().live == ()
    desk.account.unread = (UnreadRow(PERP, "blank fields"), UnreadRow("BTC-28JUN30-50000-C", "an option"))
    desk.account.shows(long("2", "ETH/USDT:USDT", "2000"), BTC="0.02")
    report = desk.run(2)
    found = {(one.kind, one.subject, one.policy) for one in report.live}
    assert found == {
        ("unreadable", PERP, "alert"), ("unreadable", "BTC-28JUN30-50000-C", "alert"),
        ("unknown_position", "ETH/USDT:USDT", "freeze"),
    }  # fmt: skip
    assert report.run.outcome == "good"
    desk.account.unread = ()
    assert {one.kind for one in desk.run().live} == {"unknown_position", "missing_position", "legs_unequal"}


def test_reconcile_when_a_known_drift_becomes_unreadable_then_it_stays(opened: NewDesk) -> None:
    desk = opened()
    desk.account.shows(long("2", "ETH/USDT:USDT", "2000"))
    (known,) = desk.run(2).live
    desk.account.shows()
    desk.account.unread = (UnreadRow("ETH/USDT:USDT", "blank fields"),)
    assert {one.kind: one.id for one in desk.run(2).live}["unknown_position"] == known.id
    assert figures(desk.ledger) == (0, 4000)
    desk.account.unread = ()
    assert desk.run().live == ()


def test_reconcile_when_an_isolated_row_of_a_spot_market_cannot_be_read_then_the_wallet_is_judged(
    opened: NewDesk,
) -> None:
    desk = opened()
    desk.account.unread = (UnreadRow("BTC/USDT", "isolated margin"),)
    desk.account.shows(BTC="1")
    assert {(one.kind, one.subject) for one in desk.run().live} == {
        ("unreadable", "BTC/USDT"), ("unknown_position", "BTC"),
    }  # fmt: skip
