"""Parses request bodies: JSON -> pydantic model -> command object.

The models check names, types and patterns, and refuse unknown fields. The command types check the values, so that every
interface (Python, HTTP, CLI) gives the same error messages.

The idempotency key is the `Idempotency-Key` header of a single call, and `key` in each command of a batch.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ledger_sizer.model.command_base import TTL_SECONDS_MAX
from ledger_sizer.model.commands import (
    COMMANDS,
    Adopt,
    AnyCommand,
    Confirm,
    Extend,
    Freeze,
    Halt,
    Reconciled,
    Release,
    Remark,
    Reserve,
    Resume,
    SetCap,
    Thaw,
)
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.instruments import NAME_PATTERN, InstrumentInfo, Leg
from ledger_sizer.model.tags import TAGS_MAX

DECIMAL_PATTERN = r"^-?[0-9]{1,30}(\.[0-9]{1,36})?$"
AMOUNT_PATTERN = r"^[0-9]{1,30}(\.[0-9]{1,36})?$"
PORTFOLIO_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
POSITION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}-[0-9]{1,18}$"
SCOPE_PATTERN = r"^(portfolio|[a-z][a-z0-9_]{0,31}=.{1,128})$"

DecimalText = Annotated[str, StringConstraints(pattern=DECIMAL_PATTERN), Field(examples=["0.9", "50000"])]
"""A decimal as text. JSON numbers are refused, because many parsers turn them into binary floats."""

AmountText = Annotated[str, StringConstraints(pattern=AMOUNT_PATTERN), Field(examples=["0.9", "50000"])]
"""A non-negative decimal, as text."""

ScoreText = Annotated[
    str, StringConstraints(pattern=r"^(0(\.[0-9]{1,36})?|1(\.0{1,36})?)$"), Field(examples=["0.9", "0.25"])
]
"""A signal score: a decimal from 0 to 1, as text."""

PortfolioText = Annotated[str, StringConstraints(pattern=PORTFOLIO_PATTERN), Field(examples=["main"])]
PositionText = Annotated[str, StringConstraints(pattern=POSITION_PATTERN), Field(examples=["main-17"])]
InstrumentText = Annotated[str, StringConstraints(pattern=NAME_PATTERN), Field(examples=["bybit:BTC/USDT"])]
ScopeText = Annotated[str, StringConstraints(pattern=SCOPE_PATTERN), Field(examples=["portfolio", "venue=bybit"])]
KeyText = Annotated[str, StringConstraints(min_length=1, max_length=200), Field(examples=["cycle-17/BTC"])]
LabelText = Annotated[str, StringConstraints(min_length=1, max_length=128)]
NoteText = Annotated[str, StringConstraints(min_length=1, max_length=500)]
TagName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
TagsForm = Annotated[
    dict[TagName, LabelText],
    Field(max_length=TAGS_MAX, examples=[{"venue": "bybit", "symbol": "BTC", "strategy": "funding"}]),
]
MomentText = Annotated[
    str,
    StringConstraints(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})$"
    ),
    Field(examples=["2026-01-31T12:00:00Z"]),
]
"""ISO 8601 with a time zone; without one the time would be ambiguous."""
Seconds = Annotated[int, Field(ge=1, le=TTL_SECONDS_MAX)] | AmountText


class Body(BaseModel):
    """Base of all request bodies: exact types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


BodyT = TypeVar("BodyT", bound=Body)


class InstrumentForm(Body):
    """Trading rules of one market, as its exchange states them; quantities in the exchange's own unit."""

    symbol: LabelText = Field(examples=["BTC/USDT:USDT"])
    min_qty: AmountText
    max_qty: AmountText
    qty_step: AmountText
    min_notional: AmountText = "0"
    tick_size: AmountText = "0.01"
    contract_size: AmountText = "1"

    def to_instrument(self, field: str) -> InstrumentInfo:
        """Convert to the instrument. Errors name `field` and the part that is wrong."""
        with field_prefix(field):
            return _instrument(*self.__dict__.values())


@lru_cache(maxsize=2048)
def _instrument(symbol: str, *figures: str) -> InstrumentInfo:
    """Build an instrument. Cached, because a bot sends the same few markets with every request."""
    return InstrumentInfo(symbol, *map(Decimal, figures))


class LegForm(Body):
    """One side of a position on one venue: base units, USD per base unit."""

    venue: Annotated[str, StringConstraints(max_length=128)]
    symbol: LabelText
    kind: Literal["spot", "swap"]
    side: Literal["buy", "sell"]
    quantity: AmountText
    price: AmountText | None = None


LegsForm = Annotated[list[LegForm], Field(min_length=1, max_length=16)]


