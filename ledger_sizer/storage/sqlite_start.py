"""Begins a SQLite ledger: creates its file, and refuses to where a ledger was before.

Where a ledger's file was lost, an empty one in its place would grant again everything that is still held. So a marker
file stands beside each ledger, and says that there is one. It also tells which file a -wal file belongs to.
"""

import json
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ledger_sizer.model.choices import LedgerCreation
from ledger_sizer.model.errors import NotFound, Unavailable

MARKER = "-ledger"
"""Suffix of the marker: JSON with a note for people, when the ledger was first seen, and its file's inode.

It is appended to the database's name, so that removing `ledger.db*` removes it too.
"""

FILE_MODE = 0o600
"""Only its owner reads a ledger. SQLite gives -wal and -shm the mode of the database."""

_NOTE = (
    "The database beside this file is a ledger of ledger-sizer. If the database is gone, no new one is created in its "
    "place. To begin an empty ledger all the same, remove this file too, or set LEDGER_CREATE=always."
)


class LedgerMissing(NotFound):
    """There is no ledger at the path of the SQLite file, and none may be created."""


class ForeignLog(Unavailable):
    """The -wal file beside the database belongs to another one. SQLite would write its pages into this one."""


@dataclass(frozen=True, slots=True)
class Traces:
    """What the folder of a SQLite file says about it. Read this before the file's schema.

    In the other order, a ledger that another process creates meanwhile would look like one that was lost.

    empty: there is no file, or it has no content. since: when the ledger was first seen here, None if never. log: there
    is no content, but a -wal file that has some; SQLite would delete it.
    """

    path: Path
    empty: bool
    since: str | None
    log: bool

    @classmethod
    def of(cls, path: str) -> "Traces":
        """Read the traces of a ledger at this path."""
        file = Path(path).resolve()
        since = _read_marker(file).get("since")
        empty = _size(file) == 0
        return cls(file, empty, since, log=empty and _size(_beside(file, "-wal")) > 0)

    def require_none(self) -> None:
        """Raise `LedgerMissing` if a ledger was here."""
        was = f"since {self.since}" if self.since is not None else "as its -wal file is still there" if self.log else ""
        if was:
            raise LedgerMissing(
                f"a ledger was at {self.path} {was}, and now {self._found}. Put it back or restore a backup: an empty "
                "one would grant again everything that is held. Only if it is gone for good, begin anew: "
                "ledger-sizer db upgrade --create, or LEDGER_CREATE=always"
            )

    def require_may_begin(self, create: LedgerCreation) -> None:
        """Raise `LedgerMissing` unless a ledger may begin here, now that there is none. `always` removes the marker."""
        if create != "always":
            self.require_none()
        if create == "never":
            raise LedgerMissing(f"there is no ledger at {self.path}: {self._found}; nothing was created")
        forget(self.path)

    @property
    def _found(self) -> str:
        if not self.path.exists():
            return "there is no such file"
        return "the file is empty" if self.empty else "the file has no ledger in it"


def create_file(path: str | Path) -> None:
    """Create an empty file for a ledger, readable by its owner only, unless there is one. Raises `Unavailable`."""
    try:
        os.close(os.open(Path(path).resolve(), os.O_CREAT | os.O_EXCL | os.O_RDWR, FILE_MODE))
    except FileExistsError:
        pass
    except OSError as error:
        raise Unavailable(f"cannot create {path}: {error.strerror}") from None


def remember(path: str | Path, *, create: bool) -> None:
    """Write the marker of a ledger, unless it names this file already. A folder that cannot be written goes without.

    create: False only updates a marker, and leaves none beside a backup that is looked at.
    """
    file = Path(path).resolve()
    found = _read_marker(file)
    with suppress(OSError):
        inode = file.stat().st_ino
        if found.get("inode") == inode or not (found or create):
            return
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        since = found.get("since", now)
        text = json.dumps({"note": _NOTE, "database": file.name, "since": since, "inode": inode}, indent=1)
        partial = _beside(file, f"{MARKER}.{os.getpid()}.{threading.get_ident()}")
        partial.touch(FILE_MODE)
        partial.write_text(text + "\n")
        partial.replace(_beside(file, MARKER))


def require_own_log(path: str | Path) -> None:
    """Raise `ForeignLog` if a -wal file with content stands beside another database file than the one it belongs to."""
    file = Path(path).resolve()
    log = _beside(file, "-wal")
    remembered = _read_marker(file).get("inode")
    if remembered is None or _size(log) == 0:
        return
    with suppress(OSError):
        if file.stat().st_ino != remembered:
            raise ForeignLog(
                f"{file} is another file than the one that {log.name} belongs to, which would damage it. Stop every "
                f"process that has the ledger open. If {file.name} is a restored backup, remove {log.name} and "
                f"{file.name}-shm. If it is a copy of the file that the log belongs to, remove {file.name}{MARKER}"
            )


def forget(path: str | Path) -> None:
    """Remove the marker of a ledger that was removed on purpose."""
    with suppress(OSError):
        _beside(Path(path).resolve(), MARKER).unlink()


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


def _read_marker(file: Path) -> dict[str, Any]:
    """Return what the marker says, nothing if there is none. A marker that cannot be read counts too."""
    unknown = {"since": "an unknown time"}
    try:
        found = json.loads(_beside(file, MARKER).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError):
        return unknown
    return {**unknown, **found} if isinstance(found, dict) else unknown


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
