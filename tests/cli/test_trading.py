"""Tests of reserve, confirm, release, extend and adopt, run as a user would, on both databases."""

from __future__ import annotations

import json
import re
import time
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Ledger
from tests.support.command_line import PERP, SPOT, CommandLine

pytestmark = pytest.mark.one_engine


@pytest.fixture(autouse=True)
def _dynamic_sizing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIZING_ENABLED", "true")


SIZED = ["--price", "50000", "--available-balance", "10000", "--spot", SPOT, "--perp", PERP]
DECISION_FIELDS = (
    "portfolio seq command key outcome reason granted replayed position_id budget quantity fraction raw_budget "
    "headroom_before exposure_before exposure_after binding expires_at until_known legs decided_at actor client "
    "reference hash request"
)


def test_reserve_when_everything_is_given_then_json_holds_the_whole_decision(cli: CommandLine) -> None:
    tags = ["--tag", "venue=bybit", "--tag", "symbol=BTC", "--tag", "strategy=funding"]
    decision = cli.json("reserve", "--key", "cycle-17/BTC", "--signal-score", "0.9", "--ttl", "30", *tags, *SIZED)
    assert set(decision) == set(DECISION_FIELDS.split())
    expected = {
        "portfolio": "main", "seq": 1, "command": "reserve", "key": "cycle-17/BTC", "outcome": "granted",
        "reason": None, "granted": True, "replayed": False, "position_id": "main-1", "budget": "900",
        "quantity": "0.018", "fraction": "0.93", "raw_budget": "930", "headroom_before": "5000",
        "exposure_before": "0", "exposure_after": "900",
    }  # fmt: skip
    assert {name: decision[name] for name in expected} == expected
    assert decision["request"]["tags"] == {"strategy": "funding", "symbol": "BTC", "venue": "bybit"}
    assert decision["request"]["ttl_seconds"] == "30"
    assert re.fullmatch("[0-9a-f]{64}", decision["hash"])
    assert all(decision[name].endswith("Z") for name in ("decided_at", "expires_at"))
    with Ledger.open(cli.url) as ledger:
        assert ledger.position("main-1").held == 900


def test_reserve_when_a_tag_is_given_again_then_it_has_several_values_and_is_found_by_each(cli: CommandLine) -> None:
    words = ["--tag", "venue=okx", "--tag", "strategy=funding", "--tag", "venue=bybit", "--tag", "venue=okx"]
    decision = cli.json("reserve", "--key", "pair", *words)
    assert decision["request"]["tags"] == {"strategy": "funding", "venue": ["bybit", "okx"]}
    assert cli.json("reserve", "--key", "pair", "--tag=venue=bybit", "--tag=venue=okx", "--tag=strategy=funding")[
        "replayed"
    ]
    cli.json("reserve", "--key", "one", "--tag", "venue=okx")
    for filters, found in (
        (["--tag", "venue=okx"], ["main-1", "main-2"]),
        (["--tag", "venue=bybit"], ["main-1"]),
        (["--tag", "venue=bybit", "--tag", "venue=okx"], ["main-1"]),
        (["--tag", "venue=bybit", "--tag", "venue=kraken"], []),
    ):
        assert [one["position_id"] for one in cli.json("positions", *filters)["items"]] == found
    assert cli.json("positions", "--limit", "1")["items"][0]["tags"] == {
        "strategy": "funding",
        "venue": ["bybit", "okx"],
    }
    assert "strategy=funding venue=bybit venue=okx" in cli("positions").out
    assert [row["scope"] for row in cli.json("exposure")["scopes"]] == [
        "portfolio", "strategy=funding", "venue=bybit", "venue=okx",
    ]  # fmt: skip


def test_reserve_when_key_is_not_given_then_the_printed_one_gives_the_same_answer(cli: CommandLine) -> None:
    ran = cli("reserve", "--signal-score", "0.5")
    assert ran.code == 0
    key = re.search(r"^key +(cli-\S+)$", ran.out, re.MULTILINE)
    assert key
    again = cli.json("reserve", "--signal-score", "0.50", "--key", key[1])
    assert (again["replayed"], again["position_id"], again["budget"]) == (True, "main-1", "650")
    assert "answered before" in cli("reserve", "--signal-score", "0.5", "--key", key[1]).out
    assert cli.json("exposure")["held"] == "650"


