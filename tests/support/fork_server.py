"""Forks the processes of tests: one process imports the package once, and each bot begins as a fork of it.

The server holds no ledger, no thread and no connection, so a fork is what a new interpreter is after its imports, which
take a second of CPU. It is started for the first bot of a test process and ends with it. A request is one packet of
JSON: `argv` with the three files of the new process asks for a process, `wait` for how one stands.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = "tests.support.programs"
IMPORTED = (
    PROGRAMS, "alembic.command", "ledger_sizer.storage.postgresql", "ledger_sizer.storage.sqlite", "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite.pysqlite",
)  # fmt: skip
_BYTES_MAX = 1 << 16


class ForkServer:
    """The server, as the tests see it."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno())],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self._stop)

    def _stop(self) -> None:
        self._connection.close()
        self._process.wait()

    def fork(self, argv: list[str], files: tuple[int, int, int]) -> int:
        """Start a process with these arguments and standard input, output and error. Return its id."""
        pid: int = self._ask({"argv": argv}, files)
        return pid

    def status(self, pid: int) -> int | None:
        """Return the status of a process that has ended or stopped since it was asked for; None: neither."""
        status: int | None = self._ask({"wait": pid}, ())
        return status

    def _ask(self, request: dict[str, Any], files: tuple[int, ...]) -> Any:
        socket.send_fds(self._connection, [json.dumps(request).encode()], files)
        answer = self._connection.recv(_BYTES_MAX)
        assert answer, "the server that forks bots has ended"
        return json.loads(answer)


@cache
def fork_server() -> ForkServer:
    """Return the server of this process."""
    return ForkServer()


def _serve(connection: socket.socket) -> list[str]:
    """Answer until the other side is gone. Return the arguments that a forked process runs with, [] in the server."""
    while True:
        packet, files, _, _ = socket.recv_fds(connection, _BYTES_MAX, 3)
        if not packet:
            return []
        request = json.loads(packet)
        if "wait" in request:
            ended, status = os.waitpid(request["wait"], os.WNOHANG | os.WUNTRACED)
            answer = status if ended else None
        else:
            answer = os.fork()
            if answer == 0:
                for target, file in enumerate(files):
                    os.dup2(file, target)
                    os.close(file)
                connection.close()
                argv: list[str] = request["argv"]
                return argv
            for file in files:
                os.close(file)
        connection.send(json.dumps(answer).encode())


def main() -> None:
    """Serve. A forked process runs its program here and ends as any interpreter does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in IMPORTED:
        importlib.import_module(name)
    argv = _serve(socket.socket(fileno=int(sys.argv[1])))
    if argv:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = [PROGRAMS, *argv]
        importlib.import_module(PROGRAMS).main()


if __name__ == "__main__":
    main()
