"""A TCP proxy between client and service that injects network faults chosen by the test.

    with FaultProxy(service_port) as proxy:
        proxy.next(cut_after)           # the next request reaches the service, its response is lost
        ...

Without a fault it forwards requests and responses. `forwarded` counts the requests that reached the service.
"""

from __future__ import annotations

import http.client
import socket
import socketserver
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

UPSTREAM_TIMEOUT_SECONDS = 30
JSON = "application/json"


@dataclass
class Answer:
    """HTTP response of the service."""

    status: int
    headers: dict[str, str]
    body: bytes

    def raw(self) -> bytes:
        """Return the response as bytes of HTTP/1.1."""
        headers = {**self.headers, "Content-Length": str(len(self.body))}
        lines = [f"HTTP/1.1 {self.status} Whatever", *[f"{name}: {value}" for name, value in headers.items()]]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


@dataclass
class Exchange:
    """One request of a client, with the actions a fault can take on it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    client: socket.socket
    service_port: int
    on_forward: Callable[[], None]

    def forward(self) -> Answer:
        """Send the request to the service, and return its response."""
        self.on_forward()
        connection = http.client.HTTPConnection("127.0.0.1", self.service_port, timeout=UPSTREAM_TIMEOUT_SECONDS)
        try:
            connection.putrequest(self.method, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "connection":
                    connection.putheader(name, value.encode("latin-1"))
            connection.putheader("Connection", "close")
            connection.endheaders(self.body or None)
            response = connection.getresponse()
            skipped = ("connection", "content-length", "transfer-encoding")
            headers = {name: value for name, value in response.getheaders() if name.lower() not in skipped}
            return Answer(response.status, headers, response.read())
        finally:
            connection.close()

    def send(self, raw: bytes) -> None:
        """Send these bytes to the client."""
        self.client.sendall(raw)

    def reset(self) -> None:
        """Make the connection close with a TCP reset, so that the client sees an error and not an end of file."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


Fault = Callable[[Exchange], bool]
"""Handles one exchange. Returns whether the connection stays open afterwards."""


def pass_through(exchange: Exchange) -> bool:
    """Forward the request and its response: no fault."""
    exchange.send(exchange.forward().raw())
    return True


def cut_before(exchange: Exchange) -> bool:
    """Close the connection before the request reaches the service."""
    return False


def reset_before(exchange: Exchange) -> bool:
    """Reset the connection before the request reaches the service."""
    exchange.reset()
    return False


def cut_after(exchange: Exchange) -> bool:
    """Forward the request, and lose its response: it took effect."""
    exchange.forward()
    return False


def cut_within(exchange: Exchange) -> bool:
    """Forward the request, and cut off half of the response body."""
    answer = exchange.forward()
    exchange.send(answer.raw()[: -max(len(answer.body) // 2, 1)])
    return False


def answered(status: int, body: bytes, *, reached: bool = False, **headers: str) -> Fault:
    """Replace the response by this one. reached: the service gets the request all the same."""

    def fault(exchange: Exchange) -> bool:
        if reached:
            exchange.forward()
        named = {name.replace("_", "-"): value for name, value in {"Content_Type": JSON, **headers}.items()}
        exchange.send(Answer(status, named, body).raw())
        return True

    return fault


def raw(data: bytes, *, reached: bool = False) -> Fault:
    """Replace the response by bytes that need not be HTTP. reached: the service gets the request all the same."""

    def fault(exchange: Exchange) -> bool:
        if reached:
            exchange.forward()
        exchange.send(data)
        return False

    return fault


def changed(change: Callable[[Answer], None], *, reached: bool = True) -> Fault:
    """Forward the request, and change its response."""

    def fault(exchange: Exchange) -> bool:
        answer = exchange.forward()
        change(answer)
        exchange.send(answer.raw())
        return True

    return fault


def delayed(seconds: float) -> Fault:
    """Forward the request, and delay its response by `seconds`, longer than the client waits."""

    def fault(exchange: Exchange) -> bool:
        answer = exchange.forward()
        # Ends early when the client hangs up, so that no test waits for the whole delay.
        exchange.client.settimeout(seconds)
        try:
            if exchange.client.recv(1) == b"":
                return False
        except TimeoutError:
            pass
        exchange.client.settimeout(None)
        exchange.send(answer.raw())
        return False

    return fault


@dataclass
class FaultProxy:
    """Listens on a free port of 127.0.0.1."""

    service_port: int
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    forwarded: int = 0
    _faults: deque[Fault] = field(default_factory=deque)
    _always: Fault = pass_through
    _lock: Any = field(default_factory=threading.Lock)

    def next(self, *faults: Fault) -> None:
        """Set the faults of the next requests, in order."""
        self._faults.extend(faults)

    def always(self, fault: Fault) -> None:
        """Set the fault of every request that has none from `next`."""
        self._always = fault

    @property
    def url(self) -> str:
        """Base URL for clients."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultProxy:
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy._serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False
            allow_reuse_address = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Ignore the error: these tests make clients hang up."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _count(self) -> None:
        with self._lock:
            self.forwarded += 1

    def _serve(self, client: socket.socket) -> None:
        with client.makefile("rb") as reader:
            while True:
                line = reader.readline().decode("latin-1").split()
                if len(line) != 3:
                    return
                headers = dict(_header_lines(reader))
                length = next((int(value) for name, value in headers.items() if name.lower() == "content-length"), 0)
                exchange = Exchange(
                    line[0], line[1], headers, reader.read(length), client, self.service_port, self._count
                )
                with self._lock:
                    self.requests.append((exchange.method, exchange.path, {k.lower(): v for k, v in headers.items()}))
                    fault = self._faults.popleft() if self._faults else self._always
                if not fault(exchange):
                    return


def _header_lines(reader: Any) -> Any:
    while (line := reader.readline().decode("latin-1").rstrip("\r\n")) != "":
        name, _, value = line.partition(":")
        yield name, value.strip()