def test_reserve_when_two_keys_are_generated_then_they_differ(cli: CommandLine) -> None:
    assert cli.json("reserve", "--signal-score", "0")["key"] != cli.json("reserve", "--signal-score", "0")["key"]


def test_reserve_when_text_is_shown_then_it_tells_what_matters(cli: CommandLine) -> None:
    lines = cli("reserve", "--key", "k", "--signal-score", "0.9", *SIZED).out.splitlines()
    assert lines[0] == "reserve granted: 900.00 USD"
    pairs = dict(re.split(r"  +", line, maxsplit=1) for line in lines[1:])
    assert [line.split(maxsplit=1) for line in lines if line.startswith("order")] == [
        ["order", "buy 0.018 BTC/USDT"], ["order", "sell 0.018 BTC/USDT:USDT"],
    ]  # fmt: skip
    del pairs["order"]
    assert pairs.pop("expires at").endswith("Z")
    assert pairs == {
        "position": "main-1", "quantity": "0.018", "bound by": "signal_score",
        "exposure": "0.00 -> 900.00 USD", "decision": "main #1", "key": "k",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("perp", "quantity"),
    [
        ({"symbol": "X", "min_qty": "0.001", "max_qty": "100", "qty_step": "0.001"}, "0.018"),
        ({"symbol": "X", "min_qty": 1, "max_qty": 9000, "qty_step": 1, "contract_size": 0.01}, "0.01"),
        ({"symbol": "X", "min_qty": 0.001, "max_qty": 1e2, "qty_step": 1e-3, "min_notional": None}, "0.018"),
    ],
    ids=["texts", "contracts", "numbers"],
)
def test_reserve_when_instrument_is_json_then_it_is_read_exactly(
    cli: CommandLine, perp: dict[str, Any], quantity: str
) -> None:
    given = ["--price", "50000", "--spot", SPOT, "--perp", json.dumps(perp), "--signal-score", "0.9"]
    assert cli.json("reserve", *given)["quantity"] == quantity


def test_reserve_when_instrument_names_every_rule_then_each_lands_in_its_place(cli: CommandLine) -> None:
    rules = "A/USDT,0.5,100,0.5,7,0.25,2"
    request = cli.json("reserve", "--price", "10", "--spot", rules, "--perp", "A-PERP, 1, 50, 1")["request"]
    assert request["spot_instrument"] == {
        "symbol": "A/USDT", "min_qty": "0.5", "max_qty": "100", "qty_step": "0.5", "min_notional": "7",
        "tick_size": "0.25", "contract_size": "2",
    }  # fmt: skip
    assert request["perp_instrument"]["symbol"] == "A-PERP"
    assert request["perp_instrument"]["contract_size"] == "1"


def test_reserve_when_figures_have_many_digits_then_none_is_lost(cli: CommandLine) -> None:
    exact = "12345678901.123456789012345678"
    assert cli.json("reserve", "--price", exact)["request"]["price"] == exact


def test_reserve_when_cap_leaves_nothing_then_exit_is_3_and_the_decision_says_why(cli: CommandLine) -> None:
    assert cli("caps", "set", "main", "0").code == 0
    ran = cli("reserve", "--json", "--key", "k")
    assert (ran.code, ran.err) == (3, "")
    assert (ran.json["outcome"], ran.json["reason"], ran.json["granted"]) == ("denied", "cap_exceeded", False)
    ran = cli("reserve", "--key", "k")
    assert ran.code == 3
    assert ran.out.startswith("reserve denied: cap_exceeded (answered before; nothing new happened)\n")


@pytest.mark.parametrize(("minimum", "code"), [("930", 0), ("930.00000001", 3)])
def test_reserve_when_minimum_is_asked_then_less_is_denied(cli: CommandLine, minimum: str, code: int) -> None:
    ran = cli("reserve", "--signal-score", "0.9", "--min-notional", minimum, "--json")
    assert ran.code == code
    assert ran.json["reason"] == (None if code == 0 else "below_min_notional")


