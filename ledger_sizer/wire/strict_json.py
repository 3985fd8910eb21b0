"""Parses JSON strictly: refuses whatever two parsers could read differently.

Python's parser keeps the last of two equal names, accepts NaN, and recurses until the stack overflows. A request that
moves money may do none of that.
"""

import json
import re
from typing import Any

from ledger_sizer.model.errors import InvalidRequest

DEPTH_MAX = 16
"""Deepest nesting of arrays and objects that is accepted."""

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NON_BRACKETS = bytes(code for code in range(256) if code not in b"[]{}")


def read_json(body: bytes) -> Any:
    """Return the JSON value in `body`.

    Raises `InvalidRequest` for text that is not UTF-8 or not JSON, a name given twice in one object, NaN and
    infinities, and nesting deeper than `DEPTH_MAX`.
    """
    if body.count(b"{") + body.count(b"[") > DEPTH_MAX:
        _require_depth(body)
    try:
        return _decode(body.decode())
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except InvalidRequest:
        raise
    except ValueError:
        raise InvalidRequest("the body holds a number with too many digits; write decimals as strings") from None


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`; an empty body is the empty object."""
    value = read_json(body) if body.strip() else {}
    if type(value) is not dict:
        raise InvalidRequest(f"the body must be a JSON object, got {_json_type(value)}")
    return value


def _object_of_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidRequest(f"the name {twice[:100]!r} is given twice in one object", field=twice[:100])
    return found


def _refuse_constant(text: str) -> Any:
    raise InvalidRequest(f"{text} is not a number; decimals are finite and written as strings")


_decode = json.JSONDecoder(object_pairs_hook=_object_of_unique_names, parse_constant=_refuse_constant).decode


def _require_depth(body: bytes) -> None:
    """Refuse deep nesting before a parser recurses into it: strip the innermost brackets, one level per pass."""
    brackets = _STRING.sub(b"", body).translate(None, _NON_BRACKETS)
    for _ in range(DEPTH_MAX):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not brackets:
            return
    raise InvalidRequest(f"the body is nested deeper than {DEPTH_MAX} levels, or its brackets do not match")


def _json_type(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
