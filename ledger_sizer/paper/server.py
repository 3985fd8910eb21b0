"""Serves three paper exchanges on one address, distinguished by their paths, and the controls below `/paper`."""

import json
import socket
import threading
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper import actions, control
from ledger_sizer.paper.accounts import RequestRefused
from ledger_sizer.paper.binance import Binance
from ledger_sizer.paper.bybit import Bybit
from ledger_sizer.paper.client_config import ccxt_config
from ledger_sizer.paper.exchange import PaperExchange
from ledger_sizer.paper.faults import Faults, LostConnection, respond_with_fault
from ledger_sizer.paper.http import Dialect, ExchangeRequest, ExchangeResponse, respond
from ledger_sizer.paper.markets import QUOTE, VENUES
from ledger_sizer.paper.okx import Okx

_DIALECTS: Mapping[str, Callable[[PaperExchange], Dialect]] = {"bybit": Bybit, "binance": Binance, "okx": Okx}


class Venues:
    """The three venues of one server, each with its exchange and pending faults. app: the Starlette application.

    spot_fee_rate, swap_fee_rate: fraction of every fill. balance_usdt: initial balance of each venue's first account.
    """

    def __init__(
        self,
        *,
        spot_fee_rate: Decimal = Decimal(0),
        swap_fee_rate: Decimal = Decimal(0),
        balance_usdt: Decimal = Decimal(100_000),
    ) -> None:
        self.dialects: dict[str, Dialect] = {}
        for venue in VENUES:
            exchange = PaperExchange(venue, spot_fee_rate=spot_fee_rate, swap_fee_rate=swap_fee_rate)
            exchange.open_account(
                control.DEFAULT_KEY, control.DEFAULT_SECRET, control.DEFAULT_PASSPHRASE,
                hedged=False, balances={QUOTE: balance_usdt},
            )  # fmt: skip
            self.dialects[venue] = _DIALECTS[venue](exchange)
        self.faults: Mapping[str, Faults] = {venue: Faults() for venue in VENUES}
        methods = ["GET", "POST", "PUT", "DELETE"]
        self.app = Starlette(
            routes=[
                Route("/paper", self._overview),
                Route("/paper/{venue}", self._state),
                Route("/paper/{venue}/ccxt-config", self._ccxt_config),
                Route("/paper/{venue}/{action}", self._control, methods=["POST"]),
                Route("/{path:path}", self._exchange_route, methods=methods),
            ]
        )

    def _overview(self, _request: Request) -> Response:
        return JSONResponse({venue: self._state_of(venue) for venue in self.dialects})

    def _state_of(self, venue: str) -> dict[str, Any]:
        with exact_arithmetic():
            return actions.state_of(self.dialects[venue].exchange, self.faults[venue])

    def _state(self, request: Request) -> Response:
        venue = request.path_params["venue"]
        return (
            JSONResponse(self._state_of(venue))
            if venue in self.dialects
            else _error_response(404, f"no venue {venue!r}")
        )

    def _ccxt_config(self, request: Request) -> Response:
        venue = request.path_params["venue"]
        if venue not in VENUES:
            return _error_response(404, f"no venue {venue!r}")
        return JSONResponse(ccxt_config(venue, str(request.base_url).rstrip("/")))

    async def _control(self, request: Request) -> Response:
        venue, action = request.path_params["venue"], request.path_params["action"]
        if venue not in self.dialects or action not in actions.ACTIONS:
            return _error_response(
                404, f"no {venue}/{action}; venues: {', '.join(VENUES)}; do: {', '.join(actions.ACTIONS)}"
            )
        try:
            form = json.loads(await request.body() or b"{}")
            with exact_arithmetic():
                actions.ACTIONS[action](self.dialects[venue].exchange, self.faults[venue], form)
        except (RequestRefused, ValueError, KeyError, TypeError) as error:
            return _error_response(422, f"{action}: {error}")
        return JSONResponse(self._state_of(venue))

    async def _exchange_route(self, request: Request) -> Response:
        call = ExchangeRequest(
            request.method, request.url.path, request.url.query, dict(request.headers), (await request.body()).decode()
        )
        for venue, dialect in self.dialects.items():
            route = (call.method, call.path)
            if route in dialect.public or route in dialect.private:
                fault = self.faults[venue].next_for(call.method, call.path)
                try:
                    return await respond_with_fault(dialect, call, fault, partial(_respond, dialect, call))
                except LostConnection:
                    return _BrokenResponse()
        return _error_response(404, f"no exchange here has {call.method} {call.path}")


def _respond(dialect: Dialect, call: ExchangeRequest) -> ExchangeResponse:
    response = respond(dialect, call)
    assert response is not None, "the route was found before"
    return response


def _error_response(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)


class _BrokenResponse(Response):
    """Sends less than its Content-Length, so that the client sees a broken connection."""

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class PaperServer:
    """A paper server on 127.0.0.1 that runs in a thread during a `with` block. port: 0 for a free one.

    url: its address, for `EXCHANGE_BASE_URL` and `PaperControl`. settings: those of `Venues`.
    """

    def __init__(self, *, port: int = 0, **settings: Decimal) -> None:
        self.venues = Venues(**settings)
        self._socket = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        # One event loop in one thread: two requests never use an exchange at once, so it needs no lock.
        config = uvicorn.Config(self.venues.app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="paper-venue", daemon=True)

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    def serve(self) -> None:
        """Serve in this thread until the process gets a signal to stop."""
        self._run()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()
