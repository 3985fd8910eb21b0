"""The runner: which rounds it takes, what it tells of each, and its status."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from bots import __main__ as runner
from bots.rounds import Outcome, Round


def passes(folder: Path, short: bool) -> Outcome:
    assert folder.is_dir()
    return Outcome(True, {"orders": "3", "length": "short" if short else "long"})


def fails(folder: Path, _short: bool) -> Outcome:
    (folder / "left").write_text("for a look at it")
    return Outcome(False, {"orders": "4"}, "12 USD at the exchange, the cap is 10")


def breaks(_folder: Path, _short: bool) -> Outcome:
    raise RuntimeError("the bot did not start")


GOOD, BAD = Round("tame", ("pytest",), passes), Round("tame, disturbed", ("pytest",), fails)
BROKEN, ABSENT = Round("wild", ("pytest",), breaks), Round("elsewhere", ("no_such_framework",), breaks)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Round]:
    found = [GOOD, BAD, BROKEN, ABSENT]
    monkeypatch.setattr(runner, "all_rounds", lambda: found)
    monkeypatch.setattr(runner, "IN_SHORT", ("tame", "elsewhere"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return found


def test_run_when_rounds_pass_or_lack_their_framework_then_the_status_is_0_and_a_page_is_written(
    rounds: list[Round], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "results.md"
    assert runner.main(["--short", "--write", str(page)]) == 0
    text = page.read_text()
    assert re.search(
        r"^Date: \d{4}-\d\d-\d\d; no_such_framework not installed; pytest [\d.]+; .*short rounds\.$", text, re.M
    )
    assert "| tame | passed | 0 s | orders 3; length short |" in text
    assert "| elsewhere | skipped | 0 s | no_such_framework is not installed |" in text
    assert "passed" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["results.md"]


def test_run_when_a_round_fails_or_breaks_then_the_others_run_and_the_status_is_1(
    rounds: list[Round], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner.main([]) == 1
    told = capsys.readouterr()
    assert "12 USD at the exchange" in told.out
    assert "RuntimeError: the bot did not start" in told.out
    assert "length long" in told.out
    kept = re.search(r"its files are in (\S+)", told.err)
    assert kept is not None
    assert (Path(kept[1]) / "left").exists()


@pytest.mark.parametrize(
    ("names", "short", "expected"),
    [([], True, [GOOD, ABSENT]), (["tame"], True, [GOOD, BAD]), (["wild", "else"], False, [BROKEN, ABSENT])],
)
def test_choose_when_names_are_given_then_each_round_with_one_in_its_name_is_taken(
    rounds: list[Round], names: list[str], short: bool, expected: list[Round]
) -> None:
    assert runner.chosen(rounds, names, short=short) == expected


def test_run_when_no_round_has_the_name_then_the_status_is_2(rounds: list[Round]) -> None:
    assert runner.main(["nobody"]) == 2


def test_list_when_frameworks_are_absent_then_every_round_is_there_and_those_of_ci_are_among_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert runner.main(["--list"]) == 0
    assert "freqtrade" in capsys.readouterr().out
    names = [one.name for one in runner.all_rounds()]
    assert len(set(names)) == len(names)
    assert {*runner.IN_SHORT} <= {*names}
