"""Prints what an install brings, base and extras: packages and MB, measured in the environment that runs this.

.venv/bin/python scripts/install_sizes.py [EXTRA,EXTRA...] ...        without arguments: the base, and `service`
"""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "ledger-sizer"
PACKAGE = Path(__file__).resolve().parent.parent / "ledger_sizer"
MB = 1_000_000


def brought(extras: frozenset[str] = frozenset()) -> dict[str, Distribution]:
    """Return every distribution that installing the project with these extras brings, itself left out, by name.

    Each has to be installed here: names and markers are read from the metadata of what is.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(PROJECT, extras)]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        found[name] = distribution(name)
        for line in found[name].requires or ():
            needed = Requirement(line)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *wanted}):
                waiting.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    del found[PROJECT]
    return found


def size_of(installed: Distribution) -> int:
    """Return the bytes of what a distribution installed, compiled bytecode left out."""
    files = [Path(str(file.locate())) for file in installed.files or () if "__pycache__" not in file.parts]
    return sum(file.stat().st_size for file in files if file.is_file())


def main(arguments: list[str]) -> None:
    """Print a line for each set of extras."""
    own = sum(file.stat().st_size for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    for text in arguments or ["", "service"]:
        found = brought(frozenset(text.split(",")) - {""})
        total = own + sum(map(size_of, found.values()))
        name = f"{PROJECT}[{text}]" if text else PROJECT
        sys.stdout.write(f"{name:24} {len(found) + 1:3} packages {total / MB:6.1f} MB\n")


if __name__ == "__main__":
    main(sys.argv[1:])
