"""Parses request bodies: JSON -> pydantic model -> command object.

The models are made from the declarations of the commands (see `model.commands`). They check names, types and patterns,
and refuse unknown fields. The command types check the values, so that every interface (Python, HTTP, CLI) gives the
same error messages.

The idempotency key is the `Idempotency-Key` header of a single call, and `key` in each command of a batch.
"""

import inspect
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, WithJsonSchema, create_model

from ledger_sizer.model.arguments import FLAG, LABEL, NOT_GIVEN, NOT_NEGATIVE, DeclaredArgument, Kind, json_values
from ledger_sizer.model.choices import Side
from ledger_sizer.model.command_base import (
    KEY,
    LEG_PLANS,
    LEGS,
    LEGS_MAX,
    MOMENT,
    PORTFOLIO,
    PORTFOLIO_OR_DESK,
    SECONDS,
    TAGS,
    TTL_SECONDS_MAX,
)
from ledger_sizer.model.commands import COMMANDS, AnyCommand
from ledger_sizer.model.details import DETAIL_LENGTH_MAX, DETAIL_NAME, DETAILS, DETAILS_MAX
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.instruments import SWITCH, InstrumentInfo
from ledger_sizer.model.legs import INSTRUMENT, Leg, LegPlan
from ledger_sizer.model.release_all import ReleaseAll
from ledger_sizer.model.settle import BOOK, BOOK_MAX, MARKETS, Settle
from ledger_sizer.model.tags import TAG_NAME, TAG_VALUES_MAX, TAGS_MAX


class Body(BaseModel):
    """Base of all request bodies: exact types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


BodyT = TypeVar("BodyT", bound=Body)


# --- from a declaration to a model -------------------------------------------------------------------------------


def text_field(kind: Kind) -> Any:
    """Return the schema of an argument whose JSON is one text."""
    least, most = kind.length or (None, None)
    examples = [*kind.examples] or None
    return Field(pattern=kind.pattern, min_length=least or None, max_length=most, examples=examples)


KeyText = Annotated[str, text_field(KEY)]
PortfolioText = Annotated[str, text_field(PORTFOLIO)]
PortfolioOrDeskText = Annotated[str, text_field(PORTFOLIO_OR_DESK)]
LabelText = Annotated[str, text_field(LABEL)]
MomentText = Annotated[str, text_field(MOMENT)]
AmountText = Annotated[str, text_field(NOT_NEGATIVE)]


def json_type(kind: Kind) -> Any:
    """Return the pydantic type of an argument's JSON. A decimal is text: many parsers make a number a binary float."""
    if kind.choices:
        return Literal[kind.choices]
    if kind in _STRUCTURES:
        return _STRUCTURES[kind]
    return Annotated[str, text_field(kind)]


def _field_of(argument: DeclaredArgument) -> tuple[Any, Any]:
    """Return a model's field: its type and its `Field`."""
    of = json_type(argument.kind)
    given: dict[str, Any] = {}
    if argument.declared.help:
        given["description"] = argument.declared.help
    if argument.declared.examples:
        given["examples"] = [*argument.declared.examples]
    if isinstance(argument.default, Mapping):
        given["default_factory"] = dict
    elif argument.default is not MISSING:
        default = argument.default
        given["default"] = None if default is None or default is NOT_GIVEN else argument.kind.to_json(default)
    return (of | None if argument.optional else of), Field(**given)


def _model_of(name: str, of: type[Any], base: type[BodyT], leave_out: str = "") -> type[BodyT]:
    """Make the model of a declared dataclass. leave_out: a path; fields that stand in it are not in the body."""
    fields: dict[str, Any] = {
        argument.name: _field_of(argument)
        for argument in of.arguments
        if argument.declared.sent and f"{{{argument.name}}}" not in leave_out
    }
    return create_model(name, __base__=base, __doc__=inspect.getdoc(of), **fields)


_TAG_TEXT = {"type": "string", "minLength": 1, "maxLength": 128}
_TAG_LIST = {"type": "array", "items": _TAG_TEXT, "minItems": 1, "maxItems": TAG_VALUES_MAX}
_TagForm = Annotated[Any, WithJsonSchema({"anyOf": [_TAG_TEXT, _TAG_LIST]})]
"""One value of a tag, or several. The command checks them: a union here would name its branches in the error."""

TagsForm = Annotated[
    dict[Annotated[str, Field(pattern=rf"^{TAG_NAME}$")], _TagForm],
    Field(max_length=TAGS_MAX, examples=[{"venue": ["bybit", "okx"], "symbol": "BTC", "strategy": "funding"}]),
]

_STRUCTURES: dict[Kind, Any] = {
    FLAG: bool,
    SWITCH: bool,
    SECONDS: Annotated[int, Field(ge=1, le=TTL_SECONDS_MAX)] | AmountText,
    TAGS: TagsForm,
    DETAILS: Annotated[
        dict[
            Annotated[str, Field(pattern=rf"^{DETAIL_NAME}$")],
            Annotated[str, StringConstraints(min_length=1, max_length=DETAIL_LENGTH_MAX)],
        ],
        Field(min_length=1, max_length=DETAILS_MAX, examples=[{"version": "1.8.2"}]),
    ],
}
"""Types of the arguments whose JSON is not one text."""

