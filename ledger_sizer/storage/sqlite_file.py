"""Sets up SQLite's engines, and notices that the files of an open database were deleted, moved or replaced.

WAL, `synchronous=FULL` (an acknowledged commit survives power loss), foreign keys on, and no implicit transactions from
the driver, whose deferred BEGIN lets two writers read the same headroom.

An open connection goes on writing to a file that has no name any more, and everything in it is gone with the process.
So every connection knows which files it has open, and compares them with those at their paths after each commit and
around each read, before anybody gets an answer. The -wal file holds what is committed and not yet in the database file.
The -shm file holds the locks: processes with different ones do not see each other.
"""

import os
import sqlite3
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote
from weakref import WeakSet

from sqlalchemy import URL, Engine, create_engine, event

from ledger_sizer.model.errors import Unavailable
from ledger_sizer.storage.sqlite_start import require_own_log
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

Identity = tuple[int, int]
"""Device and inode of a file: the file itself, whatever its name."""

_FOLDER_SETTLED_NS = 2_000_000_000
"""After this time another change of a folder shows in its time of change, also where that counts in whole seconds."""

_OPENING_SECONDS_MAX = 2
"""Longest wait for another process that is opening or closing the database right now."""

_DATABASE_LOCKS = (0x4000_0002, 510)
_SHM_LOCK = (128, 1)
"""Start and length of the bytes that SQLite locks as long as it has a database, and its -shm file, in use."""

_CACHE_KIB = 64 * 1024
_CHECKPOINT_PAGES = 2000
"""8 MiB of log between checkpoints: many commits share the copying of a hot page, and a checkpoint is short enough to
stay out of the slowest 1 % of calls.
"""

_ADVICE = (
    "Nothing is answered from it, because nobody would find it again. Stop every process that has the ledger open (a "
    "clean stop saves what a removed log holds), put the files back or restore a backup, and start again."
)


class FileLost(Unavailable):
    """The files at the database's path are not those that this process has open, or may become others.

    What was committed last may be in a file that is lost. Nothing is acknowledged or read until the paths name the same
    files again, or the ledger is opened anew.
    """


class NoDatabaseFile(Unavailable):
    """There is no file at the database's path, and this process never had one open."""


class _OpenFiles:
    """The files of one database that all `connections` of this process have open.

    wal, shm: None until they exist. folder: device, inode and time of change of their folder when they were last found
    to be there; None where it had changed just before.
    """

    def __init__(self, database: Identity) -> None:
        self.database = database
        self.wal: Identity | None = None
        self.shm: Identity | None = None
        self.folder: tuple[int, int, int] | None = None
        self.connections: WeakSet[GuardedConnection] = WeakSet()


_lock = threading.RLock()
"""Held while a connection opens or closes: SQLite removes -wal and -shm with the last one, and creates them anew."""

_open_files: dict[str, _OpenFiles] = {}
"""By the database's real path. An entry without connections is out of date."""


def _begin_fork() -> None:
    """Forget the parent's connections: a child must open its own."""
    global _lock  # noqa: PLW0603 - another thread of the parent may have held the old one for ever
    _lock = threading.RLock()
    _open_files.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_begin_fork)


class GuardedConnection(sqlite3.Connection):
    """A connection that raises `FileLost` instead of answering from files that are no longer at their paths."""

    guard: "FileGuard"
    files: _OpenFiles | None = None

    def require_files(self) -> None:
        """Raise `FileLost` unless the paths name the files that this connection has open."""
        assert self.files is not None, "the connection is open"
        self.guard.require(self.files)

    def commit(self) -> None:
        """Commit, and raise `FileLost` where nobody would find the commit."""
        super().commit()
        self.require_files()

    def close(self) -> None:
        """Close the connection. The last one moves the log into the database file and removes -wal and -shm."""
        with _lock:
            if self.files is not None:
                self.files.connections.discard(self)
            super().close()


def make_sqlite_engine(url: URL, busy_timeout_seconds: int, *, read_only: bool) -> Engine:
    """Make an engine for the file of a SQLite URL. `read_only` connections cannot write, whatever SQL they are given.

    It never creates a file, and its connections raise `FileLost` once the file is no longer the one at its path.
    """
    assert url.database is not None, "`database_url` refuses a URL without a file"
    guard = FileGuard(url.database)

    def configure(connection: sqlite3.Connection) -> None:
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {busy_timeout_seconds * 1000}",
            *(() if read_only else ("journal_mode = WAL",)),  # stored in the file
            "synchronous = FULL",
            "foreign_keys = ON",
            f"cache_size = {-_CACHE_KIB}",
            "query_only = ON" if read_only else f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    engine = create_engine(url, creator=lambda: guard.connect(busy_timeout_seconds, configure))

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.connection.driver_connection.require_files()
        # IMMEDIATE takes the write lock before the first read; a deferred transaction would read stale headroom.
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


