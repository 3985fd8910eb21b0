"""Defines requests and responses as the exchanges' REST formats see them, free of the web framework."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol
from urllib.parse import parse_qsl

from ledger_sizer.model.units import decimal_text, exact_arithmetic, parse_decimal
from ledger_sizer.paper.accounts import Account, RequestRefused
from ledger_sizer.paper.exchange import PaperExchange
from ledger_sizer.paper.markets import Market

TIME_WINDOW_MS = 60_000
"""Largest clock difference of a signed request. Older requests are refused, against replay."""


@dataclass(frozen=True, slots=True)
class ExchangeRequest:
    """One request. headers: by lower-case name. query, body: the raw text, which the signature covers."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: str

    @property
    def arguments(self) -> dict[str, Any]:
        """Query and body (form fields or a JSON object) in one dict."""
        found: dict[str, Any] = dict(parse_qsl(self.query))
        return found | (self.document if self.body.startswith("{") else dict(parse_qsl(self.body)))

    @property
    def document(self) -> Any:
        """The body as JSON. Raises `RequestRefused`."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise RequestRefused("bad_request", f"body is not JSON: {error}") from None

    def header(self, name: str) -> str:
        """Return one header, '' when it is missing."""
        return self.headers.get(name.lower(), "")


@dataclass(frozen=True, slots=True)
class ExchangeResponse:
    """One response: a status and a JSON document."""

    status: int
    document: Any


Handler = Callable[[Account, ExchangeRequest], Any]
PublicHandler = Callable[[ExchangeRequest], Any]


class Dialect(Protocol):
    """The REST format of one exchange. public, private: handlers by (method, path), without and with a signature."""

    exchange: PaperExchange
    public: Mapping[tuple[str, str], PublicHandler]
    private: Mapping[tuple[str, str], Handler]

    def account(self, request: ExchangeRequest) -> Account:
        """Authenticate the request. Raises `RequestRefused` for an unknown key, a wrong signature or an old time."""

    def refusal(self, refused: RequestRefused, path: str, /) -> ExchangeResponse:
        """Return the exchange's own error response."""


def respond(dialect: Dialect, request: ExchangeRequest) -> ExchangeResponse | None:
    """Execute one request; None when the exchange has no such path."""
    route = (request.method, request.path)
    try:
        with exact_arithmetic():
            if route in dialect.public:
                return ExchangeResponse(200, dialect.public[route](request))
            if route in dialect.private:
                account = dialect.account(request)
                if dialect.exchange.maintenance:
                    raise RequestRefused("maintenance", "maintenance")
                return ExchangeResponse(200, dialect.private[route](account, request))
    except RequestRefused as refused:
        return dialect.refusal(refused, request.path)
    return None


def decimal_of(arguments: Mapping[str, Any], name: str) -> Decimal:
    """Parse an argument as a finite Decimal. Raises `RequestRefused`."""
    try:
        value = parse_decimal(str(arguments[name]))
    except (KeyError, InvalidOperation):
        raise RequestRefused("bad_request", f"parameter {name} is missing or no number") from None
    if not value.is_finite():
        raise RequestRefused("bad_request", f"parameter {name} is no number")
    return value


def require_plain(arguments: Mapping[str, Any], *names: str) -> None:
    """Refuse an order that carries what is not simulated, such as a stop loss of its own. Raises `RequestRefused`."""
    for name in names:
        if arguments.get(name):
            raise RequestRefused("bad_request", f"{name} is not simulated: place a stop order beside the order")


def text_of(value: Decimal) -> str:
    """Format a number as exchanges do: no exponent, at most 18 decimals."""
    return decimal_text(value if value == value.to_integral_value() else round(value, 18))


def contracts(market: Market, quantity: Decimal) -> Decimal:
    """Convert base units to contracts of a market."""
    return quantity / market.contract_size
