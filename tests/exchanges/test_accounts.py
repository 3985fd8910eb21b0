"""Exchange accounts: the real ccxt client against the paper venues. Quantities are exact, and never guessed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

import pytest
from pydantic import SecretStr

from ledger_sizer.config import AppSettings, ExchangeAccountSettings, ExchangeSettings
from ledger_sizer.exchanges import accounts
from ledger_sizer.exchanges.accounts import ExchangeAccount, open_accounts
from ledger_sizer.exchanges.snapshot import VenueBalance, VenuePosition
from ledger_sizer.model.errors import InvalidRequest, Unavailable
from ledger_sizer.paper import PaperControl, PaperServer
from tests.support.paper_clients import PERP, SPOT, VENUES, account_at, now_us, trader_at

D = Decimal
PARTS = {
    "bybit": ("/v5/position/list", "/v5/account/wallet-balance"),
    "binance": ("/fapi/v3/positionRisk", "/api/v3/account"),
    "okx": ("/account/positions", "/account/balance"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[PaperServer]:
    with PaperServer() as running:
        yield running


@pytest.fixture(params=VENUES)
def venue(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def control(server: PaperServer, venue: str, request: pytest.FixtureRequest) -> Iterator[PaperControl]:
    """An account of the test's own, with 1,000 USDT in each wallet."""
    control = PaperControl(server.url, venue, f"key-{request.node.name}")
    control.open_account(balances={"USDT": D(1000)})
    yield control
    control.clear_faults()


@pytest.fixture
def account(server: PaperServer, venue: str, control: PaperControl) -> Iterator[ExchangeAccount]:
    account = account_at(venue, server.url, api_key=SecretStr(control.api_key))
    yield account
    account.close()


def test_snapshot_when_nothing_stands_there_then_it_is_whole_and_flat(account: ExchangeAccount) -> None:
    seen = account.snapshot(now_us)
    assert seen.whole
    assert seen.positions == ()
    assert [balance.asset for balance in seen.balances or ()] == ["USDT"]
    assert seen.problems == ()
    assert seen.begun_us < seen.taken_us


def test_snapshot_when_positions_stand_there_then_they_are_base_units_and_decimals(
    account: ExchangeAccount, control: PaperControl, venue: str
) -> None:
    control.open(PERP, "short", D("0.123"))
    control.open("ETH/USDT:USDT", "long", D("0.4"))
    seen = account.snapshot(now_us)
    assert seen.positions == (
        VenuePosition(PERP, "short", D("0.123"), D(50_000), D(50_000), hedged=False),
        VenuePosition("ETH/USDT:USDT", "long", D("0.4"), D(2_500), D(2_500), hedged=False),
    )
    used = (D("0.123") * 50_000 + D("0.4") * 2_500) / 10
    total = D(2000) if venue == "binance" else D(1000)  # spot and futures wallets, added up
    assert seen.balances == (VenueBalance("USDT", total - used, used, total),)


def test_snapshot_when_okx_counts_contracts_then_the_contract_size_is_applied(server: PaperServer) -> None:
    PaperControl(server.url, "okx", "contracts").open_account()
    trader = trader_at("okx", server.url, api_key=SecretStr("contracts"))
    trader.load_markets()
    assert trader.market(PERP)["contractSize"] == "0.01"
    trader.create_order(PERP, "market", "sell", "3")
    seen = account_at("okx", server.url, api_key=SecretStr("contracts")).snapshot(now_us)
    assert [(p.side, p.quantity) for p in seen.positions or ()] == [("short", D("0.03"))]


def test_snapshot_when_the_account_is_in_hedge_mode_then_a_market_has_two_positions(
    server: PaperServer, venue: str
) -> None:
    control = PaperControl(server.url, venue, "hedged")
    control.open_account(hedged=True)
    control.open(PERP, "long", D("0.02"))
    control.open(PERP, "short", D("0.05"))
    seen = account_at(venue, server.url, api_key=SecretStr("hedged")).snapshot(now_us)
    assert [(p.symbol, p.side, p.quantity, p.hedged) for p in seen.positions or ()] == [
        (PERP, "long", D("0.02"), True),
        (PERP, "short", D("0.05"), True),
    ]


def test_snapshot_when_spot_was_bought_then_its_balance_is_there(
    account: ExchangeAccount, control: PaperControl, server: PaperServer, venue: str
) -> None:
    trader = trader_at(venue, server.url, api_key=SecretStr(control.api_key))
    trader.create_order(SPOT, "market", "buy", "0.0123")
    balances = {balance.asset: balance for balance in account.snapshot(now_us).balances or ()}
    assert balances["BTC"] == VenueBalance("BTC", D("0.0123"), D(0), D("0.0123"))


