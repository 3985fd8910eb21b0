"""Options that commands share, and the parsers of their text into exact values.

The parsers check the form only. The ledger checks whether a value makes sense (a score above 1, a step of 0), so that
the error is the same here, over HTTP and in Python.
"""

import re
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from ledger_sizer.cli.errors import bad_input
from ledger_sizer.model.commands import VERBS
from ledger_sizer.model.denials import DENIAL_REASONS
from ledger_sizer.model.details import is_detail_name
from ledger_sizer.model.tags import is_dimension
from ledger_sizer.model.units import parse_decimal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ledger_sizer.model.arguments import DeclaredArgument, Kind
    from ledger_sizer.model.instruments import InstrumentInfo
    from ledger_sizer.model.legs import Leg, LegPlan

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document; decimals are strings.")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="sqlite:///FILE or postgresql://USER@HOST/NAME; else LEDGER_DATABASE_URL from the environment or .env, "
        "else sqlite:///ledger.db.",
    ),
]
Create = Annotated[
    bool, typer.Option("--create", help="Create a SQLite ledger even where one was; as LEDGER_CREATE=always.")
]
Portfolio = Annotated[str, typer.Option("--portfolio", "-p", metavar="NAME", help="The pot of capital.")]
PortfolioOrDesk = Annotated[
    str, typer.Option("--portfolio", "-p", metavar="NAME", help="The pot of capital; * for the desk's own chain.")
]
OfKey = Annotated[str | None, typer.Option("--key", metavar="KEY", help="Of this idempotency key.")]
AnyPortfolio = Annotated[str | None, typer.Option("--portfolio", "-p", metavar="NAME", help="One portfolio; else all.")]
Tag = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="NAME=VALUE", help="A scope it counts in; repeatable, and all must match."),
]
AdoptedTag = Annotated[
    list[str] | None,
    typer.Option(
        "--tag",
        metavar="NAME=VALUE",
        help="A tag of the position, such as strategy=carry; repeatable. Its venue, account and symbol are filled in.",
    ),
]
Cursor = Annotated[str | None, typer.Option("--cursor", metavar="CURSOR", help="Continue after the page before.")]
Limit = Annotated[str, typer.Option("--limit", metavar="N", help="Rows of a page, 1 to 1000.")]
IntentionKey = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="KEY",
        help="One per intention; each decision's key begins with it. Generated when not given.",
    ),
]
Everything = Annotated[bool, typer.Option("--all", help="Every page, from the cursor to the end.")]

if TYPE_CHECKING:
    CommandName = str
    ReasonName = str
else:
    CommandName = Literal[VERBS]
    ReasonName = Literal[DENIAL_REASONS]

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_WHOLE = re.compile(r"[0-9]+")
_WHOLE_DIGITS_MAX = 18

T = TypeVar("T", "InstrumentInfo", "Leg", "LegPlan")


def require_none_before(context: typer.Context) -> None:
    """Raise `InvalidRequest` for options between a group and its subcommand: they would have no effect."""
    given = [context.get_parameter_source(param.name or "") for param in context.command.params]
    if any(source is not None and source.name == "COMMANDLINE" for source in given):
        usage = f"{context.command_path} {context.invoked_subcommand} ... OPTIONS"
        bad_input(f"options before the subcommand are not for it; write: {usage}", "options")


def decimal(text: str, field: str, what: str = "") -> Decimal:
    """Parse an exact number. Raises `InvalidRequest` for NaN, infinity, `1,000`, `1_000` and words.

    what: instead of the field in the message.
    """
    if not _NUMBER.fullmatch(text):
        bad_input(f"{what or field} must be a number such as 0.9 or 50000, got {text!r}", field)
    return parse_decimal(text)


def whole_number(text: str, field: str, least: int = 0) -> int:
    """Parse a whole number of at least `least`, which is 0 or above, and at most 18 digits."""
    if len(text) > _WHOLE_DIGITS_MAX and _WHOLE.fullmatch(text):
        bad_input(f"{field} must have at most {_WHOLE_DIGITS_MAX} digits, got {text!r}", field)
    if not _WHOLE.fullmatch(text) or int(text) < least:
        bad_input(f"{field} must be a whole number, {least} or above, got {text!r}", field)
    return int(text)


def timestamp(text: str | None, field: str) -> datetime | None:
    """Parse a time in ISO 8601 with its zone, such as `2026-01-31T12:00:00Z`. None stays None."""
    if text is None:
        return None
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        bad_input(f"{field} must be a time such as 2026-01-31T12:00:00Z, got {text!r}", field)
    if parsed.tzinfo is None:
        whole_day = "" if "T" in text or " " in text else "T00:00:00"
        bad_input(f"{field} has no time zone, so it could be any of 24 hours; add Z: {text}{whole_day}Z", field)
    return parsed


def tags(texts: list[str] | None) -> dict[str, list[str]]:
    """Parse `["venue=bybit", "venue=okx"]` into `{"venue": ["bybit", "okx"]}`."""
    found: dict[str, list[str]] = {}
    for name, value in _pairs(texts, "--tag", "venue=bybit", "tags", is_dimension):
        found.setdefault(name, []).append(value)
    return found


