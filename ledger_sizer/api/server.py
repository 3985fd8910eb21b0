"""uvicorn with what it lacks for a service that holds money: bounds on slow and large requests' heads and on
connections, and a stop that ends event streams first.
"""

import asyncio
import signal
import socket
from http import HTTPStatus
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ledger_sizer.api.context import ServiceContext
from ledger_sizer.api.responses import problem_response
from ledger_sizer.config import ServiceSettings
from ledger_sizer.model.errors import Busy, InvalidRequest, LedgerError
from ledger_sizer.wire.problems import RequestTimeout


def _refusal(error: LedgerError) -> bytes:
    """A problem as a whole HTTP answer, for where there is no request yet to answer."""
    response = problem_response(error, headers={"Connection": "close"})
    status = HTTPStatus(response.status_code)
    head = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
    return b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (status, status.phrase.encode(), head, response.body)


_FULL = _refusal(Busy("there are as many connections as this service keeps; try again later"))
_LATE = _refusal(RequestTimeout("the request did not arrive in time; nothing was recorded"))
_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which ends a connection that is one too many, or whose request is too slow or too large.

    Most requests arrive in one piece: only one that does not gets a timer.
    """

    settings: ServiceSettings
    _timer: asyncio.TimerHandle | None = None
    _head_open = True
    _body_open = False
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """A connection is there: one too many is told so and ended."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.connections_max:
            self._end(_FULL)
            return
        self._start_timer(self.settings.header_timeout_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came; after its end nothing more is read."""
        if self.transport.is_closing():
            return
        continued = self._head_open
        self._head_bytes += len(data)
        super().data_received(data)
        if not self._head_open or not continued:
            # What came with the end of the request before is not this head's alone, so it is not held against it.
            self._head_bytes = 0
        elif self._head_bytes > self.settings.header_bytes_max and not self.transport.is_closing():
            self._end(_LARGE)
        if self._timer is None and not self.transport.is_closing():
            if self._head_open:
                self._start_timer(self.settings.header_timeout_seconds)
            elif self._body_open:
                self._start_timer(self.settings.body_timeout_seconds)

    def on_message_begin(self) -> None:
        """A request begins, and with it the time its head may take."""
        super().on_message_begin()
        self._head_open = True

    def on_headers_complete(self) -> None:
        """The head is whole: the app takes over, and the time its body may take begins."""
        self._head_open, self._body_open = False, True
        self._stop_timer()
        if self._head_bytes > self.settings.header_bytes_max and self._head_size() > self.settings.header_bytes_max:
            self._end(_LARGE)
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._body_open = False
        self._stop_timer()
        if not self.transport.is_closing():
            super().on_message_complete()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _start_timer(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            # A request that was answered before its body came must not be answered twice.
            self._end(b"" if self._body_open and self.cycle.response_started else _LATE)

    def _end(self, answer: bytes) -> None:
        self._stop_timer()
        self.transport.write(answer)
        self.transport.close()


def bounded_protocol(settings: ServiceSettings) -> type[BoundedProtocol]:
    """The protocol under these settings; uvicorn makes one for each connection."""
    return type("BoundedProtocol", (BoundedProtocol,), {"settings": settings})


class Server(uvicorn.Server):
    """uvicorn, which tells the app first that it stops, and says once where it listens."""

    def __init__(self, config: uvicorn.Config, service: ServiceContext) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature is Python's
        """Stop at a signal. Unlike in uvicorn it is not raised again afterwards: the queue must drain first."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop: no new connections, event streams end, requests in progress are answered, within the bound."""
        self._service.stopping.set()
        await super().shutdown(sockets)


def make_server(app: FastAPI, settings: ServiceSettings) -> Server:
    """The server for an app made by `create_app`."""
    config = uvicorn.Config(
        app,
        http=bounded_protocol(settings),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=min(settings.connections_max, 2048),
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.stop_timeout_seconds,
        # Addresses in X-Forwarded-For decide nothing here, so nobody is believed.
        proxy_headers=False,
    )
    return Server(config, app.state.service)


def listen(settings: ServiceSettings) -> socket.socket:
    """A listening socket at the settings' address. Raises `InvalidRequest` when it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise InvalidRequest(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}", field="port"
        ) from None
    listening.set_inheritable(True)
    return listening


def address_of(listening: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
