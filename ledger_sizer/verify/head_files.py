"""Files of trusted chain heads: written line by line by the service, or once by `verify --export-head`.

Each line is `{"at": "2026-01-01T00:00:00+00:00", "heads": {"main": {"seq": 17, "hash": "..."}}}`: the heads that
changed since the line before; none where nothing was decided, so that the last line tells when heads were last
exported. The first line of a file has them all.
"""

import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from ledger_sizer.history.archive_files import sync_folder
from ledger_sizer.model.errors import LedgerError, Unavailable
from ledger_sizer.verify.chain import Head, Heads
from ledger_sizer.wire.responses import heads_from_json, heads_to_json


class TrustedHeads(NamedTuple):
    """What a file has. newest: of each portfolio the head with the highest seq. kept: all others. at: of the last line.

    last: of each portfolio the head exported last. unreadable: lines left out; a crash during a write leaves one.
    """

    newest: dict[str, Head]
    kept: dict[str, set[Head]]
    last: dict[str, Head]
    at: datetime | None
    unreadable: int


def read_heads(path: Path) -> TrustedHeads:
    """Read a file of heads, and the one rotated away before it, `FILE.1`, if that is there.

    Raises `OSError` if it cannot be read, `ValueError` if it has no heads.
    """
    found: dict[str, set[Head]] = {}
    last: dict[str, Head] = {}
    at, unreadable, lines = None, 0, 0
    for line in _lines(path):
        try:
            heads, moment = _parse_line(line)
        except (ValueError, TypeError, LedgerError):
            unreadable += 1
            continue
        lines += 1
        at = moment or at
        last |= heads
        for name, head in heads.items():
            found.setdefault(name, set()).add(head)
    if not lines:
        raise ValueError(f"{path} has no chain heads")
    newest = {name: max(heads) for name, heads in found.items()}
    return TrustedHeads(newest, {name: heads - {newest[name]} for name, heads in found.items()}, last, at, unreadable)


def _lines(path: Path) -> Iterator[str]:
    before = rotated(path)
    if before.exists():
        with before.open() as file:
            yield from file
    with path.open() as file:
        first = file.readline()
        if first.strip() == "{":
            yield first + file.read()  # of `--export-head`: one object over several lines
        else:
            yield first
            yield from file


def _parse_line(line: str) -> tuple[dict[str, Head], datetime | None]:
    form = json.loads(line)
    if not isinstance(form, dict):
        raise ValueError("a line is one JSON object")
    return heads_from_json(form), datetime.fromisoformat(form["at"]) if "at" in form else None


def rotated(path: Path) -> Path:
    """Return the name of the file before this one."""
    return path.with_name(path.name + ".1")


def append_heads(path: Path, at: datetime, changed: Heads, everything: Callable[[], Heads], bytes_max: int) -> None:
    """Append one line and sync it to the disk. The file is made for its owner only.

    changed: the heads to write; `everything` if the line begins a file. A file that would grow beyond `bytes_max` is
    renamed to `FILE.1` first, in place of the one before. Raises `Unavailable` if it cannot be written.
    """
    try:
        exists = path.exists()
        line = _line(at, changed)
        if exists and path.stat().st_size + len(line) > bytes_max:
            path.replace(rotated(path))
            exists = False
        if not exists:
            line = _line(at, everything())
        number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # A line that a crash cut short must not swallow this one.
            rest = line if _ends_a_line(path) else b"\n" + line
            while rest:
                rest = rest[os.write(number, rest) :]
            os.fsync(number)
        finally:
            os.close(number)
        if not exists:
            sync_folder(path.parent)
    except OSError as error:
        raise Unavailable(f"the chain heads cannot be written to {path}: {error.strerror}") from None


def _line(at: datetime, heads: Heads) -> bytes:
    return json.dumps({"at": at.isoformat(timespec="seconds"), **heads_to_json(heads)}).encode() + b"\n"


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return True
        file.seek(size - 1)
        return file.read(1) == b"\n"
