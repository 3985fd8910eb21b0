"""A TCP proxy that breaks connections: cut, reset, silent, slow, half-sent, refused."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

CONNECT_SECONDS_MAX = 5.0
CHUNK_BYTES = 65_536


@dataclass(eq=False)
class _Pair:
    """Both sides of one connection. silent: what is sent is swallowed, and nothing tells so."""

    client: socket.socket
    server: socket.socket
    silent: bool = False
    closed: bool = False

    def close(self, *, reset: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        for side in (self.client, self.server):
            with suppress(OSError):
                if reset:
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                # A thread waits in `recv`, which keeps the socket open. SHUT_RD wakes it, and tells the peer nothing.
                side.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
            with suppress(OSError):
                side.close()


@dataclass
class Proxy:
    """Listens on a free port of 127.0.0.1 until `close`.

    target: port that new connections lead to, None to refuse them. delay: seconds that each piece of data is late.
    truncate: cut the next piece of data in half, with its connection. swallow_new: new connections are silent too.
    """

    target: int | None
    delay: float = 0.0
    truncate: bool = False
    swallow_new: bool = False
    port: int = 0
    _pairs: list[_Pair] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _listening: socket.socket | None = None

    def start(self) -> Proxy:
        """Begin to listen."""
        self._listening = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()
        return self

    def cut(self) -> None:
        """End every connection in good order, in the middle of whatever it carries."""
        self._end_all(reset=False)

    def reset(self) -> None:
        """End every connection with a TCP reset."""
        self._end_all(reset=True)

    def swallow(self) -> None:
        """Make every open connection silent for good. New ones work, unless `swallow_new` is set."""
        with self._lock:
            for pair in self._pairs:
                pair.silent = True

    def close(self) -> None:
        """Stop listening, and end every connection."""
        if self._listening is not None:
            self._listening.close()
        self.reset()

    def _end_all(self, *, reset: bool) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.close(reset=reset)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            # Connecting may take its time where the target is frozen; others must not wait for it.
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            if self.target is None:
                raise ConnectionRefusedError
            server = socket.create_connection(("127.0.0.1", self.target), CONNECT_SECONDS_MAX)
        except OSError:
            with suppress(OSError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            return
        server.settimeout(None)
        for side in (client, server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _Pair(client, server, silent=self.swallow_new)
        with self._lock:
            self._pairs.append(pair)
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(pair, source, sink.sendall), daemon=True).start()

    def _pump(self, pair: _Pair, source: socket.socket, send: Callable[[bytes], None]) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                if self.delay:
                    time.sleep(self.delay)
                if pair.silent:
                    continue
                if self.truncate:
                    self.truncate = False
                    send(data[: len(data) // 2])
                    break
                send(data)
        if pair.silent:
            return  # a silent network does not tell one side that the other has gone
        with self._lock:
            if pair in self._pairs:
                self._pairs.remove(pair)
        pair.close()
