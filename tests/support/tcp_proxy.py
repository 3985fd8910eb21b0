"""A TCP proxy in front of a PostgreSQL server that can swallow what its connections send, without closing them."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import URL, make_url


class SwallowingProxy:
    """Listens on a free port of 127.0.0.1 and forwards to the server of `url`, until its connections are swallowed.

    accepted: how many connections there were.
    """

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._swallowed: set[socket.socket] = set()
        self._frozen = False
        self.accepted = 0
        self._sockets: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The server's URL by way of this proxy."""
        port = self._listening.getsockname()[1]
        url = URL.create(
            self._target.drivername, self._target.username, self._target.password, "127.0.0.1", port,
            self._target.database,
        )  # fmt: skip
        return url.render_as_string(hide_password=False)

    def swallow(self) -> None:
        """Let the connections open now carry nothing any more, in both directions. New ones work."""
        self._swallowed.update(self._sockets)

    def freeze(self) -> None:
        """Let no connection carry anything any more; new ones are still accepted, as a frozen host's kernel does."""
        self._frozen = True
        self.swallow()

    def close_new(self) -> None:
        """Accept no new connections any more."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _connect(self) -> socket.socket:
        host = self._target.host or self._target.query.get("host")
        port = self._target.port or self._target.query.get("port") or 5432
        if not str(host).startswith("/"):
            return socket.create_connection((str(host), int(str(port))))
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(Path(str(host)) / f".s.PGSQL.{port}"))
        return server

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self.accepted += 1
                if self._frozen:
                    self._sockets.append(client)
                    continue
                server = self._connect()
                self._sockets += [client, server]
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(source, target), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if source not in self._swallowed:
                    target.sendall(data)
        if source not in self._swallowed:
            for one in (source, target):
                one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for one in (self._listening, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
