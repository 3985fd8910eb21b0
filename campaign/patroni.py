"""A pair of PostgreSQL servers that Patroni watches, with Debian's etcd as its store.

Patroni is installed from PyPI into an environment of its own, in the campaign's folder.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from campaign.postgresql import USER, PostgreSQL, own, quit_server, system_user
from campaign.processes import environment, family, free_port, is_running, kill_and_wait, wait_until
from campaign.stage import Skipped

PACKAGES = ("patroni[etcd3]", "psycopg[binary]")
INSTALL_SECONDS_MAX = 300
START_SECONDS_MAX = 90.0
TTL_SECONDS = 20
"""The shortest that Patroni accepts: after so long without a sign of life another node takes over."""


def install(folder: Path, programs: Path) -> Path:
    """Install Patroni into `folder`, once. Returns its program. Raises `Skipped` where a part cannot be had."""
    if shutil.which("etcd") is None:
        raise Skipped("there is no etcd (Debian: apt-get install etcd-server)")
    program = folder / "bin" / "patroni"
    if not program.exists():
        uv, python = str(Path(sys.executable).parent / "uv"), _python_for_all(system_user(programs))
        try:
            _run(uv, "venv", "--quiet", "--python", python, str(folder))
            _run(
                uv,
                "pip",
                "install",
                "--quiet",
                "--link-mode=copy",
                "--python",
                str(folder / "bin" / "python"),
                *PACKAGES,
            )
        except (OSError, subprocess.SubprocessError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise Skipped(f"Patroni cannot be installed from PyPI: {type(error).__name__}") from error
    return program


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_SECONDS_MAX)


def _python_for_all(user: str | None) -> str:
    """Return an interpreter that PostgreSQL's system user may run: Patroni runs as the user of its server."""
    for python in (getattr(sys, "_base_executable", sys.executable), "/usr/local/bin/python3", "/usr/bin/python3"):
        try:
            subprocess.run([python, "-c", ""], user=user, check=True, capture_output=True, cwd="/")
        except (OSError, subprocess.SubprocessError):
            continue
        return str(python)
    raise Skipped(f"no Python that the system user {user} may run")


@dataclass
class Etcd:
    """One etcd process."""

    folder: Path
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> Etcd:
        """Start it, and wait until it answers."""
        self.folder.mkdir()
        client, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{free_port()}"
        options = {
            "data-dir": self.folder / "data",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
        }
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["etcd", *[f"--{name}={value}" for name, value in options.items()]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: _get(f"{client}/health") is not None, "etcd answers", seconds=START_SECONDS_MAX)
        return self

    def kill(self) -> None:
        """Send SIGKILL, and wait for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@dataclass
class Node:
    """One server and the Patroni process that looks after it."""

    name: str
    folder: Path
    patroni: Path
    programs: Path
    etcd: Etcd
    port: int = field(default_factory=free_port)
    rest_port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> Node:
        """Start Patroni, which starts the server. Does not wait for it."""
        self.folder.mkdir(exist_ok=True)
        configuration = self.folder / "patroni.yml"
        configuration.write_text(json.dumps(self._configuration()))  # JSON is YAML
        own(self.folder, self.programs)
        user = system_user(self.programs)
        as_user: dict[str, Any] = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.patroni), str(configuration)],
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **as_user,
            )
        return self

    def _configuration(self) -> dict[str, Any]:
        address = {name: f"127.0.0.1:{self.rest_port}" for name in ("listen", "connect_address")}
        login = {"username": USER, "password": "unused"}
        return {
            "scope": "ledger",
            "name": self.name,
            "restapi": address,
            "etcd3": {"hosts": f"127.0.0.1:{self.etcd.port}"},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL_SECONDS,
                    "loop_wait": 3,
                    "retry_timeout": 5,
                    "synchronous_mode": True,
                    "postgresql": {"use_pg_rewind": True, "use_slots": True},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(self.data),
                "bin_dir": str(self.programs),
                "pgpass": str(self.folder / "pgpass"),
                "authentication": {"superuser": login, "replication": login, "rewind": login},
                "parameters": {"unix_socket_directories": "", "shared_buffers": "32MB", "max_connections": 60},
                "pg_hba": ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"],
            },
        }

    @property
    def data(self) -> Path:
        """The server's data folder."""
        return self.folder / "data"

    @property
    def server_processes(self) -> list[int]:
        """The postmaster and its children; empty while it does not run."""
        try:
            postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
        except (FileNotFoundError, IndexError):
            return []
        return family(postmaster)

    @property
    def processes(self) -> list[int]:
        """Patroni, the postmaster, and all their children."""
        mine = family(self._process.pid) if self._process is not None else []
        return list(dict.fromkeys([*mine, *self.server_processes]))

    def is_primary(self) -> bool:
        """Return True if the server answers and takes writes."""
        return self._asked("SELECT pg_is_in_recovery()") == [(False,)]

    def has_synchronous_standby(self) -> bool:
        """Return True if Patroni has written down that another node has every commit: only such a node is promoted."""
        answer = _get(f"http://127.0.0.1:{self.rest_port}/cluster")
        members = json.loads(answer)["members"] if answer is not None else []
        return any(member["role"] == "sync_standby" and member["state"] == "streaming" for member in members)

    def _asked(self, statement: str) -> list[Any] | None:
        # A frozen server accepts connections and says nothing.
        url = PostgreSQL.url_at(self.port, database="postgres") + "?connect_timeout=2"
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                return connection.execute(statement).fetchall()
        except psycopg.Error:
            return None

    def end(self) -> None:
        """Kill Patroni, and have the server end so that it leaves no shared memory behind."""
        if self._process is not None:
            kill_and_wait(family(self._process.pid))
            self._process.wait()
            self._process = None
        if self.server_processes:
            quit_server(self.server_processes[0])

    def kill(self) -> None:
        """Send SIGKILL to Patroni and the server at once, like the loss of their host. Idempotent."""
        pids = self.processes
        if pids:
            kill_and_wait([pid for pid in pids if is_running(pid)])
        if self._process is not None:
            self._process.wait()
            self._process = None
        (self.data / "postmaster.pid").unlink(missing_ok=True)


@dataclass
class PatroniPair:
    """Two nodes, one of which leads."""

    nodes: tuple[Node, Node]

    @property
    def url(self) -> str:
        """URL that names both servers, and leads to the one that takes writes."""
        return PostgreSQL.url_at(*[node.port for node in self.nodes])

    def leader(self) -> Node:
        """Return the node that leads, as soon as one does and a synchronous standby follows it."""
        wait_until(
            lambda: self._leading() is not None, "Patroni has a leader with a standby", seconds=START_SECONDS_MAX
        )
        found = self._leading()
        assert found is not None
        return found

    def _leading(self) -> Node | None:
        return next((node for node in self.nodes if node.is_primary() and node.has_synchronous_standby()), None)

    def other(self, node: Node) -> Node:
        """Return the other node."""
        return self.nodes[1 - self.nodes.index(node)]

    def wait_for_promotion(self, node: Node, *, seconds: float) -> float:
        """Wait until this node is a primary. Returns the moment of the monotonic clock."""
        wait_until(node.is_primary, f"Patroni promotes {node.name}", seconds=seconds)
        return time.monotonic()

    def switch_over(self, leader: Node) -> None:
        """Ask the leader to hand over to the other node."""
        body = json.dumps({"leader": leader.name, "candidate": self.other(leader).name}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{leader.rest_port}/switchover", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()


def _get(url: str) -> bytes | None:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            data: bytes = answer.read()
            return data
    except (urllib.error.URLError, OSError):
        return None
