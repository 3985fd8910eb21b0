"""How a Python value is written in JSON, in a path, in a header and on a command line, as a careful user would.

A form that cannot carry a value raises `Inexpressible` with the reason. All the reasons stand here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from ledger_sizer import InstrumentInfo, Leg, LegPlan
from ledger_sizer.model.arguments import FLAG, NOT_GIVEN, DeclaredArgument, to_json
from ledger_sizer.model.command_base import LEG_PLANS, LEGS, MOMENT, SECONDS, TAGS
from ledger_sizer.model.commands import COMMANDS
from ledger_sizer.model.details import DETAILS
from ledger_sizer.model.legs import INSTRUMENT
from ledger_sizer.model.times import time_text
from ledger_sizer.model.units import decimal_text

LISTS = (LEGS, LEG_PLANS)
"""Kinds whose value is a list of objects, each a `--leg` on the command line."""


class Inexpressible(Exception):
    """The face has no form for this value, or one that means another value."""


class JsonForm(dict[str, Any]):
    """An object as JSON has it, in place of an instrument or a leg that Python could not even make."""


# --- JSON ------------------------------------------------------------------------------------------


def _is_number(argument: DeclaredArgument) -> bool:
    """Whether the argument is a decimal, which is text in JSON."""
    structured = (FLAG, SECONDS, MOMENT, TAGS, *LISTS, INSTRUMENT)
    return argument.kind.from_json is not None and argument.kind not in structured


def _json_of(argument: DeclaredArgument, value: Any) -> Any:
    """Return a value as a careful user would write it in JSON."""
    number, kind = _is_number(argument), argument.kind
    if isinstance(value, str) and (number or kind in (SECONDS, MOMENT)):
        raise Inexpressible("JSON has decimals, exact seconds and times as text, so the text means the value")
    if kind in (INSTRUMENT, *LISTS) and (forms := [*json_forms(value)]):
        return forms if kind in LISTS else forms[0]
    if kind is INSTRUMENT and isinstance(value, Mapping):
        raise Inexpressible("an object in JSON is the instrument itself, not something else in its place")
    if isinstance(value, float) and kind is SECONDS:
        raise Inexpressible("a second's fraction is decimal text in JSON, where a float would be inexact")
    if isinstance(value, Decimal):
        return _number_text(value)
    if number and type(value) is int:
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat() if value.tzinfo is None else _time_text(value)
    if isinstance(value, InstrumentInfo | Leg | LegPlan):
        return to_json(value)
    if kind in LISTS and isinstance(value, Sequence) and any(isinstance(one, Mapping) for one in value):
        raise Inexpressible("an object in JSON is a leg itself, not something else in its place")
    if kind is LEG_PLANS and isinstance(value, Sequence) and any(isinstance(one, Leg) for one in value):
        raise Inexpressible("an object in JSON is a planned leg itself, not something else in its place")
    if kind in LISTS and isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain_json(one) if not isinstance(one, Leg | LegPlan) else to_json(one) for one in value]
    return plain_json(value)


def json_forms(value: Any) -> Iterator[Any]:
    """Yield the objects of a value that is a `JsonForm`, or a list of some."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, JsonForm):
            yield {
                name: _number_text(part) if isinstance(part, Decimal) else plain_json(part)
                for name, part in one.items()
            }


def _number_text(value: Decimal) -> str:
    """Return the number as the client writes it; with an exponent where it would have very many digits."""
    return decimal_text(value) if value.is_finite() and abs(value.adjusted()) < 100 else str(value)


def _time_text(value: datetime) -> str:
    try:
        return time_text(value)
    except OverflowError:
        return value.isoformat()  # a time before the year 1, or after 9999, in UTC


