"""Tests that the README's example runs, and that files linked and tests named in pages exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()
FOLDERS = (".", "docs", "docs/bots", "docs/decisions", "examples", "benchmarks")
PAGES = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))


def test_readme_example_when_run_as_written_then_it_reserves_and_explains(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    ran = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[:2] == ["BTC/USDT market buy 0.018", "BTC/USDT:USDT market sell 0.018"]
    assert lines[2] == "4099.82"  # cap 5,000 less 0.018 x 50,010
    # The score asks for 930 USD, of which whole steps of 0.001 BTC can cost 900; only that is held.
    assert lines[3].startswith("main #1 reserve 'cycle-17/BTC': granted 900 USD, quantity 0.018")
    assert (tmp_path / "ledger.db").is_file()


def test_readme_example_when_counted_then_it_is_about_twenty_lines() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    statements = [line for line in example.splitlines() if line.strip() and not line.startswith(("from", "import"))]
    assert len(statements) <= 20


def test_backtest_example_when_run_as_written_then_a_larger_cap_opens_more_and_no_file_is_left(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/backtests.md").read_text(), flags=re.DOTALL)
    ran = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert [line.split()[1] for line in ran.stdout.splitlines()] == ["1000", "3000", "9000"]
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("page", PAGES)
def test_page_when_it_links_to_a_file_then_the_file_exists(page: str) -> None:
    folder = (ROOT / page).parent
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_page_when_it_names_a_test_file_then_the_file_exists(page: str) -> None:
    names = set(re.findall(r"(?<!\.)\btest_[a-z_]+\b(?!\*)", (ROOT / page).read_text()))
    missing = [name for name in sorted(names) if not list((ROOT / "tests").rglob(f"{name.rstrip('_')}*.py"))]
    assert missing == []
    paths = set(re.findall(r"\btests/[\w/]+\.py\b", (ROOT / page).read_text()))
    assert [path for path in sorted(paths) if not (ROOT / path).is_file()] == []
