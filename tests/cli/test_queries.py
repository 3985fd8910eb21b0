"""Tests of exposure, positions, history, explain and verify, run as a user would, on both databases."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import text

from ledger_sizer import AppSettings, Confirm, Ledger, Reserve, SetCap
from ledger_sizer.storage.database import database_url as parsed_url
from ledger_sizer.storage.database import make_engine
from ledger_sizer.verify.head_files import append_heads
from tests.support.command_line import CommandLine

pytestmark = pytest.mark.one_engine


@pytest.fixture
def desk(cli: CommandLine) -> CommandLine:
    """Seven decisions of `main`: a cap of 2500; BTC open for 900, ETH held for 1000, the third cut, the rest denied."""
    btc = {"venue": "bybit", "symbol": "BTC", "strategy": "funding"}
    eth = {"venue": "okx", "symbol": "ETH", "strategy": "basis"}
    with Ledger.open(cli.url) as ledger:
        ledger.submit(
            [
                SetCap(key="cap", cap=Decimal(2500)),
                Reserve(key="btc", tags=btc),
                Confirm(key="btc/fill", position_id="main-2", quantity=Decimal("0.018"), price=Decimal(50_000)),
                Reserve(key="eth", tags=eth, ttl_seconds=3600),
                Reserve(key="cut", tags=btc, ttl_seconds=3600),
                Reserve(key="no/1", tags=btc),
                Reserve(key="no/2", tags=eth),
            ]
        )
    return cli


def test_exposure_when_read_as_json_then_the_whole_stands_first_and_each_scope_follows(desk: CommandLine) -> None:
    exposure = desk.json("exposure")
    scopes = exposure.pop("scopes")
    assert exposure == {
        "portfolio": "main", "seq": 7, "cap": "2500", "held": "1600", "open": "900", "exposure": "2500",
        "headroom": "0", "overage": "0", "status": "active", "frozen": False, "fresh_until": None,
        "max_position_usd": None, "share_of_equity": None, "frozen_note": None, "shared": "0", "pools": [],
        "defaults": [],
    }  # fmt: skip
    assert [scope["scope"] for scope in scopes] == [
        "portfolio", "strategy=basis", "strategy=funding", "symbol=BTC", "symbol=ETH", "venue=bybit", "venue=okx",
    ]  # fmt: skip
    assert scopes[3] == {
        "scope": "symbol=BTC", "cap": None, "held": "600", "open": "900", "exposure": "1500", "headroom": None,
        "overage": "0", "status": "active", "frozen": False, "fresh_until": None, "max_position_usd": None,
        "share_of_equity": None, "frozen_note": None, "cap_from": None, "guarantee": None, "kept": "0",
        "free_balance": None, "promised": None,
    }  # fmt: skip


def test_exposure_when_read_as_text_then_figures_align(desk: CommandLine) -> None:
    lines = desk("exposure").out.splitlines()
    assert lines[0].split() == [
        "scope", "cap_USD", "held_USD", "open_USD", "exposure_USD", "headroom_USD", "overage_USD", "used", "status",
    ]  # fmt: skip
    assert lines[1].split() == [
        "portfolio", "2500.00", "1600.00", "900.00", "2500.00", "0.00", "0.00", "100.0", "%", "active",
    ]  # fmt: skip
    end = lines[0].index("exposure_USD") + len("exposure_USD")
    assert {line[end - 3] for line in lines[1:]} == {"."}
    assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize(
    ("line", "said"),
    [("exposure -p desk-2", "portfolio"), ("history --portfolio desk-2", "no decisions"),
     ("positions -p desk-2", "no positions"), ("net -p desk-2", "no open positions")],
)  # fmt: skip
def test_read_when_nobody_used_the_portfolio_yet_then_it_is_empty_and_a_note_says_so(
    desk: CommandLine, line: str, said: str
) -> None:
    ran = desk(*line.split())
    assert (ran.code, said in ran.out) == (0, True)
    note = "nobody has used a portfolio 'desk-2' yet; for those in use: ledger-sizer caps\n"
    assert ran.err == note
    assert desk(*line.split(), "--json").err == note
    assert "nobody" not in desk(*line.replace("desk-2", "main").split()).err


@pytest.mark.parametrize("line", ["verify --portfolio desk-2", "caps -p desk-2", "caps export -p desk-2"])
def test_look_when_portfolio_is_unknown_then_it_is_a_failure(desk: CommandLine, line: str) -> None:
    ran = desk(*line.split())
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: no portfolio 'desk-2'")
    assert ran.err.endswith(", see: ledger-sizer caps\n")
    assert desk(*line.split(), "--json").problem["error"] == "not_found"


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ("", ["main-2", "main-4", "main-5"]),
        ("--state open", ["main-2"]),
        ("--state held", ["main-4", "main-5"]),
        ("--state live", ["main-2", "main-4", "main-5"]),
        ("--state closed", []),
        ("--tag venue=bybit", ["main-2", "main-5"]),
        ("--tag venue=bybit --tag symbol=ETH", []),
        ("--portfolio main --tag symbol=ETH", ["main-4"]),
    ],
)
def test_list_positions_when_filtered_then_those_that_match_are_listed(
    desk: CommandLine, filters: str, found: list[str]
) -> None:
    page = desk.json("positions", *filters.split())
    assert ([position["position_id"] for position in page["items"]], page["cursor"]) == (found, None)
    ran = desk("positions", *filters.split())
    assert (ran.code, ran.err) == (0, "")
    assert [line.split()[0] for line in ran.out.splitlines()[1:]] == found or ran.out == "no positions\n"


def test_list_positions_when_read_as_json_then_each_has_its_whole_life(desk: CommandLine) -> None:
    position = desk.json("positions", "--state", "open")["items"][0]
    assert datetime.fromisoformat(position.pop("opened_at")) <= datetime.fromisoformat(position.pop("updated_at"))
    assert position == {
        "position_id": "main-2", "portfolio": "main", "state": "open",
        "tags": {"strategy": "funding", "symbol": "BTC", "venue": "bybit"}, "held": "0", "open": "900",
        "notional": "900", "quantity": "0.018", "price": "50000", "cost": "900", "filled": "0.018", "unfilled": "0",
        "legs": position["legs"], "expires_at": None, "until_known": False, "updated_seq": 3, "origin": None,
        "fills": None, "reference": None,
    }  # fmt: skip
    held = desk.json("positions", "--state", "held")["items"][0]
    assert datetime.fromisoformat(held["expires_at"]) - datetime.fromisoformat(held["opened_at"]) == timedelta(hours=1)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ("", [7, 6, 5, 4, 3, 2, 1]),
        ("--ascending", [1, 2, 3, 4, 5, 6, 7]),
        ("--symbol BTC", [6, 5, 3, 2]),
        ("--strategy basis", [7, 4]),
        ("--symbol BTC --strategy basis", []),
        ("--outcome granted", [5, 4, 2]),
        ("--outcome denied --symbol ETH", [7]),
        ("--reason cap_exceeded", [7, 6]),
        ("--reason halted", []),
        ("--command confirm", [3]),
        ("--command set_cap --outcome applied", [1]),
        ("--since 2020-01-01T00:00:00Z --limit 2", [7, 6]),
        ("--since 2120-01-01T00:00:00+02:00", []),
        ("--until 2020-01-01T00:00:00Z", []),
        ("--cursor 4", [3, 2, 1]),
        ("--limit 2 --all", [7, 6, 5, 4, 3, 2, 1]),
        ("--limit 2 --cursor 6 --all", [5, 4, 3, 2, 1]),
    ],
)
def test_list_history_when_filtered_then_those_that_match_are_listed(
    desk: CommandLine, filters: str, found: list[int]
) -> None:
    assert [decision["seq"] for decision in desk.json("history", *filters.split())["items"]] == found
    lines = desk("history", *filters.split()).out.splitlines()
    assert [int(line.split()[0]) for line in lines[1:]] == found or lines == ["no decisions"]


def test_list_history_when_time_bounds_a_decision_then_since_includes_and_until_excludes_it(desk: CommandLine) -> None:
    times = {decision["seq"]: decision["decided_at"] for decision in desk.json("history")["items"]}
    since = [decision["seq"] for decision in desk.json("history", "--since", times[1])["items"]]
    until = [decision["seq"] for decision in desk.json("history", "--until", times[1])["items"]]
    assert (min(since), until) == (1, [])


@pytest.mark.parametrize("command", ["positions", "history"])
def test_page_when_there_is_more_then_the_cursor_continues_and_the_last_has_none(
    desk: CommandLine, command: str
) -> None:
    everything = desk.json(command, "--all")
    assert everything["cursor"] is None
    seen, cursor = [], None
    while True:
        page = desk.json(command, "--limit", "2", *([] if cursor is None else ["--cursor", cursor]))
        assert len(page["items"]) <= 2
        seen += page["items"]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert seen == everything["items"]
    ran = desk(command, "--limit", "1")
    cursor = desk.json(command, "--limit", "1")["cursor"]
    assert ran.err == f"more: --cursor {cursor}, or --all\n"
    assert len(ran.out.splitlines()) == 2


BAD_READS = {
    "history --since 2026-01-01": "since has no time zone, so it could be any of 24 hours; add Z: 2026-01-01T00:00:00Z",
    "history --until 2026-01-01T10:00": "add Z: 2026-01-01T10:00Z",
    "history --since yesterday": "since must be a time such as 2026-01-31T12:00:00Z, got 'yesterday'",
    "history --limit 0": "limit must be 1 to 1000, got 0",
    "history --limit 1001": "limit must be 1 to 1000, got 1001",
    "history --limit ten": "limit must be a whole number, 0 or above, got 'ten'",
    "history --cursor abc": "cursor must come from the page before, got 'abc'",
    "history --outcome perhaps": "'perhaps' is not one of 'granted', 'denied', 'applied'",
    "history --reason because": "'because' is not one of 'halted', 'reducing'",
    "history --command buy": "'buy' is not one of 'reserve', 'confirm'",
    "history --portfolio a/b": "portfolio must be 1 to 64 letters",
    "positions --limit -1": "limit must be a whole number, 0 or above, got '-1'",
    "positions --cursor 1:2:3": "cursor must come from the page before",
    "positions --state gone": "'gone' is not one of 'held', 'open'",
    "positions --tag bybit": "--tag must look like venue=bybit",
    "explain main": "position_id must look like 'main-17', got 'main'",
    "explain 99999999999999999999": "seq must have at most 18 digits",
    "explain ²": "position_id must look like 'main-17'",
    "exposure --portfolio a/b": "portfolio must be 1 to 64 letters",
    "verify --portfolio a/b": "portfolio must be 1 to 64 letters",
}


@pytest.mark.parametrize(("line", "said"), BAD_READS.items())
def test_read_when_input_is_bad_then_one_line_names_it(desk: CommandLine, line: str, said: str) -> None:
    ran = desk(*line.split())
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert said in ran.err
    assert desk(*line.split(), "--json").problem["error"] == "invalid_request"


@pytest.mark.parametrize("reference", ["5", "main-5"])
def test_explain_when_decision_was_cut_then_it_names_what_bound_it(desk: CommandLine, reference: str) -> None:
    data = desk.json("explain", reference)
    assert (data["seq"], data["budget"], data["binding"]) == (5, "600", "portfolio")
    assert data["scopes"][0]["headroom"] == "600"
    ran = desk("explain", reference)
    assert ran.out.startswith("main #5 reserve 'cut': granted 600 USD; bound by portfolio.\n")
    assert "headroom 600 USD" in ran.out


def test_explain_when_decision_is_unknown_then_it_is_a_failure(desk: CommandLine) -> None:
    ran = desk("explain", "99")
    assert (ran.code, ran.err) == (1, "error: no decision 99 in portfolio 'main', see: ledger-sizer history\n")


def test_verify_when_nothing_was_changed_then_it_is_ok(desk: CommandLine) -> None:
    report = desk.json("verify")
    head = desk.json("history", "--limit", "1")["items"][0]["hash"]
    assert report == {
        "ok": True, "decisions": 7, "positions": 3, "heads": {"main": {"seq": 7, "hash": head}}, "first": None,
        "findings": [],
    }  # fmt: skip
    ran = desk("verify", "--portfolio", "main")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[0] == "ok: 7 decisions and 3 positions checked"
    assert ran.out.splitlines()[-1].split() == ["main", "7", head]


def test_verify_when_a_row_was_edited_then_it_is_named_and_exit_is_1(desk: CommandLine) -> None:
    assert desk.url
    engine = make_engine(parsed_url(desk.url), AppSettings().ledger)
    with engine.begin() as connection:
        connection.execute(text("UPDATE positions SET price = '49999' WHERE number = 2"))
    engine.dispose()
    ran = desk("verify", "--json")
    assert (ran.code, ran.err) == (1, "")
    assert ran.json["ok"] is False
    assert (ran.json["first"]["portfolio"], ran.json["first"]["seq"]) == ("main", 2)
    assert "49999" in ran.json["first"]["what"]
    ran = desk("verify")
    assert ran.code == 1
    assert ran.out.startswith("NOT ok: 1 finding in 7 decisions and 3 positions\n")
    assert "main-2" in ran.out


def test_verify_when_a_file_of_heads_is_given_then_it_begins_there(desk: CommandLine) -> None:
    assert desk("verify", "--export-head", "head.json").code == 0
    assert desk.json("verify", "--since-head", "head.json")["decisions"] == 0
    assert desk("halt", "--key", "halt").code == 0
    assert desk.json("verify", "--since-head", "head.json")["decisions"] == 1


def test_verify_when_a_file_of_exported_heads_is_given_then_all_are_checked_and_the_window_is_told(
    desk: CommandLine,
) -> None:
    with Ledger.open(desk.url or "") as ledger:
        for minute in range(3):
            head = {"main": (5 + minute, ledger.decision(5 + minute).hash or "")}
            moment = datetime(2026, 1, 1, 12, minute, tzinfo=UTC)
            append_heads(Path("heads"), moment, head, lambda head=head: head, 10**6)  # type: ignore[misc]
    ran = desk("verify", "--since-head", "heads")
    assert (ran.code, ran.out.splitlines()[1]) == (
        0,
        "began at the newest of 3 trusted heads, last exported at 2026-01-01T12:02:00+00:00: "
        "what was decided later and cut off again is not seen",
    )
    assert desk.json("verify", "--since-head", "heads")["trusted"] == {
        "heads": 3, "exported_at": "2026-01-01T12:02:00+00:00", "unreadable_lines": 0,
    }  # fmt: skip
    with Path("heads").open("a") as file:
        file.write(
            '{"at": "2026-01-01T12:03:00+00:00", "heads": {"main": {"seq": 99, "hash": "' + "a" * 64 + '"}}}\n{"at'
        )
    ran = desk("verify", "--since-head", "heads", "--portfolio", "main")
    assert ran.code == 1
    assert "left out: 1 line that cannot be read" in ran.out
    assert "the newest decisions were cut off" in " ".join(ran.out.split())


@pytest.mark.parametrize("seq", [-3, 1.5, True, "7", None, 2**63, 99999999999999999999999999999])
def test_verify_when_a_file_of_heads_has_no_such_seq_then_it_is_bad_input(desk: CommandLine, seq: object) -> None:
    head = desk.json("verify")["heads"]["main"]["hash"]
    Path("head.json").write_text(json.dumps({"heads": {"main": {"seq": seq, "hash": head}}}))
    ran = desk("verify", "--since-head", "head.json")
    assert (ran.code, ran.out) == (2, "")
    assert "head.json has no chain heads" in ran.err


def test_read_when_ledger_is_empty_then_it_says_so(cli: CommandLine) -> None:
    assert cli.json("positions") == {"items": [], "cursor": None}
    assert cli("positions").out == "no positions\n"
    assert cli("caps").out == "no caps\n"
    assert cli.json("verify")["ok"] is True
    assert cli("verify").out.endswith("no portfolios yet\n")


def test_exposure_when_an_account_was_seen_then_what_is_free_and_promised_is_shown(desk: CommandLine) -> None:
    assert "free_USD" not in desk("exposure").out
    with Ledger.open(desk.url) as ledger:
        ledger.account_seen(key="seen", scope="account=okx/main", free=Decimal("812.5"))
    head, *rows = desk("exposure").out.splitlines()
    row = next(row.split() for row in rows if row.startswith("account=okx/main"))
    shown = dict(zip(head.split(), row, strict=True))
    assert (shown["free_USD"], shown["promised_USD"]) == ("812.50", "0.00")