def details(texts: list[str] | None) -> dict[str, str]:
    """Parse `["version=1.8.2"]` into `{"version": "1.8.2"}`."""
    found: dict[str, str] = {}
    for name, value in _pairs(texts, "--detail", "version=1.8.2", "details", is_detail_name):
        if name in found:
            bad_input(f"--detail {name} is given twice: {found[name]!r} and {value!r}", "details")
        found[name] = value
    return found


def _pairs(
    texts: list[str] | None, option: str, example: str, field: str, is_name: "Callable[[str], bool]"
) -> "Iterator[tuple[str, str]]":
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            at_fault = f"{field}.{name}" if equals and is_name(name) else field
            bad_input(f"{option} must look like {example}, got {text!r}", at_fault)
        yield name, value


def instrument(text: str, field: str) -> "InstrumentInfo | str":
    """Parse `SYMBOL,min_qty,max_qty,qty_step[,min_notional[,tick_size[,contract_size]]]`, or a JSON object.

    The object takes every field of `InstrumentInfo`. Returns a name, such as bybit:BTC/USDT, as it is.
    """
    from ledger_sizer.model.instruments import InstrumentInfo

    if ":" in text and "," not in text and not text.lstrip().startswith("{"):
        return text
    return _declared(text, field, InstrumentInfo)


def legs(texts: list[str]) -> "tuple[Leg, ...]":
    """Parse each `VENUE,SYMBOL,KIND,SIDE,QUANTITY[,PRICE]`, or JSON object of these."""
    from ledger_sizer.model.legs import Leg

    return tuple(_declared(text, f"legs.{number}", Leg, "leg") for number, text in enumerate(texts))


def leg_plans(texts: list[str]) -> "tuple[LegPlan, ...]":
    """Parse each `MARKET,SIDE[,PRICE[,FEE_RATE[,ASSET[,ACCOUNT]]]]`, or JSON object of these."""
    from ledger_sizer.model.legs import LegPlan

    return tuple(_declared(text, f"legs.{number}", LegPlan, "leg") for number, text in enumerate(texts))


def _declared(text: str, field: str, of: type[T], what: str = "") -> T:
    """Parse a comma-separated text or a JSON object into a type with declared fields. what: its name in messages."""
    from ledger_sizer.model.arguments import field_prefix

    declared = [one for one in of.arguments if one.declared.sent]
    given = _split_fields(text, what or field, field, declared)
    values = {
        one.name: _value_of(one.kind, given[one.name], f"{field}.{one.name}", f"{what or field} {one.name}")
        for one in declared
        if one.name in given
    }
    with field_prefix(field):
        return of(**values)


def _value_of(kind: "Kind", text: str, field: str, what: str) -> Any:
    """Convert the text of one declared field to its value."""
    from ledger_sizer.model.instruments import SWITCH
    from ledger_sizer.model.legs import INSTRUMENT

    if kind is SWITCH:
        if text not in ("true", "false"):
            bad_input(f"{what} must be true or false, got {text!r}", field)
        return text == "true"
    if kind is INSTRUMENT:
        return instrument(text, field)
    return text if kind.from_json is None else decimal(text, field, what)


def _split_fields(text: str, what: str, field: str, declared: "Sequence[DeclaredArgument]") -> dict[str, str]:
    """Split a comma-separated text or a JSON object into its named fields, as text.

    Keyword-only fields have no place in the comma-separated text; the JSON object takes them.
    """
    if text.lstrip().startswith("{"):
        return _json_fields(text, what, field, declared)
    names = [one.name for one in declared if not one.keyword_only]
    required = sum(one.required for one in declared)
    shape = f"{','.join(names[:required])}[,{'[,'.join(names[required:])}{']' * (len(names) - required)}"
    values = [value.strip() for value in text.split(",")]
    if not required <= len(values) <= len(names):
        bad_input(f"{what} must be {shape} or a JSON object of these, got {text!r}", field)
    return dict(zip(names, values, strict=False))


def _json_fields(text: str, what: str, field: str, declared: "Sequence[DeclaredArgument]") -> dict[str, str]:
    import json

    from ledger_sizer.model.instruments import SWITCH
    from ledger_sizer.model.legs import INSTRUMENT

    try:
        # Numbers stay text, so that they keep their digits; never a float.
        given = json.loads(text, parse_float=str, parse_int=str, parse_constant=str)
    except ValueError as error:
        bad_input(f"{what} is not valid JSON: {error}", field)
    given = {name: value for name, value in given.items() if value is not None}
    names, required = [one.name for one in declared], [one.name for one in declared if one.required]
    switches = [one.name for one in declared if one.kind is SWITCH]
    if unknown := [name for name in given if name not in names]:
        bad_input(f"{what} has no {unknown[0]!r}; it takes {', '.join(names)}", f"{field}.{unknown[0]}")
    if missing := [name for name in required if name not in given]:
        bad_input(f"{what} lacks {missing[0]!r}; it needs {', '.join(required)}", f"{field}.{missing[0]}")
    rules = [one.name for one in declared if one.kind is INSTRUMENT]
    for name, value in given.items():
        if isinstance(value, bool) and name in switches:
            given[name] = "true" if value else "false"
        elif isinstance(value, dict) and name in rules:
            given[name] = json.dumps(value)
        elif not isinstance(value, str):
            bad_input(f"{what} {name} must be text or a number, got {value!r}", f"{field}.{name}")
    return {name: str(value) for name, value in given.items()}
