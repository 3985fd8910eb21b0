"""Positions taken over from the exchange: shown first, each hedge one position, counted once at every moment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Ledger
from ledger_sizer.paper.control import DEFAULT_PASSPHRASE, DEFAULT_SECRET, PaperControl
from ledger_sizer.paper.server import PaperServer
from tests.support.command_line import CommandLine

D = Decimal
IMPORT = ("positions", "import", "--from-exchange")


@pytest.fixture(scope="module")
def server() -> Iterator[PaperServer]:
    with PaperServer() as running:
        yield running


class Accounts:
    """Accounts of one test at the paper venues, which the environment names. The first is the flat one."""

    def __init__(self, server: PaperServer, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self._server, self._monkeypatch, self._name = server, monkeypatch, name
        self._given: list[dict[str, str]] = []

    def add(self, venue: str, account: str = "main") -> PaperControl:
        key = f"{self._name}-{len(self._given)}"
        control = PaperControl(self._server.url, venue, key)
        control.open_account(balances={"USDT": D(100_000)})
        self._given.append(
            {
                "id": venue, "account": account, "api_key": key, "api_secret": DEFAULT_SECRET,
                "password": DEFAULT_PASSPHRASE, "base_url": self._server.url,
            }
        )  # fmt: skip
        first, *others = self._given
        for field, value in first.items():
            self._monkeypatch.setenv(f"EXCHANGE_{field}".upper(), value)
        self._monkeypatch.setenv("EXCHANGE_ACCOUNTS", json.dumps(others))
        return control


@pytest.fixture
def accounts(server: PaperServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Accounts:
    for name, value in {"GRACE_SECONDS": "0", "CONFIRMATIONS": "2"}.items():
        monkeypatch.setenv(f"RECONCILE_{name}", value)
    return Accounts(server, monkeypatch, request.node.name)


def carry(control: PaperControl, coin: str, coins: str) -> None:
    """Hold coins, and be short of as many."""
    control.deposit(coin, D(coins))
    control.open(f"{coin}/USDT:USDT", "short", D(coins))


def legs_of(position: dict[str, Any]) -> list[str]:
    return [
        f"{leg['venue']}/{leg.get('account', '')} {leg['symbol']} {leg['side']} {D(leg['quantity']).normalize():f}"
        for leg in position["legs"]
    ]


def figures(cli: CommandLine, scope: str = "portfolio") -> Decimal:
    """Return the exposure of a scope; 0 where it does not exist."""
    rows = {row["scope"]: row["exposure"] for row in cli.json("exposure")["scopes"]}
    return D(rows.get(scope, 0))


def test_import_when_the_account_holds_hedges_then_each_is_one_position_that_counts_once(
    cli: CommandLine, accounts: Accounts
) -> None:
    control = accounts.add("binance")
    carry(control, "BTC", "0.02")
    carry(control, "ETH", "0.4")
    dry = cli.json(*IMPORT, "--tag", "strategy=carry")
    (of_main,) = dry["items"]
    assert (dry["dry_run"], of_main["usd"], of_main["headroom"], of_main["overage"]) == (True, "2000", "3000", "0")
    assert [legs_of(one) for one in of_main["positions"]] == [
        ["binance/main BTC buy 0.02", "binance/main BTC/USDT:USDT sell 0.02"],
        ["binance/main ETH buy 0.4", "binance/main ETH/USDT:USDT sell 0.4"],
    ]
    assert {one["position_id"] for one in of_main["positions"]} == {None}
    assert cli.json("caps")["items"] == [], "a dry run begins no portfolio"
    assert cli.json("drifts", "list")["items"] == []

    done = cli.json(*IMPORT, "--tag", "strategy=carry", "--reason", "from before", "--apply")["items"][0]
    recorded = cli.json("positions", "--state", "open")["items"]
    assert [one["position_id"] for one in done["positions"]] == [one["position_id"] for one in recorded]
    assert [legs_of(one) for one in done["positions"]] == [legs_of(one) for one in of_main["positions"]]
    assert recorded[0]["tags"] == {"account": "main", "strategy": "carry", "symbol": "BTC", "venue": "binance"}
    assert (figures(cli), figures(cli, "strategy=carry"), figures(cli, "external=exchange")) == (2000, 2000, 0)
    assert {one["reason"] for one in cli.json("drifts", "list")["items"]} == {"from before"}

    again = cli.json(*IMPORT, "--apply")["items"][0]
    assert (again["positions"], figures(cli)) == ([], 2000)
    assert cli("reconcile").code == 0
    assert cli.json("drifts", "list", "--state", "live")["items"] == []
    assert cli("verify").code == 0


def test_import_when_runs_counted_both_sides_and_froze_then_it_thaws_and_they_count_once(
    cli: CommandLine, accounts: Accounts
) -> None:
    carry(accounts.add("bybit"), "BTC", "0.02")
    for _ in range(2):
        assert cli("reconcile").code == 0
    assert figures(cli) == 2000
    assert cli("reserve", "--dry-run").code == 3, "frozen"
    (shown,) = cli.json(*IMPORT)["items"]
    assert (shown["exposure_before"], shown["exposure_after"]) == ("2000", "1000")
    cli.json(*IMPORT, "--apply")
    assert (figures(cli), figures(cli, "external=exchange")) == (1000, 0)
    assert cli("reserve", "--dry-run").code == 0


@pytest.mark.one_engine
def test_import_when_a_hedge_is_at_two_venues_then_it_is_taken_whole_and_a_rest_is_its_own(
    cli: CommandLine, accounts: Accounts
) -> None:
    accounts.add("bybit").open("ETH/USDT:USDT", "long", D("0.4"))
    other = accounts.add("okx", "two")
    other.open("ETH/USDT:USDT", "short", D(1))
    other.open("BTC/USDT:USDT", "long", D("0.02"))
    (shown,) = cli.json(*IMPORT, "--venue", "bybit")["items"]
    assert [legs_of(one) for one in shown["positions"]] == [
        ["bybit/main ETH/USDT:USDT buy 0.4", "okx/two ETH/USDT:USDT sell 0.4"], ["okx/ ETH/USDT:USDT sell 0.6"],
    ]  # fmt: skip
    (done,) = cli.json(*IMPORT, "--venue", "bybit", "--apply")["items"]
    assert [legs_of(one) for one in done["positions"]] == [legs_of(one) for one in shown["positions"]]
    assert figures(cli, "venue=okx") == D(2500) + 1000, "and BTC, which nobody took over yet, as external"
    assert figures(cli, "external=exchange") == 1000
    (left,) = cli.json(*IMPORT, "--venue", "okx")["items"]
    assert [legs_of(one) for one in left["positions"]] == [["okx/ BTC/USDT:USDT buy 0.02"]]


@pytest.mark.one_engine
def test_import_when_something_is_not_taken_then_it_is_listed_with_the_reason(
    cli: CommandLine, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = accounts.add("binance")
    carry(control, "BTC", "0.02")
    control.open("ETH/USDT:USDT", "short", D("0.4"))
    control.deposit("ETH", D("0.0002"))
    control.deposit("XRP", D(100))
    monkeypatch.setenv("RECONCILE_BASELINES", '{"binance/main/XRP": "100"}')
    for _ in range(2):
        cli("reconcile")
    drift = next(one["id"] for one in cli.json("drifts", "list")["items"] if one["subject"] == "ETH/USDT:USDT")
    assert cli("drifts", "ignore", str(drift), "--reason", "a bet of its own").code == 0
    (shown,) = cli.json(*IMPORT, "--apply")["items"]
    assert len(shown["positions"]) == 1
    (shown,) = cli.json(*IMPORT)["items"]
    why = {one["subject"]: one["why"] for one in shown["left_out"]}
    assert why["ETH/USDT:USDT"].startswith(f"drift-{drift} is ignored: a bet of its own (cli:")
    assert (why["USDT"], why["XRP"]) == ("dollars", "baseline of 100")
    assert (why["BTC"], why["BTC/USDT:USDT"]) == ("the ledger has it", "the ledger has it")
    assert why["ETH"] == "worth less than RECONCILE_DUST_USD"
    told = cli(*IMPORT).out
    assert "0 positions of main: a dry run, nothing is recorded; --apply records it" in told
    assert "nothing to import" in told


@pytest.mark.one_engine
def test_import_when_it_is_above_the_cap_then_it_is_recorded_and_said(cli: CommandLine, accounts: Accounts) -> None:
    cli("caps", "set", "main", "600")
    carry(accounts.add("binance"), "BTC", "0.02")
    for more in ((), ("--apply",)):
        ran = cli(*IMPORT, *more)
        assert ran.code == 0
        assert "400.00 USD: nothing more is granted until the cap is raised" in ran.out
    assert figures(cli) == 1000


@pytest.mark.one_engine
def test_import_when_half_of_an_account_is_unknown_then_nothing_is_taken(cli: CommandLine, accounts: Accounts) -> None:
    carry(accounts.add("bybit"), "BTC", "0.02")
    away = accounts.add("okx")
    away.fault("hollow", times=None)
    try:
        dry, refused = cli(*IMPORT), cli(*IMPORT, "--apply")
    finally:
        away.clear_faults()
    assert (dry.code, refused.code) == (1, 1)
    assert "problem" in dry.out
    assert "cannot be paired while a part of it is unknown" in refused.err
    assert cli.json("caps")["items"] == []


@pytest.mark.one_engine
def test_import_when_a_tag_is_required_then_it_is_asked_for_and_then_all_have_it(
    cli: CommandLine, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGER_REQUIRED_TAGS", '["strategy", "venue"]')
    carry(accounts.add("binance"), "BTC", "0.02")
    assert cli(*IMPORT).code == 0
    refused = cli(*IMPORT, "--apply", "--json").problem
    assert (refused["field"], refused["error"]) == ("tags.strategy", "invalid_request")
    assert "add --tag strategy=" in refused["message"]
    assert cli.json("caps")["items"] == []
    assert cli(*IMPORT, "--tag", "strategy=carry", "--apply").code == 0


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("arguments", "field", "told"),
    [
        ((), "file", "give a FILE or --from-exchange"),
        (("x.csv", "--from-exchange"), "file", "one of both"),
        (("x.csv",), "file", "cannot be read"),
        (("x.csv", "--venue", "okx"), "venue", "a file names it in its column"),
        (("--from-exchange", "--key", "a"), "key", "--key is for a file"),
        (("--from-exchange", "--venue", "okx"), "venue", "no account fits this venue; there are binance/main of main"),
        (("--from-exchange", "--portfolio", "b"), "portfolio", "no account fits this portfolio"),
        (("--from-exchange", "--tag", "venue=okx"), "tags.venue", "tags.venue is okx, but what is taken over has"),
    ],
)
def test_import_when_the_command_is_wrong_then_it_says_how_it_is_right(
    cli: CommandLine, accounts: Accounts, arguments: tuple[str, ...], field: str, told: str
) -> None:
    accounts.add("binance").open("BTC/USDT:USDT", "short", D("0.02"))
    ran = cli("positions", "import", *arguments, "--apply", "--json")
    assert (ran.code, ran.problem["field"]) == (2, field)
    assert told in ran.problem["message"]
    with Ledger.open(str(cli.url)) as ledger:
        assert ledger.portfolios() == []
