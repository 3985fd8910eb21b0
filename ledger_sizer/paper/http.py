"""One HTTP call as the exchanges' dialects see it, and what they answer: plain values, no web framework."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol
from urllib.parse import parse_qsl

from ledger_sizer.model.units import decimal_text
from ledger_sizer.paper.exchange import Account, PaperExchange, RequestRefused
from ledger_sizer.paper.markets import Market

TIME_WINDOW_MS = 60_000
"""A signed request whose time differs more than this from the venue's is refused, as a replayed one would be."""


@dataclass(frozen=True, slots=True)
class ExchangeRequest:
    """One request. `headers` have lower-case names; `query` and `body` stand as they were sent, for the signature."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: str

    @property
    def arguments(self) -> dict[str, Any]:
        """Query and body together: form fields or a JSON object."""
        found: dict[str, Any] = dict(parse_qsl(self.query))
        return found | (self.document if self.body.startswith("{") else dict(parse_qsl(self.body)))

    @property
    def document(self) -> Any:
        """The body as JSON."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise RequestRefused("bad_request", f"body is not JSON: {error}") from None

    def header(self, name: str) -> str:
        """One header, '' where it is missing."""
        return self.headers.get(name.lower(), "")


@dataclass(frozen=True, slots=True)
class ExchangeResponse:
    """What goes back: a status and a JSON document."""

    status: int
    document: Any


Handler = Callable[[Account, ExchangeRequest], Any]
PublicHandler = Callable[[ExchangeRequest], Any]


class Dialect(Protocol):
    """How one exchange speaks. `private` and `public`: handlers by method and path."""

    book: PaperExchange
    public: Mapping[tuple[str, str], PublicHandler]
    private: Mapping[tuple[str, str], Handler]

    def account(self, call: ExchangeRequest) -> Account:
        """Whose request this is. Raises `RequestRefused` for an unknown key, a wrong signature or an old time."""

    def refusal(self, refused: RequestRefused, path: str, /) -> ExchangeResponse:
        """The exchange's own answer to what it refuses."""


def respond(dialect: Dialect, call: ExchangeRequest) -> ExchangeResponse | None:
    """Answer one call, or None when the exchange has no such path."""
    route = (call.method, call.path)
    try:
        if route in dialect.public:
            return ExchangeResponse(200, dialect.public[route](call))
        if route in dialect.private:
            return ExchangeResponse(200, dialect.private[route](dialect.account(call), call))
    except RequestRefused as refused:
        return dialect.refusal(refused, call.path)
    return None


def decimal_of(arguments: Mapping[str, Any], name: str) -> Decimal:
    """An argument as a Decimal. Raises `RequestRefused`."""
    try:
        value = Decimal(str(arguments[name]))
    except (KeyError, InvalidOperation):
        raise RequestRefused("bad_request", f"parameter {name} is missing or no number") from None
    if not value.is_finite():
        raise RequestRefused("bad_request", f"parameter {name} is no number")
    return value


def text_of(value: Decimal) -> str:
    """A figure as exchanges write it: plain, at most 18 places."""
    return decimal_text(value if value == value.to_integral_value() else round(value, 18))


def contracts(market: Market, quantity: Decimal) -> Decimal:
    """Base units as contracts of a market."""
    return quantity / market.contract_size