InstrumentForm = _model_of("InstrumentForm", InstrumentInfo, Body)
LegForm = _model_of("LegForm", Leg, Body)

_STRUCTURES[LEGS] = Annotated[list[LegForm], Field(min_length=1, max_length=LEGS_MAX)]  # type: ignore[valid-type]
_STRUCTURES[INSTRUMENT] = InstrumentForm | Annotated[str, text_field(INSTRUMENT)]

LegPlanForm = _model_of("LegPlanForm", LegPlan, Body)
_STRUCTURES[LEG_PLANS] = Annotated[list[LegPlanForm], Field(min_length=1, max_length=LEGS_MAX)]  # type: ignore[valid-type]


class BookEntryForm(Body):
    """What is open: coins, unsigned, their average entry price in USD (null where flat), and the side."""

    quantity: AmountText
    price: AmountText | None = None
    side: Side = "buy"


_STRUCTURES[BOOK] = Annotated[
    dict[LabelText, BookEntryForm],
    Field(max_length=BOOK_MAX, examples=[{"BTC/USDT": {"quantity": "0.5", "price": "50000"}}]),
]
_STRUCTURES[MARKETS] = Annotated[list[LabelText], Field(max_length=BOOK_MAX, examples=[["ETH/USDT"]])]


class CommandBody(Body):
    """Base of the command bodies.

    converters: name, conversion from JSON, and whether null is a value: always, where it is sent, or not.
    from_path: of a batch item, the fields that stand in the path of a single call.
    """

    command_type: ClassVar[type[AnyCommand]]
    converters: ClassVar[tuple[tuple[str, Any, Literal["always", "sent", ""]], ...]]
    from_path: ClassVar[tuple[str, ...]] = ()

    def to_command(self, key: str, **from_path: str) -> AnyCommand:
        """Convert to the command. Raises `InvalidRequest` for values that no ledger accepts."""
        return self.command_type(key=key, **from_path, **self._arguments())

    def _arguments(self) -> dict[str, Any]:
        """Return the command's arguments in this body. What is null is left out, unless that is a value."""
        given = self.__dict__
        arguments: dict[str, Any] = {}
        for name, convert, null in self.converters:
            value = given[name]
            if value is not None:
                arguments[name] = value if convert is None else convert(_plain(value), name)
            elif null and (null == "always" or name in self.model_fields_set):
                arguments[name] = None
        return arguments


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: models as mappings."""
    if isinstance(value, LegPlanForm):
        return {name: _plain(one) for name, one in value.__dict__.items()}
    if isinstance(value, Body):
        return value.__dict__
    if type(value) is dict:
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if type(value) is list else value


def _body_of(command: type[AnyCommand]) -> type[CommandBody]:
    body = _model_of(f"{command.__name__}Body", command, CommandBody, leave_out=command.path)
    body.command_type = command
    body.converters = tuple(
        (one.name, one.kind.from_json, "always" if one.required else "sent" if one.default is NOT_GIVEN else "")
        for one in command.arguments
        if one.name in body.model_fields
    )
    return body


BODIES: Mapping[str, type[CommandBody]] = {verb: _body_of(command) for verb, command in COMMANDS.items()}
"""The body of every verb."""


class _ReleaseAllBody(Body):
    """Base of the body of `release_all`."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `ReleaseAll` in this body, without its key and portfolio."""
        return json_values(ReleaseAll, {name: _plain(value) for name, value in self.__dict__.items()})


RELEASE_ALL_BODY = _model_of("ReleaseAllBody", ReleaseAll, _ReleaseAllBody, leave_out="{portfolio}")
"""The body of `release_all`."""


class _SettleBody(Body):
    """Base of the body of `settle`."""

    def to_request(self, portfolio: str) -> Settle:
        """Return the request. Raises `InvalidRequest` for values that no ledger accepts."""
        given = {name: _plain(value) for name, value in self.__dict__.items()}
        return Settle(portfolio=portfolio, **json_values(Settle, given))


SETTLE_BODY = _model_of("SettleBody", Settle, _SettleBody, leave_out="{portfolio}")
"""The body of `settle`."""


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
    loc = first["loc"][:-2] if first["loc"][-1:] == ("[key]",) else first["loc"]  # a wrong name is no field's
    field = ".".join(str(part) for part in loc if part not in NON_FIELDS)
    kind, got = first["type"], f"{first['input']!r:.80}"
    if kind == "extra_forbidden":
        return InvalidRequest(f"{field!r} is not a field here", field=field)
    if kind == "missing":
        return InvalidRequest(f"{field} is missing", field=field)
    if kind in ("string_type", "string_pattern_mismatch") and type(first["input"]) in (int, float):
        return InvalidRequest(f'{field} must be text, a decimal in quotes such as "0.9", got {got}', field=field)
    return InvalidRequest(f"{field}: {first['msg']}, got {got}", field=field)


NON_FIELDS = frozenset({"int", "str", "constrained-str", "constrained-int", "InstrumentForm"})
"""Parts of pydantic's error locations that are no fields: branches of a union."""
