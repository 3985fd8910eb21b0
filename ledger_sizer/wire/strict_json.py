"""Bytes to JSON, strictly: what two readers could understand differently is refused.

Python's parser lets a repeated name win silently, reads NaN, and follows nesting until the stack ends; a request that
moves money may do none of that.
"""

import json
import re
from typing import Any

from ledger_sizer.model.errors import InvalidRequest

DEPTH_MAX = 16
"""Deepest nesting of arrays and objects that is read."""

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS = bytes(code for code in range(256) if code not in b"[]{}")


def read_json(body: bytes) -> Any:
    """The JSON value in `body`.

    Raises `InvalidRequest` for text that is not UTF-8 or not JSON, a name given twice in one object, NaN and
    infinities, and nesting deeper than `DEPTH_MAX`.
    """
    if body.count(b"{") + body.count(b"[") > DEPTH_MAX:
        _require_flat(body)
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
    """The JSON object in `body`; an empty body is the empty object."""
    value = read_json(body) if body.strip() else {}
    if type(value) is not dict:
        raise InvalidRequest(f"the body must be a JSON object, got {_kind(value)}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidRequest(f"the name {twice[:100]!r} is given twice in one object", field=twice[:100])
    return found


def _no_constant(text: str) -> Any:
    raise InvalidRequest(f"{text} is not a number; decimals are finite and written as strings")


_decode = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant).decode


def _require_flat(body: bytes) -> None:
    """Refuse deep nesting before anything recurses into it: peel the innermost pairs off, one level a round."""
    brackets = _STRING.sub(b"", body).translate(None, _NOT_BRACKETS)
    for _ in range(DEPTH_MAX):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not brackets:
            return
    raise InvalidRequest(f"the body is nested deeper than {DEPTH_MAX} levels, or its brackets do not match")


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