@pytest.mark.parametrize("kind", ["rate_limit", "outage", "timeout", "half", "hollow", "lost_answer"])
@pytest.mark.parametrize("part", [0, 1], ids=["positions", "balances"])
def test_snapshot_when_one_part_cannot_be_fetched_then_it_is_unknown_and_the_other_stands(
    server: PaperServer, control: PaperControl, venue: str, kind: str, part: int
) -> None:
    control.open(PERP, "short", D("0.02"))
    account = account_at(venue, server.url, api_key=SecretStr(control.api_key), timeout_seconds=1)
    account.instruments()
    control.fault(kind, PARTS[venue][part], seconds=1.2)
    seen = account.snapshot(now_us)
    unknown, known = (seen.positions, seen.balances) if part == 0 else (seen.balances, seen.positions)
    assert unknown is None
    assert known
    assert not seen.whole
    (problem,) = seen.problems
    assert problem.startswith(f"{venue} main: {('positions', 'balances')[part]} unknown: ")
    assert "signature" not in problem
    assert account.snapshot(now_us).whole, "the next one is whole again"


def test_snapshot_when_a_contract_size_changes_then_every_account_learns_of_it(
    server: PaperServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = PaperControl(server.url, "okx", "sizes")
    control.open_account()
    control.open(PERP, "short", D(2))
    account = account_at("okx", server.url, api_key=SecretStr("sizes"))
    assert [one.quantity for one in account.snapshot(now_us).positions or ()] == [D(2)]
    markets = server.venues.dialects["okx"].exchange.markets
    monkeypatch.setitem(markets, PERP, replace(markets[PERP], contract_size=markets[PERP].contract_size / 10))
    monkeypatch.setattr(accounts, "_MARKETS_SECONDS_MAX", 0)
    # The paper venue stores base units, so the same position now has ten times as many contracts.
    assert [one.quantity for one in account.snapshot(now_us).positions or ()] == [D(2)]
    account.close()


MARKETS = {"bybit": "instruments-info", "binance": "exchangeInfo", "okx": "public/instruments"}


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_snapshot_when_the_markets_came_without_rows_then_a_position_is_not_taken_for_none(
    server: PaperServer, control: PaperControl, venue: str, times: int
) -> None:
    control.open(PERP, "short", D("0.02"))
    account = account_at(venue, server.url, api_key=SecretStr(control.api_key))
    control.fault("hollow", MARKETS[venue], times=times)
    assert account.snapshot(now_us).positions != ()
    control.clear_faults()
    (position,) = account.snapshot(now_us).positions or ()
    assert (position.symbol, position.side, position.quantity) == (PERP, "short", D("0.02"))
    account.close()


def test_snapshot_when_binance_listed_spot_markets_alone_then_its_positions_are_found_by_asking_again(
    server: PaperServer,
) -> None:
    control = PaperControl(server.url, "binance", "spot-alone")
    control.open_account()
    control.open(PERP, "short", D("0.02"))
    account = account_at("binance", server.url, api_key=SecretStr("spot-alone"))
    control.fault("hollow", "fapi/v1/exchangeInfo")
    (position,) = account.snapshot(now_us).positions or ()
    assert (position.symbol, position.quantity) == (PERP, D("0.02"))
    account.close()


def test_snapshot_when_binance_lists_spot_markets_alone_for_long_then_its_positions_are_named_as_unread(
    server: PaperServer,
) -> None:
    control = PaperControl(server.url, "binance", "spot-for-long")
    control.open_account()
    control.open(PERP, "short", D("0.02"))
    account = account_at("binance", server.url, api_key=SecretStr("spot-for-long"))
    control.fault("hollow", "fapi/v1/exchangeInfo", times=None, seconds=60)
    seen = account.snapshot(now_us)
    control.clear_faults()
    assert seen.positions == ()
    assert [one.symbol for one in seen.unread] == [PERP], "though it shares its id with a spot market"
    assert not seen.covers(PERP)
    account.close()


def test_snapshot_when_a_fault_passes_then_ccxt_asked_again(
    server: PaperServer, control: PaperControl, venue: str
) -> None:
    account = account_at(venue, server.url, api_key=SecretStr(control.api_key), retries_max=2)
    account.instruments()
    control.fault("rate_limit", PARTS[venue][0])
    control.fault("half", PARTS[venue][0])
    assert account.snapshot(now_us).whole


@pytest.mark.parametrize("wrong", ["api_key", "api_secret"])
def test_snapshot_when_credentials_are_wrong_then_everything_is_unknown_and_no_secret_is_told(
    server: PaperServer, venue: str, wrong: str
) -> None:
    account = account_at(venue, server.url, **{wrong: SecretStr("not-the-right-one")})
    seen = account.snapshot(now_us)
    assert (seen.positions, seen.balances) == (None, None)
    assert len(seen.problems) == 2
    assert all("AuthenticationError" in problem or "PermissionDenied" in problem for problem in seen.problems)
    assert "not-the-right-one" not in " ".join(seen.problems)


def test_snapshot_when_the_exchange_cannot_be_reached_then_everything_is_unknown(venue: str) -> None:
    with PaperServer() as gone:
        account = account_at(venue, gone.url)
    seen = account.snapshot(now_us)
    assert (seen.positions, seen.balances) == (None, None)
    with pytest.raises(Unavailable, match=f"{venue} did not give its market rules"):
        account.instruments()


def test_snapshot_when_bybit_lists_several_pages_then_all_are_read(server: PaperServer) -> None:
    control = PaperControl(server.url, "bybit", "pages")
    control.open_account(hedged=True)
    for base in ("BTC", "ETH", "SOL", "XRP"):
        control.open(f"{base}/USDT:USDT", "long", D(1))
        control.open(f"{base}/USDT:USDT", "short", D(2))
    account = account_at("bybit", server.url, api_key=SecretStr("pages"))
    server.venues.dialects["bybit"].page_rows = 3  # type: ignore[attr-defined]
    seen = account.snapshot(now_us)
    server.venues.dialects["bybit"].page_rows = 200  # type: ignore[attr-defined]
    assert len(seen.positions or ()) == 8


def test_snapshot_when_a_position_is_in_a_coin_margined_contract_then_it_is_read_beside_the_others(
    server: PaperServer, venue: str
) -> None:
    control = PaperControl(server.url, venue, "inverse")
    control.open_account(balances={"USDT": D(1000), "BTC": D(1)})
    control.open("BTC/USD:BTC", "long", D(100))
    control.open(PERP, "short", D("0.01"))
    seen = account_at(venue, server.url, api_key=SecretStr("inverse")).snapshot(now_us)
    assert [(one.symbol, one.side, one.coins, one.coin_price) for one in seen.positions or ()] == [
        ("BTC/USD:BTC", "long", D("0.002"), D(50_000)),
        (PERP, "short", D("0.01"), D(50_000)),
    ]
    assert (seen.whole, seen.unread, seen.not_asked, seen.problems) == (True, (), (), ())
    assert seen.prices == {"BTC": D(50_000)}


def test_open_accounts_when_several_are_configured_then_each_has_its_venue_and_portfolio(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EXCHANGE_ID", "binance")
    monkeypatch.setenv("EXCHANGE_API_KEY", "one")
    monkeypatch.setenv("EXCHANGE_API_SECRET", "one's")
    monkeypatch.setenv(
        "EXCHANGE_ACCOUNTS",
        '[{"id": "okx", "api_key": "two", "api_secret": "s", "password": "x", "portfolio": "carry"},'
        ' {"id": "hyperliquid", "account": "sub", "wallet_address": "three"}, {"id": "kraken"}]',
    )
    accounts = open_accounts(AppSettings().exchange)
    assert [(account.venue, account.account, account.portfolio) for account in accounts] == [
        ("binance", "main", "main"),
        ("okx", "main", "carry"),
        ("hyperliquid", "sub", "main"),
    ], "an account without a credential is none to read"
    shown = repr(AppSettings())
    assert not any(secret in shown for secret in ("'one'", "'two'", "'three'", "'x'"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[{"id": "bybit", "api_key": "k"}]', "two accounts of bybit are called 'main'"),
        ('[{"id": "okx", "passphrase": "hush"}]', "accounts.0.passphrase"),
        ('[{"id": "okx", "base_url": "localhost"}]', "accounts.0.base_url"),
        ("[{", "EXCHANGE_ACCOUNTS is not valid JSON"),
    ],
)
def test_read_settings_when_accounts_are_wrong_then_the_place_is_told_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    monkeypatch.setenv("EXCHANGE_API_KEY", "one")
    monkeypatch.setenv("EXCHANGE_ACCOUNTS", text)
    with pytest.raises(InvalidRequest, match=told) as refused:
        ExchangeSettings()
    assert "hush" not in str(refused.value)


def test_open_account_when_ccxt_has_no_such_exchange_then_near_names_are_told() -> None:
    with pytest.raises(InvalidRequest, match=r"ccxt has no exchange 'binanc'; did you mean one of .*binance"):
        ExchangeAccount(ExchangeAccountSettings(id="binanc"))


@pytest.mark.parametrize(
    ("venue", "positions"),
    [("bitvavo", ()), ("upbit", ()), ("binanceus", ()), ("bitstamp", None), ("lbank", None), ("kraken", None)],
)
def test_snapshot_when_an_exchange_has_no_derivatives_then_it_has_no_positions(
    venue: str, positions: tuple[VenuePosition, ...] | None
) -> None:
    """Bitstamp has swaps, but ccxt cannot list their positions. For the others ccxt does not say. Both stay unknown."""
    account = account_at(venue, "http://127.0.0.1:1", retries_max=0)
    seen = account.snapshot(now_us)
    account.close()
    assert (seen.positions, seen.balances) == (positions, None)
    assert [problem.split(": ")[1] for problem in seen.problems] == (
        ["balances unknown"] if positions == () else ["positions unknown", "balances unknown"]
    )
