"""Converts objects to JSON and back by their public names: how a value is written follows from its annotated type.

Decimals are text, times are ISO 8601 in UTC with a `Z`, tuples are lists, and other classes have a codec of their own.
A field that ends in `_us` is the time `..._at` in JSON, one that ends in `_e8` the USD amount without the ending.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import cached_property
from operator import attrgetter, itemgetter
from types import UnionType
from typing import Any, Generic, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from ledger_sizer.model.domain import Page
from ledger_sizer.model.errors import InternalError, LedgerError
from ledger_sizer.model.tags import Tags, tags_from_json
from ledger_sizer.model.times import time_text, to_us
from ledger_sizer.model.units import USD_DECIMALS, decimal_text, exact_arithmetic, parse_decimal

Json = dict[str, Any]
T = TypeVar("T")

FORM_ERRORS = (KeyError, TypeError, ValueError, AttributeError, InvalidOperation, LedgerError)
"""The exceptions that parsing a malformed form raises."""


class Pair(NamedTuple):
    """How the values of one type are written as JSON and read back."""

    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def e8_of(text: str) -> int:
    """Convert USD text to whole units of 1e-8 USD. Raises `ValueError` for more than 8 decimals."""
    with exact_arithmetic():
        scaled = Decimal(text).scaleb(USD_DECIMALS)
        whole = int(scaled)
    if whole != scaled:
        raise ValueError(f"{text!r} has more than {USD_DECIMALS} decimals")
    return whole


def us_of(text: str) -> int:
    """Convert the text of a time to microseconds since 1970 UTC."""
    return to_us(datetime.fromisoformat(text))


def optional(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a conversion that leaves None alone."""
    return lambda value: None if value is None else convert(value)


PAIRS: dict[Any, Pair] = {
    Decimal: Pair(decimal_text, parse_decimal),
    datetime: Pair(time_text, datetime.fromisoformat),
    Tags: Pair(Tags.to_json, tags_from_json),
}
"""Types that are not written as they are. A codec adds its own class."""

_PLAIN = Pair(lambda value: value, lambda value: value)


def pair_of(hint: Any) -> Pair:
    """Return how the values of an annotated type are written and read."""
    if hint in PAIRS:
        return PAIRS[hint]
    origin, inner = get_origin(hint), [kind for kind in get_args(hint) if kind is not type(None)]
    if origin in (Union, UnionType):
        return Pair(*map(optional, pair_of(inner[0])))
    if origin is tuple:
        write, read = pair_of(inner[0])
        return Pair(lambda items: [write(item) for item in items], lambda form: tuple(read(item) for item in form))
    if origin is Page:
        write, read = pair_of(inner[0])
        return Pair(lambda page: page_to_json(page, write), lambda form: page_from_json(form, read))
    return _PLAIN


@dataclass(frozen=True, eq=False)
class Codec(Generic[T]):
    """The JSON form of a class.

    names: in the order of the form, in one text; without it, all fields. Each is a field or a property of the class; a
    property that no field depends on is written and never read. docs: descriptions for the OpenAPI document. What does
    not follow from the annotations: write (of the object, by JSON name), read (of the form, by field), types (for the
    OpenAPI document, by JSON name). later: fields that an older service does not write, in one text; their default is
    read then.
    """

    kind: type[T]
    names: str = ""
    docs: Mapping[str, str] = field(default_factory=dict)
    write: Mapping[str, Callable[[T], Any]] = field(default_factory=dict)
    read: Mapping[str, Callable[[Mapping[str, Any]], Any]] = field(default_factory=dict)
    types: Mapping[str, Any] = field(default_factory=dict)
    later: str = ""

    def __post_init__(self) -> None:
        PAIRS.setdefault(self.kind, Pair(self.to_json, self.from_json))

    def to_json(self, value: T) -> Json:
        """Convert an object."""
        return {name: write(value) for name, write in self._writers.items()}

    def from_json(self, form: Mapping[str, Any]) -> T:
        """Convert the output of `to_json` back. Raises `InternalError` for any other form."""
        try:
            absent = {name for name in self._later if name not in form}
            return self.kind(**{name: read(form) for name, read in self._readers.items() if name not in absent})
        except FORM_ERRORS as error:
            raise unreadable_form(self.kind.__name__.lower(), error) from None

    @cached_property
    def hints(self) -> dict[str, Any]:
        """The annotated type of each JSON name."""
        names = self.names.split() or self._fields
        return {name: self.types.get(name) or self._hint(name) for name in names}

    @cached_property
    def _later(self) -> frozenset[str]:
        return frozenset(self.later.split())

    @cached_property
    def _fields(self) -> dict[str, Any]:
        return get_type_hints(self.kind)

    def _hint(self, name: str) -> Any:
        return self._fields[name] if name in self._fields else get_type_hints(getattr(self.kind, name).fget)["return"]

    @cached_property
    def _writers(self) -> dict[str, Callable[[T], Any]]:
        return {name: self.write.get(name) or self._writer(name, hint) for name, hint in self.hints.items()}

    def _writer(self, name: str, hint: Any) -> Callable[[T], Any]:
        get, write = attrgetter(name), pair_of(hint).write
        return get if write is _PLAIN.write else lambda value: write(get(value))

    @cached_property
    def _readers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {name: self.read.get(name) or self._reader(name, hint) for name, hint in self._fields.items()}

    def _reader(self, name: str, hint: Any) -> Callable[[Mapping[str, Any]], Any]:
        json_name = f"{name[:-3]}_at" if name.endswith("_us") else name.removesuffix("_e8")
        read = us_of if name.endswith("_us") else e8_of if name.endswith("_e8") else pair_of(hint).read
        if hint == int | None:
            read = optional(read)
        return itemgetter(json_name) if read is _PLAIN.read else lambda form: read(form[json_name])


def page_to_json(page: Page[T], item_to_json: Callable[[T], Json]) -> Json:
    """One page of a listing: `items`, and the `cursor` of the next page (null after the last)."""
    return {"items": [item_to_json(item) for item in page.items], "cursor": page.cursor}


def page_from_json(form: Mapping[str, Any], item_from_json: Callable[[Mapping[str, Any]], T]) -> Page[T]:
    """Convert the output of `page_to_json` back."""
    try:
        return Page(tuple(item_from_json(item) for item in form["items"]), form["cursor"])
    except FORM_ERRORS as error:
        raise unreadable_form("page", error) from None


def unreadable_form(what: str, error: Exception) -> InternalError:
    """Return the error for a form that no service of this package wrote."""
    return InternalError(f"this is no {what} of a ledger-sizer service: {type(error).__name__} {error}")