class CommandBody(Body):
    """Base of the command bodies. `method` and `path`: the HTTP call of the verb."""

    command_type: ClassVar[type[AnyCommand]]
    method: ClassVar[str] = "POST"
    path: ClassVar[str]

    def to_command(self, key: str, **from_path: str) -> AnyCommand:
        """Convert to the command. Raises `InvalidRequest` for values that no ledger accepts."""
        return self.command_type(key=key, **from_path, **self._arguments())

    def _arguments(self) -> dict[str, Any]:
        """Return the fields that are not null, converted to the arguments of the command type."""
        given = self.__dict__
        arguments: dict[str, Any] = {}
        for name, convert in _converters_of(type(self)):
            value = given[name]
            if value is not None:
                arguments[name] = value if convert is None else convert(value)
        return arguments


class ReserveBody(CommandBody):
    """Ask how much may be put on a position, and hold it. All fields are optional: `{}` asks for a flat budget."""

    command_type = Reserve
    path = "/v1/reservations"

    portfolio: PortfolioText = "main"
    tags: TagsForm = Field(default_factory=dict, description="Scopes it counts in besides the portfolio.")
    signal_score: ScoreText | None = Field(None, description="0 to 1; null is sized flat.")
    price: AmountText | None = Field(None, description="USD per base unit; needed with instruments.")
    available_balance: DecimalText | None = Field(None, description="Free quote balance, USD.")
    spot_instrument: InstrumentForm | InstrumentText | None = Field(
        None, description="Give both instruments, or none: rules, or a name whose rules the service keeps."
    )
    perp_instrument: InstrumentForm | InstrumentText | None = None
    spot_fee_rate: AmountText | None = Field(None, description="Fee of the spot buy, a fraction, if taken in base.")
    min_notional_usd: AmountText | None = Field(None, description="Deny rather than grant less than this.")
    ttl_seconds: Seconds | None = Field(None, description="How long the hold lives unless confirmed.")
    dry_run: bool = Field(False, description="Answer without holding or recording.")


class ConfirmBody(CommandBody):
    """Record the fill of a reservation: it counts quantity x price from now on."""

    command_type = Confirm
    path = "/v1/positions/{position_id}/confirm"

    quantity: AmountText = Field(description="Base units filled, all fills together.")
    price: AmountText = Field(description="The perpetual's average entry price, USD.")
    spot_price: AmountText | None = Field(None, description="The spot leg's average price; `price` where null.")
    legs: LegsForm | None = Field(None, description="The exact legs, where they differ from the reservation's.")


class ReleaseBody(CommandBody):
    """Give a hold back, or close an open position, in whole or in part."""

    command_type = Release
    path = "/v1/positions/{position_id}/release"

    quantity: AmountText | None = Field(None, description="Base units closed; null closes all of it.")
    held_only: bool | None = Field(None, description="True refuses to close a position that was filled.")


class ExtendBody(CommandBody):
    """Let a hold live longer; never shorter."""

    command_type = Extend
    path = "/v1/positions/{position_id}/extend"

    ttl_seconds: Seconds | None = Field(None, description="From now on; null is the service's default.")


class SetCapBody(CommandBody):
    """Set the cap of a scope, USD; null removes a tag's cap."""

    command_type = SetCap
    method = "PUT"
    path = "/v1/portfolios/{portfolio}/caps"

    cap: AmountText | None
    scope: ScopeText = "portfolio"

    def _arguments(self) -> dict[str, Any]:
        return {"cap": _optional_decimal(self.cap), "scope": self.scope}


class HaltBody(CommandBody):
    """Stop new reservations in a scope. `halted`: holds cannot be extended either; `reducing`: they can."""

    command_type = Halt
    path = "/v1/portfolios/{portfolio}/halt"

    scope: ScopeText = "portfolio"
    mode: Literal["halted", "reducing"] = "halted"
    note: NoteText | None = None


class ResumeBody(CommandBody):
    """Allow new reservations in a scope again."""

    command_type = Resume
    path = "/v1/portfolios/{portfolio}/resume"

    scope: ScopeText = "portfolio"
    note: NoteText | None = None


class AdoptBody(CommandBody):
    """Record a position that exists at the exchange and that the ledger lacks. A fact: no cap can refuse it."""

    command_type = Adopt
    path = "/v1/positions"

    portfolio: PortfolioText = "main"
    quantity: AmountText = Field(description="Base units.")
    price: AmountText = Field(description="The perpetual's entry price, USD.")
    tags: TagsForm = Field(default_factory=dict)
    legs: LegsForm | None = None
    note: NoteText | None = None


class FreezeBody(CommandBody):
    """Deny new reservations in a scope as `unreconciled`, until it is thawed."""

    command_type = Freeze
    path = "/v1/portfolios/{portfolio}/freeze"

    scope: ScopeText = "portfolio"
    note: NoteText | None = None


class ThawBody(CommandBody):
    """End a freeze."""

    command_type = Thaw
    path = "/v1/portfolios/{portfolio}/thaw"

    scope: ScopeText = "portfolio"
    note: NoteText | None = None


