"""Tests that docs/settings.md is generated from the settings and current."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from ledger_sizer.config import AppSettings, Settings

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "scripts" / "settings_reference.py"


def _variables() -> set[str]:
    found = set()
    for name, field in AppSettings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            prefix = kind.model_config.get("env_prefix", "")
            found |= {f"{prefix}{part}".upper() for part in kind.model_fields}
        else:
            found.add(name.upper())
    return found


def test_check_reference_when_settings_are_as_they_are_then_it_is_current() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_read_reference_when_a_setting_exists_then_it_is_listed_with_a_meaning() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*) \| (.*) \| (.+) \|$", (ROOT / "docs/settings.md").read_text(), re.M)
    assert {row[0] for row in rows} == _variables()
    assert [row[0] for row in rows if not all(cell.strip() for cell in row)] == []
