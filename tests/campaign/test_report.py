"""Tests of what a campaign writes: its list, its sums, its table in a page, its status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from campaign.processes import CampaignError
from campaign.report import BEGIN, END, as_json, as_markdown, broken, summed_up, write_into
from campaign.rounds import all_rounds
from campaign.run import Plan
from campaign.stage import Outcome

ROOT = Path(__file__).resolve().parent.parent.parent
ROUNDS = [all_rounds()[name] for name in ("kill-service-sqlite", "failover", "patroni-kill")]
PLAN = Plan(ROUNDS, minutes=60, seed=7, short=False, programs=Path(), folder=None, keep=False)
OUTCOMES = [
    Outcome(
        "kill-service-sqlite", acknowledged=1000, faults=5, recoveries=[1.0, 2.5], slowest=0.2, errors={"503 busy": 3}
    ),
    Outcome("kill-service-sqlite", acknowledged=2000, faults=5, recoveries=[1.5], slowest=0.1, lost=["main key 'a'"]),
    Outcome("patroni-kill", skipped="there is no etcd"),
]


def test_sum_up_when_a_round_ran_twice_then_its_line_has_sums_and_slowest() -> None:
    result = summed_up(ROUNDS, OUTCOMES, PLAN, seconds=3600, postgresql=18)
    assert result.lines[0].cells() == ["kill-service-sqlite", "2", "10", "3,000", "1", "0", "0", "2.5 s", "0.2 s"]
    assert result.lines[-1].cells()[:5] == ["all", "2", "10", "3,000", "1"]
    assert result.conditions["not reached"] == "failover"


def test_write_markdown_when_the_page_has_marks_then_only_what_is_between_them_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\n\nold\n\n{END}\n\nafter\n")
    write_into(page, as_markdown(summed_up(ROUNDS, OUTCOMES, PLAN, seconds=3600, postgresql=18)))
    text = page.read_text()
    assert text.startswith(f"before\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "old" not in text
    assert "| kill-service-sqlite | 2 | 10 | 3,000 | 1 | 0 | 0 | 2.5 s | 0.2 s |" in text
    assert "* `patroni-kill` was skipped: there is no etcd" in text


def test_write_markdown_when_the_page_has_no_marks_then_it_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks\n")
    with pytest.raises(CampaignError, match="has no marks"):
        write_into(page, "table")
    assert page.read_text() == "no marks\n"


def test_write_json_when_something_was_lost_then_it_names_it() -> None:
    form = json.loads(as_json(summed_up(ROUNDS, OUTCOMES, PLAN, seconds=3600, postgresql=18), OUTCOMES))
    assert form["lines"][0]["lost"] == 1
    assert form["outcomes"][0]["errors"] == {"503 busy": 3}
    assert form["outcomes"][1]["lost"] == ["main key 'a'"]
    assert list(broken(OUTCOMES)) == ["LOST kill-service-sqlite: main key 'a'"]


def test_run_when_the_page_has_no_marks_then_it_ends_before_the_first_round(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks\n")
    command = [sys.executable, "-m", "campaign", "--rounds", "overload", "--markdown", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has no marks" in done.stderr
    assert "overload" not in done.stderr


def test_list_rounds_when_asked_for_the_short_ones_then_a_failover_is_among_them() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "campaign", "--list", "--short"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "failover" in done.stdout
    assert "patroni" not in done.stdout


def test_run_when_a_round_is_unknown_then_the_status_is_that_of_bad_usage() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "campaign", "--rounds", "nonsense"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "unknown round 'nonsense'" in done.stderr


def test_page_of_promises_when_it_names_a_round_then_that_round_exists() -> None:
    page = (ROOT / "docs" / "failure-model.md").read_text()
    named = {name for name in all_rounds() if f"`{name}`" in page}
    assert named == set(all_rounds()), "each round shows a promise, so docs/failure-model.md names it"
