"""Begins a SQLite ledger: creates its file, and refuses to where a ledger was before.

Where a ledger's file was lost, an empty one in its place would grant again everything that is still held. So a marker
file stands beside each ledger, and says that there is one.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ledger_sizer.model.choices import LedgerCreation
from ledger_sizer.model.errors import NotFound, Unavailable

MARKER = "-ledger"
"""Suffix of the marker. It begins with the database's name, so that removing `ledger.db*` removes it too."""

FILE_MODE = 0o600
"""Only its owner reads a ledger. SQLite gives -wal and -shm the mode of the database."""

_NOTE = (
    "The database beside this file is a ledger of ledger-sizer. If the database is gone, no new one is created in its "
    "place. To begin an empty ledger all the same, remove this file too, or set LEDGER_CREATE=always."
)

_UNKNOWN_TIME = "an unknown time"


class LedgerMissing(NotFound):
    """There is no ledger at the path of the SQLite file, and none may be created."""


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
        since = _read_marker(file)
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


def remember(path: str | Path) -> None:
    """Write the marker beside a ledger, unless it is there. A folder that cannot be written goes without."""
    file = Path(path).resolve()
    since = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    text = json.dumps({"note": _NOTE, "database": file.name, "since": since}, indent=1)
    with suppress(OSError):
        handle = os.open(_beside(file, MARKER), os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE)
        with os.fdopen(handle, "w") as marker:
            marker.write(text + "\n")


def forget(path: str | Path) -> None:
    """Remove the marker of a ledger that was removed on purpose."""
    with suppress(OSError):
        _beside(Path(path).resolve(), MARKER).unlink()


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


def _read_marker(file: Path) -> str | None:
    """Return when the ledger was first seen, as the marker says. A marker that cannot be read counts too."""
    try:
        text = _beside(file, MARKER).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        return _UNKNOWN_TIME
    try:
        return str(json.loads(text)["since"])
    except (ValueError, KeyError, TypeError):
        return _UNKNOWN_TIME


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