class FileGuard:
    """Opens the connections of one engine, all to the same file, and says whether it is still there.

    The file is the one at the path when the guard is made or, where there is none yet, when the first connection opens.
    """

    def __init__(self, path: str) -> None:
        self.path = str(Path(path).absolute())  # the working directory may change later
        self._database = _identity(self.path)
        self._real = str(Path(path).resolve())  # SQLite puts -wal and -shm there, not beside a symbolic link
        self._folder = str(Path(self._real).parent)
        self._wal = f"{self._real}-wal"
        self._shm = f"{self._real}-shm"
        self._logged = ""

    def connect(self, timeout_seconds: float, configure: Callable[[sqlite3.Connection], None]) -> GuardedConnection:
        """Open a connection to the file; it never creates one. Raises `FileLost`, `NoDatabaseFile`, `sqlite3.Error`.

        configure: sets the connection up; called before its first read.
        """
        with _lock:
            found = self._require_before_opening()
            connection = sqlite3.connect(
                f"file:{quote(self.path)}?mode=rw",
                uri=True,
                timeout=timeout_seconds,
                check_same_thread=False,
                factory=GuardedConnection,
            )
            try:
                configure(connection)
                connection.execute("PRAGMA schema_version").fetchall()  # opens -wal and -shm, and takes SQLite's locks
                files = self._open_files() or _OpenFiles(found)
                _open_files[self._real] = files
                files.connections.add(connection)
                self._database = found
                connection.guard, connection.files = self, files
                connection.require_files()  # the file opened is the one found before, as it is still there
            except BaseException:
                connection.close()
                raise
            return connection

    def require(self, files: _OpenFiles) -> None:
        """Raise `FileLost` unless the paths name these files."""
        now_ns = time.time_ns()  # before the look, so that the folder cannot have settled during it
        try:
            found = os.stat(self.path)  # noqa: PTH116 - after every commit, and building a Path takes as long
            same = (found.st_dev, found.st_ino) == files.database and (found.st_size > 0 or files.wal is None)
            # Whatever creates, removes or renames a file changes its folder. Asking for the -wal file itself makes a
            # lone caller's commit slower by a fifth: once its times were read, Linux stores the next change of them.
            status = os.stat(self._folder)  # noqa: PTH116 - see above
            folder = (status.st_dev, status.st_ino, status.st_mtime_ns)
        except OSError:
            same, folder = False, None
        if same and folder == files.folder:
            return
        wal, shm = _identity(self._wal), _identity(self._shm)
        if not same or wal != files.wal or shm != files.shm:
            if not same or files.wal not in (None, wal) or files.shm not in (None, shm):
                raise self._lost(files)
            files.wal, files.shm = wal, shm
        settled = folder is not None and now_ns - folder[2] > _FOLDER_SETTLED_NS
        files.folder = folder if settled else None

    def _require_before_opening(self) -> Identity:
        """Return the file's identity. Opening it creates missing -wal and -shm files, so they are checked first."""
        files = self._open_files()
        if files is not None:
            self.require(files)
        found = _identity(self.path)
        if self._database is not None and found != self._database:
            raise self._lost(_OpenFiles(self._database))
        if found is None:
            raise NoDatabaseFile(f"cannot open {self.path}: there is no such file")
        if files is None:
            if sys.platform == "linux" and not _open_in_this_process(self._real, self._shm):
                self._require_no_other_files()
            require_own_log(self._real)
        return found

    def _open_files(self) -> _OpenFiles | None:
        files = _open_files.get(self._real)
        return files if files is not None and files.connections else None

    def _require_no_other_files(self) -> None:
        """Raise `FileLost` while another process has this database open with other files than those at the paths."""
        give_up = time.monotonic() + _OPENING_SECONDS_MAX
        while True:
            shm_user = _lock_holder(self._shm, _SHM_LOCK)
            database_user = _lock_holder(self._real, _DATABASE_LOCKS)
            complete = _identity(self._wal) is not None and _identity(self._shm) is not None
            if (database_user is None or complete) and (shm_user is None or database_user is not None):
                return
            if time.monotonic() > give_up:
                break
            time.sleep(0.01)
        if database_user is not None:
            what = f"process {database_user} has {self.path} open, and its -wal or -shm file was removed meanwhile"
        else:
            what = f"process {shm_user} has another file open that was at {self.path} before this one"
        raise FileLost(f"{what}. {_ADVICE}")

    def _lost(self, files: _OpenFiles) -> FileLost:
        database = _identity(self.path)
        file, told = self.path, "the database's file"
        if database is None:
            what = "was deleted or moved while it was open"
        elif database != files.database:
            what = "is another file than the one that is open: it was replaced"
        elif (wal := _identity(self._wal)) != files.wal:
            file, told = self._wal, "the database's -wal file"
            what = f"was {'removed' if wal is None else 'replaced'} while it was open"
        elif (shm := _identity(self._shm)) != files.shm:
            file, told = self._shm, "the database's -shm file"
            what = f"was {'removed' if shm is None else 'replaced'} while it was open"
        else:
            what = "was emptied while it was open"
        message = f"{file} {what}. {_ADVICE}"
        if message != self._logged:  # once, not for each of a thousand callers
            self._logged = message
            log.error("ledger.file_lost", error=message)
        return FileLost(message, told=f"{told} {what}. {_ADVICE}")


def _identity(path: str) -> Identity | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - see `FileGuard.require`
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _open_in_this_process(*paths: str) -> bool:
    """Whether this process has one of these files open, on Linux."""
    wanted = {found for path in paths if (found := _identity(path)) is not None}
    return any(_identity(str(handle)) in wanted for handle in Path("/proc/self/fd").iterdir())


def _lock_holder(path: str, place: tuple[int, int]) -> int | None:
    """Return the process that has these bytes of a file locked; None for no other process, or no file. Linux only.

    Closing the file drops all locks that this process has on it, so this process must not have the database open.
    """
    import fcntl  # Windows has none

    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        start, length = place
        form = "hhqqi"  # struct flock: type, whence, start, length, process
        asked = struct.pack(form, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        kind, *_, process = struct.unpack(form, fcntl.fcntl(handle, fcntl.F_GETLK, asked))
    finally:
        os.close(handle)
    return None if kind == fcntl.F_UNLCK else process