def test_reserve_when_dry_run_then_nothing_is_recorded(cli: CommandLine) -> None:
    cli.json("caps", "set", "main", "600")
    decision = cli.json("reserve", "--dry-run", "--signal-score", "0.9")
    assert (decision["granted"], decision["budget"], decision["seq"], decision["hash"]) == (True, "600", None, None)
    assert "dry run: nothing is held or recorded" in cli("reserve", "--dry-run").out
    assert cli("reserve", "--dry-run", "--min-notional", "601").code == 3
    assert (cli.json("exposure")["held"], cli.json("exposure")["seq"]) == ("0", 1)


def test_reserve_when_key_answered_another_request_then_it_is_bad_input(cli: CommandLine) -> None:
    cli.json("reserve", "--key", "k", "--signal-score", "0.9")
    problem = cli("reserve", "--key", "k", "--signal-score", "0.8", "--json").problem
    assert (problem["error"], problem["field"]) == ("idempotency_key_reused", "key")
    assert cli("reserve", "--key", "k", "--signal-score", "0.8").code == 2


BAD_RESERVES = {
    "--signal-score=1.01": "signal_score must be between 0 and 1, got 1.01",
    "--signal-score=nan": "signal_score must be a number such as 0.9 or 50000, got 'nan'",
    "--signal-score=": "signal_score must be a number",
    "--price=0": "price must be above 0, got 0",
    "--price=1,000": "price must be a number",
    "--price=1_000": "price must be a number",
    "--price=-Infinity": "price must be a number",
    "--price=1e999": "price is out of range",
    "--available-balance=lots": "available_balance must be a number",
    "--min-notional=-1": "min_notional_usd must be 0 or above, got -1",
    "--ttl=0": "ttl_seconds must be above 0",
    "--ttl=nan": "ttl_seconds must be a number",
    "--ttl=99999999": "ttl_seconds must be above 0 and at most 2592000",
    "--key=": "key must have 1 to 200 characters, got 0",
    "--key=ledger:x": "the prefix 'ledger:' is the ledger's own",
    "--portfolio=a b": "portfolio must be 1 to 64 letters",
    "--tag=bybit": "--tag must look like venue=bybit, got 'bybit'",
    "--tag==bybit": "--tag must look like venue=bybit",
    "--tag=venue=": "--tag must look like venue=bybit",
    "--tag=Venue=bybit": "got 'Venue'",
    " ".join(f"--tag=venue=v{number}" for number in range(17)): "tags.venue must have at most 16 values, got 17",
    "--tag=venue=a --tag=venue=": "--tag must look like venue=bybit, got 'venue='",
    "--tag=venue=a --tag=external=b --tag=external=c": "the tag 'external' is the reconciliation's own",
    f"--price=1 --spot={SPOT}": "perp_instrument is missing",
    f"--spot={SPOT} --perp={PERP}": "price is missing",
    f"--price=1 --spot=BTC,1,2 --perp={PERP}": "spot_instrument must be symbol,min_qty,max_qty,qty_step[,min_notional",
    f"--price=1 --spot=BTC,1,2,3,4,5,6,7 --perp={PERP}": "spot_instrument must be symbol,min_qty",
    f"--price=1 --spot=BTC,1,2,x --perp={PERP}": "spot_instrument qty_step must be a number such as 0.9 or 50000",
    f"--price=1 --spot=BTC,1,2,0 --perp={PERP}": "qty_step must be above 0, got 0",
    f"--price=1 --spot=BTC,3,2,1 --perp={PERP}": "max_qty 2 is below min_qty 3",
    f'--price=1 --spot={{"symbol" --perp={PERP}': "spot_instrument is not valid JSON",
    f'--price=1 --spot={{"symbol":"BTC"}} --perp={PERP}': "spot_instrument lacks 'min_qty'",
    f'--price=1 --spot={{"steps":1}} --perp={PERP}': "spot_instrument has no 'steps'; it takes symbol, min_qty",
    f'--price=1 --spot={{"symbol":"B","min_qty":true,"max_qty":1,"qty_step":1}} --perp={PERP}': "min_qty must be text",
    f'--price=1 --spot={{"symbol":"B","min_qty":NaN,"max_qty":1,"qty_step":1}} --perp={PERP}': "got 'NaN'",
}  # fmt: skip


