"""URLs of PostgreSQL servers: several hosts as libpq names them, and poolers in front of a server."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url

from ledger_sizer import InvalidRequest, Ledger, LedgerSettings
from ledger_sizer.storage.database import database_url as parsed
from ledger_sizer.storage.database import make_engine
from tests.support.programs import settings_of
from tests.support.services import eventually
from tests.support.tcp_proxy import SwallowingProxy

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
LISTS = {
    "postgresql://h1:5433,h2/desk": ("h1,h2", "5433,5432"),
    "postgresql://me:p%40ss,word@h1,h2:5433/desk": ("h1,h2", "5432,5433"),
    "postgresql://me@[::1]:5433,[fe80::2]/desk": ("::1,fe80::2", "5433,5432"),
    "postgresql://me@h1:1,h2:2/desk?sslmode=require": ("h1,h2", "1,2"),
    "postgresql://me@/desk?host=h1:1&host=h2:2": ("h1,h2", "1,2"),
}


def parameters(value: str) -> dict[str, str]:
    """Return what the driver is given for a URL."""
    engine = make_engine(value, LedgerSettings())
    (_, found) = engine.dialect.create_connect_args(engine.url)
    return {name: str(text) for name, text in found.items()}


@pytest.mark.parametrize("value", LISTS)
def test_url_when_it_names_several_hosts_then_the_driver_gets_them_all(value: str) -> None:
    found = parameters(value)
    assert (found["host"], found["port"], found["dbname"]) == (*LISTS[value], "desk")


def test_url_when_it_names_several_hosts_then_user_password_and_parameters_are_kept() -> None:
    found = parameters("postgresql://me:p%40ss,word@h1,h2/desk?sslmode=require")
    assert (found["user"], found["password"], found["sslmode"]) == ("me", "p@ss,word", "require")


@pytest.mark.parametrize("hosts", ["h1:x,h2", "h1,h2:1:2", "[::1,h2"])
def test_url_when_a_list_of_hosts_cannot_be_read_then_it_is_refused_without_its_password(hosts: str) -> None:
    with pytest.raises(InvalidRequest, match="database_url") as caught:
        parsed(f"postgresql://me:secret@{hosts}/desk")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
def test_open_when_the_first_of_two_hosts_is_away_then_the_second_is_used(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        away = unused.getsockname()[1]
    with SwallowingProxy(database_url) as proxy:
        there = make_url(proxy.url)
        both = f"postgresql://{there.username}@127.0.0.1:{away},127.0.0.1:{there.port}/{there.database}"
        with Ledger.open(both, settings=settings_of()) as ledger:
            assert ledger.reserve(key="one").granted


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
def test_connect_when_the_first_host_accepts_and_never_answers_then_it_is_asked_once(database_url: str) -> None:
    with SwallowingProxy(database_url) as proxy, socket.create_server(("127.0.0.1", 0)) as frozen:
        there = make_url(proxy.url)
        hosts = f"127.0.0.1:{frozen.getsockname()[1]},127.0.0.1:{there.port}"
        settings = settings_of(connect_timeout_seconds=2)
        with Ledger.open(f"postgresql://{there.username}@{hosts}/{there.database}", settings=settings) as ledger:
            assert ledger.reserve(key="one").granted
            assert ledger.exposure("main").held > 0
        frozen.setblocking(False)
        frozen.accept()[0].close()
        with pytest.raises(BlockingIOError):
            frozen.accept()


@contextmanager
def pgbouncer(url: str, folder: Path, mode: str, pool_size: int) -> Iterator[str]:
    """Run a PgBouncer before this database, and give the URL that leads through it. url: with a TCP port."""
    target = make_url(url)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        own_port = unused.getsockname()[1]
    users, config, log = folder / "users.txt", folder / "pgbouncer.ini", folder / "pgbouncer.log"
    users.write_text(f'"{target.username}" ""\n')
    config.write_text(
        f"[databases]\n{target.database} = host={target.host} port={target.port} user={target.username}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {own_port}\nauth_type = any\nauth_file = {users}\n"
        f"pool_mode = {mode}\ndefault_pool_size = {pool_size}\nunix_socket_dir =\nlogfile = {log}\n"
    )
    user = []
    if getpass.getuser() == "root":  # PgBouncer refuses to run as root
        folder.chmod(0o777)
        user = ["--user", "nobody"]
        for parent in folder.parents:
            if parent.stat().st_mode & 0o005 != 0o005 and parent != parent.parent:
                parent.chmod(parent.stat().st_mode | 0o055)
    assert PGBOUNCER is not None
    process = subprocess.Popen([PGBOUNCER, *user, str(config)], stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: _listens(own_port))
        yield f"postgresql://{target.username}@127.0.0.1:{own_port}/{target.database}"
    finally:
        process.terminate()
        process.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.skipif(
    PGBOUNCER is None and not os.environ.get("CI"), reason="no PgBouncer here: scripts/programs installs it"
)
@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
@pytest.mark.parametrize(("mode", "pool_size"), [("transaction", 20), ("transaction", 1), ("session", 20)])
def test_open_when_a_pooler_takes_sessions_away_then_it_is_refused_in_words(
    database_url: str, tmp_path: Path, mode: str, pool_size: int
) -> None:
    settings = settings_of(database_timeout_seconds=2, busy_timeout_seconds=1)
    # The server's own socket is in a folder that PgBouncer's user may not enter.
    with SwallowingProxy(database_url) as server, pgbouncer(server.url, tmp_path, mode, pool_size) as url:
        if mode == "session":
            with Ledger.open(url, settings=settings) as ledger:
                assert ledger.reserve(key="one").granted
        else:
            with pytest.raises(InvalidRequest, match=r"pooler in transaction mode.*pool_mode=session"):
                Ledger.open(url, settings=settings)