class ReconciledBody(CommandBody):
    """Say until when a scope is trusted to agree with the exchange; null trusts it without an end."""

    command_type = Reconciled
    path = "/v1/portfolios/{portfolio}/reconciled"

    fresh_until: MomentText | None
    scope: ScopeText = "portfolio"
    note: NoteText | None = None

    def _arguments(self) -> dict[str, Any]:
        until = None if self.fresh_until is None else parse_time(self.fresh_until, "fresh_until")
        return {"fresh_until": until, "scope": self.scope, "note": self.note}


class RemarkBody(CommandBody):
    """Put something into the audit chain, and so into the events, that changes no figure."""

    command_type = Remark
    path = "/v1/portfolios/{portfolio}/remarks"

    about: LabelText = Field(examples=["drift-17"])
    event: LabelText = Field(examples=["close_requested"])
    note: NoteText | None = None


BODIES: Mapping[str, type[CommandBody]] = {
    body.command_type.verb: body
    for body in (ReserveBody, ConfirmBody, ReleaseBody, ExtendBody, SetCapBody, HaltBody, ResumeBody, AdoptBody,
                 FreezeBody, ThawBody, ReconciledBody, RemarkBody)
}  # fmt: skip
"""The body of every verb."""
assert BODIES.keys() == COMMANDS.keys(), "every verb has a body"


# --- reading ---------------------------------------------------------------------------------------


def validated(model: type[BodyT], form: Mapping[str, Any]) -> BodyT:
    """Validate a JSON object as a body. Raises `InvalidRequest` naming the first wrong field."""
    try:
        return model.model_validate(form)
    except ValidationError as error:
        raise _invalid_request(error) from None


def _invalid_request(error: ValidationError) -> InvalidRequest:
    """Convert the first error of pydantic to this package's error."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"] if part not in _NON_FIELDS)
    kind, got = first["type"], f"{first['input']!r:.80}"
    if kind == "extra_forbidden":
        return InvalidRequest(f"{field!r} is not a field here", field=field)
    if kind == "missing":
        return InvalidRequest(f"{field} is missing", field=field)
    if kind in ("string_type", "string_pattern_mismatch") and type(first["input"]) in (int, float):
        return InvalidRequest(f'{field} must be text, a decimal in quotes such as "0.9", got {got}', field=field)
    return InvalidRequest(f"{field}: {first['msg']}, got {got}", field=field)


_NON_FIELDS = frozenset({"[key]", "int", "str", "constrained-str", "constrained-int", "InstrumentForm"})
"""Parts of pydantic's error locations that are no fields: branches of a union, and the key of a mapping."""


class field_prefix:  # noqa: N801 - a context manager, named like a function
    """Prefix the field that an `InvalidRequest` names with the name of the enclosing field."""

    __slots__ = ("_field",)

    def __init__(self, field: str) -> None:
        self._field = field

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, InvalidRequest):
            field = self._field if error.field is None else f"{self._field}.{error.field}"
            raise InvalidRequest(f"{self._field}: {error}", field=field) from None


def _optional_decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def parse_time(text: str, field: str) -> datetime:
    """Parse ISO 8601 text with a zone to a UTC datetime. Raises `InvalidRequest` for a time that does not exist."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{field} is no time that exists: {text!r:.40}", field=field) from None


def _instrument_or_name(form: InstrumentForm | str, field: str) -> InstrumentInfo | str:
    return form if isinstance(form, str) else form.to_instrument(field)


def _seconds(value: int | str) -> int | Decimal:
    return value if type(value) is int else Decimal(value)


def _legs(forms: list[LegForm]) -> tuple[Leg, ...]:
    legs = []
    for number, form in enumerate(forms):
        with field_prefix(f"legs.{number}"):
            quantity, price = Decimal(form.quantity), _optional_decimal(form.price)
            legs.append(Leg(form.venue, form.symbol, form.kind, form.side, quantity, price))
    return tuple(legs)


_CONVERTERS: Mapping[str, Any] = {
    **dict.fromkeys(
        ("signal_score", "price", "spot_price", "available_balance", "min_notional_usd", "spot_fee_rate", "quantity"),
        Decimal,
    ),
    "ttl_seconds": _seconds,
    "legs": _legs,
    "spot_instrument": lambda form: _instrument_or_name(form, "spot_instrument"),
    "perp_instrument": lambda form: _instrument_or_name(form, "perp_instrument"),
}


@lru_cache(maxsize=64)
def _converters_of(model: type[CommandBody]) -> list[tuple[str, Any]]:
    """Return the command's fields in this body, each with its converter; None leaves the value as it is."""
    names = BODIES[model.command_type.verb].model_fields
    return [(name, _CONVERTERS.get(name)) for name in names]
