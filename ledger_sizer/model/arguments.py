"""Declares arguments once: what each may be, and its canonical text, its JSON, its help and its form on a command line.

A field of a command, an instrument or a leg is annotated with an `Argument`:

    signal_score: Annotated[Decimal | None, Argument(SCORE, "0 to 1; none is sized flat.", flags=("--score",))] = None

Its checks, the recorded request, the JSON of a call, the OpenAPI document and the command line are derived from that.
Rules across several fields stay written out, in the class.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from decimal import Decimal
from enum import Enum
from reprlib import repr as short_repr
from typing import Any, Final, NamedTuple, TypeVar, get_args

from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.units import decimal_text, exact_decimal, not_negative, parse_decimal, positive, shown

encode_sorted = json.JSONEncoder(separators=(",", ":"), sort_keys=True, ensure_ascii=True).encode
"""Encodes a value as compact ASCII JSON with sorted keys: the canonical form of tags and requests."""

DECIMAL_PATTERN = r"^-?[0-9]{1,30}(\.[0-9]{1,36})?$"
AMOUNT_PATTERN = r"^[0-9]{1,30}(\.[0-9]{1,36})?$"
SCORE_PATTERN = r"^(0(\.[0-9]{1,36})?|1(\.0{1,36})?)$"


class NotGiven(Enum):
    """The type of `NOT_GIVEN`."""

    NOT_GIVEN = "not given"

    def __repr__(self) -> str:
        return "NOT_GIVEN"


NOT_GIVEN: Final = NotGiven.NOT_GIVEN
"""Default of an argument that changes a setting: what is not given stays, and None removes."""


def _as_it_is(value: Any) -> Any:
    return value


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Kind:
    """What an argument may be. Kinds are compared by identity.

    name: tells kinds apart in tests. check: returns the value to keep, given the value and the argument's name, or
    raises `InvalidRequest`. text: the canonical JSON text, in which equal values are equal. to_json, from_json: the
    value in a call's body and back; `from_json` gets what the schema accepted, and the argument's name. pattern,
    length, choices, examples: the schema of its JSON text. metavar: stands for the value in the command line's help.
    """

    name: str
    check: Callable[[Any, str], Any]
    text: Callable[[Any], str] = encode_sorted
    to_json: Callable[[Any], Any] = _as_it_is
    from_json: Callable[[Any, str], Any] | None = None
    pattern: str | None = None
    length: tuple[int, int] | None = None
    choices: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    metavar: str = "TEXT"


class Argument(NamedTuple):
    """The declaration of one field, beside its type.

    help: one line for every interface. flags: further names of its option. metavar, examples: instead of the kind's.
    recorded: whether the canonical request has it. sent: whether its JSON has it.
    """

    kind: Kind
    help: str = ""
    flags: tuple[str, ...] = ()
    metavar: str = ""
    examples: tuple[str, ...] = ()
    recorded: bool = True
    sent: bool = True


class DeclaredArgument(NamedTuple):
    """An `Argument` with its field's name and type. default: `MISSING` where it must be given.

    keyword_only: whether it has no place in the order of the fields.
    """

    name: str
    kind: Kind
    declared: Argument
    optional: bool
    default: Any
    keyword_only: bool

    @property
    def required(self) -> bool:
        """Whether it must be given, even if only as None."""
        return self.default is MISSING


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


D = TypeVar("D", bound=type[Any])


def arguments_of(of: type[Any]) -> tuple[DeclaredArgument, ...]:
    """Return the declared fields of a dataclass, in order: those of type `Annotated[..., Argument(...)]`."""
    found = []
    for one in fields(of):
        given = [part for part in get_args(one.type) if isinstance(part, Argument)]
        if one.init and given:
            optional = type(None) in get_args(get_args(one.type)[0])
            found.append(DeclaredArgument(one.name, given[0].kind, given[0], optional, one.default, bool(one.kw_only)))
    return tuple(found)


def declared(of: D) -> D:
    """Set `arguments`, `checks` and `texts` of a dataclass with declared fields. A decorator, above `@dataclass`.

    checks: name, check, whether None needs none, and the default, in order. texts: name, `,"name":` and the canonical
    text of every recorded field, sorted by name. Both are read for every command, so they are taken apart once.
    """
    of.arguments = arguments_of(of)
    of.checks = tuple((one.name, one.kind.check, one.optional, one.default) for one in of.arguments)
    of.texts = tuple(
        sorted((one.name, f',"{one.name}":', one.kind.text) for one in of.arguments if one.declared.recorded)
    )
    return of


def check_arguments(one: Any) -> None:
    """Check every declared field of a frozen dataclass, in order, and keep what its check returns.

    A default is as its check would return it, so it is not checked again for every object.
    """
    for name, check, optional, default in one.checks:
        value = getattr(one, name)
        if value is not default and (value is not None or not optional) and (kept := check(value, name)) is not value:
            _put(one, name, kept)


_put = object.__setattr__


def canonical_fields(one: Any) -> str:
    """Return `,"name":value` of every recorded field that is not None, in canonical JSON."""
    return "".join(
        [start + text(value) for name, start, text in one.texts if (value := getattr(one, name)) is not None]
    )


def canonical_object(one: Any) -> str:
    """Return canonical JSON of a dataclass with declared fields: those that are not None, sorted by name."""
    return f"{{{canonical_fields(one)[1:]}}}"


def to_json(one: Any) -> dict[str, Any]:
    """Convert a dataclass with declared fields to JSON; None is null."""
    return {
        argument.name: None if (value := getattr(one, argument.name)) is None else argument.kind.to_json(value)
        for argument in one.arguments
        if argument.declared.sent
    }


def json_values(of: type[Any], form: Mapping[str, Any]) -> dict[str, Any]:
    """Convert JSON back to values by name; what is null or missing is left out. `InvalidRequest` names the field."""
    return {
        argument.name: value if argument.kind.from_json is None else argument.kind.from_json(value, argument.name)
        for argument in of.arguments
        if argument.declared.sent and (value := form.get(argument.name)) is not None
    }


# --- kinds -------------------------------------------------------------------------------------------------------


def label_text(value: object, what: str, *, length_max: int = 128) -> str:
    """Return `value` as plain text if it has 1..length_max printable characters, else raise.

    Control characters are refused everywhere because the audit chain joins fields with them. An `Enum` member that is
    a `str` is returned as its plain text: the two are equal, but an f-string would write the member's name.
    """
    if not isinstance(value, str):
        raise InvalidRequest(f"{what} must be text, got {type(value).__name__} {short_repr(value)}", field=what)
    if not 1 <= len(value) <= length_max:
        raise InvalidRequest(f"{what} must have 1 to {length_max} characters, got {len(value)}", field=what)
    if not value.isprintable():
        raise InvalidRequest(f"{what} has a control or unprintable character: {value!r}", field=what)
    return str.__str__(value)


def decimal_json(value: Decimal) -> str:
    """Return a decimal in canonical JSON: a text, so that equal numbers are equal and no reader makes it a float."""
    return f'"{decimal_text(value)}"'


def _decimal_from_json(text: str, _name: str) -> Decimal:
    return parse_decimal(text)


def decimal_kind(name: str, check: Callable[[Any, str], Decimal], pattern: str = AMOUNT_PATTERN, **more: Any) -> Kind:
    """Return the kind of an exact decimal. In JSON it is a text."""
    given = {"examples": ("0.9", "50000"), "metavar": "NUMBER", **more}
    return Kind(
        name=name, check=check, text=decimal_json, to_json=decimal_text, from_json=_decimal_from_json, pattern=pattern,
        **given,
    )  # fmt: skip


def checked_flag(value: object, name: str) -> bool:
    """Return `value` if it is True or False, else raise `InvalidRequest`."""
    if isinstance(value, bool):
        return value
    raise InvalidRequest(f"{name} must be True or False, got {value!r}", field=name)


def choice(*choices: str) -> Kind:
    """Return the kind of a choice between words."""

    def check(value: object, name: str) -> str:
        if isinstance(value, str) and value in choices:
            return str.__str__(value)
        raise InvalidRequest(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}", field=name)

    return Kind(name="choice", check=check, choices=choices)


def checked_score(value: object, name: str = "signal_score") -> Decimal:
    """Return the signal score if it is an exact number in [0, 1], else raise `InvalidRequest`. Never clamped."""
    score = exact_decimal(value, name)
    if not 0 <= score <= 1:
        raise InvalidRequest(f"{name} must be between 0 and 1, got {shown(score)}", field=name)
    return score


POSITIVE = decimal_kind("positive", positive)
NOT_NEGATIVE = decimal_kind("not_negative", not_negative)
ANY_DECIMAL = decimal_kind("decimal", exact_decimal, DECIMAL_PATTERN)
SCORE = decimal_kind("score", checked_score, SCORE_PATTERN, examples=("0.9", "0.25"), metavar="0..1")
LABEL = Kind(name="label", check=label_text, length=(1, 128))
NOTE = Kind(name="note", check=lambda value, name: label_text(value, name, length_max=500), length=(1, 500))
FLAG = Kind(name="flag", check=checked_flag, text=lambda value: f'"{value}"')
