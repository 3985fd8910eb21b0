"""Counts the lines that a user of each bot adds, in its page, and compares them with the table of all bots."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parent.parent.parent / "docs" / "bots"
MARKED = re.compile(r"<!-- lines: (\d+) -->\n```python\n(.*?)```", re.DOTALL)
TWO_LINES = ("freqtrade.md", "nautilus.md", "ccxt.md")


def _table() -> dict[str, int]:
    """Lines by page, as the index says."""
    rows = re.findall(
        r"^\| [^|]+ \| (\d+)[^|]* \| \[[^]]+\]\(([^)]+)\)", (PAGES / "README.md").read_text(), re.MULTILINE
    )
    return {page: int(lines) for lines, page in rows}


def test_index_when_a_page_of_a_bot_exists_then_it_has_a_row() -> None:
    pages = {path.name for path in PAGES.glob("*.md")} - {"README.md", "results.md"}
    assert set(_table()) == pages


@pytest.mark.parametrize("page", sorted(_table()))
def test_page_when_its_marked_block_is_counted_then_it_is_as_many_lines_as_the_index_says(page: str) -> None:
    blocks = MARKED.findall((PAGES / page).read_text())
    assert len(blocks) == 1, "one block, and only what a user adds"
    ((said, code),) = blocks
    lines = [line for line in code.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) == int(said) == _table()[page]
    assert max(map(len, lines)) <= 120, "a line is a line"
    assert ";" not in code
    if page in TWO_LINES:
        assert len(lines) <= 2
