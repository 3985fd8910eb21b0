"""uvicorn with further bounds, and a stop that ends the event streams first.

The bounds: size and time of a request's head, time of its body, number of connections, in all and of one client. A
request names exactly one host, and its trailers are not headers: a proxy in front might have checked others.
"""

import asyncio
import signal
import socket
from collections import Counter
from http import HTTPStatus
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ledger_sizer.api.context import ServiceContext
from ledger_sizer.api.responses import problem_response
from ledger_sizer.api.throttle import client_of
from ledger_sizer.config import ServiceSettings
from ledger_sizer.model.errors import Busy, InvalidRequest, LedgerError
from ledger_sizer.wire.problems import RequestTimeout


def _raw_response(error: LedgerError) -> bytes:
    """Return a problem as the bytes of a complete HTTP response, for connections without a parsed request."""
    response = problem_response(error, headers={"Connection": "close"})
    status = HTTPStatus(response.status_code)
    head = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
    return b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (status, status.phrase.encode(), head, response.body)


_TOO_MANY_CONNECTIONS = _raw_response(Busy("there are as many connections as this service keeps; try again later"))
_REQUEST_TIMEOUT = _raw_response(RequestTimeout("the request did not arrive in time; nothing was recorded"))
_TOO_MANY_OF_CLIENT = _raw_response(Busy("your address has as many connections as one client may; close some"))
_HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with bounds: closes a connection beyond `connections_max`, and slow or large requests.

    Most requests arrive in one piece and start no timer of their own. connections_of: open ones by client.
    """

    settings: ServiceSettings
    connections_of: Counter[str]
    _client = ""
    _timer: asyncio.TimerHandle | None = None
    _head_open = True
    _body_open = False
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Start the head's timer; answer 503 and close beyond the most connections, in all or of one client."""
        super().connection_made(transport)
        self._client = client_of(self.client)
        self.connections_of[self._client] += 1
        per_client = self.settings.connections_per_client_max
        if per_client and self.connections_of[self._client] > per_client:
            self._respond_and_close(_TOO_MANY_OF_CLIENT)
        elif len(self.connections) > self.settings.connections_max:
            self._respond_and_close(_TOO_MANY_CONNECTIONS)
        else:
            self._start_timer(self.settings.header_timeout_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        self.connections_of[self._client] -= 1
        if self.connections_of[self._client] <= 0:
            del self.connections_of[self._client]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, check the head's size and start the timers. Bytes after the close are ignored."""
        if self.transport.is_closing():
            return
        continued = self._head_open
        self._head_bytes += len(data)
        super().data_received(data)
        if not self._head_open or not continued:
            # These bytes are partly of the previous request or of the body, so they do not count for the head's size.
            self._head_bytes = 0
        elif self._head_bytes > self.settings.header_bytes_max and not self.transport.is_closing():
            self._respond_and_close(_HEAD_TOO_LARGE)
        if self._timer is None and not self.transport.is_closing():
            if self._head_open:
                self._start_timer(self.settings.header_timeout_seconds)
            elif self._body_open:
                self._start_timer(self.settings.body_timeout_seconds)

    def on_message_begin(self) -> None:
        """Begin a request's head."""
        super().on_message_begin()
        self._head_open = True

    def on_headers_complete(self) -> None:
        """Check the complete head, then pass the request to the app."""
        self._head_open, self._body_open = False, True
        self._stop_timer()
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) != 1 and (hosts or self.parser.get_http_version() != "1.0"):
            self.send_400_response("The request must have exactly one Host line.")
        elif self._head_bytes > self.settings.header_bytes_max and self._head_size() > self.settings.header_bytes_max:
            self._respond_and_close(_HEAD_TOO_LARGE)
        if not self.transport.is_closing():
            super().on_headers_complete()
        self.headers = []  # the parser would add the trailers, which follow the body, to the app's headers

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the timer: the request is complete."""
        self._body_open = False
        self._stop_timer()
        if not self.transport.is_closing():
            super().on_message_complete()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _start_timer(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            # A request that was answered before its body arrived must not be answered twice.
            self._respond_and_close(b"" if self._body_open and self.cycle.response_started else _REQUEST_TIMEOUT)

    def _respond_and_close(self, answer: bytes) -> None:
        self._stop_timer()
        self.transport.write(answer)
        self.transport.close()


def bounded_protocol(settings: ServiceSettings) -> type[BoundedProtocol]:
    """Return the protocol class with these settings; uvicorn creates an instance for each connection."""
    return type("BoundedProtocol", (BoundedProtocol,), {"settings": settings, "connections_of": Counter()})


class Server(uvicorn.Server):
    """uvicorn server that sets `ServiceContext.stopping` before it shuts down."""

    def __init__(self, config: uvicorn.Config, service: ServiceContext) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature is Python's
        """Stop at a signal. Unlike uvicorn's, it does not raise the signal again: the queue must drain first."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the event streams, accept no new connections, and answer requests in progress, up to the stop timeout."""
        self._service.stopping.set()
        await super().shutdown(sockets)


def make_server(app: FastAPI, settings: ServiceSettings) -> Server:
    """Return the server for an app made by `create_app`."""
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
        # No decision depends on the client's address, so X-Forwarded-For is ignored.
        proxy_headers=False,
    )
    return Server(config, app.state.service)


def listen(settings: ServiceSettings) -> socket.socket:
    """Open a socket bound to the settings' address. Raises `InvalidRequest` where that is impossible."""
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


def url_of(listening: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
