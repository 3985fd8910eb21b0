#!/usr/bin/env python3
"""Write docs/cli.md: the help of every command, as the program itself shows it.

    .venv/bin/python scripts/cli_reference.py

A test compares the file with what this would write, so it cannot fall behind.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from ledger_sizer.cli import run
from ledger_sizer.cli.app import root_command

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
_WIDTH = "110"

_INTRODUCTION = """\
# The command line

`ledger-sizer COMMAND`, also `python -m ledger_sizer COMMAND`. Every page below is what `COMMAND --help` prints, and
every example on it runs as written (both are tested). Written by `scripts/cli_reference.py`; do not edit.

- **Output.** Tables on a terminal, aligned plain text elsewhere; with `--json` one document, decimals as strings, lists
  as `{"items": [...], "cursor": ...}`. Figures keep every digit they have. `NO_COLOR` is respected.
- **Errors** go to standard error: one line `error: what, hint`, or with `--json` one object
  `{"error": code, "message": ...}` with `hint`, `field` and `key` where they help. Standard output stays empty.
- **Exit codes.** 0 done, 1 failure, 2 bad input, 3 denied; 130 after Ctrl-C. A denial is an answer, so its decision
  stands on standard output.
- **Keys.** A command without `--key` makes one and prints it. When an answer did not arrive (busy, database away,
  interrupted) the error names the key: send the same command with it and learn what became of it.
- **The database** is `--database-url`, else `LEDGER_DATABASE_URL` from the environment or `.env`, else
  `sqlite:///ledger.db`. A SQLite file that is not there is created by `reserve`, `adopt`, `caps set`, `serve`,
  `keys create`, `instruments refresh` and `db upgrade`, which say so; `db copy` creates its target, and `replay` has
  its own. Every other command refuses, since a wrong path must not look like an empty ledger. Where a ledger was
  before, all refuse, but for `serve --create` and `db upgrade --create`, or with `LEDGER_CREATE=always`.
"""


def pages(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words that call each command, groups included, in the order of `--help`."""
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from pages(child, (*path, name))


def reference() -> str:
    """Return the text of docs/cli.md."""
    parts = [_INTRODUCTION]
    for path in pages(root_command()):
        title = " ".join(["ledger-sizer", *path])
        parts.append(f"\n## {title}\n```text\n{_help_of(path)}```\n")
    return "".join(parts)


def _help_of(path: tuple[str, ...]) -> str:
    shown = io.StringIO()
    with mock.patch.dict(os.environ, {"COLUMNS": _WIDTH}), redirect_stdout(shown):
        code = run([*path, "--help"])
    assert code == 0, f"{path} --help exits {code}"
    return "".join(f"{line.rstrip()}\n" for line in shown.getvalue().splitlines())


def main() -> None:
    """Write the file."""
    REFERENCE.parent.mkdir(exist_ok=True)
    REFERENCE.write_text(reference())
    sys.stderr.write(f"wrote {REFERENCE.name}\n")


if __name__ == "__main__":
    main()