def plain_json(value: Any) -> Any:
    """Return a value with the type that JSON has for it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise Inexpressible("a name in JSON is text")
        return {str.__str__(name): plain_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_json(one) for one in value]
    raise Inexpressible(f"JSON has no {type(value).__name__}")


def body_of(verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    declared = {one.name: one for one in COMMANDS[verb].arguments}
    return {name: _json_of(declared[name], value) for name, value in arguments.items()}


# --- HTTP -----------------------------------------------------------------------------------------------------------


def path_part(value: Any) -> str:
    """Return a value as one part of a path. Raises `Inexpressible`."""
    if not isinstance(value, str):
        raise Inexpressible("a path is text")
    text = str.__str__(value)
    if not text or "/" in text or text in (".", ".."):
        raise Inexpressible("an empty part, a slash or dots make another path")
    return quote(text, safe="")


def headers(key: Any) -> dict[str, bytes | str]:
    if not isinstance(key, str):
        raise Inexpressible("a header is text")
    if not key or key != key.strip() or not key.isprintable():
        raise Inexpressible("a header has no control characters and no blanks at its ends, and an empty one is none")
    return {"Idempotency-Key": str.__str__(key).encode(), "Content-Type": "application/json"}  # type: ignore[dict-item]


def encoded(body: Any) -> bytes:
    try:
        return json.dumps(body).encode()
    except ValueError:
        raise Inexpressible("no JSON encoder writes this") from None


# --- command line ---------------------------------------------------------------------------------------------------


_POSITIONAL: dict[str, tuple[str, ...]] = {"set_cap": ("portfolio", "cap"), "reserve": ()}


def command_line_of(verb: str, arguments: Mapping[str, Any]) -> list[str]:
    given = {one.name: (one, arguments[one.name]) for one in COMMANDS[verb].arguments if one.name in arguments}
    positional = _POSITIONAL.get(verb, ("position_id",))
    words = ["caps", "set"] if verb == "set_cap" else [verb.replace("_", "-")]
    beside = {"guarantee", "max_position_usd", "share_of_equity"}
    if verb == "set_cap" and arguments.get("cap", 0) is None and not beside & {*arguments}:
        words, positional = ["caps", "remove"], ("portfolio",)
        del given["cap"]
    options = [word for name, (one, value) in given.items() if name not in positional for word in _option(one, value)]
    places = [_word(*given[name]) for name in positional if name in given]
    return [*words, *options, "--", *places]


def _option(argument: DeclaredArgument, value: Any) -> list[str]:
    """Return the option that gives this value; with `=`, so that the value may begin with a dash."""
    flag = f"--{argument.name.replace('_', '-')}"
    if value is None:
        return _none(argument, flag)
    if argument.kind is FLAG:
        if not isinstance(value, bool) or (not value and argument.default is not False):
            raise Inexpressible("a flag is given, or left out, which is its default")
        return [flag] if value else []
    if argument.kind in (TAGS, DETAILS):
        if not isinstance(value, Mapping):
            raise Inexpressible("a tag and a detail on the command line are two texts")
        if not value and (argument.optional or argument.required):
            raise Inexpressible("without an option it is left out, not empty")
        option = "--tag" if argument.kind is TAGS else "--detail"
        return [f"{option}={name}={one}" for name, one in text_pairs(value, several=argument.kind is TAGS)]
    if forms := [*json_forms(value)]:
        if any(None in form.values() for form in forms):
            raise Inexpressible("the command line reads null as left out, as in rules that ccxt prints")
        return [f"{'--leg' if argument.kind in LISTS else flag}={json.dumps(form)}" for form in forms]
    if argument.kind in LISTS:
        of = Leg if argument.kind is LEGS else LegPlan
        if not isinstance(value, Sequence) or not value or not all(isinstance(leg, of) for leg in value):
            raise Inexpressible("every --leg is a leg, and without one nothing is given")
        return [f"--leg={json.dumps(_without_nulls(to_json(leg)))}" for leg in value]
    return [f"{flag}={_word(argument, value)}"]


def _none(argument: DeclaredArgument, flag: str) -> list[str]:
    if argument.default is NOT_GIVEN:
        return [f"{flag}=none"]
    if argument.required or not argument.optional:
        raise Inexpressible("an option that is left out has no value None, but its default")
    return []


def text_pairs(value: Mapping[Any, Any], *, several: bool = True) -> Iterator[tuple[str, str]]:
    """Yield every name of tags with each of its values."""
    for name, one in value.items():
        if several and isinstance(one, list | tuple | set | frozenset) and not one:
            raise Inexpressible("an option that is not given names no tag")
        texts = one if several and isinstance(one, list | tuple | set | frozenset) else [one]
        if not all(isinstance(text, str) for text in (name, *texts)):
            raise Inexpressible("a tag and a detail on the command line are two texts")
        yield from ((str.__str__(name), str.__str__(text)) for text in texts)


def _without_nulls(form: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_nulls(one) if isinstance(one, dict) else one for name, one in form.items() if one is not None
    }


def _word(argument: DeclaredArgument, value: Any) -> str:
    """Return a value as one word."""
    if value is None and argument.default is NOT_GIVEN:
        return "none"
    if isinstance(value, InstrumentInfo):
        return json.dumps(_without_nulls(to_json(value)))
    if argument.kind is MOMENT and isinstance(value, datetime):
        return value.isoformat()
    if argument.kind is SECONDS and isinstance(value, float):
        return repr(value)
    number = _is_number(argument) or argument.kind is SECONDS
    if number and isinstance(value, Decimal | int) and not isinstance(value, bool):
        return _digits(value)
    if isinstance(value, str) and not number and argument.kind is not MOMENT:
        return str.__str__(value)
    raise Inexpressible(f"on a command line everything is text; a {type(value).__name__} has the text of another value")


def _digits(value: Decimal | int) -> str:
    try:
        return str(value)
    except ValueError:
        raise Inexpressible("Python writes no whole number of so many digits") from None
