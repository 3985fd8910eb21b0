"""Details of a remark: names and texts beside its note, such as the settings in force at a start."""

import re
from collections.abc import Mapping

from ledger_sizer.model.arguments import Kind, encode_sorted, label_text
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.tags import FrozenMapping

DETAILS_MAX = 64
DETAIL_LENGTH_MAX = 300
DETAIL_NAME = r"[a-z][a-z0-9_.]{0,63}"

_NAME = re.compile(DETAIL_NAME)


class Details(FrozenMapping[str]):
    """The details of a remark."""

    __slots__ = ()


def is_detail_name(name: object) -> bool:
    """Return True if `name` may name a detail."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def details_of(value: object, field: str = "details") -> Details:
    """Validate details: 1 to 64 names of lower case letters, digits, `_` and `.`, each with 1 to 300 characters."""
    if type(value) is Details:
        return value
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{field} must be a mapping of names to texts, got {value!r:.100}", field=field)
    if not 1 <= len(value) <= DETAILS_MAX:
        raise InvalidRequest(f"1 to {DETAILS_MAX} {field}, got {len(value)}", field=field)
    plain: dict[str, str] = {}
    for name, text in value.items():
        if not is_detail_name(name):
            raise InvalidRequest(
                f"a name in {field} must have 1 to 64 lower case letters, digits, '_' or '.', got {name!r:.100}",
                field=field,
            )
        plain[str.__str__(name)] = label_text(text, f"{field}.{name}", length_max=DETAIL_LENGTH_MAX)
    values = dict(sorted(plain.items()))
    return Details(values, encode_sorted(values))


DETAILS = Kind(
    name="details", check=details_of, text=lambda details: details.text, to_json=dict, metavar="NAME=VALUE"
)  # fmt: skip
