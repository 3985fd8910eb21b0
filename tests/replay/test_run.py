"""Tests the replay end to end on both databases: equal decision hashes, and no grant above a cap."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from ledger_sizer import Decision, Finding, InvalidRequest, Ledger, SchemaOutdated
from ledger_sizer.exchanges.known_markets import VENUES
from ledger_sizer.replay import Plan, Report, Source, file_source, generated_source, replay
from ledger_sizer.replay.order_outcomes import OrderOutcome, closes_in_two_parts, incident, order_outcome
from ledger_sizer.replay.report_json import report_document
from ledger_sizer.replay.run import PORTFOLIOS
from ledger_sizer.replay.summary import lines
from tests.support.market_histories import INTERVAL, csv_lines, flat_candle, quiet_bars, real_history

NewDatabase = Callable[..., str]
BARS = 120


def play(source: Source, url: str, plan: Plan | None = None) -> Report:
    return replay(source, plan or Plan(), url, timer=time.perf_counter)


def heads(report: Report) -> dict[str, tuple[int, str]]:
    return {portfolio.name: portfolio.head for portfolio in report.portfolios}


def decisions(url: str, portfolio: str) -> Iterator[Decision]:
    """Every decision of a portfolio, oldest first."""
    with Ledger.open(url) as ledger:
        cursor = None
        while True:
            page = ledger.history(portfolio, ascending=True, limit=1000, cursor=cursor)
            yield from page
            cursor = page.cursor
            if cursor is None:
                return


def history_file(folder: Path, rates: list[str]) -> Path:
    path = folder / "quiet.csv"
    path.write_text("\n".join(csv_lines(quiet_bars(rates))) + "\n")
    return path


# --- the same decisions, hash for hash -------------------------------------------------------------------------


def test_replay_when_played_again_on_either_database_then_decisions_are_the_same_hash_for_hash(
    new_database: NewDatabase,
) -> None:
    source = generated_source(7, BARS)
    first, again, on_server = [play(source, new_database(kind)) for kind in ("sqlite", "sqlite", "postgresql")]
    assert heads(first) == heads(again) == heads(on_server)
    documents = [report_document(report) for report in (first, again, on_server)]
    for one in documents:
        del one["timing"]
    assert documents[0] == documents[1] == documents[2]
    assert all(seq > 100 for seq, _ in heads(first).values())


def test_replay_when_market_comes_from_a_file_then_decisions_are_those_of_the_market_itself(
    tmp_path: Path, new_database: NewDatabase
) -> None:
    generated = generated_source(7, 60)
    path = tmp_path / "generated.csv"
    path.write_text("\n".join(csv_lines(generated.read())) + "\n")
    from_file = play(file_source(path), new_database("sqlite"))
    assert heads(from_file) == heads(play(generated, new_database("sqlite")))


@pytest.mark.parametrize("changed", ["seed", "bots", "cap", "max_position", "min_fraction"])
def test_replay_when_the_plan_is_another_then_decisions_are_others(new_database: NewDatabase, changed: str) -> None:
    value: dict[str, Any] = {
        "seed": 8,
        "bots": 7,
        "cap": Decimal(4000),
        "max_position": Decimal(900),
        "min_fraction": Decimal("0.2"),
    }
    source = generated_source(7, 60)
    usual = heads(play(source, new_database("sqlite")))
    other = heads(play(source, new_database("sqlite"), Plan(**{changed: value[changed]})))
    assert usual["replay-dynamic"] != other["replay-dynamic"]
    if changed == "min_fraction":
        assert usual["replay-flat"][0] == other["replay-flat"][0], "flat sizing knows no fractions"


# --- what must hold on any history -----------------------------------------------------------------------------


def assert_sound(report: Report, url: str) -> None:
    """Check what must hold on any market history, as read back from the ledger."""
    assert report.ok, (report.findings, report.violations)
    plan = report.plan
    for portfolio in report.portfolios:
        figures = portfolio.figures
        recorded = list(decisions(url, portfolio.name))
        assert [decision.seq for decision in recorded] == list(range(1, portfolio.head[0] + 1))
        assert recorded[-1].hash == portfolio.head[1]
        granted = [d for d in recorded if d.granted and d.command == "reserve"]
        assert all(decision.exposure_after <= plan.cap for decision in granted)
        assert max(decision.exposure_after for decision in granted) == Decimal(figures.peak_granted_e8) / 10**8
        highest = max(decision.exposure_after for decision in recorded)
        assert highest == Decimal(figures.peak_e8) / 10**8
        if highest > plan.cap:
            assert figures.overages, "only a fill may go above the cap, and it is counted"
        counted = Counter((d.command, d.outcome, d.reason) for d in recorded)
        reported: Counter[tuple[str, str, str | None]] = Counter()
        for (command, outcome, reason, _), count in figures.decisions.items():
            reported[command, outcome, reason] += count
        assert counted == reported
        assert figures.entries == counted["confirm", "applied", None]
        assert figures.expired == counted["expire", "applied", None]
        with Ledger.open(url) as ledger:
            exposure = ledger.exposure(portfolio.name)
            assert exposure.held == 0, "the last sweep freed what nobody confirmed"
            assert exposure.open == portfolio.open_usd
            assert {exposure.scope(f"venue={venue}").cap for venue in VENUES} == {plan.venue_cap}
            assert len(ledger.positions(portfolio.name, state="open", limit=1000)) == portfolio.open_positions


def test_replay_when_market_is_generated_then_what_must_hold_holds(database_url: str) -> None:
    assert_sound(play(generated_source(11, BARS), database_url), database_url)


def test_replay_when_history_is_real_then_what_must_hold_holds(database_url: str) -> None:
    if not real_history().exists():
        pytest.skip(f"the recorded market history is not here: {real_history()}")
    report = play(file_source(real_history(), 300), database_url)
    assert_sound(report, database_url)
    assert all(portfolio.figures.funding > 0 for portfolio in report.portfolios)


@pytest.mark.slow
def test_replay_when_real_history_is_played_whole_then_it_verifies_and_sizes_follow_scores(
    new_database: NewDatabase,
) -> None:
    if not real_history().exists():
        pytest.skip(f"the recorded market history is not here: {real_history()}")
    url = new_database("sqlite")
    report = play(file_source(real_history()), url)
    assert_sound(report, url)
    dynamic, flat = [portfolio.figures for portfolio in report.portfolios]
    formula = [Decimal(bucket.formula_e8) / bucket.grants for bucket in dynamic.buckets]
    assert formula == sorted(formula), "a higher score never gives a smaller budget"
    assert [bucket.formula_e8 for bucket in flat.buckets] == [1000_00000000 * bucket.grants for bucket in flat.buckets]
    for figures in (dynamic, flat):
        assert figures.expired > 0
        assert figures.late_fills > 0
        assert figures.retries > 0
        assert figures.overages


def test_replay_when_it_is_long_enough_then_every_accident_happens(new_database: NewDatabase) -> None:
    url = new_database("sqlite")
    report = play(generated_source(7, 300), url, Plan(bots=30, cap=Decimal(30_000), venue_cap=Decimal(12_000)))
    assert_sound(report, url)
    for portfolio in report.portfolios:
        kinds = {(command, outcome, reason) for command, outcome, reason, _ in portfolio.figures.decisions}
        assert kinds >= {
            ("reserve", "granted", None),
            ("reserve", "denied", "cap_exceeded"),
            ("reserve", "denied", "halted"),
            ("confirm", "applied", None),
            ("extend", "granted", None),
            ("release", "applied", None),
            ("expire", "applied", None),
            ("halt", "applied", None),
            ("resume", "applied", None),
        }
        # What the caps left may be too small to buy: that is the caps' doing.
        assert not {reason for _, _, reason in kinds} & {"below_min_notional", "below_min_qty"}
        assert portfolio.figures.late_fills
        assert portfolio.figures.retries
        # A grant holds less than the caps left, by less than a lot: the price of a fill seldom exceeds that.
        assert {"late fill"} <= {*portfolio.figures.overages} <= {"late fill", "fill price"}
        partial = [d for d in decisions(url, portfolio.name) if d.command == "release" and "quantity" in d.request]
        assert partial, "some exits close in two parts"


def test_replay_when_a_venue_has_an_incident_then_it_is_halted_for_as_many_bars_and_resumed(
    new_database: NewDatabase,
) -> None:
    url = new_database("sqlite")
    report = play(generated_source(7, 300), url)
    for portfolio in report.portfolios:
        halts, resumes = [], []
        for decision in decisions(url, portfolio.name):
            venue = str(decision.binding).removeprefix("venue=")
            if decision.command == "halt":
                begun = incident(report.plan.seed, venue, decision.key.partition("/")[0])
                assert begun is not None
                assert json.loads(decision.request)["mode"] == begun[0]
                halts.append((venue, decision.decided_at + begun[1] * INTERVAL))
            elif decision.command == "resume":
                resumes.append((venue, decision.decided_at))
        assert len(halts) > 3
        assert resumes == sorted(halts, key=lambda halt: halt[1])[: len(resumes)]
        assert len(resumes) >= len(halts) - len(VENUES)


def test_replay_when_bots_share_a_bar_then_their_commands_share_a_commit(new_database: NewDatabase) -> None:
    url = new_database("sqlite")
    report = play(generated_source(7, 60), url, Plan(bots=40, cap=Decimal(40_000), venue_cap=Decimal(16_000)))
    moments = Counter(d.decided_at for name in PORTFOLIOS for d in decisions(url, name))
    # Apart from the caps at the start, each time of the simulated clock is one commit.
    assert len(moments) <= report.commits + 1
    assert report.decisions / report.commits > 8


# --- one position, worked out by hand --------------------------------------------------------------------------


def uneventful_seed(entry_bar: str, exit_bar: str, bars: list[str]) -> int:
    """Find a seed at which one order of the first bot fills and closes in full, without an incident."""
    key = f"{entry_bar}/bot-01/binance-BTC/1"
    return next(
        seed
        for seed in range(1000)
        if order_outcome(seed, key) is OrderOutcome.FILLED
        and not closes_in_two_parts(seed, f"{key}/exit/{exit_bar}")
        and not any(incident(seed, "binance", bar) for bar in bars)
    )


@pytest.mark.parametrize(
    ("basis_points", "score", "dynamic_quantity", "flat_quantity"),
    [("3", "1", "0.02", "0.02"), ("2.1", "0.5", "0.013", "0.02")],
)
def test_replay_when_one_bot_trades_once_then_every_figure_is_as_by_hand(
    tmp_path: Path,
    database_url: str,
    basis_points: str,
    score: str,
    dynamic_quantity: str,
    flat_quantity: str,
) -> None:
    # The first bot averages three rates, enters at 2 basis points and exits below 1.2. It enters at the third bar,
    # receives funding at ten bars while the mean is between the two, pays at the last bar and exits there.
    rate = f"0.000{basis_points.replace('.', '')}"
    rates = [rate] * 3 + ["0.00015"] * 10 + ["-0.0005"]
    names = [f"{bar.time:%Y%m%dT%H%M}" for bar in quiet_bars(rates)]
    plan = Plan(bots=1, seed=uneventful_seed(names[2], names[13], names))
    report = play(file_source(history_file(tmp_path, rates)), database_url, plan)
    assert report.ok, (report.findings, report.violations)
    for portfolio, quantity in zip(report.portfolios, (dynamic_quantity, flat_quantity), strict=True):
        figures = portfolio.figures
        notional = Decimal(quantity) * 50_000
        assert figures.funding == notional * (10 * Decimal("0.00015") - Decimal("0.0005"))
        assert figures.turnover == 4 * notional
        assert figures.basis == 0
        assert (figures.entries, figures.exits, portfolio.open_positions) == (1, 1, 0)
        assert Decimal(figures.open_sum_e8) / 10**8 == 11 * notional
        assert figures.open_samples == 14
        (reserve,) = [d for d in decisions(database_url, portfolio.name) if d.command == "reserve"]
        assert reserve.quantity == Decimal(quantity)
        sent = json.loads(reserve.request).get("signal_score")
        assert sent == (score if portfolio.name == "replay-dynamic" else None)
    document = report_document(report)["portfolios"]["replay-flat"]
    assert document["average_exposure_usd"] == "785.714285714285"  # 11 x 1000 / 14
    # 1 USD / 785.71..., and the same x 8760 hours / 13 intervals of 8 hours
    assert document["funding_per_dollar"] == "0.001272727272"
    assert document["funding_per_dollar_a_year"] == "0.107202797202"
    assert document["exposure"]["portfolio"] == {
        "cap_usd": "5000",
        "highest_by_grants_usd": "1000",
        "highest_overage_usd": "0",
    }


def test_replay_when_a_market_ends_before_the_others_then_its_position_is_valued_at_its_last_close(
    tmp_path: Path, new_database: NewDatabase
) -> None:
    btc = quiet_bars(["0.0003"] * 5)
    eth = quiet_bars(["0"] * 6, price="1500", market=("binance", "ETH"))
    up = dataclasses.replace(btc[4].quotes[0], spot=flat_candle("50100"))  # its spot leg gains until its last close
    btc[4] = dataclasses.replace(btc[4], quotes=(up,))
    path = tmp_path / "ends.csv"
    bars = [dataclasses.replace(one, quotes=(*two.quotes, *one.quotes)) for one, two in zip(eth, btc, strict=False)]
    path.write_text("\n".join(csv_lines([*bars, eth[5]])) + "\n")
    names = [f"{bar.time:%Y%m%dT%H%M}" for bar in eth]
    plan = Plan(bots=1, seed=uneventful_seed(names[2], names[5], names))
    report = play(file_source(path), new_database("sqlite"), plan)
    assert report.ok, (report.findings, report.violations)
    for portfolio in report.portfolios:
        assert portfolio.open_positions == 1
        assert portfolio.figures.basis == portfolio.open_usd / 50_000 * 100


def test_replay_when_no_rate_is_worth_it_then_nothing_is_reserved(tmp_path: Path, new_database: NewDatabase) -> None:
    report = play(file_source(history_file(tmp_path, ["0.00005"] * 60)), new_database("sqlite"))
    assert report.ok
    for portfolio in report.portfolios:
        assert portfolio.figures.entries == 0
        assert {command for command, *_ in portfolio.figures.decisions} <= {"set_cap", "halt", "resume"}
    text = "\n".join(text for _, text in lines(report))
    assert "Funding per dollar of average exposure" in text
    assert report_document(report)["portfolios"]["replay-flat"]["funding_per_dollar"] is None


# --- the database it goes to -----------------------------------------------------------------------------------


def test_replay_when_database_has_a_replay_already_then_it_is_refused_and_nothing_changes(database_url: str) -> None:
    source = generated_source(7, 10)
    first = play(source, database_url)
    with pytest.raises(InvalidRequest, match="already has the portfolio 'replay-dynamic'"):
        play(source, database_url)
    with Ledger.open(database_url) as ledger:
        assert dict(ledger.verify().heads) == heads(first)


def test_replay_when_database_has_other_portfolios_then_they_are_left_alone(database_url: str) -> None:
    with Ledger.open(database_url) as ledger:
        held = ledger.reserve(key="live", portfolio="main", ttl_seconds=1)
        time.sleep(1.1)
    play(generated_source(7, 30), database_url)
    with Ledger.open(database_url) as ledger:
        assert held.position_id is not None
        assert ledger.position(held.position_id).state == "held", "not even a hold whose time is over is touched"
        assert ledger.verify("main").heads["main"] == (1, held.hash)


def test_replay_when_server_database_has_no_schema_then_command_to_run_is_named(new_database: NewDatabase) -> None:
    url = new_database("postgresql", migrated=False)
    with pytest.raises(SchemaOutdated, match="ledger-sizer db upgrade"):
        play(generated_source(7, 5), url)


def test_replay_when_a_row_is_changed_behind_its_back_then_the_report_says_which(new_database: NewDatabase) -> None:
    url = new_database("sqlite")
    path = make_url(url).database
    assert path is not None

    def edit_row(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("replay", total):
            with sqlite3.connect(path) as connection:
                connection.execute("UPDATE scopes SET open_e8 = open_e8 + 1 WHERE scope = 'portfolio' AND open_e8 > 0")
            connection.close()

    report = replay(generated_source(7, 60), Plan(), url, timer=time.perf_counter, progress=edit_row)
    assert not report.ok
    assert any("scope portfolio counts open" in finding.what for finding in report.findings)
    assert any("by the desk's own book" in what for what in report.violations)
    text = [text for style, text in lines(report) if style == "bad"]
    assert text[0].startswith("NOT verified: ")


def test_report_when_either_check_fails_then_it_is_not_ok(new_database: NewDatabase) -> None:
    report = play(generated_source(7, 5), new_database("sqlite"))
    assert report.ok
    assert not dataclasses.replace(report, findings=(Finding("replay-flat", 1, "wrong"),)).ok
    report.portfolios[0].figures.violations.append("wrong")
    assert not report.ok
