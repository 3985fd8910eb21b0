"""Options that commands share, and how their text becomes exact values.

The parsers here only read: whether a value makes sense (a score above 1, a step of 0) is for the ledger to say, once,
in the same words for every face.
"""

import re
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ledger_sizer.cli.errors import bad_input

if TYPE_CHECKING:
    from ledger_sizer.model.instruments import InstrumentInfo, Leg

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
Portfolio = Annotated[str, typer.Option("--portfolio", "-p", metavar="NAME", help="The pot of capital.")]
AnyPortfolio = Annotated[str | None, typer.Option("--portfolio", "-p", metavar="NAME", help="One portfolio; else all.")]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="TEXT",
        help="Idempotency key: sent again with the same request it gives the same answer and has no second effect. "
        "Generated and printed when not given.",
    ),
]
Tag = Annotated[list[str] | None, typer.Option("--tag", metavar="NAME=VALUE", help="A scope it counts in; repeatable.")]
Scope = Annotated[str, typer.Option("--scope", metavar="SCOPE", help="The whole `portfolio`, or like venue=bybit.")]
Note = Annotated[str | None, typer.Option("--note", metavar="TEXT", help="Why; kept with the decision.")]
PositionId = Annotated[str, typer.Argument(metavar="POSITION_ID", help="As reserve printed it, e.g. main-17.")]
Legs = Annotated[
    list[str] | None,
    typer.Option(
        "--leg",
        metavar="LEG",
        help="One side as VENUE,SYMBOL,spot|swap,buy|sell,QUANTITY[,PRICE] or as a JSON object; repeatable. Quantity "
        "in base units, price in USD.",
    ),
]
Cursor = Annotated[str | None, typer.Option("--cursor", metavar="CURSOR", help="Continue after the page before.")]
Limit = Annotated[str, typer.Option("--limit", metavar="N", help="Rows of a page, 1 to 1000.")]
Everything = Annotated[bool, typer.Option("--all", help="Every page, from the cursor to the end.")]

# Literals, because the domain's own types would have to be imported to print `--help`; a test keeps them equal.
State = Literal["held", "open", "closed", "released", "expired", "live"]
OutcomeName = Literal["granted", "denied", "applied"]
ReasonName = Literal[
    "halted",
    "reducing",
    "unreconciled",
    "cap_exceeded",
    "below_min_qty",
    "below_min_notional",
    "insufficient_balance",
    "group_denied",
]
CommandName = Literal[
    "reserve", "confirm", "release", "extend", "set_cap", "halt", "resume", "adopt", "freeze", "thaw", "reconciled",
    "remark", "expire",
]  # fmt: skip
Mode = Literal["halted", "reducing"]
ExportFormat = Literal["csv", "ndjson"]

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_WHOLE = re.compile(r"[0-9]+")
_WHOLE_DIGITS_MAX = 18


def decimal(text: str, field: str) -> Decimal:
    """The exact number a text says. Raises `InvalidRequest` for NaN, infinity, `1,000`, `1_000` and words."""
    if not _NUMBER.fullmatch(text):
        bad_input(f"{field} must be a number such as 0.9 or 50000, got {text!r}", field)
    return Decimal(text)


def optional_decimal(text: str | None, field: str) -> Decimal | None:
    """`decimal`, or None where the option was not given."""
    return None if text is None else decimal(text, field)


def whole_number(text: str, field: str, least: int = 0) -> int:
    """A whole number that is at least `least`, which is not below 0."""
    if len(text) > _WHOLE_DIGITS_MAX and _WHOLE.fullmatch(text):
        bad_input(f"{field} must have at most {_WHOLE_DIGITS_MAX} digits, got {text!r}", field)
    if not _WHOLE.fullmatch(text) or int(text) < least:
        bad_input(f"{field} must be a whole number, {least} or above, got {text!r}", field)
    return int(text)


def timestamp(text: str | None, field: str) -> datetime | None:
    """A time in ISO 8601 with its zone, such as `2026-01-31T12:00:00Z`."""
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


def tags(texts: list[str] | None) -> dict[str, str]:
    """`["venue=bybit"]` -> `{"venue": "bybit"}`."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            bad_input(f"--tag must look like venue=bybit, got {text!r}", "tags")
        if name in found:
            bad_input(f"--tag {name} is given twice: {found[name]!r} and {value!r}", "tags")
        found[name] = value
    return found


_INSTRUMENT = ("symbol", "min_qty", "max_qty", "qty_step", "min_notional", "tick_size", "contract_size")
_INSTRUMENT_NEEDS = 4
_LEG = ("venue", "symbol", "kind", "side", "quantity", "price")
_LEG_NEEDS = 5


def instrument(text: str | None, field: str) -> "InstrumentInfo | str | None":
    """`SYMBOL,min_qty,max_qty,qty_step[,min_notional[,tick_size[,contract_size]]]`, JSON of these, or a name."""
    from ledger_sizer.model.instruments import InstrumentInfo

    if text is None or (":" in text and "," not in text and not text.lstrip().startswith("{")):
        return text
    parts = _parts(text, field, _INSTRUMENT, _INSTRUMENT_NEEDS)
    exact: dict[str, Any] = {
        name: decimal(value, f"{field} {name}") for name, value in parts.items() if name != "symbol"
    }
    return InstrumentInfo(symbol=parts["symbol"], **exact)


def legs(texts: list[str] | None) -> "tuple[Leg, ...] | None":
    """Each `VENUE,SYMBOL,KIND,SIDE,QUANTITY[,PRICE]`, or a JSON object of these; None where none was given."""
    from ledger_sizer.model.instruments import Leg

    def leg(text: str) -> Leg:
        given: dict[str, Any] = dict(_parts(text, "leg", _LEG, _LEG_NEEDS))
        for name in ("quantity", "price"):
            if name in given:
                given[name] = decimal(given[name], f"leg {name}")
        return Leg(**given)

    return tuple(leg(text) for text in texts) if texts else None


def _parts(text: str, field: str, names: tuple[str, ...], needed: int) -> dict[str, str]:
    """The named parts of a comma separated text or of a JSON object, as texts."""
    shape = f"{','.join(names[:needed])}[,{'[,'.join(names[needed:])}{']' * (len(names) - needed)}"
    if text.lstrip().startswith("{"):
        return _json_parts(text, field, names, names[:needed])
    values = [value.strip() for value in text.split(",")]
    if not needed <= len(values) <= len(names):
        bad_input(f"{field} must be {shape} or a JSON object of these, got {text!r}", field)
    return dict(zip(names, values, strict=False))


def _json_parts(text: str, field: str, names: tuple[str, ...], needed: tuple[str, ...]) -> dict[str, str]:
    import json

    try:
        # Numbers keep their digits: the parser hands over the text it read, never a float.
        given = json.loads(text, parse_float=str, parse_int=str, parse_constant=str)
    except ValueError as error:
        bad_input(f"{field} is not valid JSON: {error}", field)
    given = {name: value for name, value in given.items() if value is not None}
    if strange := [name for name in given if name not in names]:
        bad_input(f"{field} has no {strange[0]!r}; it takes {', '.join(names)}", field)
    if missing := [name for name in needed if name not in given]:
        bad_input(f"{field} lacks {missing[0]!r}; it needs {', '.join(needed)}", field)
    for name, value in given.items():
        if not isinstance(value, str):
            bad_input(f"{field} {name} must be text or a number, got {value!r}", field)
    return {name: str(value) for name, value in given.items()}
