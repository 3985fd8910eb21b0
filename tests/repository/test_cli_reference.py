"""Tests that docs/cli.md matches the program's help."""

from __future__ import annotations

import runpy
from pathlib import Path


def test_read_reference_when_a_command_changes_then_the_page_follows(repository_root: Path) -> None:
    reference = runpy.run_path(str(repository_root / "scripts" / "cli_reference.py"))["reference"]
    written = (repository_root / "docs" / "cli.md").read_text()
    assert written == reference(), "run: .venv/bin/python scripts/cli_reference.py"
