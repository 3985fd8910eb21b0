"""Tests that the wheel is complete: installed without a checkout, it migrates a database."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

MIGRATE = """
import sys
sys.path.insert(0, sys.argv[1])
import sqlite3
import ledger_sizer.storage.database
assert ledger_sizer.storage.database.__file__.startswith(sys.argv[1]), ledger_sizer.storage.database.__file__
ledger_sizer.storage.database.upgrade("sqlite:///fresh.db")
connection = sqlite3.connect("fresh.db")
tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
connection.close()
sys.stdout.write(" ".join(name for (name,) in tables))
"""


def test_build_wheel_when_checkout_is_whole_then_it_carries_the_package_and_the_migrations_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ledger_sizer"}
    versions = {path.name for path in (ROOT / "migrations" / "versions").glob("*.py")}
    assert versions
    assert versions <= {
        name.rsplit("/", 1)[1] for name in names if name.startswith("ledger_sizer/_migrations/versions/")
    }
    assert "ledger_sizer/_migrations/env.py" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".db"))]


def test_migrate_when_only_the_wheel_is_there_then_the_schema_is_created(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    command = [sys.executable, "-P", "-c", MIGRATE, str(installed)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert {"alembic_version", "decisions", "positions"} <= set(ran.stdout.split())