@pytest.mark.parametrize(("line", "said"), BAD_RESERVES.items())
def test_reserve_when_input_is_bad_then_one_line_names_it_and_nothing_is_recorded(
    cli: CommandLine, line: str, said: str
) -> None:
    arguments = re.split(r" (?=--)", line)
    ran = cli("reserve", *arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("error: ")
    assert said in ran.err
    problem = cli("reserve", *arguments, "--json").problem
    assert problem["error"] == "invalid_request"
    assert problem["field"]
    assert '"seq": 0,' in cli("exposure", "--json").out


def test_confirm_when_filled_then_quantity_times_price_counts_and_the_rest_is_freed(cli: CommandLine) -> None:
    held = cli.json("reserve", "--signal-score", "0.9", "--tag", "venue=bybit", *SIZED)
    fill = ["--quantity", "0.018", "--price", "50100.5", "--spot-price", "50000"]
    decision = cli.json("confirm", held["position_id"], *fill, "--key", "fill")
    assert (decision["outcome"], decision["exposure_after"]) == ("applied", "901.809")
    (position,) = cli.json("positions")["items"]
    assert (position["state"], position["open"], position["held"], position["price"]) == (
        "open", "901.809", "0", "50100.5",
    )  # fmt: skip
    assert [(leg["kind"], leg["side"], leg["price"]) for leg in position["legs"]] == [
        ("spot", "buy", "50000"), ("swap", "sell", "50100.5"),
    ]  # fmt: skip
    assert cli.json("confirm", held["position_id"], *fill, "--key", "fill")["replayed"] is True


def test_confirm_when_legs_are_given_then_they_are_recorded(cli: CommandLine) -> None:
    cli.json("reserve")
    legs = [
        "--leg", "bybit,BTC/USDT,spot,buy,0.01,50000",
        "--leg", '{"venue": "okx", "symbol": "BTC-USDT-SWAP", "kind": "swap", "side": "sell", "quantity": 0.01}',
    ]  # fmt: skip
    cli.json("confirm", "main-1", "--quantity", "0.01", "--price", "50000", *legs)
    (position,) = cli.json("positions")["items"]
    assert position["legs"] == [
        {"venue": "bybit", "symbol": "BTC/USDT", "kind": "spot", "side": "buy", "quantity": "0.01", "price": "50000"},
        {
            "venue": "okx",
            "symbol": "BTC-USDT-SWAP",
            "kind": "swap",
            "side": "sell",
            "quantity": "0.01",
            "price": "50000",
        },
    ]


@pytest.mark.parametrize("line", ["confirm main-1 --quantity 2 --price 3000", "adopt --quantity 2 --price 3000"])
def test_record_when_fact_lands_above_the_cap_then_it_is_applied_and_the_overage_told(
    cli: CommandLine, line: str
) -> None:
    cli.json("reserve")
    ran = cli(*line.split())
    assert ran.code == 0
    over = 1000 if line.startswith("confirm") else 2000
    assert ran.err == (
        f"overage: portfolio is {over}.00 USD above its cap of 5000.00 USD; "
        "nothing more is granted there until it is gone\n"
    )
    assert cli.json("exposure")["overage"] == str(over)
    assert cli("reserve").code == 3


def test_release_when_part_is_closed_then_the_rest_stays_open(cli: CommandLine) -> None:
    cli.json("reserve")
    cli.json("confirm", "main-1", "--quantity", "0.02", "--price", "50000")
    assert cli.json("release", "main-1", "--quantity", "0.005")["exposure_after"] == "750"
    ran = cli("release", "main-1")
    assert ran.code == 0
    assert "exposure  750.00 -> 0.00 USD" in ran.out
    assert cli.json("positions")["items"][0]["state"] == "closed"


def test_release_when_position_is_over_then_it_is_a_failure(cli: CommandLine) -> None:
    cli.json("reserve")
    cli.json("release", "main-1", "--key", "first")
    problem = cli("release", "main-1", "--json").problem
    assert problem["error"] == "wrong_state"
    assert problem["key"].startswith("cli-")
    assert cli("release", "main-1").code == 1
    assert cli("release", "main-1", "--key", "first").code == 0


def test_extend_when_hold_lives_then_it_lives_longer(cli: CommandLine) -> None:
    held = cli.json("reserve", "--ttl", "30")
    assert cli.json("extend", "main-1", "--ttl", "600")["expires_at"] > held["expires_at"]
    ran = cli("extend", "main-1", "--ttl-seconds", "900")
    assert ran.code == 0
    assert "expires at" in ran.out


def test_extend_when_scope_is_halted_then_it_is_denied(cli: CommandLine) -> None:
    cli.json("reserve")
    cli.json("halt")
    ran = cli("extend", "main-1", "--json")
    assert (ran.code, ran.json["reason"]) == (3, "halted")


def test_adopt_when_position_is_found_then_it_is_recorded_with_its_tags(cli: CommandLine) -> None:
    given = ["--tag", "venue=okx", "--quantity", "0.5", "--price", "3000.5", "--note", "opened by hand"]
    decision = cli.json("adopt", *given, "--portfolio", "desk-2", "--leg", "okx,ETH-USDT-SWAP,swap,sell,0.5,3000.5")
    assert (decision["outcome"], decision["position_id"]) == ("applied", "desk-2-1")
    assert decision["request"]["note"] == "opened by hand"
    (position,) = cli.json("positions", "--portfolio", "desk-2")["items"]
    assert (position["state"], position["open"], position["tags"]) == ("open", "1500.25", {"venue": "okx"})


BAD_VERBS = {
    "confirm main-1 --quantity 0 --price 1": "quantity must be above 0, got 0",
    "confirm main-1 --quantity 1 --price x": "price must be a number",
    "confirm main-1 --quantity 1 --price 1 --spot-price 0": "spot_price must be above 0",
    "confirm main-1 --quantity 1 --price 1 --leg bybit,BTC": "leg must be venue,symbol,kind,side,quantity[,price]",
    "confirm main-1 --quantity 1 --price 1 --leg bybit,BTC,option,buy,1": "legs.0: kind must be 'spot' or",
    "confirm main-1 --quantity 1 --price 1 --leg bybit,BTC,spot,buy,much": "leg quantity must be a number",
    "confirm main --quantity 1 --price 1": "position_id must look like 'main-17', got 'main'",
    "release 17": "position_id must look like 'main-17', got '17'",
    "release main-1 --quantity -1": "quantity must be above 0, got -1",
    "extend main-1 --ttl soon": "ttl_seconds must be a number",
    "extend main-x": "position_id must look like 'main-17', got 'main-x'",
    "adopt --quantity 1 --price 0": "price must be above 0",
    "adopt --quantity 1 --price 1 --tag x": "--tag must look like venue=bybit",
}


@pytest.mark.parametrize(("line", "said"), BAD_VERBS.items())
def test_verb_when_input_is_bad_then_one_line_names_it(cli: CommandLine, line: str, said: str) -> None:
    ran = cli(*line.split())
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert said in ran.err
    assert cli(*line.split(), "--json").problem["error"] == "invalid_request"


@pytest.mark.parametrize("line", ["confirm main-9 --quantity 1 --price 1", "release main-9", "extend main-9"])
def test_verb_when_position_is_unknown_then_it_is_a_failure_that_says_where_to_look(
    cli: CommandLine, line: str
) -> None:
    cli.json("reserve")
    ran = cli(*line.split())
    assert (ran.code, ran.err) == (1, "error: no position 'main-9', see: ledger-sizer positions\n")
    assert cli(*line.split(), "--json").problem["error"] == "not_found"


def test_confirm_when_hold_has_expired_then_the_fill_is_recorded_as_its_own_position(cli: CommandLine) -> None:
    cli.json("reserve", "--ttl", "0.01")
    time.sleep(0.05)
    decision = cli.json("confirm", "main-1", "--quantity", "0.01", "--price", "50000")
    late = decision["position_id"]
    assert late != "main-1"
    by_id = {position["position_id"]: position for position in cli.json("positions")["items"]}
    assert (by_id["main-1"]["state"], by_id[late]["state"], by_id[late]["origin"]) == ("expired", "open", "main-1")
    assert Decimal(cli.json("exposure")["open"]) == 500
